//! From logits to the next token: greedy, or seeded sampling with temperature, top-k and top-p.
//!
//! Each token that is not greedy takes one value from the sampler's stream. Without top-k and top-p it falls where the
//! running sum of the weights of all ids, in their order, exceeds that share of the whole: a rule that a device can
//! follow without sorting, so that it draws what the host draws.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Only the k most likely tokens; `None` for all.
    pub top_k: Option<usize>,
    /// Only the most likely tokens whose probabilities sum to this; 1 for all.
    pub top_p: f32,
    pub seed: u64,
}

impl Default for SamplingParams {
    /// Greedy.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: None, top_p: 1.0, seed: 0 }
    }
}

/// What is drawn for one token: where, of the sum of all weights, and under which temperature; 0 is the most likely.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub(crate) struct Draw {
    /// At least 0 and below 1.
    pub(crate) uniform: f64,
    pub(crate) temperature: f32,
}

/// Draws tokens; two samplers with equal parameters draw the same from the same logits.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// # Errors
    /// A negative or non-finite temperature, `top_k` of 0, `top_p` outside (0, 1].
    pub fn new(params: SamplingParams) -> Result<Self> {
        let invalid = |name, value: &dyn std::fmt::Display, expected| {
            Err(Error::InvalidSampling { name, value: value.to_string(), expected })
        };
        if !(params.temperature >= 0.0 && params.temperature.is_finite()) {
            return invalid("temperature", &params.temperature, "0 (greedy) or more");
        }
        if params.top_k == Some(0) {
            return invalid("top_k", &0, "1 or more");
        }
        if !(params.top_p > 0.0 && params.top_p <= 1.0) {
            return invalid("top_p", &params.top_p, "above 0 and at most 1");
        }
        Ok(Self { params, rng: ChaCha8Rng::seed_from_u64(params.seed) })
    }

    /// Whether it takes the most likely token, whatever was drawn before.
    pub fn is_greedy(&self) -> bool {
        self.params.temperature == 0.0
    }

    /// Whether every token is a candidate: no top-k, no top-p, or greedy.
    pub(crate) fn is_plain(&self) -> bool {
        self.is_greedy() || (self.params.top_k.is_none() && self.params.top_p >= 1.0)
    }

    /// What the next token of a plain sampler is drawn by, for those who have the logits elsewhere.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub(crate) fn draw(&mut self) -> Draw {
        let uniform = if self.is_greedy() { 0.0 } else { self.uniform() };
        Draw { uniform, temperature: self.params.temperature }
    }

    fn uniform(&mut self) -> f64 {
        self.rng.random::<f64>()
    }

    /// The next token for `logits` `[vocab]`; never one of `suppressed`, never one whose logit is not a number.
    ///
    /// # Errors
    /// [`Error::NothingToSample`] when nothing is left.
    pub fn sample(&mut self, logits: &[f32], suppressed: &[u32]) -> Result<u32> {
        let nothing = || Error::NothingToSample { vocab_size: logits.len() };
        if self.is_greedy() {
            return greedy(logits, suppressed).ok_or_else(nothing);
        }
        let mut masked = logits.to_vec();
        for &id in suppressed {
            if let Some(logit) = masked.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let candidates = (0_u32..).zip(masked).filter(|(_, logit)| *logit > f32::NEG_INFINITY).collect();
        let weighted = if self.is_plain() { self.all(candidates) } else { self.weights(candidates) };
        let total: f64 = weighted.iter().map(|(_, w)| w).sum();
        let mut rest = self.uniform() * total;
        for &(id, weight) in &weighted {
            rest -= weight;
            if rest < 0.0 {
                return Ok(id);
            }
        }
        // Rounding may leave a crumb after the last one.
        weighted.iter().rfind(|(_, weight)| *weight > 0.0).map(|(id, _)| *id).ok_or_else(nothing)
    }

    /// All candidates in their order, with unnormalized probabilities.
    fn all(&self, candidates: Vec<(u32, f32)>) -> Vec<(u32, f64)> {
        let largest = candidates.iter().map(|(_, logit)| *logit).fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit| weight(logit, largest, self.params.temperature);
        candidates.into_iter().map(|(id, logit)| (id, weight(logit))).collect()
    }

    /// The candidates that top-k and top-p leave, most likely first, with unnormalized probabilities.
    fn weights(&self, mut candidates: Vec<(u32, f32)>) -> Vec<(u32, f64)> {
        let descending = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let k = self.params.top_k.unwrap_or(usize::MAX);
        if k < candidates.len() {
            candidates.select_nth_unstable_by(k - 1, descending);
            candidates.truncate(k);
        }
        candidates.sort_unstable_by(descending);
        let largest = candidates.first().map_or(0.0, |c| c.1);
        let weight = |logit| weight(logit, largest, self.params.temperature);
        let mut weighted: Vec<_> = candidates.into_iter().map(|(id, logit)| (id, weight(logit))).collect();
        if self.params.top_p < 1.0 {
            let total: f64 = weighted.iter().map(|(_, w)| w).sum();
            let mut sum = 0.0;
            let enough = weighted.iter().position(|(_, w)| {
                sum += w;
                sum >= total * f64::from(self.params.top_p)
            });
            weighted.truncate(enough.map_or(weighted.len(), |at| at + 1));
        }
        weighted
    }
}

/// The unnormalized probability of a logit beside the largest.
fn weight(logit: f32, largest: f32, temperature: f32) -> f64 {
    let difference = f64::from(logit) - f64::from(largest);
    // An infinite logit wins outright: its difference to itself would not be a number.
    if difference.is_nan() { 1.0 } else { (difference / f64::from(temperature)).exp() }
}

/// The first of the largest logits, hence the lowest id. The suppressed are looked up only for a new best: a
/// vocabulary has 200,000 ids.
fn greedy(logits: &[f32], suppressed: &[u32]) -> Option<u32> {
    let mut best = None;
    let mut largest = f32::NEG_INFINITY;
    for (id, &logit) in (0_u32..).zip(logits) {
        if logit > largest && !suppressed.contains(&id) {
            (best, largest) = (Some(id), logit);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_k: Option<usize>, top_p: f32) -> Sampler {
        Sampler::new(SamplingParams { temperature, top_k, top_p, seed: 7 }).unwrap()
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_ties_and_skips_nan_and_suppressed() {
        let logits = [1.0, f32::NAN, 3.0, 3.0, 9.0];
        assert_eq!(sampler(0.0, None, 1.0).sample(&logits, &[4]).unwrap(), 2);
        assert!(sampler(0.0, None, 1.0).sample(&[f32::NAN, 1.0], &[1]).is_err());
        assert!(sampler(1.0, None, 1.0).sample(&[f32::NEG_INFINITY], &[]).is_err());
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0, 1.0_f32, 2.0, f32::NAN];
        let mut counts = [0_u32; 4];
        let mut sampler = sampler(0.5, None, 1.0);
        for _ in 0..20_000 {
            counts[sampler.sample(&logits, &[]).unwrap() as usize] += 1;
        }
        let total: f64 = [0.0, 2.0, 4.0_f64].iter().map(|l| l.exp()).sum();
        for (i, l) in [0.0, 2.0, 4.0_f64].iter().enumerate() {
            let p = l.exp() / total;
            let deviation = (20_000.0 * p * (1.0 - p)).sqrt();
            assert!((f64::from(counts[i]) - 20_000.0 * p).abs() < 4.0 * deviation, "{counts:?}");
        }
    }

    #[test]
    fn a_draw_is_a_place_in_the_sum_of_all_ids_in_their_order() {
        let logits = [0.0, 1.0_f32, f32::NAN, 2.0, 1.0, f32::NEG_INFINITY];
        let suppressed = [1];
        let weights = [1.0, 0.0, 0.0, 2.0_f64.exp(), 1.0_f64.exp(), 0.0];
        let total: f64 = weights.iter().sum();
        let (mut sampling, mut drawing) = (sampler(1.0, None, 1.0), sampler(1.0, None, 1.0));
        for _ in 0..500 {
            let Draw { uniform, temperature } = drawing.draw();
            assert_eq!(temperature, 1.0);
            let id = sampling.sample(&logits, &suppressed).unwrap() as usize;
            let before: f64 = weights[..id].iter().sum();
            assert!(weights[id] > 0.0 && before <= uniform * total && uniform * total < before + weights[id]);
        }
        // Greedy rows take nothing from the stream.
        assert_eq!(sampler(0.0, Some(3), 0.5).draw(), Draw { uniform: 0.0, temperature: 0.0 });
        assert!(sampler(0.0, Some(3), 0.5).is_plain() && !sampler(1.0, Some(3), 1.0).is_plain());
        assert!(!sampler(1.0, None, 0.9).is_plain() && sampler(1.0, None, 1.0).is_plain());
    }

    #[test]
    fn an_infinite_logit_wins_outright() {
        for (top_k, top_p) in [(None, 1.0), (Some(2), 1.0), (None, 0.9)] {
            let drawn = sampler(1.0, top_k, top_p).sample(&[1.0, f32::INFINITY, 3.0], &[]);
            assert_eq!(drawn.unwrap(), 1);
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [2.0, 1.0, 0.0, -1.0];
        let seen = |mut s: Sampler| {
            let mut ids: Vec<u32> = (0..500).map(|_| s.sample(&logits, &[]).unwrap()).collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        assert_eq!(seen(sampler(1.0, Some(2), 1.0)), [0, 1]);
        // Probabilities 0.64, 0.24, 0.09, 0.03.
        assert_eq!(seen(sampler(1.0, None, 0.7)), [0, 1]);
        assert_eq!(seen(sampler(1.0, None, 0.6)), [0]);
    }

    #[test]
    fn equal_seeds_draw_the_same_and_wrong_parameters_are_errors() {
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32).collect();
        let draw = || {
            let mut s = sampler(1.0, None, 0.9);
            (0..20).map(|_| s.sample(&logits, &[]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(), draw());
        for (temperature, top_k, top_p) in
            [(-1.0, None, 1.0), (f32::NAN, None, 1.0), (1.0, Some(0), 1.0), (1.0, None, 0.0)]
        {
            assert!(Sampler::new(SamplingParams { temperature, top_k, top_p, seed: 0 }).is_err());
        }
    }
}
