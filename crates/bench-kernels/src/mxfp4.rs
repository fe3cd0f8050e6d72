//! MXFP4: blocks of 32 four-bit codes along a row with one power-of-two scale (OCP microscaling formats 1.0).
//!
//! Byte i of a block holds element 2i in its low and 2i + 1 in its high nibble. Codes are E2M1, scales E8M0.

use crate::error::{Error, Result, check_len};

/// Elements that share a scale.
pub const BLOCK: usize = 32;
/// Bytes of codes in a block.
pub const BLOCK_BYTES: usize = BLOCK / 2;

/// The E2M1 value of each code; bit 3 is the sign, so that code 8 is -0.
pub const FP4_VALUES: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Twice those values, so that they are whole numbers.
pub(crate) const DOUBLED_CODES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// `2^(scale − 128)`: half the E8M0 value, which goes with doubled codes.
///
/// Halving keeps scale 255 (2^128 here, as in transformers; the OCP specification calls it NaN) inside f32.
#[inline(always)]
pub(crate) fn half_scale(scale: u8) -> f32 {
    const TABLE: [f32; 256] = {
        let mut table = [0.0; 256];
        let mut s = 0;
        while s < 256 {
            // The two smallest are subnormal.
            table[s] = f32::from_bits(if s < 2 { 0x0020_0000 << s } else { (s as u32 - 1) << 23 });
            s += 1;
        }
        table
    };
    TABLE[usize::from(scale)]
}

/// The f32 values of `codes` (16 bytes a block) under `scales` (one byte a block); exact, overflow is infinite.
pub fn dequantize(codes: &[u8], scales: &[u8], out: &mut [f32]) -> Result<()> {
    check_len("mxfp4 codes", codes.len(), scales.len() * BLOCK_BYTES)?;
    check_len("mxfp4 output", out.len(), scales.len() * BLOCK)?;
    for ((block, &scale), out) in codes.chunks_exact(BLOCK_BYTES).zip(scales).zip(out.chunks_exact_mut(BLOCK))
    {
        let half = half_scale(scale);
        for (byte, pair) in block.iter().zip(out.chunks_exact_mut(2)) {
            pair[0] = 2.0 * FP4_VALUES[usize::from(byte & 15)] * half;
            pair[1] = 2.0 * FP4_VALUES[usize::from(byte >> 4)] * half;
        }
    }
    Ok(())
}

/// Quantizes `values` (a multiple of 32) into `codes` and `scales`.
///
/// The scale is 2^(⌊log2 max⌋ − 2), values round to the nearest code (ties to the smaller magnitude) and
/// saturate at 6, as in the reference quantizer of the golden tensors.
pub fn quantize(values: &[f32], codes: &mut [u8], scales: &mut [u8]) -> Result<()> {
    if !values.len().is_multiple_of(BLOCK) {
        return Err(Error::Invalid {
            what: "number of values",
            value: values.len(),
            expected: "a multiple of 32",
        });
    }
    check_len("mxfp4 scales", scales.len(), values.len() / BLOCK)?;
    check_len("mxfp4 codes", codes.len(), values.len() / 2)?;
    let blocks = values.chunks_exact(BLOCK).zip(codes.chunks_exact_mut(BLOCK_BYTES)).zip(scales);
    for ((block, codes), scale) in blocks {
        *scale = block_scale(block);
        // 2^(127 − scale); `block_scale` is at most 253.
        let inverse = half_scale(254 - *scale) * 2.0;
        for (pair, byte) in block.chunks_exact(2).zip(codes) {
            *byte = nearest_code(pair[0], inverse) | nearest_code(pair[1], inverse) << 4;
        }
    }
    Ok(())
}

/// The E8M0 scale that puts the largest magnitude of a block between 4 and 8.
fn block_scale(block: &[f32]) -> u8 {
    let largest = block.iter().fold(0.0_f32, |m, v| m.max(v.abs())).max(2.0_f32.powi(-120));
    // The exponent field of a normal f32 is ⌊log2⌋ + 127.
    let biased = (largest.to_bits() >> 23) & 0xff;
    (biased - 2) as u8
}

fn nearest_code(value: f32, inverse_scale: f32) -> u8 {
    /// Midpoints between neighbouring magnitudes.
    const MIDPOINTS: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
    let magnitude = value.abs() * inverse_scale;
    let code = MIDPOINTS.iter().filter(|&&m| magnitude > m).count() as u8;
    code | u8::from(value.is_sign_negative()) << 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_representable_block_survives_a_round_trip() {
        // From the smallest scale of the reference quantizer to the largest without overflow.
        for scale in 5..=252_u8 {
            // Code 7 (magnitude 6) fixes the scale; the others take every value.
            let codes: Vec<u8> = (0..16).map(|i| i | 7 << 4).collect();
            let mut values = [0.0; BLOCK];
            dequantize(&codes, &[scale], &mut values).unwrap();
            let (mut again, mut scales) = ([0; BLOCK_BYTES], [0]);
            quantize(&values, &mut again, &mut scales).unwrap();
            assert_eq!((scales[0], again.as_slice()), (scale, codes.as_slice()));
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_errors() {
        assert!(dequantize(&[0; 15], &[0], &mut [0.0; 32]).is_err());
        assert!(dequantize(&[0; 16], &[0], &mut [0.0; 31]).is_err());
        assert!(quantize(&[0.0; 33], &mut [0; 16], &mut [0]).is_err());
    }
}
