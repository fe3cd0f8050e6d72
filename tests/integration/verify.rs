//! Stored results held against raw files: every changed digit is noticed, every damaged run is told and the
//! rest shown.

use bench_runner::store::check_sums;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Exit code, standard output, standard error.
type Ran = (u8, String, String);

/// Runs `command` with every path inside `dir`.
fn in_dir(dir: &Path, command: &[&str]) -> Ran {
    let path = |name: &str| dir.join(name).display().to_string();
    let (results, figs, tables) = (path("results"), path("figs"), path("paper/tables"));
    let paths = ["--results", &results, "--figs", &figs, "--tables", &tables];
    let args = std::iter::once("ossbench").chain(command.iter().copied()).chain(paths);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = bench_cli::run(args.map(OsString::from), &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

fn study(name: &str) -> String {
    format!(
        "[run]\nname = \"{name}\"\nrepeats = 6\nrounds = 2\n[target]\nkind = \"mock\"\n[[models]]\nid = \"a\"\n\
         [workload]\nprompt_tokens = [16, 64]\noutput_tokens = [8]\n[mock]\nttft_us = 5000\ngap_us = 1000\n"
    )
}

/// A folder with one finished run of each name; returns the run ids.
fn measured(dir: &Path, names: &[&str]) -> Vec<String> {
    for name in names {
        let path = dir.join(format!("{name}.toml"));
        fs::write(&path, study(name)).unwrap();
        let (code, out, err) = in_dir(dir, &["run", &path.display().to_string(), "--ui", "none"]);
        assert_eq!(code, 0, "{out}\n{err}");
    }
    let mut ids: Vec<_> = fs::read_dir(dir.join("results/raw"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    ids.sort();
    ids
}

/// Every file below `folder`, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

fn verify(dir: &Path) -> Ran {
    in_dir(dir, &["verify"])
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from} in {}", path.display());
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

fn only_trial(run: &Path, cell: &str) -> PathBuf {
    run.join("cells").join(cell).join("round-000.jsonl")
}

#[test]
fn what_was_just_written_is_equal_and_sha256sum_agrees() {
    let dir = TempDir::new().unwrap();
    let [id] = measured(dir.path(), &["one"]).try_into().unwrap();
    let (code, out, err) = verify(dir.path());
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.contains(&format!("raw   {id}: 7 files, ")) && out.ends_with("\nequal\n"), "{out}");
    assert!(!out.contains("rows  0 ") && !out.contains("files 0 "), "{out}");

    let run = dir.path().join("results/raw").join(&id);
    let sums = fs::read_to_string(run.join("SHA256SUMS")).unwrap();
    let listed: Vec<_> = sums.lines().map(|line| line.split_once("  ").unwrap().1).collect();
    assert!(listed.is_sorted(), "{sums}");
    let there = files(&run).into_iter().map(|p| p.strip_prefix(&run).unwrap().display().to_string());
    let there: Vec<_> = there.filter(|name| name != ".lock" && name != "SHA256SUMS").collect();
    assert_eq!(listed, there);
    match Command::new("sha256sum")
        .args(["--quiet", "--strict", "-c", "SHA256SUMS"])
        .current_dir(&run)
        .output()
    {
        Ok(checked) => assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout)),
        Err(_) => println!("skipped: there is no sha256sum here"),
    }
}

/// Changes one digit of a file, drawn by `rng`; returns what stood there, or `None` if it has no digit.
fn flip(path: &Path, rng: &mut impl Rng) -> Option<Vec<u8>> {
    let bytes = fs::read(path).unwrap();
    let digits: Vec<_> = (0..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
    let at = *digits.get(rng.random_range(0..digits.len().max(1)))?;
    let mut changed = bytes.clone();
    changed[at] = b'0' + (bytes[at] - b'0' + rng.random_range(1..10)) % 10;
    fs::write(path, &changed).unwrap();
    Some(bytes)
}

#[test]
fn one_changed_digit_is_noticed_anywhere_in_raw_files() {
    let dir = TempDir::new().unwrap();
    let [id] = measured(dir.path(), &["one"]).try_into().unwrap();
    let run = dir.path().join("results/raw").join(&id);
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let mut tried = 0;
    for path in files(&run).iter().cycle().take(240).filter(|p| !p.ends_with(".lock")) {
        let Some(bytes) = flip(path, &mut rng) else { continue };
        let findings = check_sums(&run).unwrap().unwrap().findings;
        let name = path.strip_prefix(&run).unwrap().display().to_string();
        let named = findings.iter().any(|finding| finding.path() == name);
        // In the list of sums it is the file that is named.
        assert!(named || (name == "SHA256SUMS" && !findings.is_empty()), "{name}: {findings:?}");
        assert!(findings.len() <= 2, "{findings:?}");
        fs::write(path, bytes).unwrap();
        tried += 1;
    }
    assert!(tried >= 200, "{tried}");
    assert_eq!(check_sums(&run).unwrap().unwrap().findings, []);
    flip(&run.join("spec.toml"), &mut rng).unwrap();
    let (code, out, _) = verify(dir.path());
    assert!(code == 3 && out.contains(&format!("raw   {id}/spec.toml: changed: SHA-256 ")), "{out}");
}

/// Every derived file at a time, so that a report is made again once for all of them.
#[test]
fn one_changed_digit_is_noticed_in_every_derived_file() {
    let dir = TempDir::new().unwrap();
    measured(dir.path(), &["one"]);
    let derived = |folder: &str| files(&dir.path().join(folder));
    let mut files: Vec<_> = ["results", "figs", "paper/tables"].into_iter().flat_map(derived).collect();
    files.retain(|p| !p.starts_with(dir.path().join("results/raw")));
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(8);
    for _ in 0..3 {
        let flipped = |path: &PathBuf| flip(path, &mut rng).map(|bytes| (path.clone(), bytes));
        let before: Vec<_> = files.iter().filter_map(flipped).collect();
        assert!(before.len() > 12, "{files:?}");
        let (code, out, _) = in_dir(dir.path(), &["verify", "-o", "json"]);
        assert_eq!(code, 3);
        let told: serde_json::Value = serde_json::from_str(&out).unwrap();
        let findings = told["findings"].as_array().unwrap();
        for (path, bytes) in before {
            let name = path.display().to_string();
            assert!(findings.iter().any(|f| f["kind"] == "file" && f["path"] == name), "{name} in {out}");
            fs::write(&path, bytes).unwrap();
        }
        assert!(findings.iter().any(|f| f["kind"] == "row" || f["problem"] == "unreadable"), "{out}");
    }
    assert_eq!(verify(dir.path()).0, 0, "all is as it was");
}

#[test]
fn a_figure_is_named_with_what_is_stored_and_what_raw_files_give() {
    let dir = TempDir::new().unwrap();
    let [id] = measured(dir.path(), &["one"]).try_into().unwrap();
    let csv = dir.path().join("results/unified.csv");
    let row = format!("{id},mock,a,64,8,1,batch,,,ttft_ms,,ms,p50,");
    edit(&csv, &format!("{row}5.0,"), &format!("{row}5.1,"));
    let (code, out, err) = verify(dir.path());
    assert_eq!(code, 3);
    let says = format!("row   {id}: a p64 n8 b1: ttft_ms p50: value is \"5.1\", recomputed \"5.0\"");
    assert!(out.contains(&says), "{out}");
    assert!(out.contains("unified.csv: line ") && out.ends_with("not equal\n"), "{out}");
    assert_eq!(err, "ossbench: 2 findings\n");

    let text = fs::read_to_string(&csv).unwrap();
    let kept: Vec<_> = text.lines().filter(|line| !line.starts_with(&row)).collect();
    fs::write(&csv, kept.join("\n") + "\n").unwrap();
    let (_, out, _) = verify(dir.path());
    assert!(out.contains("a p64 n8 b1: ttft_ms p50: missing in unified.csv"), "{out}");
    fs::write(&csv, text + &format!("{row}9.0,,,,,12,0,,false,1.0,token_ids,VALID,,,3\n")).unwrap();
    let (_, out, _) = verify(dir.path());
    assert!(out.contains("ttft_ms p50: in unified.csv, but raw files do not give it"), "{out}");

    let (code, out, _) = in_dir(dir.path(), &["verify", "-o", "json"]);
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &told["equal"]), (3, &false.into()));
    assert_eq!(told["runs"][0]["run_id"], id.as_str());
    let findings = told["findings"].as_array().unwrap();
    assert!(
        findings.iter().any(|f| f["kind"] == "row" && f["problem"] == "extra" && f["metric"] == "ttft_ms"),
        "{out}"
    );
    assert!(
        findings.iter().any(|f| f["kind"] == "row" && f["stored"] == "5.1" && f["column"] == "value"),
        "{out}"
    );
}

#[test]
fn files_that_are_gone_or_new_are_named_and_others_left_alone() {
    let dir = TempDir::new().unwrap();
    let [a, b] = measured(dir.path(), &["one", "two"]).try_into().unwrap();
    let raw = |id: &str| dir.path().join("results/raw").join(id);
    fs::write(dir.path().join("results/notes.txt"), "mine").unwrap();
    fs::write(dir.path().join("figs/own.svg"), "mine").unwrap();
    assert_eq!(verify(dir.path()).0, 0, "what is not derived is left alone");

    fs::write(raw(&a).join("cells/extra.jsonl"), "1").unwrap();
    fs::remove_file(raw(&a).join("spec.toml")).unwrap();
    fs::remove_file(dir.path().join("results/wide_latency.csv")).unwrap();
    let (code, out, _) = verify(dir.path());
    assert_eq!(code, 3);
    assert!(out.contains(&format!("raw   {a}/cells/extra.jsonl: not listed in SHA256SUMS")), "{out}");
    assert!(out.contains(&format!("raw   {a}/spec.toml: missing: it is listed")), "{out}");
    assert!(out.contains("wide_latency.csv: missing: `ossbench report` writes it"), "{out}");

    in_dir(dir.path(), &["report"]);
    let (code, out, _) = in_dir(dir.path(), &["verify", &b]);
    assert_eq!(code, 0, "only the other run is damaged\n{out}");
    let path = raw(&a).display().to_string();
    assert_eq!(in_dir(dir.path(), &["verify", &b, &path]).0, 3, "a run may be named by its folder");
    let (code, _, err) = in_dir(dir.path(), &["verify", "none"]);
    assert!(code == 1 && err.contains(&a) && err.contains("no run \"none\""), "{code} {err}");
    let empty = TempDir::new().unwrap();
    let (code, _, err) = verify(empty.path());
    assert!(code == 1 && err.contains("no run in "), "{code} {err}");
}

#[test]
fn a_run_of_a_version_without_sums_is_checked_but_for_its_raw_files() {
    let dir = TempDir::new().unwrap();
    let [id] = measured(dir.path(), &["one"]).try_into().unwrap();
    let run = dir.path().join("results/raw").join(&id);
    fs::remove_file(run.join("SHA256SUMS")).unwrap();
    let (code, out, _) = verify(dir.path());
    assert!(code == 0 && out.contains("raw files cannot be checked"), "{out}");
    edit(&dir.path().join("results/unified.csv"), ",p50,", ",p51,");
    assert_eq!(verify(dir.path()).0, 3);
}

#[test]
fn a_report_made_twice_has_the_same_bytes_in_every_file() {
    let dir = TempDir::new().unwrap();
    measured(dir.path(), &["one", "two"]);
    let derived = |root: &Path| -> BTreeMap<PathBuf, Vec<u8>> {
        let all = ["results", "figs", "paper/tables"].into_iter().flat_map(|f| files(&root.join(f)));
        let all = all.filter(|p| !p.starts_with(root.join("results/raw")));
        all.map(|p| (p.strip_prefix(root).unwrap().to_owned(), fs::read(&p).unwrap())).collect()
    };
    let report = || assert_eq!(in_dir(dir.path(), &["report"]).0, 0);
    report();
    let first = derived(dir.path());
    for file in first.keys() {
        fs::remove_file(dir.path().join(file)).unwrap();
    }
    report();
    let second = derived(dir.path());
    assert!(first.len() > 10, "{:?}", first.keys());
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&first), names(&second));
    let differing: Vec<_> =
        first.iter().filter(|(name, bytes)| second[*name] != **bytes).map(|f| f.0).collect();
    assert!(differing.is_empty(), "{differing:?}");
}

/// What is done to the folder of a run.
type Damage<'a> = &'a dyn Fn(&Path);

#[test]
fn a_damaged_run_is_left_out_with_a_reason_and_the_others_are_shown() {
    let version = format!("\"schema_version\": {}", bench_core::SCHEMA_VERSION);
    let header = version.replace(' ', "");
    let old = format!("schema version 1, expected {}: measure again", bench_core::SCHEMA_VERSION);
    let plan = |run: &Path| run.join("plan.json");
    let trial = |run: &Path| only_trial(run, "a_p16_n8_b1");
    let cases: [(&str, Damage<'_>, &[&str]); 5] = [
        (
            "old",
            &|run| edit(&plan(run), &version, "\"schema_version\": 1"),
            &["plan.json", &old, "that wrote it"],
        ),
        (
            "trace",
            &|run| edit(&trial(run), &header, "\"schema_version\":1"),
            &["round-000.jsonl, line 1", &old],
        ),
        (
            "cut",
            &|run| {
                let bytes = fs::read(trial(run)).unwrap();
                fs::write(trial(run), &bytes[..bytes.len() / 2]).unwrap();
            },
            &["round-000.jsonl, line ", "cut or edited"],
        ),
        ("planless", &|run| fs::remove_file(plan(run)).unwrap(), &["not a run folder", "no plan.json"]),
        ("noise", &|run| fs::write(run.join("provenance.json"), b"\xff\x00{").unwrap(), &["provenance.json"]),
    ];
    let dir = TempDir::new().unwrap();
    let names: Vec<_> = cases.iter().map(|case| case.0).chain(["whole"]).collect();
    let ids = measured(dir.path(), &names);
    let id_of = |name: &str| ids.iter().find(|id| id.starts_with(&format!("{name}-"))).unwrap();
    for (name, damage, _) in cases {
        damage(&dir.path().join("results/raw").join(id_of(name)));
    }
    for command in ["analyze", "report"] {
        let (code, out, err) = in_dir(dir.path(), &[command]);
        assert_eq!(code, 0, "{out}\n{err}");
        let unified = fs::read_to_string(dir.path().join("results/unified.csv")).unwrap();
        assert!(unified.contains(id_of("whole").as_str()));
        for (name, _, says) in cases {
            let id = id_of(name);
            let line = err.lines().find(|l| l.contains(id.as_str()) && l.contains("is left out: "));
            let line = line.unwrap_or_else(|| panic!("{id} in {err}"));
            assert!(says.iter().all(|text| line.contains(text)), "{says:?} in {line}");
            assert!(!unified.contains(id.as_str()), "{id}");
        }
    }
    let (code, out, _) = verify(dir.path());
    assert_eq!(code, 3);
    for (name, _, says) in cases {
        let line = out.lines().find(|l| l.starts_with(&format!("run   {}: ", id_of(name)))).unwrap();
        assert!(line.contains("cannot be computed") && says.iter().all(|text| line.contains(text)), "{line}");
    }
    assert!(!out.contains(&format!("run   {}", id_of("whole"))), "{out}");
}

#[test]
fn a_run_with_half_of_its_cells_invalid_shows_both_halves() {
    let dir = TempDir::new().unwrap();
    let [id] = measured(dir.path(), &["half"]).try_into().unwrap();
    let cell = dir.path().join("results/raw").join(&id).join("cells/a_p64_n8_b1");
    fs::remove_dir_all(&cell).unwrap();
    let (code, _, err) = in_dir(dir.path(), &["report"]);
    assert_eq!(code, 0, "{err}");
    let wide = fs::read_to_string(dir.path().join("results/wide_latency.csv")).unwrap();
    let line = |prompt: &str| wide.lines().find(|l| l.contains(&format!(",a,{prompt},8,"))).unwrap();
    assert!(line("16").contains(",VALID,") && line("16").contains(",5.0,"), "{wide}");
    assert!(line("64").contains(",INVALID,"), "{wide}");
    let (code, out, _) = verify(dir.path());
    assert!(code == 3 && out.matches("missing: it is listed").count() == 2, "{out}");
}

#[test]
fn a_table_of_an_older_version_is_told_once() {
    let dir = TempDir::new().unwrap();
    measured(dir.path(), &["one"]);
    let path = dir.path().join("results/unified.csv");
    let text = fs::read_to_string(&path).unwrap();
    let now = format!(",{}\n", bench_core::SCHEMA_VERSION);
    fs::write(&path, text.replace(&now, ",1\n")).unwrap();
    let (code, out, _) = verify(dir.path());
    let says = format!("its rows are of schema version 1, expected {}", bench_core::SCHEMA_VERSION);
    assert!(code == 3 && out.contains(&says) && out.contains("`ossbench report`"), "{out}");
    assert!(!out.contains("row   "), "{out}");
    fs::write(&path, text.replace("missing_reason", "why")).unwrap();
    let (_, out, _) = verify(dir.path());
    assert!(out.contains("its columns are run_id,") && out.contains("; expected run_id,"), "{out}");
}
