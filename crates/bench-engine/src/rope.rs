//! Rotary position embedding: frequencies of the plain, YaRN and Llama 3 kinds, and the angles of given positions.
//!
//! Frequencies are made once per model in f64 and kept in f32, as the reference keeps them; angles are f32 products.

use std::f64::consts::PI;

use half::bf16;

use crate::config::RopeScaling;

#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    inv_freq: Vec<f32>,
    attention_factor: f32,
}

impl RotaryEmbedding {
    /// `head_dim` even; `theta` is `rope_theta` of the config.
    pub fn new(head_dim: usize, theta: f64, scaling: &RopeScaling) -> Self {
        let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64));
        let (inv_freq, factor): (Vec<f64>, f64) = match *scaling {
            RopeScaling::None => (plain.collect(), 1.0),
            RopeScaling::Yarn { factor, .. } => {
                let (low, high) = yarn_correction_range(head_dim, theta, scaling);
                let mixed = plain.enumerate().map(|(i, f)| {
                    // 0 where the plain frequency is kept, 1 where it is divided.
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * ramp + f * (1.0 - ramp)
                });
                (mixed.collect(), if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 })
            }
            RopeScaling::Llama3 { .. } => (plain.map(|f| llama3(f, scaling)).collect(), 1.0),
        };
        Self { inv_freq: inv_freq.into_iter().map(|f| f as f32).collect(), attention_factor: factor as f32 }
    }

    pub fn inv_freq(&self) -> &[f32] {
        &self.inv_freq
    }

    /// The factor on cos and sin (YaRN's "mscale"); 1 for other kinds.
    pub fn attention_factor(&self) -> f32 {
        self.attention_factor
    }

    /// Cosines and sines `[positions, head_dim / 2]`, attention factor included.
    pub fn cos_sin(&self, positions: impl Iterator<Item = usize>) -> (Vec<f32>, Vec<f32>) {
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        self.cos_sin_into(positions, false, &mut cos, &mut sin);
        (cos, sin)
    }

    /// As [`Self::cos_sin`], in place of what the two held; rounded to bf16 if asked to, as the reference does when
    /// activations are bf16.
    pub fn cos_sin_into(
        &self,
        positions: impl Iterator<Item = usize>,
        round_bf16: bool,
        cos: &mut Vec<f32>,
        sin: &mut Vec<f32>,
    ) {
        cos.clear();
        sin.clear();
        let round = |v: f32| if round_bf16 { bf16::from_f32(v).to_f32() } else { v };
        for position in positions {
            for f in &self.inv_freq {
                let (s, c) = (position as f32 * f).sin_cos();
                cos.push(round(c * self.attention_factor));
                sin.push(round(s * self.attention_factor));
            }
        }
    }
}

/// The dimensions between which YaRN blends; fractional unless `truncate`, and gpt-oss does not truncate.
fn yarn_correction_range(head_dim: usize, theta: f64, scaling: &RopeScaling) -> (f64, f64) {
    let RopeScaling::Yarn { beta_fast, beta_slow, original_max_position_embeddings, truncate, .. } = *scaling
    else {
        return (0.0, 1.0);
    };
    let dim = head_dim as f64;
    let at = |rotations: f64| {
        dim * (original_max_position_embeddings as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln())
    };
    let (mut low, mut high) = (at(beta_fast), at(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim - 1.0));
    // The reference avoids the division by zero in the same way.
    (low, if low < high { high } else { high + 0.001 })
}

/// Llama 3.1: long wavelengths are divided, short ones kept, those between are blended.
fn llama3(frequency: f64, scaling: &RopeScaling) -> f64 {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } =
        *scaling
    else {
        return frequency;
    };
    let turns = original_max_position_embeddings as f64 * frequency / (2.0 * PI);
    if turns < low_freq_factor {
        frequency / factor
    } else if turns > high_freq_factor {
        frequency
    } else {
        let keep = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
        frequency / factor * (1.0 - keep) + frequency * keep
    }
}
