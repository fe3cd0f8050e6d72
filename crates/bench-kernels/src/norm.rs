//! RMS normalization of rows.

use half::bf16;

use crate::error::{Result, check_len};
use crate::exec::Exec;
use crate::lanes::Lanes;
use crate::math::round;
use crate::pieces::for_rows;
use crate::shared::SharedMut;
use crate::variant::dispatch;

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

/// `x / sqrt(mean(x²) + eps) · weight` for each row of `weight.len()` elements. With `round_bf16` the result is
/// rounded to bf16, and before the multiplication as `order` says.
///
/// # Errors
/// Rows that are not whole, an output of another length.
pub fn rms_norm_into(
    exec: &Exec,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    order: WeightOrder,
    round_bf16: bool,
    out: &mut [f32],
) -> Result<()> {
    let width = weight.len().max(1);
    check_len("norm input", x.len(), x.len() / width * weight.len())?;
    check_len("norm output", out.len(), x.len())?;
    let out = SharedMut::new(out);
    for_rows(exec, x.len() / width, width, |rows| {
        let range = rows.start * width..rows.end * width;
        // SAFETY: tasks have disjoint rows.
        let out = unsafe { out.slice(range.clone()) };
        match (round_bf16, order) {
            (false, _) => norm_f32(exec.variant(), &x[range], weight, eps, out),
            (true, WeightOrder::BeforeRounding) => norm_once(exec.variant(), &x[range], weight, eps, out),
            (true, WeightOrder::AfterRounding) => norm_twice(exec.variant(), &x[range], weight, eps, out),
        }
    });
    Ok(())
}

dispatch! { fn norm_f32(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = norm_f32_body }
dispatch! { fn norm_once(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = norm_once_body }
dispatch! { fn norm_twice(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = norm_twice_body }

#[inline(always)]
unsafe fn norm_f32_body<L: Lanes>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    norm_rows::<false, false>(x, weight, eps, out);
}

#[inline(always)]
unsafe fn norm_once_body<L: Lanes>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    norm_rows::<false, true>(x, weight, eps, out);
}

#[inline(always)]
unsafe fn norm_twice_body<L: Lanes>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    norm_rows::<true, true>(x, weight, eps, out);
}

/// Plain loops, which compilers turn into vectors of any width with the same results.
#[inline(always)]
fn norm_rows<const FIRST: bool, const LAST: bool>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    for (row, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        let inverse = 1.0 / (mean_square(row) + eps).sqrt();
        for ((x, w), out) in row.iter().zip(weight).zip(out) {
            *out = round::<LAST>(round::<FIRST>(*x * inverse) * w);
        }
    }
}

/// Sixteen running sums, for speed and for a smaller rounding error than one would have.
#[inline(always)]
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
    use crate::Variant;
    use crate::pool::Pool;

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
    fn into_another_slice_gives_the_same_bits_on_every_variant() {
        let (width, rows) = (35, 700);
        let x: Vec<f32> = (0..width * rows).map(|i| ((i * 7919) % 1009) as f32 / 300.0 - 1.5).collect();
        let weight: Vec<f32> = (0..width).map(|i| 0.7 + i as f32 * 0.01).collect();
        for (order, bf16) in [
            (WeightOrder::BeforeRounding, false),
            (WeightOrder::BeforeRounding, true),
            (WeightOrder::AfterRounding, true),
        ] {
            let mut expected = x.clone();
            rms_norm(&mut expected, &weight, 1e-5, order, bf16).unwrap();
            if bf16 {
                for v in &mut expected {
                    *v = bf16::from_f32(*v).to_f32();
                }
            }
            for variant in Variant::available() {
                let mut out = vec![f32::NAN; x.len()];
                let exec = Exec::new(variant, Pool::shared());
                rms_norm_into(&exec, &x, &weight, 1e-5, order, bf16, &mut out).unwrap();
                assert_eq!(out, expected, "{variant:?} {order:?}");
            }
        }
        assert!(
            rms_norm_into(
                &Exec::shared(),
                &x,
                &weight,
                0.0,
                WeightOrder::BeforeRounding,
                false,
                &mut [0.0; 2]
            )
            .is_err()
        );
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
