//! A process for each trial, with the real binary: the same results as without, and no process is left
//! behind.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const MODELS: &str = "[[models]]\nid = \"dummy:gpt-oss-tiny\"\n[[models]]\nid = \"dummy:dense-tiny\"\n";
/// Trials of seconds: what happens to them happens long before their ends.
const LONG: &str = "[run]\nname = \"t\"\nrepeats = 600\nrounds = 1\nwarmup = 0\nisolate = true\n\
    [workload]\nprompt_tokens = [160]\noutput_tokens = [32]\n";

fn ossbench(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ossbench"));
    command.args(args).current_dir(dir).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn study(spec: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("t.toml"), format!("{spec}{MODELS}")).unwrap();
    dir
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The lines of all trial files, by cell and file name.
fn trials(dir: &Path) -> BTreeMap<String, Vec<Value>> {
    let run = fs::read_dir(dir.join("results/raw")).unwrap().next().unwrap().unwrap().path();
    let mut found = BTreeMap::new();
    for cell in fs::read_dir(run.join("cells")).unwrap().map(|c| c.unwrap().path()) {
        for file in fs::read_dir(&cell).unwrap().map(|f| f.unwrap().path()) {
            let lines = fs::read_to_string(&file).unwrap();
            let lines = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
            let name = |p: &Path| p.file_name().unwrap().to_string_lossy().into_owned();
            found.insert(format!("{}/{}", name(&cell), name(&file)), lines);
        }
    }
    found
}

/// What does not depend on time: kind of line, repeat, slot, prompt, tokens, memory of the cache.
fn essence(lines: &[Value]) -> Vec<String> {
    let one = |line: &Value| {
        let (kind, body) = line.as_object().unwrap().iter().next().unwrap();
        let tokens = body["events"].as_array()?.iter().find(|e| e["kind"] == "counted")?;
        let (prompt, output) = (&tokens["prompt_tokens"], &tokens["output_tokens"]);
        let (repeat, slot, hash) = (&body["repeat"], &body["slot"], &body["prompt_hash"]);
        Some(format!("{kind} {repeat}.{slot} {hash} {prompt}+{output} {}", body["kv_allocated_bytes"]))
    };
    lines.iter().filter_map(one).collect()
}

#[test]
fn a_study_in_processes_of_its_own_has_the_same_requests_and_verdicts() {
    let mut seen = Vec::new();
    for isolate in [false, true] {
        let dir = study(&format!(
            "[run]\nname = \"t\"\nrepeats = 4\nrounds = 2\nwarmup = 1\nisolate = {isolate}\n\
             [workload]\nprompt_tokens = [160]\noutput_tokens = [3, 8]\nbatch = [1, 2]\n"
        ));
        let run = ossbench(dir.path(), &["run", "t.toml"]).output().unwrap();
        let err = text(&run.stderr);
        assert!(run.status.success() && !err.contains("warning"), "{err}");
        assert!(!text(&run.stdout).contains("INVALID"), "{}", text(&run.stdout));
        let trials = trials(dir.path());
        assert_eq!(trials.len(), 2 * 2 * 2 * 2);
        seen.push(trials.into_iter().map(|(n, lines)| (n, essence(&lines))).collect::<BTreeMap<_, _>>());
        let plan = text(&ossbench(dir.path(), &["plan", "t.toml"]).output().unwrap().stdout);
        assert_eq!(plan.contains("one for each trial"), isolate, "{plan}");
    }
    assert!(seen[0].values().all(|requests| requests.len() >= 3), "{:?}", seen[0]);
    assert_eq!(seen[0], seen[1]);
}

/// State and parent of a process, `None` if there is none.
fn state(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut rest = stat[stat.rfind(')')? + 1..].split_whitespace();
    Some((rest.next()?.chars().next()?, rest.next()?.parse().ok()?))
}

fn alive(pid: u32) -> bool {
    state(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

fn children(parent: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| alive(*pid) && state(*pid).is_some_and(|s| s.1 == parent)).collect()
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let limit = Instant::now() + Duration::from_mins(1);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < limit, "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The process of the trial that has begun, and the folder of its cell.
fn inside_a_trial(run: &mut Child, dir: &Path) -> (u32, PathBuf) {
    wait_for("a trial", || {
        assert!(run.try_wait().unwrap().is_none(), "the run ended by itself");
        let folder = fs::read_dir(dir.join("results/raw")).ok()?.next()?.ok()?.path();
        let cells = fs::read_dir(folder.join("cells")).ok()?;
        let begun = |cell: &PathBuf| fs::read_dir(cell).is_ok_and(|mut files| files.next().is_some());
        let cell = cells.filter_map(|c| Some(c.ok()?.path())).find(begun)?;
        Some((*children(run.id()).first()?, cell))
    })
}

fn kill(signal: &str, pid: &str) {
    assert!(Command::new("kill").args([signal, "--", pid]).status().unwrap().success());
}

fn finish(run: Child) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = run.wait_with_output().unwrap();
    (status.code(), text(&stderr))
}

#[test]
fn a_process_that_is_killed_fails_its_trial_alone() {
    let dir = study(&LONG.replace("repeats = 600", "repeats = 150"));
    let mut run = ossbench(dir.path(), &["run", "t.toml"]).spawn().unwrap();
    let (process, cell) = inside_a_trial(&mut run, dir.path());
    kill("-9", &process.to_string());
    let (code, err) = finish(run);
    let cell = cell.file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(code, Some(0), "{err}");
    let told =
        format!("cell {cell} failed: the process of this trial was killed by signal 9 (out of memory?)");
    assert!(err.contains(&told), "{err}");
    for (name, lines) in trials(dir.path()) {
        let footer = &lines.last().unwrap()["footer"];
        assert_eq!(footer["complete"], true, "{name}");
        let requests: Vec<_> = lines.iter().filter(|l| l.get("request").is_some()).collect();
        assert_eq!(requests.len(), 150, "{name}");
        let lost = requests.iter().filter(|r| r.to_string().contains("signal 9")).count();
        assert_eq!(lost > 0, name.starts_with(&cell), "{name}: {lost} requests were lost");
    }
}

#[test]
fn a_process_ends_with_a_run_that_is_killed() {
    let dir = study(LONG);
    let mut run = ossbench(dir.path(), &["run", "t.toml"]).spawn().unwrap();
    let (process, _) = inside_a_trial(&mut run, dir.path());
    run.kill().unwrap();
    run.wait().unwrap();
    wait_for("the end of the orphan", || (!alive(process)).then_some(()));
}

/// As from a terminal, to both; and to the run alone, as from a view that has the keyboard.
#[test]
fn ctrl_c_keeps_what_is_there_and_the_run_can_go_on() {
    for whole_group in [true, false] {
        let dir = study(&LONG.replace("repeats = 600", "repeats = 80"));
        let mut run = ossbench(dir.path(), &["run", "t.toml"]).process_group(0).spawn().unwrap();
        let (process, _) = inside_a_trial(&mut run, dir.path());
        let id = run.id();
        kill("-INT", &if whole_group { format!("-{id}") } else { id.to_string() });
        let (code, err) = finish(run);
        assert_eq!(code, Some(130), "{err}");
        assert!(err.contains("--resume") && !err.contains("failed"), "{err}");
        assert!(!alive(process));
        let before = trials(dir.path());
        assert!(before.values().all(|lines| lines.last().unwrap()["footer"]["complete"] == false));
        let resumed = ossbench(dir.path(), &["run", "t.toml", "--resume"]).output().unwrap();
        assert!(resumed.status.success(), "{}", text(&resumed.stderr));
        let done = trials(dir.path()).into_iter().filter(|(name, _)| !name.contains("partial"));
        let done: Vec<_> =
            done.map(|(_, lines)| lines.last().unwrap()["footer"]["complete"].clone()).collect();
        assert_eq!(done, [true, true]);
    }
}
