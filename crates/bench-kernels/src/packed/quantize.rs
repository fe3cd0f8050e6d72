//! Dense weights to panels of 8 or 6 bits with an f16 scale for each block of 32 columns.

use half::f16;

use super::{PANEL, PackedFormat, is_packable};
use crate::error::{Error, Result, check_len};
use crate::exec::Exec;
use crate::mxfp4::BLOCK;
use crate::shared::SharedMut;
use crate::variant::Variant;

/// Panels that one task quantizes.
const STEP: usize = 4;

/// Quantizes `w` `[rows, cols]` (f32 or bf16) into codes and scales of `format`, in parallel.
///
/// `Q8_0` takes a block's largest magnitude / 127 as its scale. `Q6_0` tries scales around magnitude / 31 and takes
/// the one with the least squared error. Codes are nearest to the value under the scale as stored.
///
/// # Errors
/// Another format, sizes that do not fit.
pub fn quantize<T: Copy + Into<f32> + Sync>(
    exec: &Exec,
    format: PackedFormat,
    w: &[T],
    rows: usize,
    cols: usize,
    codes: &mut [u8],
    scales: &mut [u8],
) -> Result<()> {
    if format == PackedFormat::Mxfp4 || !is_packable(rows, cols) {
        let expected = "q8_0 or q6_0, rows in multiples of 16 and columns in multiples of 32";
        return Err(Error::Invalid { what: "matrix to quantize", value: rows, expected });
    }
    check_len("matrix to quantize", w.len(), rows * cols)?;
    let (code_bytes, scale_bytes) = format.bytes(rows, cols);
    check_len("quantized codes", codes.len(), code_bytes)?;
    check_len("quantized scales", scales.len(), scale_bytes)?;
    let panels = rows / PANEL;
    let (panel_codes, panel_scales) = (code_bytes / panels, scale_bytes / panels);
    let (codes, scales) = (SharedMut::new(codes), SharedMut::new(scales));
    exec.run(panels.div_ceil(STEP), |task| {
        for panel in task * STEP..panels.min((task + 1) * STEP) {
            // SAFETY: each panel belongs to one task.
            let (codes, scales) = unsafe {
                (
                    codes.slice(panel * panel_codes..(panel + 1) * panel_codes),
                    scales.slice(panel * panel_scales..(panel + 1) * panel_scales),
                )
            };
            let w = &w[panel * PANEL * cols..(panel + 1) * PANEL * cols];
            quantize_panel(exec.variant(), format, w, cols, codes, scales);
        }
    });
    Ok(())
}

/// One loop in plain Rust, which the compiler turns into the vectors of each instruction set: results are equal.
fn quantize_panel<T: Copy + Into<f32>>(
    variant: Variant,
    format: PackedFormat,
    w: &[T],
    cols: usize,
    codes: &mut [u8],
    scales: &mut [u8],
) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2")]
    fn avx512<T: Copy + Into<f32>>(
        format: PackedFormat,
        w: &[T],
        cols: usize,
        codes: &mut [u8],
        scales: &mut [u8],
    ) {
        body(format, w, cols, codes, scales);
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn avx2<T: Copy + Into<f32>>(
        format: PackedFormat,
        w: &[T],
        cols: usize,
        codes: &mut [u8],
        scales: &mut [u8],
    ) {
        body(format, w, cols, codes, scales);
    }
    match variant {
        // SAFETY: the guard asks the processor (the answer is cached).
        #[cfg(target_arch = "x86_64")]
        Variant::Avx512 if variant.is_supported() => unsafe { avx512(format, w, cols, codes, scales) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Variant::Avx2 if variant.is_supported() => unsafe { avx2(format, w, cols, codes, scales) },
        _ => body(format, w, cols, codes, scales),
    }
}

#[inline(always)]
fn body<T: Copy + Into<f32>>(
    format: PackedFormat,
    w: &[T],
    cols: usize,
    codes: &mut [u8],
    scales: &mut [u8],
) {
    let block_bytes = format.block_bytes();
    codes.fill(0);
    for (lane, row) in w.chunks_exact(cols).enumerate() {
        for (b, block) in row.as_chunks::<BLOCK>().0.iter().enumerate() {
            let block = block.map(Into::into);
            let (scale, quantized) =
                if format == PackedFormat::Q8_0 { eight_bits(&block) } else { six_bits(&block) };
            scales[2 * (b * PANEL + lane)..][..2].copy_from_slice(&scale.to_le_bytes());
            put(format, lane, &quantized, &mut codes[b * block_bytes..][..block_bytes]);
        }
    }
}

#[inline(always)]
fn largest(block: &[f32; BLOCK]) -> f32 {
    // Magnitudes order as their bits do, NaN above infinity.
    f32::from_bits(block.iter().fold(0, |largest, w| largest.max(w.to_bits() & 0x7fff_ffff)))
}

/// Codes under a scale as stored, at most `limit` in magnitude, and the sum of their squared errors.
#[inline(always)]
fn codes_under(block: &[f32; BLOCK], scale: f32, limit: f32) -> ([i32; BLOCK], f32) {
    /// 1.5 · 2^23: adding it rounds to the nearest whole number and leaves that in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let mut codes = [0; BLOCK];
    let mut errors = [0.0; BLOCK];
    for ((w, code), error) in block.iter().zip(&mut codes).zip(&mut errors) {
        let shifted = (w * inverse).max(-limit).min(limit) + ROUND;
        *code = shifted.to_bits() as i32 - ROUND.to_bits() as i32;
        let rest = w - (shifted - ROUND) * scale;
        *error = rest * rest;
    }
    let mut half = BLOCK / 2;
    while half > 0 {
        for i in 0..half {
            errors[i] += errors[i + half];
        }
        half /= 2;
    }
    (codes, errors[0])
}

#[inline(always)]
fn eight_bits(block: &[f32; BLOCK]) -> (f16, [i32; BLOCK]) {
    let scale = f16::from_f32(largest(block) / 127.0);
    (scale, codes_under(block, scale.to_f32(), 127.0).0)
}

#[inline(always)]
fn six_bits(block: &[f32; BLOCK]) -> (f16, [i32; BLOCK]) {
    let largest = largest(block);
    let mut best = (f16::from_f32(largest / 31.0), [0; BLOCK], f32::INFINITY);
    // From clipping the largest by a tenth to leaving a tenth of the codes unused.
    for quarter_steps in 0..8_u8 {
        let scale = f16::from_f32(largest / (28.0 + f32::from(quarter_steps)));
        let (codes, error) = codes_under(block, scale.to_f32(), 31.0);
        if error < best.2 {
            best = (scale, codes, error);
        }
    }
    (best.0, best.1)
}

/// Writes the codes of row `lane` into a block of zeros, or of other rows.
#[inline(always)]
fn put(format: PackedFormat, lane: usize, codes: &[i32; BLOCK], block: &mut [u8]) {
    for (v, i) in (0..8).flat_map(|v| (0..4).map(move |i| (v, i))) {
        let code = codes[8 * (v / 2) + 2 * i + v % 2];
        let at = 4 * lane + i;
        if format == PackedFormat::Q8_0 {
            block[v * 64 + at] = (code + 128) as u8;
        } else {
            let code = (code + 32) as u8;
            block[v / 2 * 64 + at] |= (code & 15) << (4 * (v % 2));
            block[(4 + v / 4) * 64 + at] |= (code >> 4) << (2 * (v % 4));
        }
    }
}
