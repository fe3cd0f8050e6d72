//! The real binary, for what belongs to a process: its exit code, its standard input, Ctrl-C.
//!
//! Everything else of the command line is tested in-process, in the workspace's integration tests.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn ossbench() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ossbench"))
}

#[test]
fn version_and_wrong_flags_have_their_exit_codes() {
    let version = ossbench().arg("--version").output().unwrap();
    assert!(version.status.success());
    assert_eq!(
        String::from_utf8(version.stdout).unwrap().trim(),
        concat!("ossbench ", env!("CARGO_PKG_VERSION"))
    );
    let wrong = ossbench().arg("--bogus").output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    let cpu = ossbench().arg("doctor").env("OSSBENCH_CPU", "abacus").output().unwrap();
    assert_eq!(cpu.status.code(), Some(2));
    assert!(String::from_utf8(cpu.stderr).unwrap().contains("scalar"));
}

#[test]
fn chat_answers_line_by_line_and_ends_with_its_input() {
    let mut chat = ossbench()
        .args(["chat", "-m", "dummy:gpt-oss-tiny", "--max-tokens", "4"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    chat.stdin.take().unwrap().write_all(b"Hello\nAnd again\n").unwrap();
    let done = chat.wait_with_output().unwrap();
    let err = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{err}");
    assert_eq!(err.matches("first token after").count(), 2, "{err}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut plan = ossbench().args(["latency", "--help"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(plan.stdout.take());
    assert!(plan.wait().unwrap().success());
}

/// Far more work than the test waits for.
const LONG: &str = "[run]\nrepeats = 20000\nrounds = 10000\nwarmup = 0\n[[models]]\nid = \"dummy:gpt-oss-tiny\"\n\
    [workload]\nprompt_tokens = [160]\noutput_tokens = [32]\n";

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_is_there_and_exits_with_130() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("long.toml"), LONG).unwrap();
    let mut run = ossbench()
        .args(["run", "long.toml"])
        .current_dir(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let limit = Instant::now() + Duration::from_mins(2);
    let results = dir.path().join("results");
    while first_trial(&results).is_none() {
        assert!(Instant::now() < limit, "no trial was stored");
        assert!(run.try_wait().unwrap().is_none(), "the run ended by itself");
        std::thread::yield_now();
    }
    let kept = first_trial(&results).unwrap();
    let before = fs::read(&kept).unwrap();
    assert!(Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap().success());
    let done = run.wait_with_output().unwrap();
    let err = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(130), "{err}");
    assert!(err.contains("--resume"), "{err}");
    assert!(fs::read(&kept).unwrap() == before);
    let csv = fs::read_to_string(results.join("unified.csv")).unwrap();
    assert!(csv.contains("of 20000 requests"), "{}", csv.lines().take(3).collect::<String>());
}

/// The first finished trial of the only run below `results`.
#[cfg(unix)]
fn first_trial(results: &Path) -> Option<PathBuf> {
    let run = fs::read_dir(results.join("raw")).ok()?.next()?.ok()?.path();
    let trial = run.join("cells/gpt-oss-tiny_p160_n32_b1/round-000.jsonl");
    trial.exists().then_some(trial)
}
