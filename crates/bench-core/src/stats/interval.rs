//! 95 % intervals of independent samples: order statistics, Student's t, Wilson's score.
//!
//! Samples that come in groups (the gaps of one request) belong to `cluster`, not here.

use super::{ALPHA, Distribution};
use crate::sample::{Interval, IntervalMethod};
use statrs::distribution::{ContinuousCDF, StudentsT};
use statrs::function::beta::beta_reg;

/// z of a two-sided 95 % interval.
pub(super) const Z: f64 = 1.959_963_984_540_054;
/// z of a one-sided 95 % bound.
const Z_ONE_SIDED: f64 = 1.644_853_626_951_472_2;

/// Above this n the binomial tail is read from its Cornish-Fisher expansion: the continued fraction behind
/// `beta_reg` stops after 140 terms, and it needs about sqrt(n).
const EXPANSION_FROM: f64 = 10_000.0;

/// Interval of quantile `p` from fractional order statistics of independent samples.
///
/// Whole ranks can only give coverages in steps, from 95 % upwards; so the rank is the real number k at
/// which Beta(k, n + 1 - k), the law of the k-th order statistic on the probability scale, leaves 2.5 %
/// beyond `p` (Hutson 1999), and the end is read linearly between the neighbours. An end beyond the
/// smallest or largest sample is `None`; the other end is then a one-sided 95 % bound. `None` as a
/// whole where neither end can be given.
pub fn quantile_interval(d: &Distribution, p: f64) -> Option<Interval> {
    let (low, high) = interval_ranks(d.n() as f64, p)?;
    Some(Interval {
        low: low.and_then(|rank| d.at(rank)),
        high: high.and_then(|rank| d.at(rank)),
        method: IntervalMethod::OrderStatistic,
    })
}

/// Ranks of the ends in a sample of `n` (a real number: effective sizes are not whole); `None` where the
/// sample cannot bound them.
pub(super) fn interval_ranks(n: f64, p: f64) -> Option<(Option<f64>, Option<f64>)> {
    let half = Tail { mass: ALPHA / 2.0, z: Z };
    let full = Tail { mass: ALPHA, z: Z_ONE_SIDED };
    let low = low_rank(n, p, half);
    let high = high_rank(n, p, half);
    match (low, high) {
        (Some(_), Some(_)) => Some((low, high)),
        (Some(_), None) => Some((low_rank(n, p, full), None)),
        (None, Some(_)) => Some((None, high_rank(n, p, full))),
        // One side alone may still be bounded when it gets the whole error probability.
        (None, None) if p > 0.5 => low_rank(n, p, full).map(|low| (Some(low), None)),
        (None, None) if p < 0.5 => high_rank(n, p, full).map(|high| (None, Some(high))),
        (None, None) => None,
    }
}

#[derive(Clone, Copy)]
struct Tail {
    mass: f64,
    z: f64,
}

/// Rank k with P(U_(k) > p) = mass: by symmetry the mirror of the high rank.
fn low_rank(n: f64, p: f64, tail: Tail) -> Option<f64> {
    high_rank(n, 1.0 - p, tail).map(|rank| n + 1.0 - rank)
}

/// Rank k in [1, n] with P(U_(k) < p) = mass, U_(k) ~ Beta(k, n + 1 - k).
fn high_rank(n: f64, p: f64, tail: Tail) -> Option<f64> {
    if n < 1.0 {
        return None;
    }
    if n > EXPANSION_FROM {
        let rank = n * p
            + tail.z * (n * p * (1.0 - p)).sqrt()
            + (tail.z * tail.z - 1.0) * (1.0 - 2.0 * p) / 6.0
            + 0.5;
        return (rank <= n).then_some(rank.max(1.0));
    }
    let below = |rank: f64| beta_reg(rank, n + 1.0 - rank, p);
    if below(n) > tail.mass {
        return None;
    }
    let (mut low, mut high) = (1.0, n);
    if below(low) <= tail.mass {
        return Some(low);
    }
    // 60 halvings reach the last bit of any rank.
    for _ in 0..60 {
        let middle = low + (high - low) / 2.0;
        if below(middle) > tail.mass { low = middle } else { high = middle }
    }
    Some(high)
}

/// Student's t interval of the mean of independent samples; `None` below two.
pub fn mean_interval(d: &Distribution) -> Option<Interval> {
    let (mean, std_dev) = (d.mean()?, d.std_dev()?);
    let half = t_quantile(d.n() as f64 - 1.0) * std_dev / (d.n() as f64).sqrt();
    Some(Interval { low: Some(mean - half), high: Some(mean + half), method: IntervalMethod::StudentT })
}

/// 97.5 % quantile of Student's t.
pub(super) fn t_quantile(freedom: f64) -> f64 {
    StudentsT::new(0.0, 1.0, freedom).map_or(f64::INFINITY, |t| t.inverse_cdf(1.0 - ALPHA / 2.0))
}

/// Wilson's score interval of `successes` in `n`; `None` when n is 0.
pub fn wilson_interval(successes: u64, n: u64) -> Option<Interval> {
    if n == 0 || successes > n {
        return None;
    }
    let (n, rate, z2) = (n as f64, successes as f64 / n as f64, Z * Z);
    let centre = (rate + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z / (1.0 + z2 / n) * (rate * (1.0 - rate) / n + z2 / (4.0 * n * n)).sqrt();
    let (low, high) = ((centre - half).max(0.0), (centre + half).min(1.0));
    // At 0 of n and n of n the end is the rate itself; rounding must not push it past.
    Some(Interval { low: Some(low.min(rate)), high: Some(high.max(rate)), method: IntervalMethod::Wilson })
}
