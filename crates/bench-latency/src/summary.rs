//! Samples of a cell to estimates: what n supports, with intervals and counts.

use crate::{Analysis, Result};
use bench_core::client::Calibration;
use bench_core::event::FailureKind;
use bench_core::metric::Metric;
use bench_core::plan::{Cell, Plan};
use bench_core::sample::{Estimate, Stat, Summary};
use bench_core::stats::{Clustered, wilson_interval};
use bench_core::trace::TrialTrace;

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
    Estimate { interval, ..Estimate::of_cell(metric, value, requests) }
}

pub(crate) fn of_samples(
    metric: Metric,
    samples: &Clustered,
    missing: u64,
    instrument_error: Option<f64>,
) -> Vec<Estimate> {
    let mut estimates = Estimate::of_samples(metric, samples, missing);
    for estimate in &mut estimates {
        // A spread is no time: what is added to all of them does not change it.
        estimate.instrument_error = instrument_error.filter(|_| estimate.stat != Stat::StdDev);
    }
    estimates
}

pub(crate) fn of_failures(kind: FailureKind, count: u64, requests: u64) -> Estimate {
    let stat = Stat::Count(kind);
    Estimate { stat, ..Estimate::of_cell(Metric::Failures, Some(count as f64), requests) }
}
