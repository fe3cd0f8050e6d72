//! Weights, rows and routings that no kernel can find easy: random bits in the range of real ones.

use half::bf16;

use super::cases::{Format, Routing};
use super::{Experts, time::Failed};
use crate::host::AlignedBytes;
use crate::matmul::{Bf16Matrix, Weights};
use crate::packed::{PackedFormat, PackedMatrix};

/// The next of a sequence of random words (xorshift; Marsaglia 2003).
pub(super) fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Values in −1..1.
pub(super) fn floats(n: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15;
    (0..n).map(|_| (next(&mut state) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Fills with random words of which `keep` lets bits through and `set` sets some.
fn fill(bytes: &mut AlignedBytes, keep: u64, set: u64) {
    bytes.fill_chunks(1 << 20, |i, chunk| {
        let mut state = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for word in chunk.chunks_mut(8) {
            let random = (next(&mut state) & keep | set).to_le_bytes();
            word.copy_from_slice(&random[..word.len()]);
        }
    });
}

/// Matrices of one shape, one after the other in memory.
pub(super) struct WeightSet {
    format: Format,
    codes: AlignedBytes,
    scales: AlignedBytes,
    rows: usize,
    cols: usize,
    count: usize,
}

impl WeightSet {
    pub(super) fn new(format: Format, rows: usize, cols: usize, count: usize) -> Result<Self, Failed> {
        let (code_bytes, scale_bytes) = format.bytes(rows, cols);
        let mut codes = AlignedBytes::zeroed(count * code_bytes)?;
        let mut scales = AlignedBytes::zeroed(count * scale_bytes)?;
        match format {
            // Any sign and fraction; magnitudes of 2⁻⁷.
            Format::Bf16 => fill(&mut codes, 0x807f_807f_807f_807f, 0x3c00_3c00_3c00_3c00),
            // A code of 0, which means −128, is no q8_0.
            Format::Packed(PackedFormat::Q8_0) => fill(&mut codes, u64::MAX, 0x0101_0101_0101_0101),
            Format::Packed(_) => fill(&mut codes, u64::MAX, 0),
        }
        match format {
            // Powers of two from 2⁻⁷ to 1.
            Format::Packed(PackedFormat::Mxfp4) => {
                fill(&mut scales, 0x0707_0707_0707_0707, 0x7878_7878_7878_7878);
            }
            // f16 of 2⁻⁷ and above.
            _ => fill(&mut scales, 0x03ff_03ff_03ff_03ff, 0x2000_2000_2000_2000),
        }
        Ok(Self { format, codes, scales, rows, cols, count })
    }

    /// Of one matrix.
    pub(super) fn bytes(&self) -> usize {
        let (codes, scales) = self.format.bytes(self.rows, self.cols);
        codes + scales
    }

    /// The i-th matrix, from the first again after the last.
    pub(super) fn get(&self, i: usize) -> crate::Result<Weights<'_>> {
        let i = i % self.count;
        let (codes, scales) = self.format.bytes(self.rows, self.cols);
        let code = &self.codes.as_bytes()[i * codes..(i + 1) * codes];
        let scale = &self.scales.as_bytes()[i * scales..(i + 1) * scales];
        match self.format {
            Format::Bf16 => {
                let data: &[bf16] = bytemuck::cast_slice(code);
                Bf16Matrix::new(data, self.rows, self.cols).map(Weights::Bf16)
            }
            Format::Packed(format) => {
                PackedMatrix::new(format, code, scale, self.rows, self.cols).map(Weights::Packed)
            }
        }
    }
}

/// An expert, its tokens, and the output row of the first of them.
pub(super) struct Routed {
    pub(super) expert: usize,
    pub(super) tokens: Vec<u32>,
    pub(super) first: usize,
}

/// Each token's experts, by expert; those without tokens are left out.
pub(super) fn route(experts: Experts, tokens: usize, routing: Routing, seed: u64) -> Vec<Routed> {
    let weight = |e: usize| if routing == Routing::Even { 1.0 } else { 1.0 / (e + 1) as f64 };
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut lists = vec![Vec::new(); experts.count];
    for token in 0..tokens as u32 {
        let mut left: Vec<usize> = (0..experts.count).collect();
        for _ in 0..experts.per_token.min(experts.count) {
            let total: f64 = left.iter().map(|&e| weight(e)).sum();
            let mut at = (next(&mut state) >> 11) as f64 / (1_u64 << 53) as f64 * total;
            let chosen = left.iter().position(|&e| {
                at -= weight(e);
                at < 0.0
            });
            let expert = left.remove(chosen.unwrap_or(left.len() - 1));
            lists[expert].push(token);
        }
    }
    let mut first = 0;
    let mut routed = Vec::new();
    for (expert, tokens) in lists.into_iter().enumerate().filter(|(_, tokens)| !tokens.is_empty()) {
        let given = tokens.len();
        routed.push(Routed { expert, tokens, first });
        first += given;
    }
    routed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_go_to_different_experts_and_skew_fills_the_first() {
        let experts = Experts { count: 32, per_token: 4 };
        let even = route(experts, 512, Routing::Even, 0);
        let skewed = route(experts, 512, Routing::Skewed, 0);
        for routed in [&even, &skewed] {
            assert_eq!(routed.iter().map(|r| r.tokens.len()).sum::<usize>(), 2048);
            assert!(routed.iter().all(|r| r.tokens.is_sorted_by(|a, b| a < b)));
            assert!(routed.windows(2).all(|r| r[0].first + r[0].tokens.len() == r[1].first));
        }
        // 512 · 4 / 32 = 64 each, within five deviations of a binomial.
        assert!(even.len() == 32 && even.iter().all(|r| (26..=102).contains(&r.tokens.len())));
        assert!(skewed[0].tokens.len() > 256 && skewed[0].tokens.len() > 8 * skewed[31].tokens.len());
    }

    #[test]
    fn matrices_are_finite_and_each_has_its_own_bytes() {
        let set = WeightSet::new(Format::Bf16, 4, 64, 3).unwrap();
        let Weights::Bf16(_) = set.get(0).unwrap() else { panic!("bf16 was asked for") };
        let values: &[bf16] = bytemuck::cast_slice(set.codes.as_bytes());
        assert!(values.iter().all(|v| (0.0078..0.0157).contains(&v.to_f32().abs())));
        assert_ne!(values[..256], values[256..512]);
        assert_eq!(set.bytes(), 512);
        let set = WeightSet::new(Format::Packed(PackedFormat::Q8_0), 16, 32, 1).unwrap();
        assert!(set.codes.as_bytes().iter().all(|&b| b != 0));
        assert!(set.get(5).is_ok());
    }
}
