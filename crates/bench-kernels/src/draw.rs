//! The choice of a token from logits: the most likely one, or a draw among what top-k and top-p leave.
//!
//! Weights are whole numbers, so that sums do not depend on an order, and come from operations of which each is one
//! rounding: a GPU (`cuda/choice.cu`), which adds in another order, finds the same token. Random values are the
//! caller's.

use std::f64::consts::{LN_2, LOG2_E, SQRT_2};
use std::num::NonZeroU32;

/// The weight of the largest logit.
const ONE: u64 = 1 << 40;
/// Beyond this many times the temperature below the largest logit, a weight is rounded to 0.
const FARTHEST: f64 = -30.0;
/// 1 / n! from n = 10 down.
const OVER_FACTORIAL: [f64; 11] = [
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5_040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    1.0 / 2.0,
    1.0,
    1.0,
];

/// How one token is chosen. First the `top_k` most likely tokens are kept, the lower ids of equal ones; then, of those,
/// the fewest most likely ones that have the share `top_p` of their weight; of what is left, taken in the order of ids,
/// the one in which the share `uniform` of the weight lies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// At least 0 and below 1.
    pub uniform: f64,
    /// 0: the most likely token, whatever the others say.
    pub temperature: f32,
    /// `None`: all.
    pub top_k: Option<NonZeroU32>,
    /// Above 0; 1: all.
    pub top_p: f32,
}

impl Draw {
    /// The most likely token.
    pub const GREEDY: Self = Self { uniform: 0.0, temperature: 0.0, top_k: None, top_p: 1.0 };

    /// The token of `logits` `[vocab]`; never one of `suppressed`, never one whose logit is minus infinity or not a
    /// number. `None` if no other is left.
    pub fn choose(&self, logits: &[f32], suppressed: &[u32]) -> Option<u32> {
        if self.temperature == 0.0 {
            return most_likely(logits, suppressed);
        }
        let mut masked = logits.to_vec();
        for &id in suppressed {
            if let Some(logit) = masked.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let largest = masked.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let least = self.cut(&masked, largest);
        let weighted: Vec<(u32, u64)> = candidates(&masked)
            .filter(|(id, logit)| rank(*id, *logit) >= least)
            .map(|(id, logit)| (id, weight(logit, largest, self.temperature)))
            .collect();
        let all: u64 = weighted.iter().map(|(_, weight)| weight).sum();
        let mut rest = ((self.uniform * all as f64) as u64).min(all.checked_sub(1)?);
        for (id, weight) in weighted {
            match rest.checked_sub(weight) {
                None => return Some(id),
                Some(less) => rest = less,
            }
        }
        None
    }

    /// The lowest rank that top-k and top-p leave, 0 for all.
    fn cut(&self, masked: &[f32], largest: f32) -> u64 {
        let mut least = 0;
        if self.top_k.is_none() && self.top_p >= 1.0 {
            return least;
        }
        let mut ranks: Vec<u64> = candidates(masked).map(|(id, logit)| rank(id, logit)).collect();
        let k = self.top_k.map_or(usize::MAX, |k| k.get() as usize);
        if k < ranks.len() {
            least = *ranks.select_nth_unstable_by(k - 1, |a, b| b.cmp(a)).1;
            ranks.truncate(k);
        }
        if self.top_p < 1.0 {
            let weight = |rank: u64| weight(logit(rank), largest, self.temperature);
            ranks.retain(|rank| weight(*rank) > 0);
            ranks.sort_unstable_by(|a, b| b.cmp(a));
            let all: u64 = ranks.iter().map(|rank| weight(*rank)).sum();
            let (mut sum, wanted) = (0, share(all, self.top_p));
            let enough = ranks.iter().find(|rank| {
                sum += weight(**rank);
                sum >= wanted
            });
            least = enough.copied().unwrap_or(least);
        }
        least
    }
}

/// The first of the largest logits, hence the lowest id. The suppressed are looked up only for a new best: a
/// vocabulary has 200,000 ids.
fn most_likely(logits: &[f32], suppressed: &[u32]) -> Option<u32> {
    let mut best = None;
    let mut largest = f32::NEG_INFINITY;
    for (id, &logit) in (0_u32..).zip(logits) {
        if logit > largest && !suppressed.contains(&id) {
            (best, largest) = (Some(id), logit);
        }
    }
    best
}

/// Ids and logits that can be drawn at all.
fn candidates(masked: &[f32]) -> impl Iterator<Item = (u32, f32)> {
    (0_u32..).zip(masked.iter().copied()).filter(|(_, logit)| *logit > f32::NEG_INFINITY)
}

/// Larger for a larger logit, and of equal ones for the lower id; -0 is less than 0.
fn rank(id: u32, logit: f32) -> u64 {
    let bits = logit.to_bits();
    let key = if logit.is_sign_negative() { !bits } else { bits | (1 << 31) };
    (u64::from(key) << 32) | u64::from(!id)
}

/// The logit of a rank.
fn logit(rank: u64) -> f32 {
    let key = (rank >> 32) as u32;
    f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
}

/// `exp((logit - largest) / temperature)` in units of 2^-40, to the nearest.
fn weight(logit: f32, largest: f32, temperature: f32) -> u64 {
    let difference = f64::from(logit) - f64::from(largest);
    // An infinite logit wins outright: its difference to itself would not be a number.
    if difference.is_nan() {
        return ONE;
    }
    let x = difference / f64::from(temperature);
    if x <= FARTHEST {
        return 0;
    }
    // x is (part - whole) ln 2, with a part from 0 to 1.
    let binary = x * LOG2_E;
    let whole = 1 - binary as i32;
    let y = (binary + f64::from(whole) - 0.5) * LN_2;
    // Products and sums stay apart: fused ones round elsewhere.
    let series = OVER_FACTORIAL.iter().fold(0.0, |sum, term| sum * y + term);
    let fixed = (series * (SQRT_2 * ONE as f64)) as u64;
    (fixed + (1 << (whole - 1))) >> whole
}

/// The least weight that is this share of all, at least 1.
fn share(all: u64, share: f32) -> u64 {
    ((f64::from(share) * all as f64).ceil() as u64).min(all).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(uniform: f64, temperature: f32, top_k: u32, top_p: f32) -> Draw {
        Draw { uniform, temperature, top_k: NonZeroU32::new(top_k), top_p }
    }

    /// Ids that some value of the stream gives.
    fn drawn(logits: &[f32], suppressed: &[u32], how: Draw) -> Vec<u32> {
        let steps = 4000;
        let one = |i| Draw { uniform: f64::from(i) / f64::from(steps), ..how }.choose(logits, suppressed);
        let mut ids: Vec<u32> = (0..steps).filter_map(one).collect();
        assert!(ids.is_sorted(), "in the order of ids");
        ids.dedup();
        ids
    }

    #[test]
    fn weights_are_exponentials() {
        for i in 0..3000 {
            let logit = 3.0 - i as f32 * 0.01;
            let expected = (f64::from(logit) - 3.0).exp() * ONE as f64;
            assert!((weight(logit, 3.0, 1.0) as f64 - expected).abs() < 1.0 + 1e-11 * expected, "{logit}");
        }
        assert_eq!([weight(5.0, 5.0, 0.3), weight(f32::INFINITY, f32::INFINITY, 1.0)], [ONE; 2]);
        assert_eq!(
            [weight(-40.0, 0.0, 1.0), weight(1.0, f32::INFINITY, 1.0), weight(0.0, 1.0, 1e-40)],
            [0; 3]
        );
    }

    #[test]
    fn ranks_are_in_the_order_of_logits_and_ids() {
        let ordered = [f32::NEG_INFINITY, -3.5, -1e-40, -0.0, 0.0, 1e-40, 2.0, f32::MAX, f32::INFINITY];
        let ranks = ordered.map(|logit| rank(7, logit));
        assert!(ranks.is_sorted() && rank(6, 2.0) > rank(7, 2.0) && rank(u32::MAX - 1, 0.0) > rank(0, -0.0));
        assert_eq!(ranks.map(logit).map(f32::to_bits), ordered.map(f32::to_bits));
    }

    #[test]
    fn top_k_and_top_p_leave_the_most_likely_and_of_equal_ones_the_lower_ids() {
        // Probabilities 0.03, 0.64, 0.09, 0.24.
        let logits = [-1.0, 2.0, 0.0, 1.0];
        assert_eq!(drawn(&logits, &[], draw(0.0, 1.0, 2, 1.0)), [1, 3]);
        assert_eq!(drawn(&logits, &[], draw(0.0, 1.0, 0, 0.7)), [1, 3]);
        assert_eq!(drawn(&logits, &[], draw(0.0, 1.0, 0, 0.6)), [1]);
        assert_eq!(drawn(&logits, &[1], draw(0.0, 1.0, 2, 1.0)), [2, 3]);
        // Of the three most likely, 0.98 of the weight is all of them; of two, 0.7 of it is one.
        assert_eq!(drawn(&logits, &[], draw(0.0, 1.0, 3, 0.98)), [1, 2, 3]);
        assert_eq!(drawn(&logits, &[], draw(0.0, 1.0, 2, 0.7)), [1]);
        let equal = [2.0; 9];
        assert_eq!(drawn(&equal, &[0], draw(0.0, 1.0, 3, 1.0)), [1, 2, 3]);
        assert_eq!(drawn(&equal, &[], draw(0.0, 1.0, 0, 0.5)), [0, 1, 2, 3, 4]);
        assert_eq!(drawn(&equal, &[], draw(0.0, 1.0, 4, 0.5)), [0, 1]);
        assert_eq!(drawn(&equal, &[], draw(0.0, 1.0, 4, 1e-9)), [0]);
        assert_eq!(drawn(&equal, &[], draw(0.0, 1.0, 100, 1.0)).len(), 9);
    }

    #[test]
    fn what_is_no_number_is_never_drawn_and_nothing_is_none() {
        let logits = [f32::NAN, 1.0, f32::NEG_INFINITY, -f32::NAN, 0.5];
        for how in [draw(0.0, 1.0, 0, 1.0), draw(0.0, 1.0, 5, 1.0), draw(0.0, 1.0, 0, 0.999)] {
            assert_eq!(drawn(&logits, &[], how), [1, 4]);
            assert_eq!(how.choose(&[f32::NEG_INFINITY, f32::NAN], &[]), None);
            assert_eq!(how.choose(&logits, &[1, 4]), None);
            assert_eq!(drawn(&[1.0, f32::INFINITY, 3.0, f32::INFINITY], &[], how), [1, 3]);
        }
        assert_eq!(Draw::GREEDY.choose(&logits, &[]), Some(1));
        assert_eq!(Draw::GREEDY.choose(&[f32::NAN], &[]), None);
    }

    #[test]
    fn the_last_id_with_a_weight_is_the_last_that_is_drawn() {
        let below_one = 1.0 - f64::EPSILON / 2.0;
        assert_eq!(draw(below_one, 1.0, 0, 1.0).choose(&[1.0, 2.0, -90.0], &[]), Some(1));
        assert_eq!(draw(0.0, 1.0, 0, 1.0).choose(&[-90.0, 1.0, 2.0], &[]), Some(1));
    }
}
