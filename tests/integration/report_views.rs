//! The tables beside latency: memory, energy by scope, efficiency; each only where there is something to show.

use bench_core::SCHEMA_VERSION;
use bench_core::metric::Metric;
use bench_core::row::Row;
use bench_report::{Format, ReportInputs, ReportPaths, RunInput, rebuild, render};
use std::fs;

fn row(metric: Metric, scope: &str, stat: &str, value: Option<(f64, Option<f64>)>) -> Row {
    let def = metric.def();
    Row {
        run_id: "demo-20260102T030405Z-0123abcd".into(),
        target: "engine".into(),
        model: "m".into(),
        prompt_tokens: 128,
        output_tokens: 64,
        batch: 1,
        load: "batch".into(),
        concurrency: None,
        request_rate: None,
        metric: def.key,
        scope: scope.into(),
        unit: def.unit,
        stat: stat.into(),
        value: value.map(|v| v.0),
        ci_low: value.and_then(|v| v.1.map(|w| v.0 - w)),
        ci_high: value.and_then(|v| v.1.map(|w| v.0 + w)),
        instrument_error: None,
        ci_method: None,
        n: 10,
        missing: 0,
        missing_reason: String::new(),
        bounded: None,
        success_rate: Some(1.0),
        token_source: "token_ids",
        verdict: "VALID",
        verdict_reason: String::new(),
        client_verdict: String::new(),
        schema_version: SCHEMA_VERSION,
    }
}

fn run(rows: Vec<Row>) -> RunInput {
    RunInput {
        run_id: "demo-20260102T030405Z-0123abcd".into(),
        study_name: "demo".into(),
        machine: "Example".into(),
        plan_hash: "0123abcd".into(),
        rows,
        ..RunInput::default()
    }
}

fn measured() -> RunInput {
    run(vec![
        row(Metric::Ttft, "", "p50", Some((20.0, Some(1.0)))),
        row(Metric::KvRetained, "", "p50", Some((3.0 * 1_048_576.0, None))),
        row(Metric::KvTheory, "", "value", Some((3.0 * 1_048_576.0, None))),
        row(Metric::PeakBytes, "process", "max", Some((512.0 * 1_048_576.0, None))),
        row(Metric::PeakBytes, "allocator", "max", Some((400.0 * 1_048_576.0, None))),
        row(Metric::JoulesPerToken, "gpu_board", "mean", Some((2.5, Some(0.25)))),
        row(Metric::JoulesPerToken, "cpu_package", "mean", Some((0.5, Some(0.05)))),
        row(Metric::IdlePower, "gpu_board", "value", Some((70.0, None))),
        row(Metric::ActiveParameters, "", "value", Some((3_608_307_264.0, None))),
        row(Metric::ApeEnergy, "gpu_board", "value", Some((0.11, Some(0.01)))),
        row(Metric::RooflineRatio, "", "value", Some((0.5, Some(0.02)))),
    ])
}

#[test]
fn what_was_measured_beside_latency_has_tables_of_its_own() {
    insta::assert_snapshot!(render(Format::Table, &measured()).unwrap(), @r#"
    Model  Prompt  Output  Batch   n  Success               TTFT
            (tok)   (tok)                 (%)           p50 (ms)
    m         128      64      1  10      100  20.0 [19.0, 21.0]

    Memory
    Model  Prompt  Output  Batch   n  KV cache retained   KV cache in        Peak memory
            (tok)   (tok)                     p50 (MiB)  theory (MiB)  process max (MiB)
    m         128      64      1  10              3.000         3.000              512.0

    Energy
    Model  Prompt  Output  Batch        Scope   n  Energy per output token       Idle
            (tok)   (tok)                                     mean (J/tok)  power (W)
    m         128      64      1  cpu_package  10        0.50 [0.45, 0.55]
    m         128      64      1    gpu_board  10        2.50 [2.25, 2.75]      70.00

    Efficiency per active parameter
    Model  Prompt  Output  Batch  n                Active  Tokens per joule per active              Roofline
            (tok)   (tok)            parameters (million)          parameter (tok/J/B)                 ratio
    m         128      64      1                     3608         0.110 [0.100, 0.120]  0.500 [0.480, 0.520]
    "#);
    let json: serde_json::Value = serde_json::from_str(&render(Format::Json, &measured()).unwrap()).unwrap();
    assert_eq!(json[0]["memory"]["peak_process_max_bytes"], 512.0 * 1_048_576.0);
    assert_eq!(json[0]["energy"]["gpu_board"]["j_per_tok_mean_ci_high"], 2.75);
    assert_eq!(json[0]["efficiency"]["ape_energy"], 0.11);
}

#[test]
fn every_view_has_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let files = rebuild(
        &ReportInputs { runs: vec![measured()], ..ReportInputs::default() },
        &ReportPaths::under(folder.path()),
    )
    .unwrap();
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let energy = read("results/wide_energy.csv");
    assert_eq!(energy.lines().count(), 3, "a row for each scope\n{energy}");
    assert!(energy.starts_with("run_id,") && energy.contains(",scope,j_per_tok_mean,"), "{energy}");
    assert_eq!(read("results/wide_efficiency.csv").lines().count(), 2);
    let names: Vec<_> =
        files.tables.iter().map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect();
    let views = ["demo_latency.tex", "demo_memory.tex", "demo_energy.tex", "demo_efficiency.tex"];
    assert_eq!(names[..4], views);
    assert_eq!(names[4..], ["demo_numbers.tex", "definitions.tex", "constants.tex"]);
    assert!(read("paper/tables/demo_energy.tex").contains("\\label{tab:demo-energy}"));
    let figures: Vec<_> =
        files.figures.iter().map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect();
    let expected = ["ttft", "decode_rate", "kv", "memory"]
        .iter()
        .flat_map(|name| ["svg", "png", "pdf"].map(|kind| format!("demo_{name}.{kind}")));
    assert_eq!(figures, expected.collect::<Vec<_>>());
    assert!(read("figs/demo_kv.svg").contains("KV cache (MiB), median"));
}

#[test]
fn a_run_of_latency_alone_shows_latency_alone() {
    let alone = run(vec![row(Metric::Ttft, "", "p50", Some((20.0, Some(1.0))))]);
    assert_eq!(render(Format::Table, &alone).unwrap().lines().count(), 3);
    let json: serde_json::Value = serde_json::from_str(&render(Format::Json, &alone).unwrap()).unwrap();
    assert!(json[0].get("energy").is_none() && json[0].get("memory").is_none(), "{json}");
}
