//! From logits to the next token: greedy, or seeded sampling with temperature, top-k and top-p.
//!
//! Each token that is not greedy takes one value from the sampler's stream. Which token that value means stands in
//! [`bench_kernels::draw`]: a rule that a device follows too, so that it draws what the host draws.

use std::num::NonZeroU32;

use bench_kernels::draw::Draw;
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

    /// How the next token is chosen, for those who have the logits elsewhere.
    pub(crate) fn draw(&mut self) -> Draw {
        if self.is_greedy() {
            return Draw::GREEDY;
        }
        let SamplingParams { temperature, top_k, top_p, .. } = self.params;
        // No vocabulary has more ids than fit.
        let top_k = top_k.and_then(|k| NonZeroU32::new(u32::try_from(k).unwrap_or(u32::MAX)));
        Draw { uniform: self.rng.random::<f64>(), temperature, top_k, top_p }
    }

    /// The next token for `logits` `[vocab]`; never one of `suppressed`, never one whose logit is not a number.
    ///
    /// # Errors
    /// [`Error::NothingToSample`] when nothing is left.
    pub fn sample(&mut self, logits: &[f32], suppressed: &[u32]) -> Result<u32> {
        let id = self.draw().choose(logits, suppressed);
        id.ok_or(Error::NothingToSample { vocab_size: logits.len() })
    }
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
            let Draw { uniform, temperature, top_k, top_p } = drawing.draw();
            assert_eq!((temperature, top_k, top_p), (1.0, None, 1.0));
            let id = sampling.sample(&logits, &suppressed).unwrap() as usize;
            let before: f64 = weights[..id].iter().sum();
            assert!(weights[id] > 0.0 && before <= uniform * total && uniform * total < before + weights[id]);
        }
        // Greedy rows take nothing from the stream.
        assert_eq!(sampler(0.0, Some(3), 0.5).draw(), Draw::GREEDY);
        let huge = sampler(1.0, Some(usize::MAX), 0.5).draw();
        assert_eq!((huge.top_k, huge.top_p), (NonZeroU32::new(u32::MAX), 0.5));
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
