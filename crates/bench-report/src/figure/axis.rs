//! Axes: range, ticks and labels, and the place of a number between two pixels.

use super::chart::Spread;

/// How a number becomes a share of the axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scale {
    Linear,
    Log,
}

/// One axis; `start` and `end` are the pixels of `low` and `high`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    /// Where ticks stand and what is written there.
    pub ticks: Vec<(f64, String)>,
}

/// From this ratio of largest to smallest on, the small ones would lie on a zero-based axis' floor.
const Y_LOG_RATIO: f64 = 50.0;
/// Prompt lengths are usually powers of two: from this ratio on they are spread as such.
const X_LOG_RATIO: f64 = 4.0;

impl Axis {
    /// `ends` of intervals get room, but do not decide between linear and logarithmic.
    pub(super) fn new(spread: &Spread, values: &[f64], ends: &[f64]) -> Self {
        match spread {
            Spread::Auto => Self::for_values(values, ends),
            Spread::Zero => {
                let (low, high) = range(values.iter().chain(ends));
                Self::from_zero(low, high)
            }
            Spread::Tight => Self::tight(values, ends),
            Spread::Fixed(low, high) => Self::linear(*low, *high),
            Spread::Grid => Self::for_grid(values),
            Spread::Names(names) => Self::names(names),
        }
    }

    /// From zero, unless the values spread over too many orders; room for every interval.
    fn for_values(values: &[f64], ends: &[f64]) -> Self {
        let (low, high) = range(values.iter().chain(ends));
        let (least, most) = range(values);
        if least > 0.0 && most / least >= Y_LOG_RATIO {
            // An interval that reaches zero must not stretch the axis without end.
            return Self::log(low.max(least / 10.0) / 1.15, high * 1.15);
        }
        Self::from_zero(low, high)
    }

    fn from_zero(low: f64, high: f64) -> Self {
        Self::linear(low.min(0.0), if high > 0.0 { high * 1.06 } else { 1.0 })
    }

    /// Between the ends with a little room; no zero.
    fn tight(values: &[f64], ends: &[f64]) -> Self {
        let (low, high) = range(values.iter().chain(ends));
        let (least, most) = range(values);
        if least > 0.0 && most / least >= Y_LOG_RATIO {
            return Self::log(low.max(least / 10.0) / 1.15, high * 1.15);
        }
        // What begins at zero, such as time, begins at the axis.
        let pad = if high > low { (high - low) * 0.04 } else { high.abs().max(1.0) / 2.0 };
        Self::linear(if low == 0.0 { 0.0 } else { low - pad }, high + pad)
    }

    /// Half a step of room on both sides of the first and the last.
    fn names(names: &[String]) -> Self {
        let ticks = names.iter().enumerate().map(|(i, name)| (i as f64, name.clone())).collect();
        Self { scale: Scale::Linear, low: -0.5, high: names.len().max(1) as f64 - 0.5, ticks }
    }

    /// Ticks at the values themselves: prompt lengths are chosen, not found.
    fn for_grid(values: &[f64]) -> Self {
        let (low, high) = range(values);
        let mut ticks = values.to_vec();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        let ticks = ticks.into_iter().map(|t| (t, format!("{t}"))).collect();
        if low > 0.0 && high / low >= X_LOG_RATIO {
            let pad = (high / low).powf(0.08);
            return Self { scale: Scale::Log, low: low / pad, high: high * pad, ticks };
        }
        let pad = if high > low { (high - low) * 0.08 } else { high.abs().max(1.0) / 2.0 };
        Self { scale: Scale::Linear, low: low - pad, high: high + pad, ticks }
    }

    fn linear(low: f64, high: f64) -> Self {
        // Dividing first keeps the difference of the largest numbers finite.
        let step = nice_step((high / 6.0 - low / 6.0).max(f64::MIN_POSITIVE));
        let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
        let ticks = (first..=last).map(|i| i as f64 * step).map(|t| (t, label(t, step))).collect();
        Self { scale: Scale::Linear, low, high, ticks }
    }

    fn log(low: f64, high: f64) -> Self {
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let decades = last - first;
        let factors: &[f64] = if high / low < 2e3 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let every = (decades / 8).max(1) as usize;
        let ticks = (first..=last)
            .step_by(every)
            .flat_map(|power| factors.iter().map(move |f| f * 10f64.powi(power)))
            .filter(|t| (low..=high).contains(t))
            .map(|t| (t, label(t, t)))
            .collect();
        Self { scale: Scale::Log, low, high, ticks }
    }

    /// Share of the axis, 0 at its start and 1 at its end; numbers outside are moved to the nearer end.
    pub(super) fn share(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value.max(f64::MIN_POSITIVE) / self.low).ln() / (self.high / self.low).ln(),
        };
        if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.5 }
    }
}

fn range<'a>(values: impl IntoIterator<Item = &'a f64>) -> (f64, f64) {
    let fold = |(low, high): (f64, f64), &v: &f64| (low.min(v), high.max(v));
    let (low, high) = values.into_iter().fold((f64::INFINITY, f64::NEG_INFINITY), fold);
    if low.is_finite() { (low, high.min(f64::MAX / 2.0)) } else { (0.0, 1.0) }
}

/// The smallest of 1, 2, 2.5, 5, 10 times a power of ten that is not below `least`.
fn nice_step(least: f64) -> f64 {
    let power = 10f64.powi(least.log10().floor() as i32).max(f64::MIN_POSITIVE);
    let factor = [1.0, 2.0, 2.5, 5.0].into_iter().find(|f| f * power >= least).unwrap_or(10.0);
    factor * power
}

/// As many decimals as the step needs; powers of ten where there would be too many digits.
fn label(value: f64, step: f64) -> String {
    if value.abs() >= 1e6 || (value != 0.0 && step < 1e-4) {
        let text = format!("{value:.2e}");
        let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.'));
    }
    let decimals = (0..=5).find(|&d| {
        let scaled = step * 10f64.powi(d);
        (scaled - scaled.round()).abs() < 1e-6 * scaled
    });
    format!("{value:.*}", decimals.unwrap_or(5) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> String {
        axis.ticks.iter().map(|t| t.1.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn ticks_are_round_and_few() {
        for (values, expected) in [
            (&[35.9, 475.8][..], "0 100 200 300 400 500"),
            (&[31.1, 39.7], "0 10 20 30 40"),
            (&[0.31, 0.4], "0.0 0.1 0.2 0.3 0.4"),
            (&[1.0, 900.0], "1 2 5 10 20 50 100 200 500 1000"),
            (&[1e-3, 1e6], "0.001 0.01 0.1 1 10 100 1000 10000 100000 1e6"),
            (&[0.0], "0.0 0.2 0.4 0.6 0.8 1.0"),
            (&[3e9], "0 1e9 2e9 3e9"),
        ] {
            assert_eq!(labels(&Axis::for_values(values, &[])), expected, "{values:?}");
        }
        assert_eq!(labels(&Axis::for_grid(&[2048.0, 128.0, 512.0, 128.0])), "128 512 2048");
    }

    #[test]
    fn no_range_is_too_odd() {
        for values in
            [&[][..], &[0.0], &[-5.0], &[f64::MAX], &[f64::MIN_POSITIVE, f64::MAX], &[1e-300, 2e-300]]
        {
            for axis in [Axis::for_values(values, &[]), Axis::for_grid(values)] {
                assert!(axis.ticks.len() < 20, "{values:?}: {}", axis.ticks.len());
                for &value in values {
                    assert!((0.0..=1.0).contains(&axis.share(value)), "{value}");
                }
            }
        }
    }
}
