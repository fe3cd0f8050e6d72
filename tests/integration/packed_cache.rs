//! Quantized weights that are kept between starts, as a user meets them: what is said, what is stored, and that answers
//! are the same.
//!
//! Each command is a process of its own, which is this program again, with the variables that say where things are
//! kept.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::checkpoint::golden;

const CHILD: &str = "OSSBENCH_TEST_PACKED_CACHE_ARGUMENTS";

/// Exit code and both streams of a command in the folder `dir`, with a cache in it that is used `when`.
fn ossbench(dir: &Path, when: &str, args: &[&str]) -> (i32, String) {
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "packed_cache::child_that_runs_a_command", "--nocapture"])
        .current_dir(dir)
        .env(CHILD, args.join("\n"))
        .env("OSSBENCH_CACHE", dir.join("cache"))
        .env("OSSBENCH_PACKED_CACHE", when)
        .output()
        .unwrap();
    let streams = [ended.stdout, ended.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (ended.status.code().unwrap(), streams.concat())
}

/// Does nothing unless it is started by [`ossbench`].
#[test]
fn child_that_runs_a_command() {
    let Ok(args) = std::env::var(CHILD) else { return };
    let args = std::iter::once("ossbench").chain(args.lines()).map(OsString::from);
    let code = bench_cli::run(args, &mut std::io::stdout(), &mut std::io::stderr());
    std::process::exit(code.into());
}

#[test]
fn a_second_start_reads_the_weights_and_computes_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let model = golden("gpt-oss-tiny").display().to_string();
    let args = ["logits", "-m", &model, "--ids", "1,2,3,400", "--greedy", "4", "--dense-dtype", "q8_0", "-o"];
    let kept = dir.path().join("cache/packed");
    let mut all = Vec::new();
    for (when, out, says) in [
        ("off", "a", None),
        ("auto", "b", None),
        ("always", "c", Some("note: 17 of 17 matrices quantized to q8_0 in ")),
        ("auto", "d", Some("note: 17 of 17 matrices in q8_0 from gpt-oss-tiny-")),
        ("off", "e", None),
    ] {
        let (code, text) = ossbench(dir.path(), when, &[&args[..], &[out]].concat());
        assert_eq!(code, 0, "{text}");
        assert_eq!(text.contains("note: "), says.is_some(), "{when}: {text}");
        assert!(says.is_none_or(|says| text.contains(says)), "{when}: {text}");
        assert_eq!(kept.exists(), out > "b", "{when}");
        all.push(fs::read(dir.path().join(out)).unwrap());
    }
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "logits differ");
}

#[test]
fn a_run_stores_how_its_weights_came_about() {
    let dir = tempfile::tempdir().unwrap();
    let model = golden("gpt-oss-tiny").display().to_string();
    let args =
        ["latency", "-m", &model, "-p", "130", "-n", "2", "-r", "1", "--ui", "none", "--dense-dtype", "q8_0"];
    let mut told = Vec::new();
    for name in ["first", "second"] {
        let (code, text) = ossbench(dir.path(), "always", &[&args[..], &["--results", name]].concat());
        assert_eq!(code, 0, "{text}");
        let [run] = bench_runner::store::list_runs(&dir.path().join(name)).unwrap().try_into().unwrap();
        let provenance = bench_runner::RunFolder::open(&run).unwrap().provenance().clone();
        let [(label, ways)] = Vec::from_iter(provenance.loads).try_into().unwrap();
        assert_eq!(label, "gpt-oss-tiny");
        told.extend(ways);
    }
    let [first, second] = told.try_into().unwrap();
    assert!(first.starts_with("17 of 17 matrices quantized to q8_0 in "), "{first}");
    assert!(second.starts_with("17 of 17 matrices in q8_0 from gpt-oss-tiny-"), "{second}");
    // Where on this machine is nobody's matter.
    assert!(!first.contains('/') && !second.contains('/'), "{first} {second}");
}

#[test]
fn an_unknown_word_in_the_variable_is_wrong_use() {
    let dir = tempfile::tempdir().unwrap();
    let (code, text) = ossbench(dir.path(), "no", &["doctor"]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("OSSBENCH_PACKED_CACHE: is \"no\", expected auto, always or off"), "{text}");
}
