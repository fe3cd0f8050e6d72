//! Sorted samples, or a histogram of them once there are too many to be worth sorting.
//!
//! Order statistics, type 7 quantiles and moments; no intervals and no rule of what n supports.

use crate::Error;
use hdrhistogram::Histogram;

/// Above this many samples order statistics come from a histogram with three significant digits.
pub const HISTOGRAM_FROM: usize = 100_000;

/// The histogram counts whole millionths of the unit: nanoseconds where the unit is ms.
const HISTOGRAM_STEPS_PER_UNIT: f64 = 1e6;

#[derive(Debug, Clone)]
enum Order {
    Raw(Vec<f64>),
    /// Bucket centre and number of samples up to and with this bucket.
    Counts(Vec<(f64, u64)>),
}

/// The distribution of one metric's samples in one cell.
#[derive(Debug, Clone)]
pub struct Distribution {
    order: Order,
    n: u64,
    mean: f64,
    variance: f64,
    min: f64,
    max: f64,
}

impl Distribution {
    /// Sorts `values`; the order in which they come changes no digit of any result.
    /// A value that is not finite is an error: it would sort somewhere and be believed.
    pub fn new(mut values: Vec<f64>) -> Result<Self, Error> {
        if let Some(&value) = values.iter().find(|v| !v.is_finite()) {
            return Err(Error::NotFinite { value, n: values.len() as u64 });
        }
        values.sort_unstable_by(f64::total_cmp);
        let n = values.len() as u64;
        let mean = values.iter().sum::<f64>() / n as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n as f64 - 1.0);
        let (min, max) =
            (values.first().copied().unwrap_or(f64::NAN), values.last().copied().unwrap_or(f64::NAN));
        // Equal samples have exactly their value as mean and no spread; sums would round.
        let (mean, variance) =
            if min.total_cmp(&max).is_eq() { (min, 0.0) } else { (mean.max(min).min(max), variance) };
        let order = if values.len() > HISTOGRAM_FROM && min >= 0.0 {
            Order::Counts(bucket_counts(&values)?)
        } else {
            Order::Raw(values)
        };
        Ok(Self { order, n, mean, variance, min, max })
    }

    pub fn n(&self) -> u64 {
        self.n
    }

    pub fn mean(&self) -> Option<f64> {
        (self.n > 0).then_some(self.mean)
    }

    /// Standard deviation with n - 1; `None` below two samples.
    pub fn std_dev(&self) -> Option<f64> {
        (self.n > 1).then(|| self.variance.sqrt())
    }

    pub fn min(&self) -> Option<f64> {
        (self.n > 0).then_some(self.min)
    }

    pub fn max(&self) -> Option<f64> {
        (self.n > 0).then_some(self.max)
    }

    /// Type 7 quantile, `p` in [0, 1]: linear between the order statistics around 1 + p (n - 1).
    /// `None` only where there is no sample; what n supports is `support`'s matter.
    pub fn quantile(&self, p: f64) -> Option<f64> {
        self.at(1.0 + p * (self.n as f64 - 1.0))
    }

    /// The order statistic of fractional rank `rank` (1 is the smallest sample), linear between neighbours;
    /// `None` outside [1, n].
    pub fn at(&self, rank: f64) -> Option<f64> {
        if self.n == 0 || !(1.0..=self.n as f64).contains(&rank) {
            return None;
        }
        let below = rank.floor();
        let low = self.order_statistic(below as u64);
        let part = rank - below;
        if part == 0.0 {
            return Some(low);
        }
        let high = self.order_statistic(below as u64 + 1);
        // An infinitesimal excess by rounding must not break monotony: stay within the neighbours.
        Some((low + part * (high - low)).clamp(low, high))
    }

    fn order_statistic(&self, rank: u64) -> f64 {
        match &self.order {
            Order::Raw(values) => values[rank as usize - 1],
            Order::Counts(_) if rank == 1 => self.min,
            Order::Counts(_) if rank == self.n => self.max,
            Order::Counts(counts) => {
                let bucket = counts.partition_point(|&(_, up_to)| up_to < rank);
                counts[bucket].0.clamp(self.min, self.max)
            }
        }
    }
}

fn bucket_counts(values: &[f64]) -> Result<Vec<(f64, u64)>, Error> {
    let too_wide = |value: f64| Error::NotFinite { value, n: values.len() as u64 };
    // Three significant digits: a bucket's centre is within 0.05 % of its samples.
    let mut histogram = Histogram::<u64>::new(3).map_err(|_| too_wide(f64::NAN))?;
    for &value in values {
        let steps = (value * HISTOGRAM_STEPS_PER_UNIT).round() as u64;
        histogram.record(steps).map_err(|_| too_wide(value))?;
    }
    let mut up_to = 0;
    let buckets = histogram.iter_recorded().map(|bucket| {
        up_to += bucket.count_at_value();
        let centre = histogram.median_equivalent(bucket.value_iterated_to());
        (centre as f64 / HISTOGRAM_STEPS_PER_UNIT, up_to)
    });
    Ok(buckets.collect())
}
