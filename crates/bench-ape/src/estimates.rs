//! The efficiency estimates of one cell, from those of latency, memory and energy.
//!
//! Every figure here is another one scaled or inverted, so its interval and its n are those of the figure
//! that it comes from; what is computed from sizes alone has no samples and n = 0. Costs are inverted
//! before they are divided: higher is better throughout.

use crate::accuracy::Accuracy;
use crate::routing::Routing;
use crate::step::{Experts, Step};
use bench_core::load::Load;
use bench_core::metric::Metric;
use bench_core::plan::Cell;
use bench_core::sample::{Estimate, Interval, Stat};
use bench_core::shape::{ModelFacts, expected_experts};

/// Scope of the rows that stand beside the main ones: what it would be if every expert were read.
pub const ALL_EXPERTS: &str = "all_experts";
/// Why the experts of `bytes_per_tok` are the expected ones.
pub const EXPERTS_NOT_COUNTED: &str = "experts_not_counted";
/// Why a cell of one output token has neither bytes nor operations of a decode step.
pub const NO_DECODE_STEP: &str = "no_decode_step";

/// Every metric that [`estimates`] gives, in the order of the table of metrics.
pub const METRICS: &[Metric] = &[
    Metric::ActiveParameters,
    Metric::Accuracy,
    Metric::ApeDecode,
    Metric::ApeTtft,
    Metric::ApeEnergy,
    Metric::ApeMemory,
    Metric::ApeAccuracy,
    Metric::ExpertsTouched,
    Metric::ExpertsExpected,
    Metric::BytesPerToken,
    Metric::FlopsPerToken,
    Metric::Bandwidth,
    Metric::RooflineLimit,
    Metric::RooflineRatio,
];

const GIB: f64 = (1_u64 << 30) as f64;
/// Of `peak_bytes`, best first: what the model takes on a device, then what else is known.
const PEAK_SCOPES: [&str; 5] = ["gpu_process", "gpu_allocator", "gpu_device", "process", "allocator"];
const MEDIAN: Stat = Stat::Quantile(0.5);

/// What is known of one cell.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    pub cell: &'a Cell,
    pub facts: &'a ModelFacts,
    /// Empty where nobody counted, as with a server.
    pub routing: Routing,
    /// Of the machine's memory; `None`: no roofline.
    pub bandwidth_bytes_s: Option<f64>,
    pub accuracies: &'a [Accuracy],
    /// Of this cell, from latency, memory and energy.
    pub estimates: &'a [Estimate],
}

/// Estimates of the metrics in [`METRICS`] whose source is there, ordered by metric. A source without a
/// value gives a row without one, and its reason; a source that is not there gives no row.
pub fn estimates(inputs: &Inputs<'_>) -> Vec<Estimate> {
    let mut all = vec![computed(Metric::ActiveParameters, inputs.facts.active_parameters as f64)];
    all.extend(per_active_parameter(inputs));
    all.extend(of_accuracy(inputs));
    all.extend(roofline(inputs));
    all.sort_by_key(|e| e.metric);
    all
}

fn per_active_parameter(inputs: &Inputs<'_>) -> Vec<Estimate> {
    let per_billion = 1e9 / inputs.facts.active_parameters as f64;
    let mut all = Vec::new();
    let decode = find(inputs.estimates, Metric::DecodeRate, MEDIAN);
    all.extend(decode.map(|d| scaled(Metric::ApeDecode, d, per_billion)));
    let ttft = find(inputs.estimates, Metric::Ttft, MEDIAN);
    all.extend(ttft.map(|t| scaled(Metric::ApeTtft, &inverted(t), 1000.0 * per_billion)));
    for energy in energies(inputs.estimates) {
        all.push(scaled(Metric::ApeEnergy, energy, per_billion));
    }
    if let (Some(decode), Some((peak_bytes, scope))) = (decode, peak(inputs.estimates)) {
        let per_memory = scaled(Metric::ApeMemory, decode, GIB / peak_bytes);
        all.push(Estimate { scope: Some(scope), ..per_memory });
    }
    all
}

fn of_accuracy(inputs: &Inputs<'_>) -> impl Iterator<Item = Estimate> {
    let per_billion = 1e9 / inputs.facts.active_parameters as f64;
    inputs.accuracies.iter().flat_map(move |accuracy| {
        let accuracy = Estimate {
            scope: Some(accuracy.task.clone()),
            interval: accuracy.interval(),
            n: accuracy.n.unwrap_or(0),
            ..computed(Metric::Accuracy, accuracy.value)
        };
        [scaled(Metric::ApeAccuracy, &accuracy, per_billion), accuracy]
    })
}

/// What a decode step moves, the rate at which memory alone would let it run, and how near the cell came.
fn roofline(inputs: &Inputs<'_>) -> Vec<Estimate> {
    let mut all: Vec<_> =
        inputs.bandwidth_bytes_s.into_iter().map(|b| computed(Metric::Bandwidth, b)).collect();
    let batch = batch(inputs);
    let shape = &inputs.facts.shape;
    let mut ways = vec![(None, Experts::All, 0, 0)];
    if let Some(e) = shape.experts {
        let per_token = inputs.facts.experts_computed().unwrap_or(e.experts_per_token);
        let expected = expected_experts(e.num_experts, per_token, batch);
        all.push(computed(Metric::ExpertsExpected, expected));
        let counted = inputs.routing.experts_touched();
        let n = inputs.routing.repeats();
        all.extend(counted.map(|c| Estimate { n, ..computed(Metric::ExpertsTouched, c) }));
        let missing = if counted.is_none() { u64::from(inputs.cell.repeats) } else { 0 };
        ways = vec![
            (None, Experts::Touched(counted.unwrap_or(expected)), n, missing),
            (Some(ALL_EXPERTS.to_owned()), Experts::All, 0, 0),
        ];
    }
    let Some(step) = step(inputs, batch) else {
        let missing = u64::from(inputs.cell.repeats);
        let missing_reason = format!("{NO_DECODE_STEP}: {missing}");
        let none = computed(Metric::BytesPerToken, 0.0);
        all.push(Estimate { value: None, missing, missing_reason, ..none });
        return all;
    };
    all.push(computed(Metric::FlopsPerToken, step.flops_per_token(inputs.facts)));
    let decode = find(inputs.estimates, Metric::DecodeRate, MEDIAN);
    for (scope, experts, n, missing) in ways {
        let missing_reason =
            if missing > 0 { format!("{EXPERTS_NOT_COUNTED}: {missing}") } else { String::new() };
        let bytes = step.bytes_per_token(shape, experts);
        let moved = Estimate {
            scope: scope.clone(),
            n,
            missing,
            missing_reason,
            ..computed(Metric::BytesPerToken, bytes)
        };
        if let Some(bandwidth) = inputs.bandwidth_bytes_s {
            let limit = bandwidth / bytes;
            all.push(Estimate { metric: Metric::RooflineLimit, value: Some(limit), ..moved.clone() });
            let ratio = decode.map(|d| scaled(Metric::RooflineRatio, d, batch / limit));
            all.extend(ratio.map(|r| Estimate { scope, ..r }));
        }
        all.push(moved);
    }
    all
}

/// Sequences of a decode step: the batch in-process, with a server the mean number of requests in flight.
fn batch(inputs: &Inputs<'_>) -> f64 {
    let in_flight = find(inputs.estimates, Metric::MeanConcurrency, Stat::Value).and_then(|e| e.value);
    match in_flight.filter(|_| inputs.cell.load != Load::Batch) {
        Some(mean) => mean.max(1.0),
        None => f64::from(inputs.cell.batch.max(1)),
    }
}

/// Lengths as they were counted, else as they were asked for; `None` where nothing was decoded after the
/// prefill.
fn step(inputs: &Inputs<'_>, batch: f64) -> Option<Step> {
    let counted = |metric| find(inputs.estimates, metric, Stat::Mean).and_then(|e| e.value);
    let prompt_tokens = counted(Metric::PromptTokens).unwrap_or(f64::from(inputs.cell.prompt_tokens));
    let output_tokens = counted(Metric::OutputTokens).unwrap_or(f64::from(inputs.cell.output_tokens));
    (output_tokens >= 2.0).then_some(Step { batch, prompt_tokens, output_tokens })
}

fn find(estimates: &[Estimate], metric: Metric, stat: Stat) -> Option<&Estimate> {
    estimates.iter().find(|e| e.metric == metric && e.stat == stat)
}

/// One of each scope: its median, else its mean, else the figure of the cell.
fn energies(estimates: &[Estimate]) -> Vec<&Estimate> {
    let of_energy = || estimates.iter().filter(|e| e.metric == Metric::TokensPerJoule);
    let mut scopes: Vec<_> = of_energy().map(|e| &e.scope).collect();
    scopes.sort();
    scopes.dedup();
    let best = |scope: &Option<String>| {
        let rank = |e: &Estimate| [MEDIAN, Stat::Mean, Stat::Value].iter().position(|s| *s == e.stat);
        let own = of_energy().filter(|e| e.scope == *scope && rank(e).is_some());
        own.min_by_key(|e| (e.value.is_none(), rank(e)))
    };
    scopes.into_iter().filter_map(best).collect()
}

/// Largest peak of the best scope that has one.
fn peak(estimates: &[Estimate]) -> Option<(f64, String)> {
    PEAK_SCOPES.iter().find_map(|scope| {
        let own = estimates.iter().filter(|e| e.metric == Metric::PeakBytes);
        let own = own.filter(|e| e.scope.as_deref() == Some(*scope));
        let values = own.filter(|e| matches!(e.stat, Stat::Max | Stat::Value)).filter_map(|e| e.value);
        let largest = values.filter(|v| *v > 0.0).reduce(f64::max)?;
        Some((largest, (*scope).to_owned()))
    })
}

/// A figure without samples of its own.
fn computed(metric: Metric, value: f64) -> Estimate {
    Estimate::of_cell(metric, Some(value), 0)
}

/// `source` times `factor` as another metric, its interval with it.
fn scaled(metric: Metric, source: &Estimate, factor: f64) -> Estimate {
    let times = |value: Option<f64>| value.map(|v| v * factor);
    let interval =
        source.interval.map(|i| Interval { low: times(i.low), high: times(i.high), method: i.method });
    let value = times(source.value);
    Estimate {
        metric,
        stat: Stat::Value,
        value,
        interval,
        instrument_error: None,
        bounded: None,
        ..source.clone()
    }
}

/// 1 / value. The low end of a cost is the high end of its inverse; an end at 0 bounds nothing.
fn inverted(source: &Estimate) -> Estimate {
    let over = |value: Option<f64>| value.filter(|v| *v > 0.0).map(|v| 1.0 / v);
    let interval =
        source.interval.map(|i| Interval { low: over(i.high), high: over(i.low), method: i.method });
    Estimate { value: over(source.value), interval, ..source.clone() }
}
