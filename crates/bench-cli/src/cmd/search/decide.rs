//! Which level a search measures next, what it has found, and where the knee is: pure functions of the levels
//! that were measured.
//!
//! Noise can make a level pass above one that fails. The lowest level that failed then counts, so that the
//! answer never claims more than every level below it has shown, and every step makes the bracket smaller.

use crate::args::Over;

/// A growth of throughput below this per doubling of the level is none.
pub(super) const SATURATED_BELOW: f64 = 0.05;
/// Growth from one level to the next until one fails.
const FACTOR: f64 = 2.0;

/// Where to search, and when to end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bounds {
    pub(super) over: Over,
    pub(super) min: f64,
    pub(super) max: f64,
    /// Largest distance of the bracket's ends / its lower end.
    pub(super) tolerance: f64,
    /// Most levels to measure.
    pub(super) steps: u32,
}

/// One level that was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tested {
    pub(super) level: f64,
    pub(super) passed: bool,
}

/// What a search found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Answer {
    /// `pass` meets the limits, `fail` is the lowest level that does not; they are as close as was asked.
    Between { pass: f64, fail: f64 },
    /// The lowest level fails already.
    BelowMin { fail: f64 },
    /// The highest level still passes.
    AtMax { pass: f64 },
    /// The steps are used up.
    Unfinished { pass: Option<f64>, fail: Option<f64> },
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Next {
    Measure(f64),
    Done(Answer),
}

/// The nearest level that is measured: whole for a concurrency, four digits for a rate.
pub(super) fn on_grid(over: Over, level: f64) -> f64 {
    match over {
        Over::Concurrency => level.round().max(1.0),
        // Decimal digits, so that a level reads in a file name as it was measured.
        Over::Rate => format!("{level:.3e}").parse().unwrap_or(level),
    }
}

/// What to do after `tested`: geometric growth until a level fails, then the geometric middle of the bracket.
pub(super) fn next(bounds: &Bounds, tested: &[Tested]) -> Next {
    let (min, max) = (on_grid(bounds.over, bounds.min), on_grid(bounds.over, bounds.max));
    let fail = lowest_failing(tested);
    let pass = highest_passing_below(tested, fail);
    let candidate = match (pass, fail) {
        (None, Some(fail)) if fail <= min => return Next::Done(Answer::BelowMin { fail }),
        // Nothing was measured, or nothing below the failing level.
        (None, _) => min,
        (Some(pass), None) if pass >= max => return Next::Done(Answer::AtMax { pass }),
        (Some(pass), None) => on_grid(bounds.over, pass * FACTOR).min(max),
        (Some(pass), Some(fail)) => {
            let middle = on_grid(bounds.over, (pass * fail).sqrt());
            let close = fail <= pass * (1.0 + bounds.tolerance);
            // Between neighbours on the grid there is nothing to measure.
            if close || middle <= pass || middle >= fail {
                return Next::Done(Answer::Between { pass, fail });
            }
            middle
        }
    };
    if tested.len() >= bounds.steps as usize {
        return Next::Done(Answer::Unfinished { pass, fail });
    }
    Next::Measure(candidate)
}

fn lowest_failing(tested: &[Tested]) -> Option<f64> {
    tested.iter().filter(|t| !t.passed).map(|t| t.level).min_by(f64::total_cmp)
}

fn highest_passing_below(tested: &[Tested], fail: Option<f64>) -> Option<f64> {
    let below = |level: &f64| fail.is_none_or(|fail| *level < fail);
    tested.iter().filter(|t| t.passed).map(|t| t.level).filter(below).max_by(f64::total_cmp)
}

/// Levels that passed above one that failed: the answer rests on noise to that extent.
pub(super) fn violations(tested: &[Tested]) -> Vec<f64> {
    let fail = lowest_failing(tested);
    let above = |t: &&Tested| t.passed && fail.is_some_and(|fail| t.level > fail);
    let mut levels: Vec<f64> = tested.iter().filter(above).map(|t| t.level).collect();
    levels.sort_by(f64::total_cmp);
    levels
}

/// What the knee is read from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Flow {
    pub(super) level: f64,
    /// Requests per second.
    pub(super) throughput_req_s: f64,
    /// Mean time from the intended start to the last token.
    pub(super) latency_ms: f64,
}

impl Flow {
    /// Throughput / mean latency, in requests per second squared (Kleinrock 1979).
    pub(super) fn power(&self) -> f64 {
        self.throughput_req_s * 1e3 / self.latency_ms
    }
}

/// The level with the greatest power; the lowest of equals.
pub(super) fn knee(flows: &[Flow]) -> Option<f64> {
    let better = |best: &Flow, flow: &Flow| {
        flow.power() > best.power() || (flow.power() == best.power() && flow.level < best.level)
    };
    flows
        .iter()
        .fold(None, |best: Option<&Flow>, flow| match best {
            Some(best) if !better(best, flow) => Some(best),
            _ => Some(flow),
        })
        .map(|flow| flow.level)
}

/// The lowest level from which throughput grows by less than 5 % per doubling to every measured level that is
/// twice as high or more. Nearer levels say nothing: their noise would be raised to a power.
pub(super) fn saturation(flows: &[Flow]) -> Option<f64> {
    let saturated = |from: &&Flow| {
        let mut far = flows.iter().filter(|to| to.level >= from.level * FACTOR).peekable();
        far.peek().is_some() && far.all(|to| growth_per_doubling(from, to) < SATURATED_BELOW)
    };
    flows.iter().filter(saturated).map(|flow| flow.level).min_by(f64::total_cmp)
}

fn growth_per_doubling(from: &Flow, to: &Flow) -> f64 {
    let doublings = (to.level / from.level).log2();
    (to.throughput_req_s / from.throughput_req_s).powf(1.0 / doublings) - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Evenly distributed numbers in [0, 1), the same in every run (`SplitMix64`).
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
        }

        /// In [low, high], evenly on a logarithmic scale.
        fn within(&mut self, low: f64, high: f64) -> f64 {
            low * (high / low).powf(self.next())
        }
    }

    fn bounds(numbers: &mut Numbers) -> Bounds {
        let over = if numbers.next() < 0.5 { Over::Rate } else { Over::Concurrency };
        let min = if over == Over::Rate { numbers.within(0.01, 100.0) } else { numbers.within(1.0, 50.0) };
        let max = min * numbers.within(1.0, 5_000.0);
        Bounds { over, min, max, tolerance: numbers.within(0.001, 0.5), steps: 100 }
    }

    /// Levels in the order in which they are measured, and the answer.
    fn run(bounds: &Bounds, mut passes: impl FnMut(f64) -> bool) -> (Vec<Tested>, Answer) {
        let mut tested: Vec<Tested> = Vec::new();
        loop {
            match next(bounds, &tested) {
                Next::Done(answer) => return (tested, answer),
                Next::Measure(level) => {
                    assert!(tested.iter().all(|t| t.level != level), "{level} again: {tested:?}");
                    assert!(level <= on_grid(bounds.over, bounds.max), "{level} is out of {bounds:?}");
                    assert_eq!(level, on_grid(bounds.over, level));
                    tested.push(Tested { level, passed: passes(level) });
                }
            }
        }
    }

    /// Doublings up to a failing level, halvings of one doubling down to the tolerance, and the two ends.
    fn most_steps(b: &Bounds) -> f64 {
        let growth = (b.max / b.min).log2().ceil() + 2.0;
        let bisection = (2_f64.ln() / b.tolerance.ln_1p()).log2().max(0.0).ceil() + 2.0;
        growth + bisection
    }

    #[test]
    fn any_threshold_is_found_within_the_tolerance_in_logarithmic_steps() {
        let mut numbers = Numbers(1);
        let mut found = [0; 3];
        for _ in 0..20_000 {
            let b = bounds(&mut numbers);
            let threshold = numbers.within(b.min / 2.0, b.max * 2.0);
            let (tested, answer) = run(&b, |level| level <= threshold);
            assert!(tested.len() as f64 <= most_steps(&b), "{} steps: {b:?}", tested.len());
            assert!(violations(&tested).is_empty());
            match answer {
                Answer::Between { pass, fail } => {
                    assert!(pass <= threshold && threshold < fail, "{b:?} {threshold} {answer:?}");
                    let middle = on_grid(b.over, (pass * fail).sqrt());
                    let neighbours = middle <= pass || middle >= fail;
                    assert!(
                        fail / pass - 1.0 <= b.tolerance * (1.0 + 1e-9) || neighbours,
                        "{b:?} {answer:?}"
                    );
                    found[0] += 1;
                }
                Answer::BelowMin { fail } => {
                    assert!(threshold < fail && fail == on_grid(b.over, b.min));
                    found[1] += 1;
                }
                Answer::AtMax { pass } => {
                    assert!(threshold >= pass && pass == on_grid(b.over, b.max));
                    found[2] += 1;
                }
                Answer::Unfinished { .. } => panic!("{b:?}"),
            }
        }
        assert!(found.iter().all(|n| *n > 500), "{found:?}");
    }

    #[test]
    fn noise_neither_loops_nor_claims_above_a_failure() {
        let mut numbers = Numbers(2);
        let mut seen_violation = false;
        for _ in 0..20_000 {
            let b = bounds(&mut numbers);
            let threshold = numbers.within(b.min / 2.0, b.max * 2.0);
            // Far from the threshold nearly sure, at it a coin.
            let spread = numbers.next();
            let (tested, answer) =
                run(&b, |level| (level / threshold).ln() / (spread + 1e-9) < 4.0 * (numbers.next() - 0.5));
            assert!(tested.len() as f64 <= most_steps(&b), "{} steps: {b:?}", tested.len());
            seen_violation |= !violations(&tested).is_empty();
            if let Answer::Between { pass, fail } = answer {
                assert!(pass < fail);
                assert!(tested.iter().all(|t| t.passed || t.level >= fail));
            }
        }
        // A bracket only shrinks, so growth cannot come to a passing level above a failing one.
        assert!(!seen_violation);
    }

    #[test]
    fn points_of_an_earlier_search_are_taken_as_they_are() {
        let b = Bounds { over: Over::Concurrency, min: 1.0, max: 64.0, tolerance: 0.05, steps: 20 };
        let at = |level, passed| Tested { level, passed };
        assert_eq!(next(&b, &[at(8.0, false)]), Next::Measure(1.0));
        let noisy = [at(1.0, true), at(8.0, false), at(16.0, true)];
        assert_eq!(violations(&noisy), [16.0]);
        assert_eq!(next(&b, &noisy), Next::Measure(3.0));
        assert_eq!(
            next(&b, &[at(3.0, true), at(4.0, false)]),
            Next::Done(Answer::Between { pass: 3.0, fail: 4.0 })
        );
    }

    #[test]
    fn steps_end_a_search_with_what_is_known() {
        let b = Bounds { over: Over::Rate, min: 1.0, max: 1e6, tolerance: 0.01, steps: 6 };
        let (tested, answer) = run(&b, |level| level < 11.0);
        let levels: Vec<f64> = tested.iter().map(|t| t.level).collect();
        assert_eq!(levels, [1.0, 2.0, 4.0, 8.0, 16.0, 11.31]);
        assert_eq!(answer, Answer::Unfinished { pass: Some(8.0), fail: Some(11.31) });
    }

    #[test]
    fn the_knee_of_a_queue_is_at_half_its_capacity() {
        // M/M/1: a mean of 1 / (capacity - rate), so power = rate (capacity - rate).
        let capacity = 10.0;
        let flow = |level: f64| Flow { level, throughput_req_s: level, latency_ms: 1e3 / (capacity - level) };
        let flows: Vec<_> = [1.0, 2.0, 4.0, 5.0, 6.0, 8.0, 9.9].map(flow).to_vec();
        assert_eq!(knee(&flows), Some(5.0));
        assert!((flow(5.0).power() - 25.0).abs() < 1e-9);
        assert_eq!(knee(&[]), None);
        // Throughput follows the rate: nothing is saturated.
        assert_eq!(saturation(&flows), None);
    }

    #[test]
    fn saturation_begins_where_doubling_brings_nothing() {
        let flow = |(level, throughput_req_s)| Flow { level, throughput_req_s, latency_ms: 1.0 };
        // 8 to 9 grows by nothing, but 9 is no doubling of 8; 8 to 16 grows by 20 %.
        let flows = [(1.0, 1.0), (4.0, 3.8), (8.0, 5.0), (9.0, 5.0), (16.0, 6.0), (32.0, 6.2), (64.0, 6.25)];
        assert_eq!(saturation(&flows.map(flow)), Some(16.0));
        assert_eq!(saturation(&flows.map(flow)[..4]), None);
    }
}
