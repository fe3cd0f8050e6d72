//! `ossbench bench-kernels`: tiny runs whose table and JSON agree, and what is refused.

#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::ffi::OsString;

fn ossbench(args: &[&str]) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let args = ["ossbench", "bench-kernels"].iter().chain(args).map(OsString::from);
    let code = bench_cli::run(args, &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[test]
fn kernels_are_told_and_stored_beside_the_roofs_of_the_machine() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kernels.json").display().to_string();
    let tiny =
        ["-m", "gpt-oss-tiny", "-t", "1", "--seconds-per-kernel", "0", "--filter", "m=1", "--json", &path];
    let (code, out, err) = ossbench(&tiny);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    let json: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!((&json["threads"], &json["model"]), (&1.into(), &"gpt-oss-tiny".into()));
    assert!(json["machine"]["cores"].as_u64().unwrap() > 0 && json["build"]["version"].is_string());
    assert!(json["kernel_variant"].is_string() && json["pinned"] == false);
    for rate in [&json["read_bytes_s"], &json["copy_bytes_s"], &json["peaks"][0]["ops_s"]] {
        let at = |key: &str| rate[key].as_f64().unwrap();
        assert!(
            0.0 < at("slowest") && at("slowest") <= at("median") && at("median") <= at("fastest"),
            "{rate}"
        );
    }
    let kernels = json["kernels"].as_array().unwrap();
    assert!(kernels.len() > 5);
    for kernel in kernels {
        let name = kernel["name"].as_str().unwrap();
        let line = out.lines().find(|l| l.split_whitespace().next() == Some(name)).unwrap();
        if kernel["error"].is_string() {
            assert!(line.contains("not measured"), "{line}");
            continue;
        }
        let at = |key: &str| kernel[key].as_f64().unwrap();
        assert!(0.0 < at("fastest_ms") && at("fastest_ms") <= at("median_ms"), "{kernel}");
        assert!(at("median_ms") <= at("slowest_ms") && at("repeats") >= 3.0, "{kernel}");
        assert!(at("ops_s") > 0.0 && at("ops_s").is_finite(), "{kernel}");
        if kernel["limit"].is_string() {
            assert!(at("of_limit") > 0.0 && at("of_limit").is_finite(), "{kernel}");
            assert!(line.contains(&format!("of {}", kernel["limit"].as_str().unwrap())), "{line}");
        }
    }
    let measured = kernels.iter().find(|k| k["name"] == "product/bf16/f32/m=1").unwrap();
    assert!(measured["of_limit"].is_f64() && measured["bytes_s"].as_f64().unwrap() > 0.0, "{measured}");
}

#[test]
fn wrong_arguments_name_what_is_valid() {
    let refused = |args: &[&str], says: &[&str]| {
        let (code, out, err) = ossbench(args);
        assert_eq!((code, out.as_str()), (2, ""), "{err}");
        assert!(says.iter().all(|s| err.contains(s)), "{err}");
    };
    refused(
        &["--filter", "no such kernel"],
        &["no such kernel", "product/mxfp4/int8/m=1", "attention/decode"],
    );
    refused(&["--model", "gpt-9"], &["gpt-9", "gpt-oss-20b", "qwen3-32b"]);
    refused(&["--threads", "0"], &["--threads 0", "at least 1"]);
    refused(&["--seconds-per-kernel=-1"], &["--seconds-per-kernel"]);
}
