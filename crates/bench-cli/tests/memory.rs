//! Memory of the nano models as the real binary measures it, each cell in a process of its own: the cache against
//! theory, its slope, the rings of sliding layers, and parts that add up to the peaks.

#![allow(clippy::unwrap_used)]

use bench_core::memory::MemoryTrace;
use bench_core::metric::Metric;
use bench_core::row::Row;
use bench_runner::store::{RunFolder, list_runs};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

// Harmony alone takes 80 tokens of a prompt.
const CONTEXTS: [u32; 4] = [112, 160, 300, 520];
const OUTPUT: u32 = 16;

fn measured(dir: &Path) -> Vec<Row> {
    let contexts = CONTEXTS.map(|c| c.to_string()).join(",");
    let output = OUTPUT.to_string();
    let ran = Command::new(env!("CARGO_BIN_EXE_ossbench"))
        .current_dir(dir)
        .args(["memory", "-m", "dummy:gpt-oss-nano,dummy:dense-nano", "-c", &contexts, "-n", &output])
        .args(["-r", "2", "--power-source", "none", "--ui", "none"])
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    bench_report::unified::read(&dir.join("results/unified.csv")).unwrap()
}

/// The row of one figure in the cell of `model` with a context of so many tokens.
fn row<'a>(rows: &'a [Row], model: &str, context: u32, metric: Metric, scope: &str, stat: &str) -> &'a Row {
    let is = |r: &&Row| {
        (r.model.as_str(), r.prompt_tokens + r.output_tokens) == (model, context)
            && (r.metric, r.scope.as_str(), r.stat.as_str()) == (metric.def().key, scope, stat)
    };
    rows.iter().find(is).unwrap_or_else(|| panic!("{model} {context} {} {scope} {stat}", metric.def().key))
}

fn value(rows: &[Row], model: &str, context: u32, metric: Metric, stat: &str) -> f64 {
    row(rows, model, context, metric, "", stat).value.unwrap()
}

#[test]
fn the_cache_is_what_theory_says_and_parts_add_up_to_the_peaks() {
    let dir = tempfile::tempdir().unwrap();
    let rows = measured(dir.path());
    assert!(rows.iter().all(|r| r.verdict == "VALID"));
    for model in ["gpt-oss-nano", "dense-nano"] {
        for context in CONTEXTS {
            let of = |metric, stat| value(&rows, model, context, metric, stat);
            let (retained, theory) = (of(Metric::KvRetained, "p50"), of(Metric::KvTheory, "value"));
            assert!((retained / theory - 1.0).abs() < 0.01, "{model} {context}: {retained} against {theory}");
            let allocator = row(&rows, model, context, Metric::PeakBytes, "allocator", "max").value.unwrap();
            let process = row(&rows, model, context, Metric::PeakBytes, "process", "max").value.unwrap();
            assert!(process > allocator, "{model} {context}: the process holds more than its heap");
        }
        let slope = row(&rows, model, CONTEXTS[0], Metric::KvPerToken, "", "value");
        let theory = value(&rows, model, CONTEXTS[0], Metric::KvPerTokenTheory, "value");
        let (low, high) = (slope.ci_low.unwrap(), slope.ci_high.unwrap());
        // An exact line has an interval without width, but for rounding.
        let rounding = theory * 1e-9;
        assert!(
            low - rounding <= theory && theory <= high + rounding,
            "{model}: {theory} in {low} .. {high}"
        );
    }
    // Half of gpt-oss-nano's layers keep 128 positions: its cache falls behind one without windows.
    let ring = |c| {
        let full = value(&rows, "gpt-oss-nano", c, Metric::KvFull, "value");
        value(&rows, "gpt-oss-nano", c, Metric::KvRetained, "p50") / full
    };
    assert!(
        ring(CONTEXTS[0]) > 0.99 && ring(CONTEXTS[3]) < 0.65,
        "{} {}",
        ring(CONTEXTS[0]),
        ring(CONTEXTS[3])
    );
    peaks_add_up(dir.path(), &rows);
    the_studys_tables_follow(dir.path());
}

/// Columns by name of each line of a table; its fields hold no line breaks.
fn table(path: &Path, published: &str) -> Vec<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(text.lines().next(), published.lines().next());
    let fields = |line: &str| {
        let (mut fields, mut quoted) = (vec![String::new()], false);
        for c in line.chars() {
            match c {
                '"' => quoted = !quoted,
                ',' if !quoted => fields.push(String::new()),
                c => fields.last_mut().unwrap().push(c),
            }
        }
        fields
    };
    let columns = fields(published.lines().next().unwrap());
    let record = |line: &str| columns.iter().cloned().zip(fields(line)).collect();
    text.lines().skip(1).map(record).collect()
}

/// The study's formulas hold in its tables of this run; what was not measured is empty.
fn the_studys_tables_follow(dir: &Path) {
    let golden = |name| {
        std::fs::read_to_string(format!("{}/../../tests/golden/study/{name}", env!("CARGO_MANIFEST_DIR")))
    };
    let read = |name: &str, published| table(&dir.join("results").join(name), &golden(published).unwrap());
    let memory = read("study_unified_memory.csv", "unified_memory.csv");
    let ape = read("study_ape_analysis.csv", "ape_analysis.csv");
    assert_eq!((memory.len(), ape.len()), (2 * CONTEXTS.len(), 2 * CONTEXTS.len()));
    for (row, ape) in memory.iter().zip(&ape) {
        let of = |column: &str| row[column].parse::<f64>().unwrap_or_else(|_| panic!("{column}: {row:?}"));
        let same = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-9, "{a} {b} in {row:?}");
        let (tokens, peak) = (of("total_tokens"), of("peak_alloc_mb"));
        same(tokens, of("context_length") + of("gen_tokens"));
        same(of("generate_delta_alloc_mb"), of("after_generate_alloc_mb") - of("after_tokenize_alloc_mb"));
        same(of("kv_cache_alloc_mb"), peak - of("after_tokenize_alloc_mb"));
        same(of("memory_per_token_alloc_mb"), of("kv_cache_alloc_mb") / tokens);
        same(of("memory_efficiency"), tokens / peak);
        same(of("peak_memory_mb"), peak);
        for unknown in
            ["baseline_alloc_mb", "peak_reserved_mb", "total_gpu_memory_mb", "util_peak_percent_alloc"]
        {
            assert_eq!(row[unknown], "", "{unknown}");
        }
        let of = |column: &str| ape[column].parse::<f64>().unwrap_or_else(|_| panic!("{column}: {ape:?}"));
        assert_eq!((&ape["model_id"], &ape["context_length"]), (&row["model_short"], &row["context_length"]));
        let experts = ape["model_id"] == "gpt-oss-nano";
        assert_eq!(ape["architecture"], if experts { "MoE" } else { "Dense" });
        assert_eq!((ape["organization"].as_str(), ape["energy_per_1k_joules"].as_str()), ("", ""));
        same(of("peak_memory_GB"), peak / 1024.0);
        same(of("throughput_per_activeB_tokps_per_B"), of("tpot_tokps") / of("active_params_B"));
        same(of("inv_ttft_per_activeB_tokps_per_B"), 1000.0 / of("ttft_ms") / of("active_params_B"));
        same(of("tokens_per_GB_tokps_per_GB"), of("tpot_tokps") / of("peak_memory_GB"));
        assert!(of("active_params_B") < of("total_params_B"));
    }
}

/// What was there before, the cache of theory and the activations of preflight's formula are the peak of the prefill
/// and, since the engine keeps what it works in, of the decode. Within 2 %.
fn peaks_add_up(dir: &Path, rows: &[Row]) {
    let runs = list_runs(&dir.join("results")).unwrap();
    let folder = RunFolder::open(&runs[0]).unwrap();
    for trial in folder.read_trials().unwrap() {
        let cell = folder.plan().cell(&trial.cell).unwrap();
        let context = cell.prompt_tokens + cell.output_tokens;
        let theory = value(rows, &cell.model, context, Metric::KvTheory, "value");
        let config = bench_engine::preset::config(&cell.model).unwrap();
        let need = bench_engine::preflight::Need {
            context_tokens: cell.prompt_tokens as usize,
            batch: 1,
            prefill_chunk: 512,
            mapped: false,
            matmul_precision: bench_engine::MatmulPrecision::Int16,
            ..bench_engine::preflight::Need::of(&bench_engine::LoadOptions::default())
        };
        let activations = bench_engine::preflight::parts(&config, &need, 0).activation_bytes as f64;
        assert_eq!(trial.memory.len(), 2);
        for memory in &trial.memory {
            let [before, prefill, decode] = peaks(memory);
            let (of_prefill, of_decode) =
                ((before + theory + activations) / prefill, (before + theory + activations) / decode);
            let told = format!("{}: {of_prefill:.4} of the prefill, {of_decode:.4} of the decode", cell.id);
            assert!((of_prefill - 1.0).abs() < 0.02 && (of_decode - 1.0).abs() < 0.02, "{told}");
        }
    }
}

/// Bytes before the prefill, and the peaks of prefill and decode.
fn peaks(memory: &MemoryTrace) -> [f64; 3] {
    assert!(memory.own_process);
    let (before, first, held) = (memory.before.unwrap(), memory.first_token.unwrap(), memory.held.unwrap());
    [before.live_bytes, first.peak_bytes, held.peak_bytes].map(|bytes| bytes as f64)
}
