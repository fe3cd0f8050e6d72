//! Estimates against arithmetic by hand.

use crate::{ALL_EXPERTS, Accuracy, Inputs, Routing, estimates};
use bench_core::load::Load;
use bench_core::metric::Metric;
use bench_core::plan::Cell;
use bench_core::sample::{Estimate, Interval, IntervalMethod, Stat};
use bench_core::shape::{ExpertShape, ExpertUse, ModelFacts, ModelShape, Part, Touched, WeightShape};

const P50: Stat = Stat::Quantile(0.5);

/// Two layers, one with a window of 8; 8 experts of 100 bytes over both layers, 2 a token.
fn facts() -> ModelFacts {
    let part = |parameters, bytes| Part { parameters, bytes };
    let weights = WeightShape {
        embedding: part(40, 80),
        lm_head: part(40, 80),
        attention: part(500, 1000),
        norms: part(20, 40),
        router: part(30, 60),
        experts: part(800, 800),
        mlp: Part::default(),
    };
    let experts = Some(ExpertShape { num_experts: 8, experts_per_token: 2, layers: 2 });
    model(2_000_000_000, vec![Some(8), None], (4, 10, 4, 2, 8, 4), weights, experts)
}

/// `dims`: hidden size, vocabulary, heads, key and value heads, size of a head, bytes of a key's value.
fn model(
    active_parameters: u64,
    windows: Vec<Option<u32>>,
    dims: (u32, u32, u32, u32, u32, u32),
    weights: WeightShape,
    experts: Option<ExpertShape>,
) -> ModelFacts {
    ModelFacts {
        architecture: "Made".to_owned(),
        num_hidden_layers: windows.len() as u32,
        parameters: weights.parts().iter().map(|p| p.parameters).sum(),
        active_parameters,
        weights_bytes: weights.parts().iter().map(|p| p.bytes).sum(),
        kv_bytes_per_token: 0,
        activation_dtype: "f32".to_owned(),
        expert_dtype: "bf16".to_owned(),
        expert_mode: None,
        dense_dtype: None,
        matmul_precision: None,
        kv_dtype: None,
        pass_rows: None,
        kernels: "scalar".to_owned(),
        shape: ModelShape {
            hidden_size: dims.0,
            vocab_size: dims.1,
            num_attention_heads: dims.2,
            num_key_value_heads: dims.3,
            head_dim: dims.4,
            windows,
            kv_value_bytes: dims.5,
            kv_head_bytes: None,
            weights,
            experts,
            max_context_tokens: 4096,
        },
    }
}

fn cell(prompt_tokens: u32, output_tokens: u32, batch: u32) -> Cell {
    Cell {
        id: "made".to_owned(),
        model: "made".to_owned(),
        prompt_tokens,
        output_tokens,
        batch,
        load: Load::Batch,
        repeats: 2,
        requests_per_repeat: batch,
    }
}

fn source(metric: Metric, scope: Option<&str>, stat: Stat, value: Option<f64>) -> Estimate {
    Estimate {
        metric,
        scope: scope.map(str::to_owned),
        stat,
        value,
        interval: None,
        instrument_error: Some(0.5),
        n: 40,
        missing: 1,
        missing_reason: "why: 1".to_owned(),
        bounded: Some(true),
    }
}

fn between(estimate: Estimate, low: Option<f64>, high: Option<f64>) -> Estimate {
    let method = IntervalMethod::OrderStatistic;
    Estimate { interval: Some(Interval { low, high, method }), ..estimate }
}

fn measured() -> Vec<Estimate> {
    let gib = f64::from(1 << 30);
    vec![
        source(Metric::DecodeRate, None, Stat::Mean, Some(999.0)),
        between(source(Metric::DecodeRate, None, P50, Some(250.0)), Some(200.0), Some(300.0)),
        between(source(Metric::Ttft, None, P50, Some(50.0)), Some(40.0), Some(80.0)),
        source(Metric::TokensPerJoule, Some("gpu_board"), Stat::Mean, Some(999.0)),
        source(Metric::TokensPerJoule, Some("gpu_board"), P50, Some(4.0)),
        source(Metric::TokensPerJoule, Some("cpu_package"), P50, None),
        source(Metric::TokensPerJoule, Some("cpu_package"), Stat::Mean, Some(3.0)),
        source(Metric::PeakBytes, Some("allocator"), Stat::Max, Some(gib)),
        source(Metric::PeakBytes, Some("gpu_process"), Stat::Max, None),
        source(Metric::PeakBytes, Some("process"), Stat::Max, Some(2.0 * gib)),
        source(Metric::PeakBytes, Some("process"), P50, Some(0.5 * gib)),
    ]
}

fn routing() -> Routing {
    let decode = Touched { layer_passes: 8, experts: 24, tokens: 16 };
    let prefill = Touched { layer_passes: 2, experts: 16, tokens: 20 };
    let uses = [0, 1].map(|repeat| ExpertUse { repeat, prefill, decode });
    uses.iter().collect()
}

struct Got(Vec<Estimate>);

impl Got {
    fn find(&self, metric: Metric, scope: Option<&str>) -> &Estimate {
        let own: Vec<_> =
            self.0.iter().filter(|e| e.metric == metric && e.scope.as_deref() == scope).collect();
        assert_eq!(own.len(), 1, "{metric:?} {scope:?}");
        own[0]
    }

    fn has(&self, metric: Metric) -> bool {
        self.0.iter().any(|e| e.metric == metric)
    }

    fn check(&self, metric: Metric, scope: Option<&str>, expected: f64) {
        near(self.find(metric, scope).value, expected, metric.def().key);
    }

    fn check_interval(&self, metric: Metric, scope: Option<&str>, low: f64, high: f64) {
        let interval = self.find(metric, scope).interval.unwrap();
        near(interval.low, low, metric.def().key);
        near(interval.high, high, metric.def().key);
    }
}

fn near(value: Option<f64>, expected: f64, what: &str) {
    let value = value.unwrap();
    assert!((value / expected - 1.0).abs() < 1e-12, "{what}: {value}, expected {expected}");
}

fn of(
    cell: &Cell,
    facts: &ModelFacts,
    routing: Routing,
    bandwidth: Option<f64>,
    sources: &[Estimate],
) -> Got {
    Got(estimates(&Inputs {
        cell,
        facts,
        routing,
        bandwidth_bytes_s: bandwidth,
        accuracies: &[],
        estimates: sources,
    }))
}

#[test]
fn figures_per_active_parameter_are_those_by_hand() {
    let got = of(&cell(5, 5, 2), &facts(), routing(), None, &measured());
    got.check(Metric::ActiveParameters, None, 2e9);
    // 250 / 2, and the ends 200 / 2, 300 / 2.
    got.check(Metric::ApeDecode, None, 125.0);
    got.check_interval(Metric::ApeDecode, None, 100.0, 150.0);
    // 1000 / 50 / 2; the slow end 80 ms is the low end: 1000 / 80 / 2, 1000 / 40 / 2.
    got.check(Metric::ApeTtft, None, 10.0);
    got.check_interval(Metric::ApeTtft, None, 6.25, 12.5);
    got.check(Metric::ApeEnergy, Some("gpu_board"), 2.0);
    got.check(Metric::ApeEnergy, Some("cpu_package"), 1.5);
    // The largest of the process, 2 GiB; the GPU's is not known, and the allocator's is less of it.
    got.check(Metric::ApeMemory, Some("process"), 125.0);
    let decode = got.find(Metric::ApeDecode, None);
    assert_eq!((decode.n, decode.missing, decode.missing_reason.as_str()), (40, 1, "why: 1"));
    assert_eq!((decode.instrument_error, decode.bounded, decode.stat), (None, None, Stat::Value));
    assert!(got.0.is_sorted_by_key(|e| e.metric));
    assert!(got.0.iter().all(|e| crate::METRICS.contains(&e.metric)));
}

#[test]
fn bytes_operations_and_limits_are_those_by_hand() {
    let got = of(&cell(5, 5, 2), &facts(), routing(), Some(2_636_000.0), &measured());
    // 24 of 8 passes; 8 (1 - 0.75²).
    got.check(Metric::ExpertsTouched, None, 3.0);
    got.check(Metric::ExpertsExpected, None, 3.5);
    // Steps attend to 6, 7, 8, 9 positions, behind the window to 6, 7, 8, 8: 7.5 + 7.25 = 14.75 in both
    // layers. Weights 80 + 1000 + 40 + 60 + 3 * 100 = 1480, for two tokens: 740. Embedding row 80 / 10 = 8.
    // KV: 2 * 2 heads * 8 * 4 bytes = 128 a position, 128 * 14.75 = 1888. 740 + 8 + 1888 = 2636.
    got.check(Metric::BytesPerToken, None, 2636.0);
    // All 8 experts: (1180 + 800) / 2 + 8 + 1888.
    got.check(Metric::BytesPerToken, Some(ALL_EXPERTS), 2886.0);
    // 2 * 2e9 + 4 * 4 heads * 8 * 14.75.
    got.check(Metric::FlopsPerToken, None, 4_000_001_888.0);
    got.check(Metric::Bandwidth, None, 2_636_000.0);
    // 2 requests of 250 tok/s where 1000 were possible; 500 * 2886 / 2,636,000 if all experts are read.
    got.check(Metric::RooflineLimit, None, 1000.0);
    got.check(Metric::RooflineRatio, None, 0.5);
    got.check_interval(Metric::RooflineRatio, None, 0.4, 0.6);
    got.check(Metric::RooflineRatio, Some(ALL_EXPERTS), 0.547_420_333_839_150_2);
    let bytes = got.find(Metric::BytesPerToken, None);
    assert_eq!((bytes.n, bytes.missing, bytes.missing_reason.as_str()), (2, 0, ""));
}

#[test]
fn where_all_experts_are_computed_they_are_moved_and_multiplied_and_the_model_stays_as_active() {
    let facts = ModelFacts { expert_mode: Some("dense-all".to_owned()), ..facts() };
    let all = Touched { layer_passes: 8, experts: 64, tokens: 16 };
    let counted = ExpertUse { repeat: 0, prefill: Touched::default(), decode: all };
    for routing in [Routing::default(), [&counted].into_iter().collect()] {
        let got = of(&cell(5, 5, 2), &facts, routing, Some(2_886_000.0), &measured());
        got.check(Metric::ExpertsExpected, None, 8.0);
        // As with every expert read, see above.
        for scope in [None, Some(ALL_EXPERTS)] {
            got.check(Metric::BytesPerToken, scope, 2886.0);
            got.check(Metric::RooflineLimit, scope, 1000.0);
        }
        // The other 6 experts have 100 parameters each over both layers: 1200 more than of those in use.
        got.check(Metric::FlopsPerToken, None, 4_000_003_088.0);
        got.check(Metric::ActiveParameters, None, 2e9);
        got.check(Metric::ApeDecode, None, 125.0);
    }
    let dense = ModelFacts { shape: ModelShape { experts: None, ..facts.shape.clone() }, ..facts };
    assert_eq!((dense.multiplied_parameters(), dense.experts_computed()), (2_000_000_000, None));
    assert!(dense.shortcuts().is_empty());
}

#[test]
fn what_is_missing_gives_no_row_and_what_was_not_counted_says_so() {
    let got = of(&cell(5, 5, 2), &facts(), Routing::default(), Some(1e6), &[]);
    for metric in [
        Metric::ApeDecode,
        Metric::ApeTtft,
        Metric::ApeEnergy,
        Metric::ApeMemory,
        Metric::ApeAccuracy,
        Metric::RooflineRatio,
        Metric::ExpertsTouched,
    ] {
        assert!(!got.has(metric), "{metric:?}");
    }
    let bytes = got.find(Metric::BytesPerToken, None);
    // 3.5 experts expected instead of 3: (1180 + 350) / 2 + 8 + 1888.
    near(bytes.value, 2661.0, "expected");
    assert_eq!((bytes.missing, bytes.missing_reason.as_str()), (2, "experts_not_counted: 2"));
    let limit = got.find(Metric::RooflineLimit, None);
    assert_eq!(limit.missing_reason, "experts_not_counted: 2");

    let got = of(&cell(5, 5, 2), &facts(), Routing::default(), None, &[]);
    assert!(!got.has(Metric::RooflineLimit) && !got.has(Metric::Bandwidth) && got.has(Metric::BytesPerToken));
    let got = of(&cell(5, 1, 1), &facts(), Routing::default(), Some(1e6), &measured());
    let bytes = got.find(Metric::BytesPerToken, None);
    assert_eq!((bytes.value, bytes.missing_reason.as_str()), (None, "no_decode_step: 2"));
    assert!(!got.has(Metric::RooflineLimit) && got.has(Metric::ApeTtft));

    let none = source(Metric::Ttft, None, P50, None);
    let open = between(source(Metric::DecodeRate, None, P50, Some(10.0)), Some(8.0), None);
    let slow = between(source(Metric::Ttft, None, P50, Some(100.0)), Some(50.0), None);
    let got = of(&cell(5, 5, 1), &facts(), Routing::default(), None, &[none, open.clone()]);
    assert_eq!(got.find(Metric::ApeTtft, None).value, None);
    assert_eq!(got.find(Metric::ApeDecode, None).interval.unwrap().high, None);
    let got = of(&cell(5, 5, 1), &facts(), Routing::default(), None, &[slow]);
    let ttft = got.find(Metric::ApeTtft, None).interval.unwrap();
    assert_eq!((ttft.low, ttft.high), (None, Some(10.0)));
}

#[test]
fn a_server_decodes_what_is_in_flight_and_lengths_are_those_counted() {
    let served = Cell { load: Load::Closed { concurrency: 4 }, batch: 1, ..cell(500, 500, 1) };
    let sources = [
        source(Metric::MeanConcurrency, None, Stat::Value, Some(2.0)),
        source(Metric::PromptTokens, None, Stat::Mean, Some(5.0)),
        source(Metric::OutputTokens, None, Stat::Mean, Some(5.0)),
        source(Metric::DecodeRate, None, P50, Some(250.0)),
    ];
    let got = of(&served, &facts(), Routing::default(), Some(2_661_000.0), &sources);
    // As above: a batch of 2 with 3.5 experts.
    got.check(Metric::BytesPerToken, None, 2661.0);
    got.check(Metric::RooflineRatio, None, 0.5);
}

#[test]
fn accuracy_is_a_row_of_each_task() {
    let accuracies = ["arc", "gsm8k"].map(|task| Accuracy {
        task: task.to_owned(),
        metric: "acc,none".to_owned(),
        value: 0.6,
        stderr: Some(0.02),
        n: Some(100),
    });
    let (cell, facts) = (cell(5, 5, 1), facts());
    let got = Got(estimates(&Inputs {
        cell: &cell,
        facts: &facts,
        routing: Routing::default(),
        bandwidth_bytes_s: None,
        accuracies: &accuracies,
        estimates: &[],
    }));
    for task in ["arc", "gsm8k"] {
        got.check(Metric::Accuracy, Some(task), 0.6);
        got.check(Metric::ApeAccuracy, Some(task), 0.3);
        // (0.6 -+ 1.96 * 0.02) / 2
        got.check_interval(Metric::ApeAccuracy, Some(task), 0.2804, 0.3196);
        let row = got.find(Metric::ApeAccuracy, Some(task));
        assert_eq!((row.n, row.interval.unwrap().method.key()), (100, "standard_error"));
    }
}

#[test]
fn a_tied_embedding_is_moved_once_and_a_dense_model_whole() {
    let part = |bytes| Part { parameters: bytes / 2, bytes };
    let mut weights =
        WeightShape { embedding: part(1000), attention: part(100), mlp: part(300), ..WeightShape::default() };
    let tied = model(1_000, vec![None], (4, 10, 1, 1, 1, 2), weights, None);
    // One step after a prompt of 1: two positions of 4 bytes. 1400 + a row of 100 + 8.
    let got = of(&cell(1, 2, 1), &tied, Routing::default(), None, &[]);
    got.check(Metric::BytesPerToken, None, 1508.0);
    assert!(!got.has(Metric::ExpertsExpected));
    assert_eq!(got.0.iter().filter(|e| e.metric == Metric::BytesPerToken).count(), 1);
    // A quantized copy is moved instead, and a row of the embedding.
    weights.lm_head = Part { parameters: 0, bytes: 530 };
    let copied = model(1_000, vec![None], (4, 10, 1, 1, 1, 2), weights, None);
    of(&cell(1, 2, 1), &copied, Routing::default(), None, &[]).check(Metric::BytesPerToken, None, 1038.0);
    // With an unembedding of its own that is moved instead.
    weights.lm_head = part(600);
    let own = model(1_000, vec![None], (4, 10, 1, 1, 1, 2), weights, None);
    of(&cell(1, 2, 1), &own, Routing::default(), None, &[]).check(Metric::BytesPerToken, None, 1108.0);
}

/// gpt-oss-20b by its published counts; `expert_bytes` of all experts.
fn gpt_oss_20b(expert_bytes: u64) -> ModelFacts {
    let bf16 = |parameters| Part { parameters, bytes: 2 * parameters };
    let weights = WeightShape {
        embedding: bf16(579_133_440),
        lm_head: bf16(579_133_440),
        attention: bf16(637_203_456),
        norms: bf16(141_120),
        router: bf16(2_212_608),
        experts: Part { parameters: 19_116_933_120, bytes: expert_bytes },
        mlp: Part::default(),
    };
    let windows = (0..24).map(|layer| (layer % 2 == 0).then_some(128)).collect();
    let experts = Some(ExpertShape { num_experts: 32, experts_per_token: 4, layers: 24 });
    model(3_608_307_264, windows, (2880, 201_088, 64, 8, 64, 2), weights, experts)
}

#[test]
fn gpt_oss_20b_moves_what_is_known_of_it() {
    let bytes = |expert_bytes: u64, scope| {
        let got = of(&cell(16, 16, 1), &gpt_oss_20b(expert_bytes), Routing::default(), Some(3.9e12), &[]);
        let limit = got.find(Metric::RooflineLimit, scope).value.unwrap();
        (got.find(Metric::BytesPerToken, scope).value.unwrap(), limit)
    };
    let within = |value: f64, expected: f64| assert!((value / expected - 1.0).abs() < 0.005, "{value}");
    let bf16 = 2 * 19_116_933_120;
    // 24 layers of 32 experts with 5760 + 2880 biases in bf16; 17 bytes for 32 other parameters.
    let biases = 24 * 32 * 8640_u64;
    let mxfp4 = (19_116_933_120 - biases) / 32 * 17 + 2 * biases;
    assert_eq!(mxfp4, 10_165_616_640);
    let (top4, limit) = bytes(bf16, None);
    within(top4, 7.2e9);
    within(limit, 540.0);
    let (top4, limit) = bytes(mxfp4, None);
    within(top4, 3.71e9);
    within(limit, 1_050.0);
    // All weights but the input embedding: 20,914,757,184 - 579,133,440 parameters of two bytes.
    let (all, _) = bytes(bf16, Some(ALL_EXPERTS));
    within(all, 40.67e9);
}
