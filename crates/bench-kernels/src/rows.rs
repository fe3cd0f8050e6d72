//! Activations as whole numbers: blocks of 32 columns with one scale, in 8 or in 16 bits.
//!
//! Each block is one record of words, so that a product follows one pointer a row.

use crate::error::{Error, Result, check_len};
use crate::exec::Exec;
use crate::mxfp4::BLOCK;
use crate::shared::SharedMut;
use crate::variant::Variant;

/// How finely activations are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntPrecision {
    /// Steps of 1/127 of a block's largest magnitude.
    Int8,
    /// Steps of 1/32512 of it, as two bytes.
    Int16,
}

impl IntPrecision {
    /// The largest code: 127, and 127 · 256, which is two signed bytes as well.
    fn largest(self) -> f32 {
        match self {
            Self::Int8 => 127.0,
            Self::Int16 => 32512.0,
        }
    }

    /// Words of a record.
    pub(crate) fn words(self) -> usize {
        match self {
            Self::Int8 => HEAD + BLOCK / 4,
            Self::Int16 => HEAD + BLOCK / 2,
        }
    }
}

/// Words before the codes of a record.
pub(crate) const HEAD: usize = 2;
/// Words of the high or of the low bytes.
pub(crate) const BYTES: usize = BLOCK / 4;
/// Blocks below this magnitude count as zero, so that the inverse of their scale is finite.
const SMALLEST: f32 = 1e-30;
/// Values above which threads share the work.
const WORTH_SHARING: usize = 1 << 15;

/// Rows `[rows, cols]` of activations as integers; memory is kept from one use to the next.
///
/// A value is `scale · (256 · hi + lo)`, or `scale · hi` where there is no `lo`. A block is a record of words: the
/// scale (f32), minus the sum of the codes (i32), 32 bytes `hi`, and for `Int16` 32 bytes `lo`. Bytes stand in the
/// order of [`crate::packed::PackedFormat`]: byte `4 · v + i` belongs to column `8 · (v / 2) + 2 · i + v % 2`.
/// A block with an infinity or a NaN has the scale NaN, so that all outputs of its row are NaN.
#[derive(Debug)]
pub struct IntRows {
    rows: usize,
    cols: usize,
    precision: IntPrecision,
    /// `[rows, cols / 32, words of a record]`
    words: Vec<u32>,
}

impl Default for IntRows {
    fn default() -> Self {
        Self { rows: 0, cols: 0, precision: IntPrecision::Int8, words: Vec::new() }
    }
}

impl IntRows {
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn precision(&self) -> IntPrecision {
        self.precision
    }

    /// All records.
    pub(crate) fn words(&self) -> &[u32] {
        &self.words
    }

    /// Words from one row to the next.
    pub(crate) fn row_words(&self) -> usize {
        self.cols / BLOCK * self.precision.words()
    }

    /// Takes the rows of `x` `[rows, cols]`.
    ///
    /// # Errors
    /// A length that is not rows · cols, columns that are no multiple of 32.
    pub fn quantize(
        &mut self,
        exec: &Exec,
        x: &[f32],
        rows: usize,
        cols: usize,
        precision: IntPrecision,
    ) -> Result<()> {
        check_len("rows to quantize", x.len(), rows * cols)?;
        if !cols.is_multiple_of(BLOCK) {
            let expected = "a multiple of 32";
            return Err(Error::Invalid { what: "columns to quantize", value: cols, expected });
        }
        (self.rows, self.cols, self.precision) = (rows, cols, precision);
        let row_words = self.row_words();
        self.words.resize(rows * row_words, 0);
        if rows * row_words == 0 {
            return Ok(());
        }
        if x.len() < WORTH_SHARING {
            quantize_blocks(exec.variant(), x, precision, &mut self.words);
            return Ok(());
        }
        let step = WORTH_SHARING.div_ceil(4 * cols);
        let words = SharedMut::new(&mut self.words);
        exec.run(rows.div_ceil(step), |task| {
            let (from, to) = (task * step, rows.min((task + 1) * step));
            // SAFETY: each task has rows of its own.
            let words = unsafe { words.slice(from * row_words..to * row_words) };
            quantize_blocks(exec.variant(), &x[from * cols..to * cols], precision, words);
        });
        Ok(())
    }

    /// Writes row `row` as the f32 that its codes stand for, for measuring what quantization costs.
    ///
    /// # Panics
    /// `row` is not below `rows`, `out` is shorter than `cols`.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        let records = &self.words[row * self.row_words()..][..self.row_words()];
        let blocks = records.chunks_exact(self.precision.words());
        for (record, out) in blocks.zip(out[..self.cols].chunks_exact_mut(BLOCK)) {
            let byte = |at: usize| i32::from(record[HEAD + at / 4].to_le_bytes()[at % 4] as i8);
            for (c, out) in out.iter_mut().enumerate() {
                let at = c / 8 * 8 + c % 2 * 4 + c % 8 / 2;
                let code = match self.precision {
                    IntPrecision::Int8 => byte(at),
                    IntPrecision::Int16 => 256 * byte(at) + byte(BLOCK + at),
                };
                *out = f32::from_bits(record[0]) * code as f32;
            }
        }
    }
}

/// One loop in plain Rust, which the compiler turns into the vectors of each instruction set: results are equal.
fn quantize_blocks(variant: Variant, x: &[f32], precision: IntPrecision, words: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
    fn avx512(x: &[f32], precision: IntPrecision, words: &mut [u32]) {
        body(x, precision, words);
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2(x: &[f32], precision: IntPrecision, words: &mut [u32]) {
        body(x, precision, words);
    }
    #[inline(always)]
    fn body(x: &[f32], precision: IntPrecision, words: &mut [u32]) {
        match precision {
            IntPrecision::Int8 => {
                let records = words.as_chunks_mut::<{ HEAD + BYTES }>().0;
                x.as_chunks::<BLOCK>().0.iter().zip(records).for_each(|(x, record)| {
                    let codes = quantize_block(x, precision, record);
                    put_bytes(&codes, |q| q, &mut record[HEAD..]);
                });
            }
            IntPrecision::Int16 => {
                let records = words.as_chunks_mut::<{ HEAD + 2 * BYTES }>().0;
                x.as_chunks::<BLOCK>().0.iter().zip(records).for_each(|(x, record)| {
                    let codes = quantize_block(x, precision, record);
                    put_bytes(&codes, |q| (q + 128) >> 8, &mut record[HEAD..HEAD + BYTES]);
                    // The low byte, as a signed one, is what remains.
                    put_bytes(&codes, |q| q, &mut record[HEAD + BYTES..]);
                });
            }
        }
    }
    match variant {
        // SAFETY: the guard asks the processor (the answer is cached).
        #[cfg(target_arch = "x86_64")]
        Variant::Avx512 if variant.is_supported() => unsafe { avx512(x, precision, words) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Variant::Avx2 if variant.is_supported() => unsafe { avx2(x, precision, words) },
        _ => body(x, precision, words),
    }
}

/// Writes scale and sum, returns the codes.
#[inline(always)]
fn quantize_block(x: &[f32; BLOCK], precision: IntPrecision, record: &mut [u32]) -> [i32; BLOCK] {
    /// 1.5 · 2^23: adding it rounds to the nearest whole number, ties to even, and leaves that in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // Magnitudes order as their bits do, NaN above infinity.
    let largest = x.iter().fold(0_u32, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(largest);
    let mut codes = [0_i32; BLOCK];
    let scale = if !largest.is_finite() {
        f32::NAN
    } else if largest < SMALLEST {
        0.0
    } else {
        let inverse = precision.largest() / largest;
        for (code, x) in codes.iter_mut().zip(x) {
            *code = (x * inverse + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
        }
        largest / precision.largest()
    };
    record[0] = scale.to_bits();
    record[1] = -codes.iter().sum::<i32>() as u32;
    codes
}

/// Writes one byte of each code, even columns of eight before odd ones.
#[inline(always)]
fn put_bytes(codes: &[i32; BLOCK], byte: impl Fn(i32) -> i32, words: &mut [u32]) {
    for (pair, codes) in words.as_chunks_mut::<2>().0.iter_mut().zip(codes.as_chunks::<8>().0) {
        let [a, b, c, d, e, f, g, h] = codes.map(|q| byte(q) as u8);
        *pair = [u32::from_le_bytes([a, c, e, g]), u32::from_le_bytes([b, d, f, h])];
    }
}
