//! Samples of one figure with the reasons of those that are missing, and the estimates that they come to.
//!
//! What a figure means is `analysis`'s matter.

use bench_core::metric::Metric;
use bench_core::sample::{Estimate, Stat};
use bench_core::stats::Clustered;
use std::collections::BTreeMap;

/// A reading, or the code of the reason why there is none.
pub(crate) type Reading = Result<f64, &'static str>;

#[derive(Debug, Clone, Default)]
pub(crate) struct Samples {
    values: Vec<(u32, f64)>,
    missing: BTreeMap<&'static str, u64>,
}

impl Samples {
    /// `group` is the repeat or the trial that the reading belongs to.
    pub(crate) fn push(&mut self, group: u32, reading: Reading) {
        match reading {
            Ok(value) => self.values.push((group, value)),
            Err(code) => *self.missing.entry(code).or_default() += 1,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty() && self.missing.is_empty()
    }

    /// `None` where there is no value.
    pub(crate) fn mean(&self) -> Option<f64> {
        Clustered::new(self.values.iter().copied(), 0).ok()?.pooled().mean()
    }

    /// One empty estimate where no reading has a value; none where nothing was read.
    pub(crate) fn estimates(self, metric: Metric, scope: Option<&str>, seed: u64) -> Vec<Estimate> {
        if self.is_empty() {
            return Vec::new();
        }
        let missing = self.missing.values().sum();
        let reason = self.missing.iter().map(|(code, n)| format!("{code}: {n}"));
        let missing_reason = reason.collect::<Vec<_>>().join("; ");
        // Values are whole bytes: they are finite.
        let samples = Clustered::new(self.values, seed).ok().filter(|s| s.pooled().n() > 0);
        let mut estimates = match samples {
            Some(samples) => Estimate::of_samples(metric, &samples, missing),
            None => vec![Estimate { stat: Stat::Mean, missing, ..Estimate::of_cell(metric, None, 0) }],
        };
        for estimate in &mut estimates {
            estimate.scope = scope.map(str::to_owned);
            estimate.missing_reason.clone_from(&missing_reason);
        }
        estimates
    }
}

/// One figure of the whole cell; `Err` is why it is not known.
pub(crate) fn of_cell(metric: Metric, reading: Reading) -> Estimate {
    Estimate {
        missing: u64::from(reading.is_err()),
        missing_reason: reading.err().map_or_else(String::new, |code| format!("{code}: 1")),
        ..Estimate::of_cell(metric, reading.ok(), u64::from(reading.is_ok()))
    }
}
