//! The command line as a user meets it, in-process: exit codes, streams, and what errors say.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// Exit code, standard output, standard error.
type Ran = (u8, String, String);

fn ossbench(args: &[&str]) -> Ran {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let args = std::iter::once("ossbench").chain(args.iter().copied()).map(OsString::from);
    let code = bench_cli::run(args, &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// Runs `command` with every path inside `dir`.
fn in_dir(dir: &Path, command: &[&str]) -> Ran {
    let path = |name: &str| dir.join(name).display().to_string();
    let (results, figs, tables) = (path("results"), path("figs"), path("tables"));
    let mut args = command.to_vec();
    args.extend(["--results", &results, "--figs", &figs, "--tables", &tables]);
    ossbench(&args)
}

const MOCK: &str = r#"
[run]
name = "mock"
repeats = 20
[target]
kind = "mock"
[[models]]
id = "a"
[[models]]
id = "b"
[workload]
prompt_tokens = [16, 64]
output_tokens = [8]
[mock]
ttft_us = 5000
gap_us = 1000
"#;

fn mock_study(dir: &TempDir) -> String {
    let path = dir.path().join("mock.toml");
    fs::write(&path, MOCK).unwrap();
    path.display().to_string()
}

fn check_error(args: &[&str], code: u8, says: &[&str]) {
    let (got, out, err) = ossbench(args);
    assert_eq!(got, code, "{args:?}\n{out}\n{err}");
    for text in says {
        assert!(err.contains(text), "{args:?}: no {text:?} in {err}");
    }
}

#[test]
fn wrong_use_exits_with_2_and_says_what_is_valid() {
    let dir = TempDir::new().unwrap();
    let bad = dir.path().join("bad.toml");
    fs::write(&bad, "[run]\nrepeat = 3\n").unwrap();
    let bad = bad.display().to_string();
    check_error(&["plan", &bad], 2, &["bad.toml", "unknown field `repeat`", "`repeats`"]);
    check_error(&["plan", "missing.toml"], 2, &["missing.toml", "bench-configs/"]);
    check_error(&["run", &bad, "--bogus"], 2, &["--bogus"]);
    check_error(&["frobnicate"], 2, &["frobnicate"]);
    check_error(&["latency", "-m", "a", "-p", "0", "--target", "mock"], 2, &["workload.prompt_tokens"]);
    check_error(&["latency", "-m", "a", "--target", "server"], 2, &["engine, mock, null"]);
    check_error(&["generate", "-m", "dummy:gpt-oss-tiny", ""], 2, &["empty"]);
}

#[test]
fn help_is_an_answer() {
    let (code, out, err) = ossbench(&["--help"]);
    assert_eq!((code, err.as_str()), (0, ""));
    for command in
        ["plan", "run", "analyze", "report", "latency", "doctor", "synth", "generate", "chat", "logits"]
    {
        assert!(out.contains(command), "{command} in {out}");
    }
}

#[test]
fn unknown_models_list_the_valid_ones() {
    check_error(
        &["generate", "-m", "dummy:gpt-oss-21b", "hi"],
        1,
        &["gpt-oss-21b", "gpt-oss-20b", "dense-nano"],
    );
    check_error(&["synth", "nano", "x"], 1, &["gpt-oss-nano"]);
    check_error(&["generate", "-m", "./nowhere", "hi"], 1, &["nowhere"]);
}

#[test]
fn plan_prints_cells_in_the_order_of_the_run() {
    let dir = TempDir::new().unwrap();
    let (code, out, _) = ossbench(&["plan", &mock_study(&dir)]);
    assert_eq!(code, 0);
    assert!(out.contains("4 cells, 8 trials"), "{out}");
    assert_eq!(out.lines().filter(|l| l.contains("_p16_n8_b1")).count(), 4, "{out}");
    let (_, json, _) = ossbench(&["plan", "--json", &mock_study(&dir)]);
    let plan: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(plan["trials"].as_array().unwrap().len(), 8);
}

#[test]
fn a_plan_says_where_all_experts_are_computed_and_a_server_refuses_it() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("study.toml");
    let study = "[[models]]\nid = \"dummy:gpt-oss-tiny\"\n\
                 [[models]]\nid = \"dummy:gpt-oss-tiny\"\nexpert_mode = \"dense-all\"\n";
    fs::write(&file, study).unwrap();
    let path = file.display().to_string();
    let (code, out, err) = ossbench(&["plan", &path]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("model   gpt-oss-tiny = dummy:gpt-oss-tiny\n"), "{out}");
    let all = "gpt-oss-tiny-dense-all = dummy:gpt-oss-tiny, all experts computed (ablation)\n";
    assert!(out.contains(all), "{out}");
    fs::write(
        &file,
        format!("{study}[target]\nkind = \"http\"\n[server]\nbase_url = \"http://127.0.0.1:1\"\n"),
    )
    .unwrap();
    check_error(&["plan", &path], 2, &["`models.expert_mode`", "dense-all", "engine"]);
    check_error(
        &["generate", "-m", "dummy:gpt-oss-tiny", "--expert-mode", "all", "x"],
        2,
        &["routed, dense-all"],
    );
    let dense = ["fit", "dummy:dense-tiny", "--expert-mode", "dense-all", "--memory", "1GiB"];
    check_error(&dense, 1, &["dense-all", "has no experts", "--expert-mode routed"]);
}

#[test]
fn a_mock_study_goes_from_config_to_exact_tables() {
    let dir = TempDir::new().unwrap();
    let (code, out, err) = in_dir(dir.path(), &["run", &mock_study(&dir)]);
    assert_eq!(code, 0, "{out}\n{err}");
    assert!(out.contains("unified.csv"), "{out}");
    let csv = fs::read_to_string(dir.path().join("results/unified.csv")).unwrap();
    let header: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
    let expected: Vec<&str> = bench_core::row::COLUMNS.iter().map(|c| c.0).collect();
    assert_eq!(header, expected);
    let field = |metric: &str, stat: &str, column: &str| {
        let at = |column: &str| header.iter().position(|c| *c == column).unwrap();
        let mut lines = csv.lines().map(|l| l.split(',').collect::<Vec<_>>());
        let found = lines.find(|l| l[at("metric")] == metric && l[at("stat")] == stat);
        found.unwrap_or_else(|| panic!("no {metric} {stat}"))[at(column)]
    };
    assert_eq!((field("ttft_ms", "p50", "value"), field("tpot_ms", "p50", "value")), ("5.0", "1.0"));
    assert_eq!((field("ttft_ms", "p50", "n"), field("ttft_ms", "p50", "verdict")), ("20", "VALID"));
    assert_eq!(field("ttft_ms", "p99", "value"), "", "20 samples do not support p99");
}

#[test]
fn report_rebuilds_the_same_bytes_from_raw() {
    let dir = TempDir::new().unwrap();
    assert_eq!(in_dir(dir.path(), &["run", &mock_study(&dir)]).0, 0);
    let before = bytes_below(dir.path());
    for folder in ["figs", "tables"] {
        fs::remove_dir_all(dir.path().join(folder)).unwrap();
    }
    fs::remove_file(dir.path().join("results/unified.csv")).unwrap();
    let (code, _, err) = in_dir(dir.path(), &["report"]);
    assert_eq!(code, 0, "{err}");
    assert_eq!(bytes_below(dir.path()), before);
}

#[test]
fn a_resumed_run_reports_what_an_uninterrupted_one_does() {
    let (whole, cut) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    assert_eq!(in_dir(whole.path(), &["run", &mock_study(&whole)]).0, 0);
    let study = mock_study(&cut);
    assert_eq!(in_dir(cut.path(), &["run", &study]).0, 0);
    // What a kill leaves: some trials whole, one begun under its temporary name.
    let raw = bytes_below(&cut.path().join("results/raw"));
    let trials: Vec<_> = raw.iter().filter(|(path, _)| path.ends_with("round-001.jsonl")).collect();
    assert_eq!(trials.len(), 4);
    for (path, bytes) in &trials {
        fs::remove_file(path).unwrap();
        let begun = Path::new(path).with_file_name(".round-001.jsonl.tmp");
        fs::write(begun, &bytes[..bytes.len() / 2]).unwrap();
    }
    let (code, _, err) = in_dir(cut.path(), &["run", &study, "--resume"]);
    assert_eq!(code, 0, "{err}");
    for (path, bytes) in raw.iter().filter(|(path, _)| path.ends_with("round-000.jsonl")) {
        assert!(&fs::read(path).unwrap() == bytes, "{path} was touched");
    }
    for name in ["unified.csv", "wide_latency.csv", "study_unified_latency.csv"] {
        assert_eq!(without_run_id(&whole, name), without_run_id(&cut, name), "{name}");
    }
}

/// A CSV of `dir` with the run's id left out: it holds the time of day.
fn without_run_id(dir: &TempDir, name: &str) -> String {
    let raw = fs::read_dir(dir.path().join("results/raw")).unwrap().next().unwrap().unwrap();
    let run_id = raw.file_name().to_string_lossy().into_owned();
    fs::read_to_string(dir.path().join("results").join(name)).unwrap().replace(&run_id, "RUN")
}

#[test]
fn report_without_results_says_how_to_make_some() {
    let dir = TempDir::new().unwrap();
    let (code, _, err) = in_dir(dir.path(), &["report"]);
    assert_eq!(code, 1);
    assert!(err.contains("quickstart.toml") && err.contains("--results"), "{err}");
}

#[test]
fn a_changed_plan_is_refused_on_resume() {
    let dir = TempDir::new().unwrap();
    let study = mock_study(&dir);
    assert_eq!(in_dir(dir.path(), &["run", &study]).0, 0);
    fs::write(&study, MOCK.replace("repeats = 20", "repeats = 30")).unwrap();
    let before = bytes_below(&dir.path().join("results/raw"));
    let (code, _, err) = in_dir(dir.path(), &["run", &study, "--resume"]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("repeats"), "{err}");
    assert_eq!(bytes_below(&dir.path().join("results/raw")), before);
}

#[test]
fn results_that_cannot_be_written_are_said_before_anything_runs() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("results"), "a file").unwrap();
    let (code, _, err) = in_dir(dir.path(), &["run", &mock_study(&dir)]);
    assert_eq!(code, 1);
    assert!(err.contains("results"), "{err}");
}

#[test]
fn a_model_that_cannot_be_loaded_leaves_the_others_alone() {
    let dir = TempDir::new().unwrap();
    let args =
        ["latency", "-m", "dummy:gpt-oss-tiny,./nowhere", "-p", "160", "-n", "4", "-r", "2", "-o", "csv"];
    let (code, out, err) = in_dir(dir.path(), &args);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("nowhere"), "{err}");
    let csv = fs::read_to_string(dir.path().join("results/unified.csv")).unwrap();
    assert!(csv.lines().any(|l| l.contains("gpt-oss-tiny") && l.contains(",VALID,")), "{out}");
    assert!(csv.lines().any(|l| l.contains(",nowhere,") && l.contains(",INVALID,")), "{csv}");
}

#[test]
fn latency_runs_dummy_models_without_a_config() {
    let dir = TempDir::new().unwrap();
    let args = [
        "latency",
        "-m",
        "dummy:gpt-oss-tiny,dummy:dense-tiny",
        "-p",
        "160,192",
        "-n",
        "4",
        "-r",
        "3",
        "-b",
        "1,2",
        "-o",
        "md",
    ];
    let (code, out, err) = in_dir(dir.path(), &args);
    assert_eq!(code, 0, "{err}");
    assert!(out.lines().filter(|l| l.contains("-tiny")).count() >= 8, "{out}");
}

#[test]
fn generate_streams_and_ends() {
    let args = ["generate", "-m", "dummy:gpt-oss-tiny", "Say something.", "--max-tokens", "8"];
    let (code, _, err) = ossbench(&args);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("prompt tokens, first token after"), "{err}");
    let args = ["generate", "-m", "dummy:dense-tiny", "Say something.", "--max-tokens", "8", "--plain"];
    let (code, out, err) = ossbench(&args);
    assert_eq!(code, 0, "{err}");
    assert!(!out.is_empty() && err.contains("tok/s"), "{err}");
}

#[test]
fn a_token_that_does_not_come_in_time_is_a_reason_not_a_hang() {
    let args = ["generate", "-m", "dummy:gpt-oss-tiny", "Hello", "--max-tokens", "8", "--token-timeout", "0"];
    check_error(&args, 1, &["no token for 0 s", "--token-timeout"]);
}

#[test]
fn logits_of_a_golden_checkpoint_equal_the_reference() {
    let dir = TempDir::new().unwrap();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/golden");
    let expected = fs::read(format!("{golden}/goldens/gpt-oss-tiny/p9.safetensors")).unwrap();
    let expected = safetensors::SafeTensors::deserialize(&expected).unwrap();
    let ids: Vec<String> = i64s(&expected, "ids.prompt").iter().map(ToString::to_string).collect();
    let out = dir.path().join("out.safetensors").display().to_string();
    let model = format!("{golden}/gpt-oss-tiny");
    let ids = ids.join(",");
    let args = [
        "logits",
        "-m",
        &model,
        "--ids",
        &ids,
        "--greedy",
        "24",
        "--sites",
        "resid_post.0,router.1",
        "-o",
        &out,
    ];
    let (code, printed, err) = ossbench(&args);
    assert_eq!(code, 0, "{err}");
    assert!(printed.contains("logits.steps F32 [25, 512]"), "{printed}");
    let bytes = fs::read(&out).unwrap();
    let got = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(i64s(&got, "ids.greedy"), i64s(&expected, "ids.greedy"));
    let mut largest = 0f32;
    for (ours, theirs) in [
        ("logits.steps", "logits.steps"),
        ("resid_post.0", "hidden.layer0"),
        ("decode.resid_post.0", "decode.hidden.layer0"),
        ("router.1", "router.logits.layer1"),
    ] {
        let (a, b) = (f32s(&got, ours), f32s(&expected, theirs));
        assert_eq!(a.len(), b.len(), "{ours}");
        largest = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(largest, f32::max);
    }
    println!("logits command against the reference: largest difference {largest:e}");
    assert!(largest < 5e-4);
}

fn i64s(file: &safetensors::SafeTensors<'_>, name: &str) -> Vec<i64> {
    let data = file.tensor(name).unwrap().data().to_vec();
    data.chunks_exact(8).map(|c| i64::from_le_bytes(c.try_into().unwrap())).collect()
}

fn f32s(file: &safetensors::SafeTensors<'_>, name: &str) -> Vec<f32> {
    let data = file.tensor(name).unwrap().data().to_vec();
    data.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()
}

/// Every file below `dir` with its content, in order of path.
fn bytes_below(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                files.push((path.display().to_string(), fs::read(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}
