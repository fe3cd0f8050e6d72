//! Two sides of one figure held against each other: difference with interval, p-value, effect.
//!
//! What counts as one independent unit (a run, a round, a repeat) is decided here, since everything else
//! follows from it. Samples of one run cannot tell how runs differ. Nothing here knows a metric, or which way
//! is better.

mod rank;
#[cfg(test)]
mod tests;

pub use rank::{Ranked, holm, mann_whitney, shift, smallest_p};

use super::interval::{Z, t_quantile};
use super::{ALPHA, Clustered, Tally, supports};
use crate::Error;
use rank::{chi_squared_p, kruskal_wallis, two_sided};
use statrs::distribution::{ContinuousCDF, StudentsT};
use std::collections::BTreeMap;

/// Repeats of a run that enter its test. Of more, every second, third, ... is taken, evenly over the run, so
/// that memory does not grow with it; figures and their own intervals are those of all samples.
pub const TESTED_REPEATS: u32 = 20_000;

/// From this many rounds on each side rounds are the units: enough of them to learn from how they differ.
pub const ROUNDS_AS_UNITS: usize = 6;

/// Below this p-value the rounds of a run differ by more than their repeats explain, and become the units
/// however few they are. At 1 % a test on runs without any such difference loses next to nothing.
pub const ROUNDS_DIFFER: f64 = 0.01;

/// Share of their distance that the ends of a difference of medians keep. Intervals of order statistics are
/// of noisy length, and long enough for that; in a difference the noise of two averages out, and the full
/// length covered 95.7-97.7 % in simulations of 20 to 500 samples, alone and in batches. With this share it
/// was 94.2-96.9 %; a percentile bootstrap of the same samples covered 96.2-96.9 %.
const RECOVERED: f64 = 0.94;

/// What was measured of one figure in one run.
#[derive(Debug, Clone)]
pub enum Measured {
    /// All samples.
    Samples(Samples),
    /// Samples of which only these are at hand.
    Moments { mean: f64, std_dev: Option<f64>, n: u64 },
    /// One figure of the whole run; and the same of each round, where it has one.
    Whole { value: f64, rounds: Vec<f64> },
}

/// Samples of one run, pooled and by repeat.
#[derive(Debug, Clone)]
pub struct Samples {
    pooled: Clustered,
    repeats: Vec<Repeat>,
}

/// One repeat: its sample, or the median of its samples.
#[derive(Debug, Clone, Copy)]
struct Repeat {
    round: u32,
    value: f64,
}

/// Takes samples in, repeat by repeat or mixed; memory is bounded as in [`Tally`].
#[derive(Debug)]
pub struct Collector {
    tally: Tally,
    stride: u32,
    /// By repeat: its round, and one value of each of its requests.
    repeats: BTreeMap<u32, (u32, Vec<f64>)>,
}

impl Collector {
    /// `repeats` are those of the cell; `single`: each gives one sample.
    pub fn new(repeats: u32, single: bool) -> Self {
        let stride = repeats.div_ceil(TESTED_REPEATS).max(1);
        Self { tally: Tally::new(repeats, single), stride, repeats: BTreeMap::new() }
    }

    /// Takes in all samples of one request of `repeat`; none is nothing.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn push(&mut self, round: u32, repeat: u32, of_request: &[f64]) -> Result<(), Error> {
        for &value in of_request {
            self.tally.push(repeat, value)?;
        }
        if repeat.is_multiple_of(self.stride)
            && let Some(value) = median(of_request)
        {
            self.repeats.entry(repeat).or_insert_with(|| (round, Vec::new())).1.push(value);
        }
        Ok(())
    }

    /// What was collected; `None` if that is nothing. `seed` is that of the bootstrap.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn finish(self, seed: u64) -> Result<Option<Samples>, Error> {
        let repeats = self.repeats.into_values();
        let repeats: Vec<_> =
            repeats.filter_map(|(round, values)| Some(Repeat { round, value: median(&values)? })).collect();
        let pooled = self.tally.clustered(seed)?;
        Ok((pooled.pooled().n() > 0).then_some(Samples { pooled, repeats }))
    }
}

/// What was taken as independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Run,
    Round,
    /// A request, a batch or a conversation.
    Repeat,
}

/// Where a p-value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// On the samples, or on the medians of the units.
    MannWhitney { exact: bool },
    /// Student's t on the figures of the units, Welch's where both sides have four.
    StudentT,
    /// Units alike on each side: the share of rearrangements that part them as well.
    Rearrangement,
    /// From the interval of the difference by the normal law, for quantiles other than the median.
    Interval,
}

/// A value with its 95 % interval; an end that n cannot bound is `None`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounded {
    pub value: f64,
    pub low: Option<f64>,
    pub high: Option<f64>,
}

/// One side.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Side {
    pub figure: Bounded,
    /// Samples, or figures where each run or round has one.
    pub n: u64,
    /// Units that the test saw.
    pub units: usize,
}

/// B held against A.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    pub a: Side,
    pub b: Side,
    pub unit: Unit,
    /// B - A.
    pub difference: Bounded,
    /// B / A - 1; `None` unless both are above 0.
    pub ratio: Option<Bounded>,
    /// Two-sided, not corrected. `None` where so few units could not show any change.
    pub p: Option<f64>,
    pub test: Option<Test>,
    /// Probability that a unit of B is larger than one of A, ties counted half.
    pub superiority: Option<f64>,
    /// Hodges and Lehmann's shift from A to B.
    pub shift: Option<f64>,
    /// Rounds of a side differ by more than their repeats explain, with this p-value.
    pub rounds_differ: Option<f64>,
}

/// What a comparison comes to once its p-value is corrected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Lower,
    Higher,
    None,
    /// Too few units to show any change.
    Unknown,
}

impl Comparison {
    /// `corrected` is the p-value corrected for all comparisons. A change needs the test and the interval of
    /// the difference to agree on it: nothing is called changed whose interval holds 0.
    pub fn change(&self, corrected: Option<f64>) -> Change {
        let Some(p) = corrected else { return Change::Unknown };
        let Bounded { value, low, high } = self.difference;
        let ranks = self.superiority.map_or(value, |s| s - 0.5);
        if p >= ALPHA {
            Change::None
        } else if value > 0.0 && ranks > 0.0 && low.is_none_or(|low| low > 0.0) {
            Change::Higher
        } else if value < 0.0 && ranks < 0.0 && high.is_none_or(|high| high < 0.0) {
            Change::Lower
        } else {
            Change::None
        }
    }

    /// Whether the interval of the ratio lies within `margin` to both sides; `None` where it has an open end.
    pub fn equal_within(&self, margin: f64) -> Option<bool> {
        let ratio = self.ratio?;
        Some(-margin < ratio.low? && ratio.high? < margin)
    }
}

/// Holds `b` against `a` by quantile `p` of their samples, one entry for each run; `None` where a side has no
/// figure: no run, or too few samples for the quantile.
///
/// Units are the runs where a side has several; the rounds where both sides have [`ROUNDS_AS_UNITS`] or where
/// rounds differ by more than chance; else the repeats.
pub fn compare(a: &[Measured], b: &[Measured], p: f64) -> Option<Comparison> {
    let (points_a, points_b) = (points(a, p)?, points(b, p)?);
    if let ([a], [b]) = (a, b) {
        return match (a, b) {
            (Measured::Samples(a), Measured::Samples(b)) => of_samples(a, b, p),
            (Measured::Moments { .. }, Measured::Moments { .. }) => of_moments(a, b),
            (Measured::Whole { value: va, rounds: ra }, Measured::Whole { value: vb, rounds: rb }) => {
                Some(of_units([*va, *vb], ra, rb, Unit::Round))
            }
            _ => None,
        };
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    Some(of_units([mean(&points_a), mean(&points_b)], &points_a, &points_b, Unit::Run))
}

/// The figure of each run; `None` where there is none at all.
fn points(runs: &[Measured], p: f64) -> Option<Vec<f64>> {
    let of = |run: &Measured| match run {
        Measured::Samples(samples) => samples.figure(p),
        Measured::Moments { mean, .. } => Some(*mean),
        Measured::Whole { value, .. } => Some(*value),
    };
    let points: Vec<f64> = runs.iter().filter_map(of).collect();
    (!points.is_empty()).then_some(points)
}

impl Samples {
    /// A single sample is its own median; other quantiles need the n that supports them.
    fn figure(&self, p: f64) -> Option<f64> {
        let all = self.pooled.pooled();
        (p == 0.5 || supports(all.n(), p)).then(|| all.quantile(p)).flatten()
    }

    fn side(&self, p: f64, units: usize) -> Option<Side> {
        let value = self.figure(p)?;
        let interval = self.pooled.quantile_interval(p);
        let figure =
            Bounded { value, low: interval.and_then(|i| i.low), high: interval.and_then(|i| i.high) };
        Some(Side { figure, n: self.pooled.pooled().n(), units })
    }

    fn values(&self) -> Vec<f64> {
        self.repeats.iter().map(|r| r.value).collect()
    }

    fn rounds(&self) -> Vec<Vec<f64>> {
        let mut rounds = BTreeMap::<u32, Vec<f64>>::new();
        for repeat in &self.repeats {
            rounds.entry(repeat.round).or_default().push(repeat.value);
        }
        rounds.into_values().collect()
    }
}

fn of_samples(a: &Samples, b: &Samples, p: f64) -> Option<Comparison> {
    let (ua, ub) = (a.values(), b.values());
    let (rounds_a, rounds_b) = (a.rounds(), b.rounds());
    let rounds_differ = differ(&rounds_a, &rounds_b).filter(|p| *p < ROUNDS_DIFFER);
    let many = rounds_a.len().min(rounds_b.len()) >= ROUNDS_AS_UNITS;
    if p == 0.5 && (many || rounds_differ.is_some()) {
        let medians = |rounds: &[Vec<f64>]| rounds.iter().filter_map(|r| median(r)).collect::<Vec<_>>();
        let (ra, rb) = (medians(&rounds_a), medians(&rounds_b));
        let found = of_units([a.figure(p)?, b.figure(p)?], &ra, &rb, Unit::Round);
        let (side_a, side_b) = (a.side(p, ra.len())?, b.side(p, rb.len())?);
        let superiority = mann_whitney(&ua, &ub).map(|r| r.superiority);
        let shift = shift(&ua, &ub);
        return Some(Comparison { a: side_a, b: side_b, superiority, shift, rounds_differ, ..found });
    }
    let (side_a, side_b) = (a.side(p, ua.len())?, b.side(p, ub.len())?);
    let share = if p == 0.5 { RECOVERED } else { 1.0 };
    let (mut difference, mut ratio) = recovered(side_a.figure, side_b.figure, share);
    if p == 0.5 && difference.low.is_none() && difference.high.is_none() {
        // Too few groups for an interval of either side: Student's t on their medians still has one.
        let t = TInterval::of(&ua, &ub);
        difference = t.around(difference.value);
        ratio = ratio.map(|r| relative(r.value, &ua, &ub));
    }
    let ranked = mann_whitney(&ua, &ub)?;
    let (p_value, test) = if p == 0.5 {
        let able = smallest_p(ua.len(), ub.len()) <= ALPHA;
        (able.then_some(ranked.p), able.then_some(Test::MannWhitney { exact: ranked.exact }))
    } else {
        let p = from_interval(difference);
        (p, p.map(|_| Test::Interval))
    };
    Some(Comparison {
        a: side_a,
        b: side_b,
        unit: Unit::Repeat,
        difference,
        ratio,
        p: p_value,
        test,
        superiority: (p == 0.5).then_some(ranked.superiority),
        shift: (p == 0.5).then(|| shift(&ua, &ub)).flatten(),
        rounds_differ,
    })
}

/// p-value of the rounds of both sides together, each side within itself.
fn differ(a: &[Vec<f64>], b: &[Vec<f64>]) -> Option<f64> {
    let of = |rounds: &[Vec<f64>]| kruskal_wallis(&rounds.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let (h, freedom) =
        [of(a), of(b)].into_iter().flatten().reduce(|sum, side| (sum.0 + side.0, sum.1 + side.1))?;
    Some(chi_squared_p(h, freedom))
}

/// Interval of the difference of two figures from the interval of each (method of variance estimates
/// recovery, Zou and Donner 2008), and of their ratio by the same on logarithms. Each end takes from either
/// side the distance to the end that matters there, so that skewness is kept. The ends keep `share` of their
/// distance.
fn recovered(a: Bounded, b: Bounded, share: f64) -> (Bounded, Option<Bounded>) {
    let combine = |a: Bounded, b: Bounded| {
        let root = |x: Option<f64>, y: Option<f64>| Some(share * x?.hypot(y?));
        let value = b.value - a.value;
        let down = root(b.low.map(|low| b.value - low), a.high.map(|high| high - a.value));
        let up = root(b.high.map(|high| high - b.value), a.low.map(|low| a.value - low));
        Bounded { value, low: down.map(|d| value - d), high: up.map(|u| value + u) }
    };
    let log = |x: Bounded| {
        let ln = |v: f64| (v > 0.0).then(|| v.ln());
        Some(Bounded { value: ln(x.value)?, low: x.low.and_then(ln), high: x.high.and_then(ln) })
    };
    let ratio = log(a).zip(log(b)).map(|(a, b)| combine(a, b)).map(|log| Bounded {
        value: log.value.exp_m1(),
        low: log.low.map(f64::exp_m1),
        high: log.high.map(f64::exp_m1),
    });
    (combine(a, b), ratio)
}

/// By the end that lies towards 0; `None` where it is open.
fn from_interval(difference: Bounded) -> Option<f64> {
    let distance = if difference.value < 0.0 {
        difference.high? - difference.value
    } else {
        difference.value - difference.low?
    };
    match difference.value.abs() {
        0.0 => Some(1.0),
        // No spread on either side says nothing of how often they would differ.
        _ if distance <= 0.0 => None,
        size => Some(two_sided(size / distance * Z)),
    }
}

/// Units that have one figure each; `figures` are those of the two sides.
fn of_units(figures: [f64; 2], a: &[f64], b: &[f64], unit: Unit) -> Comparison {
    let t = TInterval::of(a, b);
    let difference = t.around(figures[1] - figures[0]);
    let positive = figures.iter().chain(a).chain(b).all(|v| *v > 0.0);
    let ratio = positive.then(|| relative(figures[1] / figures[0] - 1.0, a, b));
    let (p, test) = t.p_value(a, b);
    let side = |figure, units: &[f64]| Side {
        figure: own_interval(figure, units),
        n: units.len().max(1) as u64,
        units: units.len(),
    };
    Comparison {
        a: side(figures[0], a),
        b: side(figures[1], b),
        unit,
        difference,
        ratio,
        p,
        test,
        superiority: mann_whitney(a, b).map(|r| r.superiority),
        shift: shift(a, b),
        rounds_differ: None,
    }
}

fn of_moments(a: &Measured, b: &Measured) -> Option<Comparison> {
    let moments = |side: &Measured| match side {
        Measured::Moments { mean, std_dev, n } => {
            Some(Moments { mean: *mean, std_dev: std_dev.unwrap_or(0.0), n: *n as f64 })
        }
        _ => None,
    };
    let (a, b) = (moments(a)?, moments(b)?);
    let t = TInterval::from_moments(a, b);
    let figure = |m: Moments| {
        let half = t_quantile(m.n - 1.0) * m.std_dev / m.n.sqrt();
        let end = |end: f64| (m.n > 1.0).then_some(end);
        Bounded { value: m.mean, low: end(m.mean - half), high: end(m.mean + half) }
    };
    let difference = t.around(b.mean - a.mean);
    // The delta method on logarithms: standard errors relative to the means.
    let positive = a.mean > 0.0 && b.mean > 0.0;
    let ratio = positive.then(|| {
        let log = |m: Moments| Moments { mean: m.mean.ln(), std_dev: m.std_dev / m.mean, n: m.n };
        let ends = TInterval::from_moments(log(a), log(b)).around((b.mean / a.mean).ln());
        Bounded {
            value: b.mean / a.mean - 1.0,
            low: ends.low.map(f64::exp_m1),
            high: ends.high.map(f64::exp_m1),
        }
    });
    let alike = (a.n as usize, b.n as usize);
    let (p, test) = t.p_of_sizes(alike);
    let side = |m: Moments| Side { figure: figure(m), n: m.n as u64, units: m.n as usize };
    Some(Comparison {
        a: side(a),
        b: side(b),
        unit: Unit::Repeat,
        difference,
        ratio,
        p,
        test,
        superiority: None,
        shift: None,
        rounds_differ: None,
    })
}

/// Figure of a side with Student's t over its units.
fn own_interval(figure: f64, units: &[f64]) -> Bounded {
    let m = Moments::of(units);
    let half = (m.n > 1.0).then(|| t_quantile(m.n - 1.0) * m.std_dev / m.n.sqrt());
    Bounded { value: figure, low: half.map(|h| figure - h), high: half.map(|h| figure + h) }
}

/// Ratio with the interval of Student's t on logarithms; `value` is B / A - 1.
fn relative(value: f64, a: &[f64], b: &[f64]) -> Bounded {
    let ln = |values: &[f64]| values.iter().map(|v| v.ln()).collect::<Vec<_>>();
    if a.iter().chain(b).any(|v| *v <= 0.0) {
        return Bounded { value, low: None, high: None };
    }
    let log = TInterval::of(&ln(a), &ln(b)).around(value.ln_1p());
    Bounded { value, low: log.low.map(f64::exp_m1), high: log.high.map(f64::exp_m1) }
}

#[derive(Debug, Clone, Copy)]
struct Moments {
    mean: f64,
    std_dev: f64,
    n: f64,
}

impl Moments {
    fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let alike = values.windows(2).all(|w| w[0] == w[1]);
        let std_dev = if alike { 0.0 } else { (squares / (n - 1.0)).sqrt() };
        Self { mean, std_dev, n }
    }
}

/// Student's t of the difference of two means.
#[derive(Debug, Clone, Copy)]
struct TInterval {
    difference: f64,
    /// Standard error and degrees of freedom; `None` where neither side has two units.
    error: Option<(f64, f64)>,
}

impl TInterval {
    fn of(a: &[f64], b: &[f64]) -> Self {
        Self::from_moments(Moments::of(a), Moments::of(b))
    }

    /// Welch's standard error where both sides have four units, else that of a spread common to both: two or
    /// three units say too little of their own.
    fn from_moments(a: Moments, b: Moments) -> Self {
        let difference = b.mean - a.mean;
        if a.n < 1.0 || b.n < 1.0 || a.n + b.n < 3.0 {
            return Self { difference, error: None };
        }
        let (va, vb) = (a.std_dev.powi(2), b.std_dev.powi(2));
        let error = if a.n.min(b.n) >= 4.0 {
            let (ea, eb) = (va / a.n, vb / b.n);
            let freedom = (ea + eb).powi(2) / (ea.powi(2) / (a.n - 1.0) + eb.powi(2) / (b.n - 1.0));
            ((ea + eb).sqrt(), if freedom.is_finite() { freedom } else { a.n + b.n - 2.0 })
        } else {
            let freedom = a.n + b.n - 2.0;
            let common = ((a.n - 1.0) * va + (b.n - 1.0) * vb) / freedom;
            ((common * (1.0 / a.n + 1.0 / b.n)).sqrt(), freedom)
        };
        Self { difference, error: Some(error) }
    }

    fn around(&self, value: f64) -> Bounded {
        let half = self.error.map(|(error, freedom)| error * t_quantile(freedom));
        Bounded { value, low: half.map(|h| value - h), high: half.map(|h| value + h) }
    }

    fn p_value(&self, a: &[f64], b: &[f64]) -> (Option<f64>, Option<Test>) {
        self.p_of_sizes((a.len(), b.len()))
    }

    fn p_of_sizes(&self, (n, m): (usize, usize)) -> (Option<f64>, Option<Test>) {
        match self.error {
            None => (None, None),
            Some((error, freedom)) if error > 0.0 => {
                let t = (self.difference / error).abs();
                let p = StudentsT::new(0.0, 1.0, freedom).map_or(1.0, |law| (2.0 * law.sf(t)).min(1.0));
                (Some(p), Some(Test::StudentT))
            }
            // Units that are all alike have no spread to measure the difference by.
            Some(_) => {
                let able = smallest_p(n, m) <= ALPHA;
                let p = if self.difference == 0.0 { 1.0 } else { smallest_p(n, m) };
                (able.then_some(p), able.then_some(Test::Rearrangement))
            }
        }
    }
}

/// Median of `values`; `None` of none.
fn median(values: &[f64]) -> Option<f64> {
    if let [one] = values {
        return Some(*one);
    }
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let (low, high) = (sorted.len().checked_sub(1)? / 2, sorted.len() / 2);
    Some(f64::midpoint(*sorted.get(low)?, *sorted.get(high)?))
}
