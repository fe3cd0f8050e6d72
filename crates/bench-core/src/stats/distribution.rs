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

impl Distribution {
    /// The empirical distribution: ascending values, each with the share of samples that are not above it; both
    /// ends are kept, and the last share is 1.
    ///
    /// Exact where there are at most `most` different values, which is a number above 3. Else half of the steps
    /// lie at even shares, and half divide the distance of the share to 1 evenly on a logarithmic scale from 1/2 to
    /// 1/n, so that every decade of the upper tail has the same number of them. From a histogram values are within
    /// its digits.
    pub fn steps(&self, most: usize) -> Vec<(f64, f64)> {
        let share = |(value, up_to): (f64, u64)| (value, up_to as f64 / self.n as f64);
        self.every_step(most)
            .unwrap_or_else(|| {
                let mut steps: Vec<_> = ranks(self.n, most).into_iter().map(|rank| self.step(rank)).collect();
                steps.dedup_by_key(|step| step.1);
                steps
            })
            .into_iter()
            .map(share)
            .collect()
    }

    /// One step for each value that occurs; `None` if they are more than `most`.
    fn every_step(&self, most: usize) -> Option<Vec<(f64, u64)>> {
        let (mut steps, mut up_to) = (Vec::new(), 0);
        while up_to < self.n {
            if steps.len() == most {
                return None;
            }
            let step = self.step(up_to + 1);
            steps.push(step);
            up_to = step.1;
        }
        Some(steps)
    }

    /// The value of rank `rank`, with the number of samples that are not above it. The outermost buckets stand for
    /// the ends, which are known.
    fn step(&self, rank: u64) -> (f64, u64) {
        match &self.order {
            Order::Raw(values) => {
                let value = values[rank as usize - 1];
                (value, values.partition_point(|v| *v <= value) as u64)
            }
            Order::Counts(counts) => {
                let (centre, up_to) = counts[counts.partition_point(|&(_, up_to)| up_to < rank)];
                let value = if up_to == self.n {
                    self.max
                } else if up_to == counts[0].1 {
                    self.min
                } else {
                    centre.clamp(self.min, self.max)
                };
                (value, up_to)
            }
        }
    }
}

/// `most` ranks from 1 to `n`, ascending, both ends among them, some of them twice.
fn ranks(n: u64, most: usize) -> Vec<u64> {
    let (even, tail) = (most / 2, most - most / 2);
    let rank = |share: f64| ((share * n as f64).ceil() as u64).clamp(1, n);
    let part = |i: usize, of: usize| i as f64 / (of.max(2) - 1) as f64;
    let above = |i: usize| 0.5 * (2.0 / n as f64).powf(part(i, tail));
    let mut ranks: Vec<u64> = (0..even).map(|i| rank(part(i, even))).collect();
    ranks.extend((0..tail).map(|i| rank(1.0 - above(i))));
    ranks.sort_unstable();
    ranks
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

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn of(values: &[f64]) -> Distribution {
        Distribution::new(values.to_vec()).unwrap()
    }

    #[test]
    fn few_values_are_all_steps() {
        assert_eq!(of(&[]).steps(4), []);
        assert_eq!(of(&[7.0]).steps(4), [(7.0, 1.0)]);
        assert_eq!(of(&[3.0, 1.0, 2.0, 1.0]).steps(4), [(1.0, 0.5), (2.0, 0.75), (3.0, 1.0)]);
        let all: Vec<f64> = (1..=512).map(f64::from).collect();
        let steps = of(&all).steps(512);
        assert_eq!(steps, all.iter().map(|v| (*v, v / 512.0)).collect::<Vec<_>>());
        // Many samples of few values lose nothing but, once they are counted, digits between the ends.
        for (n, middle) in [(1_000, 2.0), (HISTOGRAM_FROM + 1_000, 2.000_384)] {
            let values: Vec<f64> = (0..n).map(|i| [1.0, 2.0, 2.0, 4.0][i % 4]).collect();
            assert_eq!(of(&values).steps(512), [(1.0, 0.25), (middle, 0.75), (4.0, 1.0)], "{n}");
        }
    }

    /// Lognormal times, as latencies are: the ends are kept, and every quantile that is read from the steps lies
    /// between those of neighbouring shares and within the histogram's digits.
    #[test]
    fn many_values_are_dense_in_the_upper_tail() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for n in [513, 20_000, 200_000] {
            let normal: Vec<f64> =
                (0..n).map(|_| (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0).collect();
            let mut values: Vec<f64> = normal.into_iter().map(|z| 20.0 * z.exp()).collect();
            let steps = of(&values).steps(512);
            values.sort_by(f64::total_cmp);
            assert!((300..=512).contains(&steps.len()), "{n}: {}", steps.len());
            assert!(steps.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 < w[1].1), "{n}");
            let last = values[values.len() - 1];
            assert_eq!((steps[0].0, *steps.last().unwrap()), (values[0], (last, 1.0)), "{n}");
            for p in [0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999] {
                let read = steps.iter().find(|s| s.1 >= p).unwrap().0;
                // Half of the steps are even, the others divide 1 - p by a constant: one of both bounds the share.
                let beyond = (p + 1.0 / 255.0).min(1.0 - (1.0 - p) / (0.5 * f64::from(n)).powf(1.0 / 255.0));
                let at =
                    |share: f64| values[((share * f64::from(n)).ceil() as usize).clamp(1, values.len()) - 1];
                let (low, high) = (at(p) * 0.999, at(beyond + 1.0 / f64::from(n)) * 1.001);
                assert!((low..=high).contains(&read), "{n} {p}: {read} not in {low}..{high}");
            }
        }
    }

    #[test]
    fn counted_shares_are_those_of_the_buckets() {
        // One sample far above: the largest bucket but one ends below it.
        let mut values: Vec<f64> = (0..200_000).map(|i| 10.0 + f64::from(i) * 1e-4).collect();
        values.push(500.0);
        let steps = of(&values).steps(512);
        let n = values.len() as f64;
        assert_eq!((steps[0], steps[steps.len() - 1]), ((10.0, 25.0 / n), (500.0, 1.0)));
        for (value, share) in &steps[1..steps.len() - 1] {
            let exact = ((value - 10.0) / 1e-4 / n).min(1.0);
            assert!((share - exact).abs() < 2e-3, "{value}: {share} {exact}");
        }
    }
}
