//! Samples of a cell to estimates: what n supports, with intervals, counts and a verdict.

use crate::life::{self, Life};
use crate::{Result, sample, verdict};
use bench_core::event::FailureKind;
use bench_core::metric::{Metric, Scope};
use bench_core::plan::{Cell, Plan, derive_seed};
use bench_core::sample::{Estimate, Interval, Sample, Stat, Summary};
use bench_core::stats::{Clustered, is_bounded, supports, wilson_interval};
use bench_core::trace::TrialTrace;
use std::collections::BTreeMap;

/// Quantiles of every per-request and per-gap metric.
const QUANTILES: [f64; 5] = [0.5, 0.9, 0.95, 0.99, 0.999];

/// All estimates of `cell` with its verdict, from all its `trials`.
///
/// # Errors
/// Traces of another cell, a request that is there twice, events out of order.
pub fn summarise(
    plan: &Plan,
    cell: &Cell,
    trials: &[TrialTrace],
    build_is_debug: bool,
    target: &str,
) -> Result<Summary> {
    let trials = life::read(cell, trials)?;
    let lives: Vec<&Life> = trials.iter().flatten().collect();
    let succeeded = lives.iter().filter(|l| l.succeeded()).count() as u64;
    let mut by_metric = BTreeMap::<Metric, Vec<Sample>>::new();
    for sample in sample::of_lives(plan, cell, &trials, target) {
        by_metric.entry(sample.metric).or_default().push(sample);
    }
    let mut estimates = Vec::new();
    for (metric, samples) in by_metric {
        if metric.def().scope == Scope::Cell {
            let value = samples.first().and_then(|s| s.value);
            estimates.push(of_cell(metric, value, succeeded, lives.len() as u64));
        } else {
            let seed = derive_seed(plan.seed, &format!("bootstrap.{}.{}", cell.id, metric.def().key));
            estimates.extend(of_samples(metric, &samples, seed)?);
        }
    }
    estimates.extend(failures(&lives));
    Ok(Summary {
        estimates,
        requests: lives.len() as u32,
        succeeded: succeeded as u32,
        verdict: verdict::judge(plan, cell, &lives, build_is_debug)?,
    })
}

fn of_cell(metric: Metric, value: Option<f64>, succeeded: u64, requests: u64) -> Estimate {
    let interval = (metric == Metric::SuccessRate).then(|| wilson_interval(succeeded, requests)).flatten();
    let missing = u64::from(value.is_none());
    Estimate { metric, stat: Stat::Value, value, interval, n: requests, missing, bounded: None }
}

fn of_samples(metric: Metric, samples: &[Sample], seed: u64) -> Result<Vec<Estimate>> {
    let values = samples.iter().filter_map(|s| Some((s.request, s.value?)));
    let clustered = Clustered::new(values, seed)?;
    let pooled = clustered.pooled();
    let n = pooled.n();
    let missing = samples.len() as u64 - n;
    let estimate = |stat, value, interval: Option<Interval>, bounded| {
        let interval = interval.filter(|i| i.low.is_some() || i.high.is_some());
        Estimate { metric, stat, value, interval, n, missing, bounded }
    };
    let mut estimates = vec![
        estimate(Stat::Mean, pooled.mean(), clustered.mean_interval(), None),
        estimate(Stat::StdDev, pooled.std_dev(), None, None),
        estimate(Stat::Min, pooled.min(), None, None),
        estimate(Stat::Max, pooled.max(), None, None),
    ];
    for p in QUANTILES {
        let supported = supports(n, p);
        let value = supported.then(|| pooled.quantile(p)).flatten();
        let interval = supported.then(|| clustered.quantile_interval(p)).flatten();
        estimates.push(estimate(Stat::Quantile(p), value, interval, Some(is_bounded(n, p))));
    }
    Ok(estimates)
}

/// One estimate per kind of failure that occurred.
fn failures(lives: &[&Life]) -> Vec<Estimate> {
    let mut counts = BTreeMap::<FailureKind, u64>::new();
    for kind in lives.iter().filter_map(|l| l.failure()) {
        *counts.entry(kind).or_default() += 1;
    }
    let of_kind = |(kind, count): (FailureKind, u64)| Estimate {
        metric: Metric::Failures,
        stat: Stat::Count(kind),
        value: Some(count as f64),
        interval: None,
        n: lives.len() as u64,
        missing: 0,
        bounded: None,
    };
    counts.into_iter().map(of_kind).collect()
}
