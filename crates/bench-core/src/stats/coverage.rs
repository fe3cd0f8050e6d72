//! Simulated coverage of every interval on distributions whose truth is known, and exact small cases.

#![allow(clippy::print_stdout)] // the coverages are to be read

use super::*;
use crate::sample::Interval;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use statrs::distribution::{ContinuousCDF, Normal};

/// A coverage of 95 % then has a standard error of 0.34 %: with 1,000, points near 96 % leave the band by chance.
const REPLICATES: u64 = 4_000;

/// Seeds from here on had no part in the making of any interval; data and bootstrap never share one.
const DATA_SEEDS: u64 = 7_000_000;
const BOOTSTRAP_SEEDS: u64 = 9_000_000;

const BAND: std::ops::RangeInclusive<f64> = 0.93..=0.97;

#[derive(Debug, Clone, Copy)]
enum Law {
    Normal,
    Exponential,
    /// exp(0.3 N): a latency with a tail.
    LogNormal,
}

impl Law {
    fn draw(self, rng: &mut ChaCha8Rng) -> f64 {
        match self {
            Self::Normal => normal(rng),
            Self::Exponential => -(1.0 - rng.random::<f64>()).ln(),
            Self::LogNormal => (0.3 * normal(rng)).exp(),
        }
    }

    fn quantile(self, p: f64) -> f64 {
        let z = Normal::standard().inverse_cdf(p);
        match self {
            Self::Normal => z,
            Self::Exponential => -(1.0 - p).ln(),
            Self::LogNormal => (0.3 * z).exp(),
        }
    }

    fn mean(self) -> f64 {
        match self {
            Self::Normal => 0.0,
            Self::Exponential => 1.0,
            Self::LogNormal => 0.045_f64.exp(),
        }
    }
}

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Counts among the intervals that exist: an empty one claims nothing, an empty end bounds nothing.
#[derive(Default)]
struct Hits {
    inside: u32,
    of: u32,
}

impl Hits {
    fn count(&mut self, interval: Option<Interval>, truth: f64) {
        if let Some(i) = interval {
            self.of += 1;
            let missed = i.low.is_some_and(|low| low > truth) || i.high.is_some_and(|high| high < truth);
            self.inside += u32::from(!missed);
        }
    }

    fn check(&self, what: &str) {
        let coverage = f64::from(self.inside) / f64::from(self.of);
        println!("{what}: {:.1} % of {}", coverage * 100.0, self.of);
        assert!(BAND.contains(&coverage), "{what}: {coverage}");
    }
}

#[test]
fn quantiles_of_independent_samples() {
    for law in [Law::Normal, Law::Exponential, Law::LogNormal] {
        for (n, p) in
            [(6, 0.5), (20, 0.5), (20, 0.9), (20, 0.95), (50, 0.9), (100, 0.95), (100, 0.99), (400, 0.99)]
        {
            let mut hits = Hits::default();
            for seed in 0..REPLICATES {
                let mut rng = ChaCha8Rng::seed_from_u64(DATA_SEEDS + seed);
                let d = Distribution::new((0..n).map(|_| law.draw(&mut rng)).collect()).unwrap();
                hits.count(quantile_interval(&d, p), law.quantile(p));
            }
            hits.check(&format!("{law:?} n {n} p{}", p * 100.0));
        }
    }
}

#[test]
fn means_of_independent_samples() {
    for (law, sizes) in [
        (Law::Normal, &[5, 10, 20, 50][..]),
        // Below ten samples Student's t misses the tail of a skewed law: 88 % at n = 5 of an exponential.
        (Law::Exponential, &[10, 20, 50]),
        (Law::LogNormal, &[6, 10, 20, 50]),
    ] {
        for &n in sizes {
            let mut hits = Hits::default();
            for seed in 0..REPLICATES {
                let mut rng = ChaCha8Rng::seed_from_u64(DATA_SEEDS + seed);
                let values = (0..n).map(|i| (i, law.draw(&mut rng)));
                hits.count(
                    Clustered::new(values, BOOTSTRAP_SEEDS + seed).unwrap().mean_interval(),
                    law.mean(),
                );
            }
            hits.check(&format!("{law:?} n {n} mean"));
        }
    }
}

#[test]
fn slopes_of_noisy_lines() {
    let doubling = |n: i32| (0..n).map(|i| 128.0 * 2_f64.powi(i)).collect::<Vec<_>>();
    for xs in [vec![128.0, 2_048.0, 131_072.0], doubling(5), doubling(11)] {
        let mut hits = Hits::default();
        for seed in 0..REPLICATES {
            let mut rng = ChaCha8Rng::seed_from_u64(DATA_SEEDS + seed);
            let points: Vec<_> =
                xs.iter().map(|x| (*x, 4_096.0 * x + 77.0 + 1e4 * normal(&mut rng))).collect();
            hits.count(least_squares(&points).map(|line| line.interval), 4_096.0);
        }
        hits.check(&format!("slope over {} contexts", xs.len()));
    }
}

/// 2 + 5 E + X: a fixed part, a part E = exp(sigma N) that all gaps of a request share, an exponential X.
fn gap(rng: &mut ChaCha8Rng, shared: f64) -> f64 {
    2.0 + 5.0 * shared + 3.0 * Law::Exponential.draw(rng)
}

#[test]
fn pooled_gaps_of_requests_that_differ() {
    const PROBABILITIES: [f64; 4] = [0.5, 0.9, 0.95, 0.99];
    let grid = [0.0, 0.1, 0.2].into_iter().flat_map(|sigma| [12, 20].map(|requests| (sigma, requests, 31)));
    for (sigma, requests, gaps) in grid {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let draws = (0..2_000_000).map(|_| {
            let shared = (sigma * normal(&mut rng)).exp();
            gap(&mut rng, shared)
        });
        let mut population: Vec<_> = draws.collect();
        population.sort_unstable_by(f64::total_cmp);
        let truth = PROBABILITIES.map(|p| population[(p * 2e6) as usize]);
        let mean = 2.0 + 5.0 * (sigma * sigma / 2.0).exp() + 3.0;
        {
            let mut hits: [Hits; 5] = Default::default();
            for seed in 0..REPLICATES {
                let mut rng = ChaCha8Rng::seed_from_u64(DATA_SEEDS + seed);
                let mut samples = Vec::new();
                for request in 0..requests {
                    let shared = (sigma * normal(&mut rng)).exp();
                    samples.extend((0..gaps).map(|_| (request, gap(&mut rng, shared))));
                }
                let clustered = Clustered::new(samples, BOOTSTRAP_SEEDS + seed).unwrap();
                for (k, p) in PROBABILITIES.into_iter().enumerate() {
                    hits[k].count(clustered.quantile_interval(p), truth[k]);
                }
                hits[4].count(clustered.mean_interval(), mean);
            }
            for (hits, what) in hits.iter().zip(["p50", "p90", "p95", "p99", "mean"]) {
                hits.check(&format!("gaps sigma {sigma}, {requests} requests x {gaps}, {what}"));
            }
        }
    }
}

#[test]
fn proportions() {
    for (n, rate) in [(20, 0.9), (50, 0.95), (100, 0.5), (200, 0.99)] {
        let mut hits = Hits::default();
        for seed in 0..REPLICATES {
            let mut rng = ChaCha8Rng::seed_from_u64(DATA_SEEDS + seed);
            let successes = (0..n).filter(|_| rng.random::<f64>() < rate).count() as u64;
            hits.count(wilson_interval(successes, n), rate);
        }
        // Whole counts: at some rates no interval comes nearer to 95 % than this.
        let coverage = f64::from(hits.inside) / f64::from(hits.of);
        println!("wilson {rate} of {n}: {:.1} %", coverage * 100.0);
        assert!((0.93..=0.985).contains(&coverage), "{rate} of {n}: {coverage}");
    }
}

#[test]
fn ends_that_n_cannot_bound_are_empty() {
    let interval = |n: u32, p| {
        quantile_interval(&Distribution::new((1..=n).map(f64::from).collect()).unwrap(), p)
            .map(|i| (i.low.is_some(), i.high.is_some()))
    };
    // 0.9^35 > 0.025 >= 0.9^36; 0.5^5 > 0.025 >= 0.5^6; 0.99^367 > 0.025 >= 0.99^368.
    for (n, p, expected) in [
        (0, 0.5, None),
        (5, 0.5, None),
        (6, 0.5, Some((true, true))),
        (35, 0.9, Some((true, false))),
        (36, 0.9, Some((true, true))),
        (367, 0.99, Some((true, false))),
        (368, 0.99, Some((true, true))),
    ] {
        assert_eq!(interval(n, p), expected, "n {n} p {p}");
    }
    let few = (0..MIN_CLUSTERS as u32 - 1).flat_map(|g| [(g, 1.0), (g, f64::from(g))]);
    let few = Clustered::new(few, 0).unwrap();
    assert_eq!((few.mean_interval(), few.quantile_interval(0.5)), (None, None));
}

#[test]
fn large_samples_join_without_a_step() {
    // Order statistics of 1..=n are their ranks: the expansion must go on where the beta function ends.
    let ends = |n: u32| {
        let d = Distribution::new((1..=n).map(f64::from).collect()).unwrap();
        let i = quantile_interval(&d, 0.99).unwrap();
        (i.low.unwrap(), i.high.unwrap())
    };
    let (before, after) = (ends(10_000), ends(10_001));
    assert!(
        (after.0 - before.0 - 0.99).abs() < 0.1 && (after.1 - before.1 - 0.99).abs() < 0.1,
        "{before:?} {after:?}"
    );
}

#[test]
fn small_cases_by_hand() {
    let d = Distribution::new(vec![4.0, 1.0, 3.0, 2.0, 5.0]).unwrap();
    assert_eq!(d.quantile(0.5), Some(3.0));
    // Type 7: rank 1 + 0.9 * 4 = 4.6.
    assert!((d.quantile(0.9).unwrap() - 4.6).abs() < 1e-12);
    assert!((d.std_dev().unwrap() - 2.5_f64.sqrt()).abs() < 1e-12);
    // t(0.975, 4) = 2.776445; half width 2.776445 * sqrt(2.5 / 5).
    let t = mean_interval(&d).unwrap();
    assert!((t.high.unwrap() - 3.0 - 2.776_445 * 0.5_f64.sqrt()).abs() < 1e-5, "{t:?}");
    // Wilson, 8 of 10: 0.4902 to 0.9433.
    let w = wilson_interval(8, 10).unwrap();
    assert!((w.low.unwrap() - 0.4902).abs() < 1e-4 && (w.high.unwrap() - 0.9433).abs() < 1e-4, "{w:?}");
    for bad in [f64::NAN, f64::INFINITY] {
        assert!(Distribution::new(vec![1.0, bad]).unwrap_err().to_string().contains("finite"));
    }
    let none = Distribution::new(Vec::new()).unwrap();
    assert_eq!((none.mean(), none.quantile(0.5), none.min(), none.std_dev()), (None, None, None, None));
}

#[test]
fn histogram_keeps_three_digits() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let values: Vec<_> = (0..=HISTOGRAM_FROM).map(|_| 10.0 * Law::LogNormal.draw(&mut rng)).collect();
    let mut sorted = values.clone();
    sorted.sort_unstable_by(f64::total_cmp);
    let d = Distribution::new(values).unwrap();
    for p in [0.001, 0.5, 0.9, 0.99, 0.999] {
        let exact = sorted[(p * HISTOGRAM_FROM as f64) as usize];
        assert!((d.quantile(p).unwrap() / exact - 1.0).abs() < 1e-3, "{p}");
    }
    assert_eq!((d.min(), d.max()), (sorted.first().copied(), sorted.last().copied()));
}

proptest::proptest! {
    #[test]
    fn order_does_not_matter_and_quantiles_rise(
        samples in proptest::collection::vec((0_u32..15, 0.0_f64..1e3), 1..120), by in 0_usize..120
    ) {
        let mut turned = samples.clone();
        turned.rotate_left(by % samples.len());
        let (a, b) = (Clustered::new(samples, 7).unwrap(), Clustered::new(turned, 7).unwrap());
        let mut last = a.pooled().min();
        for p in [0.1, 0.5, 0.9, 0.95, 0.99, 0.999] {
            let q = a.pooled().quantile(p);
            proptest::prop_assert!(q >= last && q <= a.pooled().max());
            proptest::prop_assert_eq!(q, b.pooled().quantile(p));
            proptest::prop_assert_eq!(a.quantile_interval(p), b.quantile_interval(p));
            last = q;
        }
        proptest::prop_assert_eq!(a.mean_interval(), b.mean_interval());
        proptest::prop_assert_eq!(a.pooled().mean(), b.pooled().mean());
    }
}
