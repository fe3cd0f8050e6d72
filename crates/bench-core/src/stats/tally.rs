//! Samples of one metric as they come: kept while they are few, counted once they are many.
//!
//! Up to `HISTOGRAM_FROM` samples nothing is lost. Beyond, memory no longer grows: a histogram with three
//! significant digits for all samples, and where they come in groups up to `BATCHES` counts of consecutive groups
//! from which the intervals learn how groups differ.

use super::cluster::{Clustered, Groups};
use super::distribution::{Distribution, HISTOGRAM_FROM, Histograms};
use crate::Error;

/// Consecutive groups are joined into this many once samples are counted: batch means, which also take up what
/// neighbours in time have in common. Student's t with 255 degrees of freedom is 0.5 % wider than the normal law.
pub const BATCHES: u32 = 256;

/// Collects samples of one metric.
#[derive(Debug, Clone)]
pub struct Tally {
    kept: Vec<(u32, f64)>,
    counted: Option<Box<Counted>>,
    groups: u32,
    independent: bool,
}

#[derive(Debug, Clone)]
struct Counted {
    all: Histograms,
    batches: Vec<Batch>,
}

/// What one batch of groups adds to the intervals.
#[derive(Debug, Clone, Default)]
pub(super) struct Batch {
    pub sum: f64,
    pub n: u64,
    counts: Coarse,
}

impl Batch {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.n += 1;
        self.counts.add(value);
    }

    /// Samples that are at most `value`, or within 1 % above it.
    pub(super) fn up_to(&self, value: f64) -> u64 {
        self.counts.up_to(value)
    }
}

impl Tally {
    /// For samples of groups 0 to `groups` - 1. `independent`: each group gives one sample, which is only asked
    /// once samples are counted; while they are kept it is seen.
    pub fn new(groups: u32, independent: bool) -> Self {
        Self { kept: Vec::new(), counted: None, groups: groups.max(1), independent }
    }

    pub fn n(&self) -> u64 {
        self.counted.as_ref().map_or(self.kept.len() as u64, |c| c.all.n())
    }

    /// Bytes on the heap: what the memory of an analysis is made of.
    pub fn heap_bytes(&self) -> usize {
        let batches = self.counted.iter().flat_map(|c| &c.batches);
        self.kept.capacity() * size_of::<(u32, f64)>()
            + batches
                .map(|b| size_of::<Batch>() + b.counts.counts.capacity() * size_of::<u32>())
                .sum::<usize>()
            + self.counted.as_ref().map_or(0, |c| c.all.heap_bytes())
    }

    /// Adds one sample of `group`.
    ///
    /// # Errors
    /// A value that is not finite, once samples are counted; before, `clustered` finds it.
    pub fn push(&mut self, group: u32, value: f64) -> Result<(), Error> {
        if self.counted.is_none() {
            if self.kept.len() < HISTOGRAM_FROM {
                self.kept.push((group, value));
                return Ok(());
            }
            self.counted = Some(Box::new(Counted { all: Histograms::new(), batches: Vec::new() }));
            for (group, value) in std::mem::take(&mut self.kept) {
                self.count(group, value)?;
            }
        }
        self.count(group, value)
    }

    fn count(&mut self, group: u32, value: f64) -> Result<(), Error> {
        let Some(counted) = &mut self.counted else { return Ok(()) };
        counted.all.add(value)?;
        if !self.independent {
            let batches = self.groups.min(BATCHES);
            let batch = u64::from(group.min(self.groups - 1)) * u64::from(batches) / u64::from(self.groups);
            if counted.batches.is_empty() {
                counted.batches.resize(batches as usize, Batch::default());
            }
            counted.batches[batch as usize].add(value);
        }
        Ok(())
    }

    /// What was collected, ready for estimates; `seed` is that of the bootstrap.
    pub fn clustered(self, seed: u64) -> Result<Clustered, Error> {
        match self.counted {
            None => Clustered::new(self.kept, seed),
            Some(counted) => {
                let batches = counted.batches.into_iter().filter(|b| b.n > 0).collect();
                let groups = if self.independent { Groups::Single } else { Groups::Batches(batches) };
                Ok(Clustered::counted(counted.all.distribution(), groups, seed))
            }
        }
    }

    /// All samples without their groups.
    pub fn distribution(self) -> Result<Distribution, Error> {
        match self.counted {
            None => Distribution::new(self.kept.into_iter().map(|(_, value)| value).collect()),
            Some(counted) => Ok(counted.all.distribution()),
        }
    }
}

/// Counts in buckets of at most 1 % of the value, by sign, exponent and the first bits of the mantissa.
#[derive(Debug, Clone, Default)]
struct Coarse {
    /// Bucket of `counts[0]`.
    first: i32,
    counts: Vec<u32>,
}

/// Buckets per octave: 2^7.
const MANTISSA_BITS: u32 = 7;
/// Below this magnitude (a nanosecond, where the unit is ms) all values share the middle bucket.
const SMALLEST: f64 = 9.536_743_164_062_5e-7;

fn bucket(value: f64) -> i32 {
    let key = |v: f64| (v.to_bits() >> (f64::MANTISSA_DIGITS - 1 - MANTISSA_BITS)) as i32;
    let magnitude = value.abs();
    let distance = if magnitude < SMALLEST { 0 } else { key(magnitude) - key(SMALLEST) + 1 };
    if value < 0.0 { -distance } else { distance }
}

impl Coarse {
    fn add(&mut self, value: f64) {
        let bucket = bucket(value);
        if self.counts.is_empty() {
            self.first = bucket;
        }
        if bucket < self.first {
            let more = (self.first - bucket) as usize;
            self.counts.splice(0..0, std::iter::repeat_n(0, more));
            self.first = bucket;
        }
        let index = (bucket - self.first) as usize;
        if index >= self.counts.len() {
            self.counts.resize(index + 1, 0);
        }
        self.counts[index] += 1;
    }

    fn up_to(&self, value: f64) -> u64 {
        let end = i64::from(bucket(value)) - i64::from(self.first) + 1;
        let end = end.clamp(0, self.counts.len() as i64) as usize;
        self.counts[..end].iter().map(|&c| u64::from(c)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::mean_interval;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn values(n: u32) -> Vec<(u32, f64)> {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut shared = 0.0;
        (0..n)
            .map(|i| {
                if i % 200 == 0 {
                    shared = rng.random::<f64>();
                }
                (i / 200, 5.0 + shared - 4.0 * (1.0 - rng.random::<f64>()).ln())
            })
            .collect()
    }

    fn tally(values: &[(u32, f64)], groups: u32, independent: bool) -> Tally {
        let mut tally = Tally::new(groups, independent);
        for &(group, value) in values {
            tally.push(group, value).unwrap();
        }
        tally
    }

    #[test]
    fn few_samples_lose_nothing() {
        let values = values(20_000);
        let (a, b) = (tally(&values, 100, false).clustered(7).unwrap(), Clustered::new(values, 7).unwrap());
        assert_eq!(a.mean_interval(), b.mean_interval());
        assert_eq!(a.quantile_interval(0.99), b.quantile_interval(0.99));
        assert_eq!(a.pooled().std_dev(), b.pooled().std_dev());
    }

    /// Within the histogram's 0.1 %, and the interval as wide as that of the samples themselves within 15 %:
    /// 1,000 groups in 256 batches know their spread a little less well.
    #[test]
    fn many_samples_are_counted_within_the_histograms_digits() {
        let values = values(200_000);
        let counted = tally(&values, 1_000, false);
        assert!(counted.heap_bytes() < 4 << 20, "{}", counted.heap_bytes());
        let (a, b) = (counted.clustered(7).unwrap(), Clustered::new(values, 7).unwrap());
        let near = |a: Option<f64>, b: Option<f64>, share: f64| {
            let (a, b) = (a.unwrap(), b.unwrap());
            assert!((a - b).abs() <= share * b.abs(), "{a} {b}");
        };
        near(a.pooled().mean(), b.pooled().mean(), 1e-12);
        near(a.pooled().std_dev(), b.pooled().std_dev(), 1e-9);
        assert_eq!((a.pooled().min(), a.pooled().max()), (b.pooled().min(), b.pooled().max()));
        let width = |i: Option<crate::sample::Interval>| i.and_then(|i| Some(i.high? - i.low?));
        near(width(a.mean_interval()), width(b.mean_interval()), 0.15);
        for p in [0.5, 0.95, 0.99] {
            near(a.pooled().quantile(p), b.pooled().quantile(p), 1e-3);
            near(width(a.quantile_interval(p)), width(b.quantile_interval(p)), 0.15);
        }
    }

    #[test]
    fn independent_samples_keep_their_intervals_when_counted() {
        let values: Vec<_> = values(150_000).into_iter().zip(0..).map(|((_, v), i)| (i, v - 6.0)).collect();
        let counted = tally(&values, 150_000, true).clustered(7).unwrap();
        let all = Distribution::new(values.iter().map(|v| v.1).collect()).unwrap();
        let (a, b) = (counted.mean_interval().unwrap(), mean_interval(&all).unwrap());
        assert!((a.low.unwrap() - b.low.unwrap()).abs() < 1e-9 && a.method == b.method);
        let of =
            |p| (counted.quantile_interval(p).unwrap(), crate::stats::quantile_interval(&all, p).unwrap());
        for p in [0.05, 0.5, 0.999] {
            let (a, b) = of(p);
            for (a, b) in [(a.low, b.low), (a.high, b.high)] {
                assert!((a.unwrap() - b.unwrap()).abs() <= 1e-3 * b.unwrap().abs(), "{p}: {a:?} {b:?}");
            }
        }
        assert!(counted.pooled().quantile(0.05).unwrap() < 0.0, "negative values are counted too");
    }

    #[test]
    fn buckets_are_in_order_and_narrow() {
        let mut values = vec![-1e9, -3.0, -1e-3, -1e-9, 0.0, 1e-9, 1e-6, 2e-6, 1.0, 1.003, 1e3, 1e12];
        values.sort_by(f64::total_cmp);
        assert!(values.windows(2).all(|w| bucket(w[0]) <= bucket(w[1])));
        assert_ne!(bucket(1.0), bucket(1.01));
        let mut coarse = Coarse::default();
        values.iter().rev().for_each(|&v| coarse.add(v));
        for (i, &v) in values.iter().enumerate().filter(|(_, v)| v.abs() > 1e-5 && **v != 1.0) {
            assert_eq!(coarse.up_to(v), i as u64 + 1, "{v}");
        }
        assert!(tally(&values.iter().map(|&v| (0, v)).collect::<Vec<_>>(), 1, false).clustered(1).is_ok());
    }
}
