//! Efficiency per active parameter from the command line: the study's table, the presets, stored rows.

use bench_ape::{ALL_EXPERTS, study};
use bench_core::metric::Metric;
use bench_core::plan::Dtypes;
use bench_core::spec::{ActivationDtype, ExpertDtype};
use bench_engine::preset;
use bench_runner::shape::{facts, load_options};
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

const STUDY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/study");

fn ossbench(args: &[&str]) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let args = std::iter::once("ossbench").chain(args.iter().copied()).map(OsString::from);
    let code = bench_cli::run(args, &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

fn check_error(args: &[&str], code: u8, says: &[&str]) {
    let (got, out, err) = ossbench(args);
    assert_eq!(got, code, "{args:?}\n{out}\n{err}");
    for text in says {
        assert!(err.contains(text), "{args:?}: no {text:?} in {err}");
    }
}

fn near(value: &Value, expected: f64, tolerance: f64) {
    let value = value.as_f64().unwrap_or_else(|| panic!("{value}, expected {expected}"));
    assert!((value / expected - 1.0).abs() <= tolerance, "{value}, expected {expected}");
}

#[test]
fn the_studys_table_is_reproduced_and_ours_stands_beside_it() {
    let (code, out, err) = ossbench(&["ape", "--study", STUDY, "-o", "json"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let records: Vec<Value> = serde_json::from_str(&out).unwrap();
    // 12 rows of the study; five models in bf16, two of them in MXFP4 too.
    assert_eq!(records.len(), 12 + 7);
    for record in &records[..12] {
        assert!(record["study_largest_difference"].as_f64().unwrap() < 1e-9, "{record}");
    }
    // gpt-oss-20b at 2048: of its printed 8.6437 tok/s per 3.6e9, and 39.8501 tok/s over 3.608307264e9 here.
    let row = &records[3];
    near(&row["study_throughput_per_activeB_tokps_per_B"], 8.643_705_494_149_794, 1e-9);
    assert_eq!(row["active_parameters"], 3_608_307_264.0);
    near(&row["decode_tok_s"], 39.850_1, 1e-4);
    near(&row["ape_decode"], 39.850_1 / 3.608_307_264, 1e-4);
    // Four experts are 7.22 GB and 102.8 MB of keys and values less those behind the windows.
    near(&row["bytes_per_tok"], 7.27e9, 0.005);
    near(&row["bytes_per_tok_all_experts"], 40.73e9, 0.005);
    // With every expert read, the rate is in line with what the dense models of the study drew from the same
    // memory; with four it would be a sixth of that, at every context.
    for context in 0..4 {
        let gb_s = |row: usize, column: &str| records[row + context][column].as_f64().unwrap();
        assert!((1600.0..1660.0).contains(&gb_s(0, "moved_gb_s_all_experts")));
        assert!((285.0..295.0).contains(&gb_s(0, "moved_gb_s")));
        assert!((1650.0..1800.0).contains(&gb_s(4, "moved_gb_s")), "{}", gb_s(4, "moved_gb_s"));
        assert!((2050.0..2200.0).contains(&gb_s(8, "moved_gb_s")), "{}", gb_s(8, "moved_gb_s"));
    }
    let presets: Vec<_> =
        records[12..].iter().map(|r| (r["model"].as_str(), r["precision"].as_str())).collect();
    assert!(presets.contains(&(Some("gpt-oss-120b"), Some("mxfp4"))));
    assert!(presets.contains(&(Some("llama-3.1-70b"), Some("bf16"))));
    assert!(records[12..].iter().all(|r| r["study_ttft_ms"].is_null() && r["ape_decode"].is_null()));
}

#[test]
fn every_format_of_the_study_is_written_and_the_bandwidth_is_an_argument() {
    for format in ["table", "md", "csv", "json"] {
        let (code, out, err) = ossbench(&["ape", "--study", STUDY, "-o", format]);
        assert_eq!(code, 0, "{err}");
        for text in ["gpt-oss-20b", "yi-34b", "llama-3.1-70b", "study_tpot_tokps", "ape_energy"] {
            assert!(out.contains(text), "{format}: no {text} in {out}");
        }
    }
    let limit = |bandwidth: &str| {
        let args = ["ape", "--study", STUDY, "-o", "json", "--bandwidth-gb-s", bandwidth];
        let records: Vec<Value> = serde_json::from_str(&ossbench(&args).1).unwrap();
        records[13]["limit_tok_s"].as_f64().unwrap()
    };
    assert!((limit("4800") / limit("2400") - 2.0).abs() < 1e-12);
    check_error(&["ape", "--study", STUDY, "--bandwidth-gb-s", "0"], 2, &["--bandwidth-gb-s 0", "above 0"]);
    check_error(&["ape", "--study", STUDY, "-o", "latex"], 2, &["table, md, csv, json"]);
    check_error(&["ape", "--bandwidth-gb-s", "3"], 2, &["--study"]);
}

#[test]
fn bad_study_files_give_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().display().to_string();
    check_error(&["ape", "--study", &folder], 2, &["unified_latency.csv"]);
    for name in [study::LATENCY, study::ENERGY, study::MEMORY, study::APE] {
        fs::copy(Path::new(STUDY).join(name), dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join(study::ENERGY), "").unwrap();
    check_error(&["ape", "--study", &folder], 1, &["unified_energy.csv", "is empty"]);
    fs::write(dir.path().join(study::ENERGY), "model,power\na,1\n").unwrap();
    check_error(&["ape", "--study", &folder], 1, &["no column `model_short` among model, power"]);
}

#[test]
fn presets_move_what_their_layouts_say() {
    for (name, expert, active) in [
        ("gpt-oss-20b", ExpertDtype::Native, Some(3_608_307_264)),
        ("gpt-oss-20b", ExpertDtype::Bf16, Some(3_608_307_264)),
        ("gpt-oss-120b", ExpertDtype::Native, None),
        ("qwen3-32b", ExpertDtype::Native, None),
        ("yi-34b", ExpertDtype::Native, None),
        ("llama-3.1-70b", ExpertDtype::Native, None),
    ] {
        let config = preset::config(name).unwrap();
        let options =
            load_options(Dtypes { activation: ActivationDtype::Bf16, expert, ..Dtypes::default() }, None);
        let facts = facts(&config, &options);
        assert!(active.is_none_or(|a| a == facts.active_parameters));
        // One step after a prompt of 1 attends to two positions. Two ways to the same bytes: parts and shares
        // here, a walk over the tensors in the engine.
        let moved = study::limits(&facts, 1, 2, 1e12).value(Metric::BytesPerToken, None).unwrap();
        let walked = bench_engine::layout::decode_read_bytes(&config, options.stored());
        let expected = (walked + 2 * facts.kv_bytes_per_token) as f64;
        assert!((moved / expected - 1.0).abs() < 1e-12, "{name}: {moved}, expected {expected}");
        let all = study::limits(&facts, 1, 2, 1e12).value(Metric::BytesPerToken, Some(ALL_EXPERTS));
        assert_eq!(all.is_some(), config.moe.is_some(), "{name}");
    }
}

#[test]
fn stored_rows_are_shown_by_cell_and_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let results = dir.path().display().to_string();
    check_error(&["ape", "--results", &results], 2, &["unified.csv is not there", "ossbench analyze"]);
    let row = |metric: Metric, scope: &str, prompt_tokens: u32, value: f64| bench_core::row::Row {
        run_id: "run".to_owned(),
        target: "engine".to_owned(),
        model: "nano".to_owned(),
        prompt_tokens,
        output_tokens: 8,
        batch: 1,
        load: "batch".to_owned(),
        concurrency: None,
        request_rate: None,
        metric: metric.def().key,
        scope: scope.to_owned(),
        unit: metric.def().unit,
        stat: "value".to_owned(),
        value: Some(value),
        ci_low: None,
        ci_high: None,
        instrument_error: None,
        ci_method: None,
        n: 20,
        missing: 0,
        missing_reason: String::new(),
        bounded: None,
        success_rate: Some(1.0),
        token_source: "token_ids",
        verdict: "VALID",
        verdict_reason: String::new(),
        client_verdict: String::new(),
        schema_version: bench_core::SCHEMA_VERSION,
    };
    let path = dir.path().join("unified.csv");
    let other = [row(Metric::WeightsBytes, "", 16, 1.0)];
    bench_report::unified::write(&path, &other).unwrap();
    check_error(&["ape", "--results", &results], 1, &["no rows of efficiency"]);
    let rows = [
        row(Metric::ApeDecode, "", 16, 125.0),
        row(Metric::ApeEnergy, "gpu_board", 16, 2.5),
        row(Metric::ApeDecode, "", 64, 100.0),
        row(Metric::WeightsBytes, "", 64, 1.0),
    ];
    bench_report::unified::write(&path, &rows).unwrap();
    let (code, out, err) = ossbench(&["ape", "--results", &results]);
    assert_eq!(code, 0, "{err}");
    let lines: Vec<Vec<&str>> = out.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines[0][5..], ["ape_decode", "ape_energy", "gpu_board"], "{out}");
    assert_eq!(lines[1], ["nano", "16", "8", "1", "batch", "125.0", "2.500"], "{out}");
    assert_eq!(lines[2], ["nano", "64", "8", "1", "batch", "100.0", "-"], "{out}");
    let (_, csv, _) = ossbench(&["ape", "--results", &results, "-o", "csv"]);
    assert_eq!(csv.lines().count(), 4);
    assert!(csv.contains("run,nano,16,8,1,batch,,,ape_energy,gpu_board,tok/J/B,2.5,,,20,,VALID"), "{csv}");
}

#[test]
fn bandwidth_is_measured_and_told() {
    let (code, out, err) = ossbench(&["bandwidth", "--threads", "1", "--json"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let b: bench_core::shape::Bandwidth = serde_json::from_str(&out).unwrap();
    assert_eq!((b.device.as_str(), b.threads), ("cpu", Some(1)));
    assert!(b.bytes >= 64 << 20 && b.copy_bytes_s > 0.0);
    assert!(b.read_min_bytes_s <= b.read_bytes_s && b.read_bytes_s <= b.read_max_bytes_s);
    check_error(&["bandwidth", "--threads", "0"], 2, &["--threads 0"]);
}
