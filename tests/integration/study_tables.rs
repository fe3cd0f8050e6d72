//! The study's memory, energy and efficiency tables of runs measured here: its headers, its formulas, and
//! nothing that was not measured.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

const STUDY: &str = r#"
[run]
name = "joules"
repeats = 4
rounds = 2
warmup = 0
[target]
kind = "mock"
[[models]]
id = "acme/model-1"
[workload]
prompt_tokens = [16, 32]
output_tokens = [41]
batch = [1, 2]
[mock]
ttft_us = 2000000
gap_us = 100000
"#;

/// Runs a study, beside a meter that tells 200 W if `metered`.
fn measured(dir: &Path, metered: bool) {
    let path = |name: &str| dir.join(name).display().to_string();
    fs::write(dir.join("study.toml"), STUDY).unwrap();
    let mut trace = String::from("t_s,power_w,util_gpu_pct\n");
    for i in 0..1200 {
        let _ = writeln!(trace, "{},200,75", f64::from(i) * 0.1 + 0.03);
    }
    fs::write(dir.join("power.csv"), trace).unwrap();
    let source = if metered { format!("file:{}", path("power.csv")) } else { "none".to_owned() };
    let mut args = ["ossbench", "run"].map(OsString::from).to_vec();
    args.push(path("study.toml").into());
    for (flag, value) in [
        ("--results", path("results")),
        ("--figs", path("figs")),
        ("--tables", path("tables")),
        ("--ui", "none".to_owned()),
        ("--power-source", source),
        ("--idle", if metered { "5" } else { "0" }.to_owned()),
    ] {
        args.extend([flag.into(), value.into()]);
    }
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = bench_cli::run(args, &mut out, &mut err);
    assert_eq!(code, 0, "{}", String::from_utf8_lossy(&err));
}

type Record = BTreeMap<String, String>;

/// The records of a table whose header is that of the published file, byte for byte.
fn table(dir: &Path, name: &str, published: &str) -> Vec<Record> {
    let text = fs::read_to_string(dir.join("results").join(name)).unwrap();
    assert_eq!(text.lines().next(), published.lines().next(), "{name}");
    let columns: Vec<_> = published.lines().next().unwrap().split(',').collect();
    let record = |line: &str| {
        assert_eq!(line.split(',').count(), columns.len(), "{line}");
        columns.iter().map(|c| (*c).to_owned()).zip(line.split(',').map(str::to_owned)).collect()
    };
    text.lines().skip(1).map(record).collect()
}

fn tables(dir: &Path) -> [Vec<Record>; 3] {
    [
        table(dir, "study_unified_memory.csv", include_str!("../golden/study/unified_memory.csv")),
        table(dir, "study_unified_energy.csv", include_str!("../golden/study/unified_energy.csv")),
        table(dir, "study_ape_analysis.csv", include_str!("../golden/study/ape_analysis.csv")),
    ]
}

fn number(record: &Record, column: &str) -> f64 {
    record[column].parse().unwrap_or_else(|_| panic!("{column} is {:?}", record[column]))
}

fn near(record: &Record, column: &str, expected: f64) {
    let found = number(record, column);
    assert!((found / expected - 1.0).abs() < 1e-6, "{column}: {found} instead of {expected}");
}

#[test]
fn a_metered_run_gives_the_studys_energy_table() {
    let dir = TempDir::new().unwrap();
    measured(dir.path(), true);
    let [memory, energy, ape] = tables(dir.path());
    assert!(memory.is_empty(), "a mock allocates nothing to speak of");
    assert_eq!(energy.len(), 2, "two contexts; its columns know no batch, so that of 2 is left out");
    for (row, context) in energy.iter().zip([16.0, 32.0]) {
        assert_eq!((row["model_short"].as_str(), row["model"].as_str()), ("model-1", "acme/model-1"));
        // 41 tokens in 2 s and 40 gaps of 100 ms, at 200 W.
        let rate = 41.0 / 6.0;
        for (column, expected) in [
            ("context_length", context),
            ("gen_tokens", 41.0),
            ("ttft_ms", 2000.0),
            ("ttft_joules", 400.0),
            ("decode_tokens_per_second", rate),
            ("total_tokens_per_second", (context + 41.0) / 6.0),
            ("avg_gpu_power_watts", 200.0),
            ("baseline_gpu_power_watts", 200.0),
            ("energy_per_decoded_token_joules", 1200.0 / 41.0),
            ("energy_per_1k_decoded_tokens_joules", 1_200_000.0 / 41.0),
            ("energy_per_total_token_joules", 1200.0 / (context + 41.0)),
            ("tokens_per_watt", 41.0 / 1200.0),
            ("energy_per_1k_joules", 1_200_000.0 / 41.0),
            ("TPOT_tokps", rate),
        ] {
            near(row, column, expected);
        }
        assert_eq!(row["avg_memory_utilization_percent"], "", "this meter does not tell it");
    }
    assert_eq!(ape.len(), 2);
    for row in &ape {
        assert_eq!(row["organization"], "acme");
        near(row, "tokens_per_watt", 41.0 / 1200.0);
        for unknown in ["architecture", "active_params_B", "peak_memory_GB", "tokens_per_watt_per_activeB"] {
            assert_eq!(row[unknown], "", "{unknown}");
        }
    }
}

#[test]
fn without_a_meter_the_energy_table_is_its_header() {
    let dir = TempDir::new().unwrap();
    measured(dir.path(), false);
    let [memory, energy, ape] = tables(dir.path());
    assert!(memory.is_empty() && energy.is_empty());
    assert!(ape.iter().all(|row| row["energy_per_1k_joules"].is_empty()));
    near(&ape[0], "tpot_tokps", 41.0 / 6.0);
}

#[test]
fn audit_recognises_a_runs_tables_as_the_studys() {
    let dir = TempDir::new().unwrap();
    measured(dir.path(), true);
    let tables = [
        ("study_unified_latency.csv", "study-latency"),
        ("study_unified_memory.csv", "study-memory"),
        ("study_unified_energy.csv", "study-energy"),
        ("study_ape_analysis.csv", "study-ape"),
    ];
    let mut args = ["ossbench", "audit"].map(OsString::from).to_vec();
    args.extend(tables.map(|(file, _)| dir.path().join("results").join(file).into_os_string()));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = bench_cli::run(args, &mut out, &mut err);
    let (out, err) = (String::from_utf8_lossy(&out), String::from_utf8_lossy(&err));
    assert_eq!(code, 0, "{err}");
    for (file, map) in tables {
        assert!(out.contains(&format!("{file}: {map} (")), "{file}: {out}");
    }
    // The study's own column, by its own formula: what it is not stands in the audit, also of a table from here.
    assert!(out.contains("rate-named-as-time"), "{out}");
}
