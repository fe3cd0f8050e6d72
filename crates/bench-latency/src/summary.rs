//! Samples of a cell to estimates: what n supports, with intervals and counts.

use crate::{Analysis, Result};
use bench_core::client::Calibration;
use bench_core::event::FailureKind;
use bench_core::metric::Metric;
use bench_core::plan::{Cell, Plan};
use bench_core::sample::{Estimate, Interval, Stat, Summary};
use bench_core::stats::{Clustered, is_bounded, supports, wilson_interval};
use bench_core::trace::TrialTrace;

/// Quantiles of every per-request and per-gap metric.
const QUANTILES: [f64; 5] = [0.5, 0.9, 0.95, 0.99, 0.999];

/// All estimates of `cell` with its verdict, from all its `trials`; for those that are at hand. `calibration` is
/// what the client adds at the cell's load.
///
/// # Errors
/// Traces of another cell, a request that is there twice, events out of order.
pub fn summarise(
    plan: &Plan,
    cell: &Cell,
    trials: &[TrialTrace],
    build_is_debug: bool,
    target: &str,
    calibration: Option<&Calibration>,
) -> Result<Summary> {
    Ok(taken_in(plan, cell, trials, target)?.finish(build_is_debug, calibration)?.summary)
}

pub(crate) fn taken_in<'a>(
    plan: &'a Plan,
    cell: &'a Cell,
    trials: &[TrialTrace],
    target: &str,
) -> Result<Analysis<'a>> {
    let mut analysis = Analysis::new(plan, cell, target);
    for trial in trials {
        analysis.trial(trial.trial, &trial.cell)?;
        for request in &trial.requests {
            analysis.request(request)?;
        }
        trial.client.iter().for_each(|health| analysis.client(health));
        trial.scrapes.iter().for_each(|scrape| analysis.scrape(scrape));
    }
    Ok(analysis)
}

pub(crate) fn of_cell(metric: Metric, value: Option<f64>, succeeded: u64, requests: u64) -> Estimate {
    let interval = (metric == Metric::SuccessRate).then(|| wilson_interval(succeeded, requests)).flatten();
    let missing = u64::from(value.is_none());
    Estimate {
        metric,
        stat: Stat::Value,
        value,
        interval,
        instrument_error: None,
        n: requests,
        missing,
        bounded: None,
    }
}

pub(crate) fn of_samples(
    metric: Metric,
    samples: &Clustered,
    missing: u64,
    instrument_error: Option<f64>,
) -> Vec<Estimate> {
    let pooled = samples.pooled();
    let n = pooled.n();
    let estimate = |stat, value, interval: Option<Interval>, bounded| {
        let interval = interval.filter(|i| i.low.is_some() || i.high.is_some());
        // A spread is no time: what is added to all of them does not change it.
        let instrument_error = instrument_error.filter(|_| stat != Stat::StdDev);
        Estimate { metric, stat, value, interval, instrument_error, n, missing, bounded }
    };
    let mut estimates = vec![
        estimate(Stat::Mean, pooled.mean(), samples.mean_interval(), None),
        estimate(Stat::StdDev, pooled.std_dev(), None, None),
        estimate(Stat::Min, pooled.min(), None, None),
        estimate(Stat::Max, pooled.max(), None, None),
    ];
    for p in QUANTILES {
        let supported = supports(n, p);
        let value = supported.then(|| pooled.quantile(p)).flatten();
        let interval = supported.then(|| samples.quantile_interval(p)).flatten();
        estimates.push(estimate(Stat::Quantile(p), value, interval, Some(is_bounded(n, p))));
    }
    estimates
}

pub(crate) fn of_failures(kind: FailureKind, count: u64, requests: u64) -> Estimate {
    Estimate {
        metric: Metric::Failures,
        stat: Stat::Count(kind),
        value: Some(count as f64),
        interval: None,
        instrument_error: None,
        n: requests,
        missing: 0,
        bounded: None,
    }
}
