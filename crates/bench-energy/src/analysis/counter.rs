//! Energy by a device's counter, which steps: between its updates it stands still.
//!
//! A reading tells the energy at the latest update; when that was is known only to lie between two readings.
//! It judges no window; it says what the counter's difference is, or why it tells none.

use super::code::{Code, Value};
use super::curve::median;

/// Periods below which the two updates around a window's ends weigh too much.
pub(crate) const SHORTEST_PERIODS: f64 = 10.0;
/// Periods without a new value that are bridged.
pub(crate) const LONGEST_GAP_PERIODS: f64 = 5.0;
/// Periods for which the outermost values are taken to hold beyond their time: a last reading can be a period
/// old when its trial ends, and its device's stamp another.
pub(crate) const REACH_PERIODS: f64 = 2.0;
/// Readings before a counter that never moved counts as stuck.
pub(crate) const STUCK_READINGS: usize = 20;

/// Readings of a counter in order of time, turned into instants of its updates.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counter {
    /// Instant of an update, joules since the first reading.
    updates: Vec<(f64, f64)>,
    period: Option<f64>,
    /// Between which readings it began anew.
    resets: Vec<(f64, f64)>,
    readings: usize,
}

/// An update: after reading `low`, not after reading `high`.
#[derive(Debug, Clone, Copy)]
struct Bracket {
    low: f64,
    high: f64,
    joules: f64,
}

impl Bracket {
    fn middle(&self) -> f64 {
        f64::midpoint(self.low, self.high)
    }
}

impl Counter {
    /// `readings` are `(seconds, joules)`; `range_j` is where the counter begins anew by design.
    ///
    /// `prompt`: it is updated far more often than it is read, so that a reading is of its own instant. Else
    /// the updates are placed on a regular grid, fitted to all brackets by least squares and held inside of
    /// them. Where readings divide the update period all are late or early alike, by at most half the time
    /// between two readings: exact for constant power, else off by that time's worth of the difference in
    /// power between the ends of a window. Where readings and updates race, off by at most the energy of the
    /// time between two readings at each end.
    pub(crate) fn new(readings: &[(f64, f64)], range_j: Option<f64>, prompt: bool) -> Self {
        let mut counter = Self { readings: readings.len(), ..Self::default() };
        let Some(&first) = readings.first() else { return counter };
        let mut brackets = Vec::new();
        let (mut last, mut joules) = (first, 0.0);
        for &(at, value) in readings {
            if value != last.1 {
                joules += counter.growth(last, (at, value), range_j);
                brackets.push(Bracket { low: last.0, high: at, joules });
            }
            last = (at, value);
        }
        let gaps = brackets.windows(2).map(|pair| pair[1].middle() - pair[0].middle());
        counter.period = median(gaps.collect());
        if prompt {
            counter.updates =
                std::iter::once((first.0, 0.0)).chain(brackets.iter().map(|b| (b.high, b.joules))).collect();
        } else {
            counter.place(&brackets, first.0);
        }
        counter
    }

    /// Joules between two readings. A decrease is the end of the range if that makes it less than half of the
    /// range, else a reset, over which nothing is known.
    fn growth(&mut self, from: (f64, f64), to: (f64, f64), range_j: Option<f64>) -> f64 {
        let growth = to.1 - from.1;
        if growth >= 0.0 {
            return growth;
        }
        if let Some(range) = range_j.filter(|range| growth + range >= 0.0 && growth + range < range / 2.0) {
            return growth + range;
        }
        self.resets.push((from.0, to.0));
        0.0
    }

    fn place(&mut self, brackets: &[Bracket], begin: f64) {
        let Some(grid) = self.period.and_then(|period| Grid::fit(brackets, period)) else {
            self.updates = brackets.iter().map(|b| (b.middle(), b.joules)).collect();
            return;
        };
        self.period = Some(grid.period);
        let placed: Vec<_> = grid.instants(brackets).collect();
        // What the first reading shows was written one period before the first change.
        let before = placed.first().map(|first| ((first - grid.period).min(begin), 0.0));
        self.updates =
            before.into_iter().chain(placed.into_iter().zip(brackets.iter().map(|b| b.joules))).collect();
    }

    /// Seconds between updates; `None` of fewer than two.
    pub(crate) fn period(&self) -> Option<f64> {
        self.period
    }

    pub(crate) fn is_there(&self) -> bool {
        self.readings > 0
    }

    /// Instants of the updates with the joules up to them.
    pub(crate) fn updates(&self) -> &[(f64, f64)] {
        &self.updates
    }

    pub(crate) fn resets(&self) -> &[(f64, f64)] {
        &self.resets
    }

    /// Joules from `from` to `to`.
    pub(crate) fn joules(&self, from: f64, to: f64) -> Value {
        let Some(period) = self.period else {
            return Err(if self.readings >= STUCK_READINGS { Code::SensorConstant } else { Code::NoSamples });
        };
        if too_short(to - from, period) {
            return Err(Code::WindowTooShort);
        }
        let (begin, end) = (self.around(from), self.around(to));
        let (Some(begin), Some(end)) = (begin, end) else { return Err(Code::GapTooLong) };
        if self.resets.iter().any(|r| r.0 <= end[1].0 && r.1 >= begin[0].0) {
            return Err(Code::CounterReset);
        }
        let far = |[a, b]: [(f64, f64); 2], at: f64| {
            let (gap, outside) = (b.0 - a.0, (a.0 - at).max(at - b.0));
            gap.max(outside * LONGEST_GAP_PERIODS / REACH_PERIODS)
                > LONGEST_GAP_PERIODS * period * (1.0 + 1e-6)
        };
        if far(begin, from) || far(end, to) {
            return Err(Code::GapTooLong);
        }
        let value = |[a, b]: [(f64, f64); 2], at: f64| a.1 + (b.1 - a.1) * (at - a.0) / (b.0 - a.0);
        Ok(value(end, to) - value(begin, from))
    }

    /// The updates before and after `at`; the nearest two if it lies outside of all.
    fn around(&self, at: f64) -> Option<[(f64, f64); 2]> {
        let next = self.updates.partition_point(|u| u.0 <= at);
        let high = next.clamp(1, self.updates.len().max(2) - 1);
        Some([*self.updates.get(high - 1)?, *self.updates.get(high)?]).filter(|[a, b]| a.0 < b.0)
    }
}

/// Whether a window of `length` has fewer than 10 periods; a millionth less is rounding.
pub(crate) fn too_short(length: f64, period: f64) -> bool {
    length < SHORTEST_PERIODS * period * (1.0 - 1e-6)
}

/// Regular updates: `first + k * period`.
struct Grid {
    first: f64,
    period: f64,
    /// Number of each bracket's update.
    numbers: Vec<f64>,
}

impl Grid {
    fn fit(brackets: &[Bracket], rough: f64) -> Option<Self> {
        let middles: Vec<f64> = brackets.iter().map(Bracket::middle).collect();
        let gaps: Vec<f64> = middles.windows(2).map(|pair| pair[1] - pair[0]).collect();
        // The median of gaps that readings round up or down lies off their mean: refine by the single ones.
        let single: Vec<f64> = gaps.iter().copied().filter(|gap| *gap < 1.5 * rough).collect();
        let period = single.iter().sum::<f64>() / single.len() as f64;
        let mut number = 0.0;
        let mut numbers = vec![0.0];
        for gap in &gaps {
            number += (gap / period).round().max(1.0);
            numbers.push(number);
        }
        let n = middles.len() as f64;
        let (mean_k, mean_t) = (numbers.iter().sum::<f64>() / n, middles.iter().sum::<f64>() / n);
        let pairs = || numbers.iter().map(|k| k - mean_k).zip(middles.iter().map(|t| t - mean_t));
        let period = pairs().map(|(k, t)| k * t).sum::<f64>() / pairs().map(|(k, _)| k * k).sum::<f64>();
        let first = mean_t - period * mean_k;
        (period.is_finite() && period > 0.0).then_some(Self { first, period, numbers })
    }

    fn instants(&self, brackets: &[Bracket]) -> impl Iterator<Item = f64> {
        let on_grid = self.numbers.iter().map(|k| self.first + k * self.period);
        on_grid.zip(brackets).map(|(at, b)| at.clamp(b.low, b.high))
    }
}
