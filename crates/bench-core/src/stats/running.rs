//! Quantiles of a stream of samples in memory that does not grow with their number.
//!
//! For those who watch a run. What is reported comes from all samples, by `Distribution`.

use super::supports;
use hdrhistogram::Histogram;

/// The histogram counts whole millionths of the unit: nanoseconds where the unit is ms.
const STEPS_PER_UNIT: f64 = 1e6;

/// A histogram with three significant digits; some ten kilobytes, whatever the number of samples.
#[derive(Debug, Clone, Default)]
pub struct Running {
    /// `None` before the first sample.
    histogram: Option<Histogram<u32>>,
}

impl Running {
    /// Adds a sample. One that is negative or not finite is left out: it would sort somewhere and be
    /// believed.
    pub fn record(&mut self, value: f64) {
        let steps = (value * STEPS_PER_UNIT).round();
        if !(steps.is_finite() && steps >= 0.0) {
            return;
        }
        if self.histogram.is_none() {
            self.histogram = Histogram::new(3).ok();
        }
        if let Some(histogram) = &mut self.histogram {
            // Above 2^62 steps, a century in nanoseconds, the bucket is the last one.
            let counted = histogram.record((steps as u64).min(1 << 62));
            debug_assert!(counted.is_ok(), "a histogram that grows takes every number");
        }
    }

    pub fn n(&self) -> u64 {
        self.histogram.as_ref().map_or(0, Histogram::len)
    }

    /// Sample of nearest rank at quantile `p`, within 0.1 %; `None` where the samples do not support it.
    pub fn quantile(&self, p: f64) -> Option<f64> {
        let histogram = self.histogram.as_ref().filter(|h| supports(h.len(), p))?;
        let steps = histogram.value_at_quantile(p).clamp(histogram.min(), histogram.max());
        Some(histogram.median_equivalent(steps) as f64 / STEPS_PER_UNIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_the_bucket_and_only_where_n_supports_them() {
        let mut running = Running::default();
        assert_eq!((running.n(), running.quantile(0.5)), (0, None));
        for (i, known) in (1..=1_000_u32).zip(1_u64..) {
            running.record(f64::from(i) / 8.0);
            assert_eq!(running.n(), known);
            for p in [0.5, 0.95, 0.99] {
                let expected = supports(known, p).then(|| (p * known as f64).ceil() / 8.0);
                let off = running.quantile(p).zip(expected).map(|(a, b)| (a - b).abs() / b);
                assert_eq!(running.quantile(p).is_some(), expected.is_some(), "{p} of {known}");
                assert!(off.is_none_or(|off| off < 1e-3 + 1e-9), "{p} of {known}: {off:?}");
            }
        }
    }

    #[test]
    fn a_million_samples_need_no_more_room_than_a_thousand() {
        let fill = |n: u32| {
            let mut running = Running::default();
            (0..n).for_each(|i| running.record(f64::from(i % 1_000) + 0.5));
            running.histogram.unwrap().distinct_values()
        };
        assert_eq!(fill(1_000_000), fill(1_000));
    }

    #[test]
    fn what_is_no_time_is_left_out() {
        let mut running = Running::default();
        for value in [f64::NAN, f64::INFINITY, -1.0] {
            running.record(value);
        }
        assert_eq!(running.n(), 0);
        for value in [0.0, 1e300] {
            running.record(value);
        }
        assert_eq!(running.n(), 2);
        assert_eq!(running.quantile(0.5), Some(0.0));
    }
}
