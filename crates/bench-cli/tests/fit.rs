//! `ossbench fit` with the real binary: what it predicts against what its attempts take, and what it refuses.

#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::process::{Command, Output};

fn ossbench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ossbench")).args(args).output().unwrap()
}

fn json(args: &[&str]) -> Value {
    let output = ossbench(args);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{err}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Exit code and standard error.
fn refused(args: &[&str]) -> (Option<i32>, String) {
    let output = ossbench(args);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// What `fit` says that the largest batch takes, against the median peak of three processes that run it: those of
/// one shape differ by up to 4 %, with what the system's allocator holds back.
#[cfg(target_os = "linux")]
fn check_total(model: &str, memory: &str, context: &str, more: &[&str]) {
    let fit = json(&[&["fit", model, "--memory", memory, "--context", context, "--json"], more].concat());
    let predicted = &fit["max_batch"];
    let batch = predicted["batch"].as_u64().unwrap().to_string();
    let chunk = fit["prefill_chunk"].as_u64().unwrap().to_string();
    let shape = ["--context", context, "--batch", &batch, "--prefill-chunk", &chunk];
    let dtypes: Vec<&str> = more.iter().copied().filter(|a| *a != "--prefill-chunk" && *a != chunk).collect();
    let attempt = || json(&[&["fit-attempt", model], &shape[..], &dtypes].concat());
    let taken = [attempt(), attempt(), attempt()];
    assert!(taken.iter().all(|t| t["kv_bytes"] == predicted["kv_bytes"]), "{model}");
    let mut peaks = taken.map(|t| t["rss_peak_bytes"].as_u64().unwrap());
    peaks.sort_unstable();
    let (predicted, peak) = (predicted["total_bytes"].as_f64().unwrap(), peaks[1] as f64);
    let deviation = predicted / peak - 1.0;
    assert!(deviation.abs() < 0.03, "{model} {more:?}: {predicted} predicted, {peak} taken, {deviation:+.4}");
}

#[cfg(target_os = "linux")]
#[test]
fn predicted_bytes_are_those_of_the_process_that_runs_it() {
    check_total("dummy:gpt-oss-nano", "110MiB", "128", &["--prefill-chunk", "64"]);
    check_total("dummy:gpt-oss-nano", "110MiB", "300", &["--activation-dtype", "bf16"]);
    check_total("dummy:dense-nano", "190MiB", "128", &["--prefill-chunk", "32"]);
    check_total("dummy:dense-nano", "230MiB", "400", &["--activation-dtype", "bf16"]);
}

#[cfg(target_os = "linux")]
#[test]
fn the_largest_batch_that_runs_is_the_predicted_one() {
    let shape = ["--memory", "120MiB", "--context", "128", "--prefill-chunk", "8", "--verify", "--json"];
    let fit = json(&[&["fit", "dummy:gpt-oss-nano"], &shape[..]].concat());
    let verified = &fit["verified"];
    assert_eq!(verified["predicted"], fit["max_batch"]["batch"]);
    let percent = |key: &str| verified[key].as_f64().unwrap().abs();
    assert!(percent("bytes_deviation_pct") < 3.0, "{verified:#}");
    // The cache is a third of the memory: 3 % of the bytes are 9 % of the batch.
    assert!(percent("deviation_pct") < 9.0, "{verified:#}");
    let (found, next) = (verified["found"].as_u64().unwrap(), verified["not_fitting"].as_u64().unwrap());
    assert!(found < next && verified["unfinished"].is_null(), "{verified:#}");
    for attempt in verified["attempts"].as_array().unwrap() {
        let fits = attempt["rss_peak_bytes"].as_u64().unwrap() <= 120 << 20;
        assert_eq!(attempt["fits"].as_bool(), Some(fits), "{attempt}");
    }
}

#[test]
fn what_cannot_be_answered_says_why() {
    let nano = "dummy:gpt-oss-nano";
    for (args, code, said) in [
        (vec!["dummy:gpt-oss-pico"], 1, "expected one of gpt-oss-20b"),
        (vec!["no model"], 1, "no model"),
        (vec![nano, "--memory", "12"], 2, "e.g. 24GiB"),
        (vec![nano, "--memory=-4GiB"], 2, "no memory of a machine"),
        (vec![nano, "--memory", "0MiB"], 2, "no memory of a machine"),
        (vec![nano, "--context", "0"], 2, "--context"),
        (vec![nano, "--context", "131073"], 2, "max_position_embeddings"),
        (vec![nano, "--layers", "9"], 1, "layers"),
        (vec![nano, "--memory", "64MiB"], 3, "59.7 MiB weights"),
        (vec![nano, "--memory", "900TB", "--verify"], 3, "available here"),
        (vec!["dummy:gpt-oss-20b", "--memory", "8GiB"], 3, "GiB weights"),
    ] {
        let (exit, err) = refused(&[&["fit"], &args[..]].concat());
        assert_eq!(exit, Some(code), "{args:?}: {err}");
        assert!(err.contains(said), "{args:?}: {err}");
    }
}

#[test]
fn a_search_that_takes_too_long_says_so_and_keeps_its_prediction() {
    let output =
        ossbench(&["fit", "dummy:gpt-oss-nano", "--memory", "600MiB", "--verify", "--verify-timeout", "1"]);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1), "{out}{err}");
    assert!(out.contains("largest context") && err.contains("--verify-timeout"), "{out}{err}");
}

#[test]
fn the_context_ends_at_the_models_own_limit() {
    let fit = json(&["fit", "dummy:gpt-oss-nano", "--memory", "64GiB", "--json"]);
    assert_eq!(fit["max_context"]["context_tokens"], 131_072);
    assert_eq!(fit["max_context"]["at_limit"], true);
    assert_eq!(fit["max_batch"]["context_tokens"], 4096);
}
