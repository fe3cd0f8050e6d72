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

/// Three significant digits: a bucket's centre is within 0.05 % of its samples.
fn histogram() -> Option<Histogram<u64>> {
    Histogram::new(3).ok()
}

fn steps(magnitude: f64) -> u64 {
    (magnitude * HISTOGRAM_STEPS_PER_UNIT).round() as u64
}

/// Centre and number of samples of each bucket that has any, ascending.
fn buckets(histogram: &Histogram<u64>) -> impl Iterator<Item = (f64, u64)> {
    histogram.iter_recorded().map(|bucket| {
        let centre = histogram.median_equivalent(bucket.value_iterated_to());
        (centre as f64 / HISTOGRAM_STEPS_PER_UNIT, bucket.count_at_value())
    })
}

fn bucket_counts(values: &[f64]) -> Result<Vec<(f64, u64)>, Error> {
    let too_wide = |value: f64| Error::NotFinite { value, n: values.len() as u64 };
    let mut histogram = histogram().ok_or_else(|| too_wide(f64::NAN))?;
    for &value in values {
        histogram.record(steps(value)).map_err(|_| too_wide(value))?;
    }
    Ok(cumulated(buckets(&histogram)))
}

fn cumulated(buckets: impl Iterator<Item = (f64, u64)>) -> Vec<(f64, u64)> {
    let mut up_to = 0;
    buckets
        .map(|(centre, count)| {
            up_to += count;
            (centre, up_to)
        })
        .collect()
}

/// A distribution that is counted as its samples come, by sign.
#[derive(Debug, Clone)]
pub(super) struct Histograms {
    negative: Option<Histogram<u64>>,
    positive: Option<Histogram<u64>>,
    n: u64,
    mean: f64,
    /// Sum of squared deviations from the mean so far (Welford 1962).
    squares: f64,
    min: f64,
    max: f64,
}

impl Histograms {
    pub(super) fn new() -> Self {
        Self {
            negative: None,
            positive: None,
            n: 0,
            mean: 0.0,
            squares: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
        }
    }

    pub(super) fn n(&self) -> u64 {
        self.n
    }

    pub(super) fn heap_bytes(&self) -> usize {
        [&self.negative, &self.positive].into_iter().flatten().map(|h| h.distinct_values() * 8).sum()
    }

    pub(super) fn add(&mut self, value: f64) -> Result<(), Error> {
        let refuse = Error::NotFinite { value, n: self.n };
        if !value.is_finite() {
            return Err(refuse);
        }
        let side = if value < 0.0 { &mut self.negative } else { &mut self.positive };
        if side.is_none() {
            *side = histogram();
        }
        let recorded = side.as_mut().map(|h| h.record(steps(value.abs())));
        if !matches!(recorded, Some(Ok(()))) {
            return Err(refuse);
        }
        self.n += 1;
        let from_old = value - self.mean;
        self.mean += from_old / self.n as f64;
        self.squares += from_old * (value - self.mean);
        (self.min, self.max) = (self.min.min(value), self.max.max(value));
        Ok(())
    }

    pub(super) fn distribution(self) -> Distribution {
        let negative: Vec<_> = self.negative.iter().flat_map(buckets).collect();
        let descending = negative.into_iter().rev().map(|(centre, count)| (-centre, count));
        let order = Order::Counts(cumulated(descending.chain(self.positive.iter().flat_map(buckets))));
        let equal = self.min.total_cmp(&self.max).is_eq();
        let mean = if equal { self.min } else { self.mean.clamp(self.min, self.max) };
        let variance = if equal { 0.0 } else { self.squares / (self.n as f64 - 1.0) };
        Distribution { order, n: self.n, mean, variance, min: self.min, max: self.max }
    }
}
