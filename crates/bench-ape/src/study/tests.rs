//! The study's own files in, its table out; and what is said of files that are not them.

use super::*;
use crate::ALL_EXPERTS;
use bench_core::shape::{ModelShape, Part, WeightShape};

const FILES: Files<'_> = Files {
    latency: include_str!("../../../../tests/golden/study/unified_latency.csv"),
    energy: include_str!("../../../../tests/golden/study/unified_energy.csv"),
    memory: include_str!("../../../../tests/golden/study/unified_memory.csv"),
    ape: include_str!("../../../../tests/golden/study/ape_analysis.csv"),
};

#[test]
fn every_number_of_the_table_is_reproduced() {
    let rows = read(&FILES).unwrap();
    let keys: Vec<_> = rows.iter().map(|r| (r.model.as_str(), r.context_tokens, r.output_tokens)).collect();
    let expected: Vec<_> = ["gpt-oss-20b", "qwen3-32b", "yi-34b"]
        .iter()
        .flat_map(|model| [128, 512, 1024, 2048].map(|context| (*model, context, 64)))
        .collect();
    assert_eq!(keys, expected);
    for row in &rows {
        // Nine numbers a row; they were written with 16 digits.
        for (column, (printed, again)) in
            Figures::COLUMNS.iter().zip(row.printed.values().into_iter().zip(row.again.values()))
        {
            assert!((again / printed - 1.0).abs() < 1e-14, "{} {column}: {again}, {printed}", row.model);
        }
        assert!(row.largest_difference() < 1e-14);
    }
    // As the paper's text has them.
    let at_2048: Vec<_> =
        rows.iter().skip(3).step_by(4).map(|r| format!("{:.3}", r.again.throughput_per_b)).collect();
    assert_eq!(at_2048, ["8.644", "0.730", "0.775"]);
}

#[test]
fn decode_without_prefill_is_flat_over_context() {
    let rows = read(&FILES).unwrap();
    // 63 tokens in 2056.731 - 475.809 ms.
    assert!((rows[3].decode_tok_s() - 39.850_1).abs() < 1e-3, "{}", rows[3].decode_tok_s());
    for row in &rows[..4] {
        assert!((row.decode_tok_s() - 39.95).abs() < 0.15, "{}", row.decode_tok_s());
    }
    // 63 tokens at 265.499 W in 64 / 39.789269 s - 61.023 ms: 63 / (265.499 * 1.547451).
    assert!((rows[0].decode_tok_per_j() - 0.153_341).abs() < 1e-5, "{}", rows[0].decode_tok_per_j());
}

/// A dense model of 2e9 parameters in bf16, without keys and values to speak of.
fn facts() -> ModelFacts {
    let mlp = Part { parameters: 2_000_000_000, bytes: 4_000_000_000 };
    let weights = WeightShape { lm_head: Part { parameters: 1, bytes: 0 }, mlp, ..WeightShape::default() };
    ModelFacts {
        architecture: "Made".to_owned(),
        num_hidden_layers: 0,
        parameters: 2_000_000_000,
        active_parameters: 2_000_000_000,
        weights_bytes: 4_000_000_000,
        kv_bytes_per_token: 0,
        activation_dtype: "bf16".to_owned(),
        expert_dtype: "none".to_owned(),
        expert_mode: None,
        dense_dtype: None,
        matmul_precision: None,
        kv_dtype: None,
        pass_rows: None,
        kernels: "scalar".to_owned(),
        shape: ModelShape {
            hidden_size: 1,
            vocab_size: 1,
            num_attention_heads: 1,
            num_key_value_heads: 1,
            head_dim: 1,
            windows: Vec::new(),
            kv_value_bytes: 2,
            kv_head_bytes: None,
            weights,
            experts: None,
            max_context_tokens: 4096,
        },
    }
}

#[test]
fn ours_are_the_same_definitions_as_of_a_run() {
    let row = &read(&FILES).unwrap()[3];
    let ours = row.ours(&facts(), 400e9);
    let near = |value: Option<f64>, expected: f64| {
        assert!((value.unwrap() / expected - 1.0).abs() < 1e-12, "{value:?}, expected {expected}");
    };
    near(ours.any(Metric::ApeDecode), row.decode_tok_s() / 2.0);
    near(ours.any(Metric::ApeTtft), 1000.0 / 475.808_620_452_880_86 / 2.0);
    near(ours.any(Metric::ApeEnergy), row.decode_tok_per_j() / 2.0);
    near(ours.any(Metric::ApeMemory), row.decode_tok_s() / (43_479.889_160_156_25 / 1024.0));
    // 4 GB a token at 400 GB/s.
    near(ours.any(Metric::RooflineLimit), 100.0);
    near(ours.moved_bytes_s(None), row.decode_tok_s() * 4e9);
    assert_eq!(ours.moved_bytes_s(Some(ALL_EXPERTS)), None);
    let limits = limits(&facts(), 2048, 64, 400e9);
    near(limits.any(Metric::RooflineLimit), 100.0);
    assert_eq!(limits.any(Metric::ApeDecode), None);
}

fn check_error(files: &Files<'_>, says: &[&str]) {
    let error = read(files).unwrap_err().to_string();
    for part in says {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
}

#[test]
fn bad_files_say_what_is_wrong_with_them() {
    check_error(&Files { latency: "", ..FILES }, &[LATENCY, "is empty"]);
    check_error(&Files { ape: "model_id,context_length\n", ..FILES }, &[APE, "no rows"]);
    // Another file of the study in its place.
    check_error(&Files { energy: FILES.memory, ..FILES }, &[ENERGY, "no column `ttft_ms`", "peak_alloc_mb"]);
    let less = FILES.memory.replace("peak_alloc_mb", "peak_mb");
    check_error(&Files { memory: &less, ..FILES }, &[MEMORY, "`peak_alloc_mb`"]);
    let other = FILES.ape.replace("yi-34b", "yi-9b");
    check_error(
        &Files { ape: &other, ..FILES },
        &[ENERGY, "0 rows", "model_short yi-9b, context_length 128"],
    );
    let nonsense = FILES.latency.replace("35.91156005859375", "fast");
    check_error(&Files { latency: &nonsense, ..FILES }, &[LATENCY, "line 2", "`TTFT_ms`", "\"fast\""]);
    let twice = FILES.energy.to_owned() + FILES.energy.lines().nth(1).unwrap();
    check_error(&Files { energy: &twice, ..FILES }, &[ENERGY, "2 rows"]);
    check_error(&Files { memory: "a,b\n1\n", ..FILES }, &[MEMORY, "line"]);
}
