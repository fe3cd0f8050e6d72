//! Elementary functions without branches, so that loops over them become vector code of any width.
//!
//! Nothing here is fused by hand: every instruction set gives the same bits.

/// e^x within 2 ulp for every x; overflow is infinite, underflow is gradual, NaN stays NaN.
///
/// Reduction by ln 2 in two parts and the degree-5 polynomial of Cephes' `expf` (Moshier, netlib).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer
    // Comparisons that leave NaN as it is; beyond the bounds the result is 0 or infinite anyway.
    let low = if x < -105.0 { -105.0 } else { x };
    let clamped = if low > 90.0 { 90.0 } else { low };
    let shifted = clamped * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    // The low bits of `shifted` are n. 2^n in two factors, each of which is a normal number.
    let n = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    y * power(half) * power(n.wrapping_sub(half))
}

/// `1 / (1 + e^−x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The bits of the nearest bf16, ties to even, as `half::bf16::from_f32` gives them.
#[inline(always)]
pub(crate) fn bf16_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // Rounding could turn a NaN into infinity; a NaN keeps its upper bits and becomes quiet.
    if value.is_nan() { (bits >> 16) | 0x40 } else { rounded }
}

/// The nearest bf16, if `ROUND`.
#[inline(always)]
pub(crate) fn round<const ROUND: bool>(value: f32) -> f32 {
    if ROUND { f32::from_bits(bf16_bits(value) << 16) } else { value }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        for i in -873_000..887_000 {
            let x = i as f32 * 1e-4;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) - expected).abs() <= expected * 2.4e-7, "{x}");
        }
        for i in 0..2000 {
            // Subnormal results: within one step of the smallest.
            let x = -87.3 - i as f32 * 0.01;
            assert!((f64::from(exp(x)) - f64::from(x).exp()).abs() <= 2.0_f64.powi(-148), "{x}");
        }
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY), exp(-1000.0)), (1.0, 0.0, 0.0));
        assert_eq!((exp(89.0), exp(1e30), exp(f32::INFINITY)), (f32::INFINITY, f32::INFINITY, f32::INFINITY));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sigmoid_is_right_up_to_a_hundred_and_beyond() {
        for i in -10_000..=10_000 {
            let x = i as f32 * 0.01;
            let expected = 1.0 / (1.0 + (-f64::from(x)).exp());
            let error = (f64::from(sigmoid(x)) - expected).abs();
            assert!(error <= 4e-7 * expected || (x < -88.0 && error < 1e-37), "{x}");
        }
        assert_eq!((sigmoid(f32::INFINITY), sigmoid(f32::NEG_INFINITY)), (1.0, 0.0));
        assert!(sigmoid(f32::NAN).is_nan());
    }

    #[test]
    fn rounding_gives_the_bits_of_half() {
        let mut bits = 1_u32;
        for _ in 0..2_000_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits(bits);
            assert_eq!(bf16_bits(value), u32::from(bf16::from_f32(value).to_bits()), "{bits:x}");
        }
        for value in [f32::NAN, f32::from_bits(0x7f80_0001), f32::INFINITY, f32::MAX, -0.0, 1e-40] {
            assert_eq!(bf16_bits(value), u32::from(bf16::from_f32(value).to_bits()), "{value}");
        }
    }
}
