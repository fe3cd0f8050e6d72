//! Windows of one scope to estimates: sums over devices, what follows from joules, statistics, counted codes.

use super::code::{Code, Reasons, Value};
use super::device::{DISAGREE_ABOVE, Measured, Reading};
use super::window::{Window, per_token};
use bench_core::Error;
use bench_core::metric::Metric;
use bench_core::sample::Estimate;
use bench_core::stats::Tally;
use std::collections::BTreeMap;

/// Metric of each reading.
pub(crate) const READINGS: [(Reading, Metric); 6] = [
    (Reading::UtilGpu, Metric::UtilGpu),
    (Reading::UtilMem, Metric::UtilMem),
    (Reading::Temp, Metric::Temp),
    (Reading::SmClock, Metric::SmClock),
    (Reading::MemClock, Metric::MemClock),
    (Reading::Throttle, Metric::Throttle),
];

/// Joules and watts of devices add up; what else they show is averaged. What is missing on one is missing.
pub(crate) fn together(each: &[Measured]) -> Option<Measured> {
    let sum = |of: fn(&Measured) -> Value| each.iter().map(of).sum::<Value>();
    let mean = |i: usize| each.iter().map(|m| m.readings[i]).sum::<Value>().map(|v| v / each.len() as f64);
    let optional = |of: fn(&Measured) -> Option<Value>| {
        let any = each.iter().any(|m| of(m).is_some());
        any.then(|| each.iter().map(|m| of(m).unwrap_or(Err(Code::NoSamples))).sum::<Value>())
    };
    (!each.is_empty()).then(|| Measured {
        counter: optional(|m| m.counter),
        integral: optional(|m| m.integral),
        gross: sum(|m| m.gross),
        prefill: sum(|m| m.prefill),
        decode: sum(|m| m.decode),
        readings: std::array::from_fn(mean),
        idle_w: sum(|m| m.idle_w),
        averaged: each.iter().any(|m| m.averaged),
    })
}

/// Samples of one scope, and why some are missing.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    metrics: BTreeMap<Metric, Samples>,
}

/// Of one metric.
#[derive(Debug, Default)]
struct Samples {
    /// By what they are grouped by.
    values: Vec<(u32, f64)>,
    missing: u64,
    /// Also of what is noted beside a value.
    reasons: Reasons,
}

impl Figures {
    pub(crate) fn add(&mut self, group: u32, metric: Metric, value: Value) {
        let samples = self.metrics.entry(metric).or_default();
        match value.and_then(|v| if v.is_finite() { Ok(v) } else { Err(Code::Nonsense) }) {
            Ok(value) => samples.values.push((group, value)),
            Err(code) => {
                samples.missing += 1;
                samples.reasons.add(code);
            }
        }
    }

    fn note(&mut self, metric: Metric, code: Code) {
        self.metrics.entry(metric).or_default().reasons.add(code);
    }

    /// All figures of one window. `readings`: which of them the scope has at all.
    pub(crate) fn add_window(&mut self, window: &Window, m: &Measured, peak: Value, readings: [bool; 6]) {
        let group = window.group;
        let length = window.to - window.from;
        let mut add = |metric, value| self.add(group, metric, value);
        if let Some(counter) = m.counter {
            add(Metric::EnergyCounter, counter);
        }
        if let Some(integral) = m.integral {
            add(Metric::EnergyTrapz, integral);
        }
        add(Metric::EnergyNet, m.gross.and_then(|gross| Ok(gross - m.idle_w? * length)));
        add(Metric::EnergyPrefill, m.prefill);
        add(Metric::EnergyDecode, m.decode);
        let e2e = per_token(m.gross, window.tokens);
        // Where requests overlap the window knows no decode apart from the rest.
        let decode = if window.repeats.is_some() { per_token(m.decode, window.decoded) } else { e2e };
        let inverse =
            |value: Value| value.and_then(|v| if v > 0.0 { Ok(1.0 / v) } else { Err(Code::Nonsense) });
        add(Metric::JoulesPerToken, decode);
        add(Metric::WhPer1kTokens, decode.map(|v| v / 3.6));
        add(Metric::TokensPerJoule, inverse(decode));
        add(Metric::JoulesPerTokenE2e, e2e);
        add(Metric::WhPer1kTokensE2e, e2e.map(|v| v / 3.6));
        add(Metric::TokensPerJouleE2e, inverse(e2e));
        add(Metric::AvgPower, m.gross.map(|gross| gross / length));
        add(Metric::PeakPower, m.gross.and(peak));
        for (i, (_, metric)) in READINGS.into_iter().enumerate().filter(|(i, _)| readings[*i]) {
            add(metric, m.readings[i]);
        }
        self.compare(group, m);
        if m.averaged {
            for metric in
                [Metric::EnergyTrapz, Metric::EnergyPrefill, Metric::EnergyDecode, Metric::PeakPower]
            {
                self.note(metric, Code::Averaged);
            }
        }
    }

    /// Counter against integral, where both exist.
    fn compare(&mut self, group: u32, m: &Measured) {
        let (Some(counter), Some(integral)) = (m.counter, m.integral) else { return };
        let difference = counter.and_then(|counter| Ok(counter / integral? - 1.0));
        self.add(group, Metric::EnergyDifference, difference);
        if difference.is_ok_and(|d| d.abs() > DISAGREE_ABOVE) {
            self.note(Metric::EnergyDifference, Code::CounterDisagrees);
        }
    }

    /// Estimates of all metrics; `seed` of each bootstrap by the metric's key.
    pub(crate) fn estimates(self, scope: &str, seed: impl Fn(&str) -> u64) -> Result<Vec<Estimate>, Error> {
        let mut estimates = Vec::new();
        for (metric, samples) in self.metrics {
            let mut tally = Tally::new(samples.values.len() as u32, true);
            for (group, value) in samples.values {
                tally.push(group, value)?;
            }
            let reason = samples.reasons.text();
            let all =
                Estimate::of_samples(metric, &tally.clustered(seed(metric.def().key))?, samples.missing);
            // Where every sample is missing one row says so.
            let rows = if all.iter().any(|e| e.n > 0) { all.len() } else { 1 };
            estimates.extend(all.into_iter().take(rows).map(|estimate| Estimate {
                scope: Some(scope.to_owned()),
                missing_reason: reason.clone(),
                ..estimate
            }));
        }
        Ok(estimates)
    }
}
