//! RMS normalization of rows.

use half::bf16;

use crate::error::{Result, check_len};

/// Where the weight is applied when activations are bf16; in f32 both are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightOrder {
    /// gpt-oss: multiply in f32, then round once.
    BeforeRounding,
    /// Llama, Qwen3: round the normalized value, then multiply and round again.
    AfterRounding,
}

/// `x / sqrt(mean(x²) + eps) · weight` for each row of `weight.len()` elements, in place.
pub fn rms_norm(x: &mut [f32], weight: &[f32], eps: f32, order: WeightOrder, round_bf16: bool) -> Result<()> {
    let width = weight.len().max(1);
    check_len("norm input", x.len(), x.len() / width * weight.len())?;
    let round = round_bf16 && order == WeightOrder::AfterRounding;
    for row in x.chunks_exact_mut(width) {
        let inverse = 1.0 / (mean_square(row) + eps).sqrt();
        for (x, w) in row.iter_mut().zip(weight) {
            let normalized = *x * inverse;
            *x = if round { bf16::from_f32(normalized).to_f32() } else { normalized } * w;
        }
    }
    Ok(())
}

/// Sixteen running sums, for speed and for a smaller rounding error than one would have.
fn mean_square(row: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 16];
    let (whole, rest) = row.as_chunks::<16>();
    for chunk in whole {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x * x;
        }
    }
    let tail: f32 = rest.iter().map(|x| x * x).sum();
    (sums.iter().sum::<f32>() + tail) / row.len() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_scaled_to_unit_mean_square() {
        let mut x: Vec<f32> = (0..38).map(|i| i as f32 - 7.0).collect();
        let weight = vec![2.0; 19];
        rms_norm(&mut x, &weight, 0.0, WeightOrder::BeforeRounding, false).unwrap();
        for row in x.chunks(19) {
            assert!((mean_square(row) - 4.0).abs() < 1e-5);
        }
        assert!(rms_norm(&mut x[..20], &weight, 0.0, WeightOrder::BeforeRounding, false).is_err());
    }

    #[test]
    fn the_order_of_rounding_shows_in_bf16_only() {
        let run = |order, bf16| {
            let mut x = vec![1.0, 2.0, 3.5];
            rms_norm(&mut x, &[1.01, 0.99, 1.3], 1e-6, order, bf16).unwrap();
            x
        };
        assert_eq!(run(WeightOrder::BeforeRounding, false), run(WeightOrder::AfterRounding, false));
        assert_ne!(run(WeightOrder::BeforeRounding, true), run(WeightOrder::AfterRounding, true));
    }
}
