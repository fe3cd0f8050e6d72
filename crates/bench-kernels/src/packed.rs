//! Weights in panels of 16 rows: the layout that integer products stream.
//!
//! A panel holds 16 consecutive rows, block of 32 columns by block, so that a vector of 64 bytes has four columns of
//! each row, lane by lane. Scales stand in an array of their own, `[panel, block, 16]`.

mod quantize;

use std::cell::RefCell;

use half::f16;
pub use quantize::quantize;

use crate::error::{Error, Result, check_len};
use crate::mxfp4::{BLOCK, BLOCK_BYTES, DOUBLED_CODES, half_scale};

/// Rows of a panel.
pub const PANEL: usize = 16;

/// What the bytes of a panel mean. Byte i of lane r in vector v of a block belongs to row r and column
/// `8 · (v / 2) + 2 · i + v % 2` of the block (v = 0..8): the order in which nibbles unpack, the same for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackedFormat {
    /// 4 vectors of 64 bytes: low nibbles are vector 2j, high nibbles vector 2j + 1. Scales: one E8M0 byte.
    Mxfp4,
    /// 8 vectors of 64 bytes: q + 128, with q in −127..=127. Scales: f16, little-endian.
    Q8_0,
    /// 4 vectors of 64 bytes with the low four bits as in `Mxfp4`, then 2 vectors with the two high bits:
    /// vector v's are bits 2 · (v % 4) and up of high vector v / 4. q + 32, with q in −31..=31. Scales: f16.
    Q6_0,
}

impl PackedFormat {
    /// Bytes of codes of one block of 32 columns and 16 rows.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Mxfp4 => 4 * 64,
            Self::Q8_0 => 8 * 64,
            Self::Q6_0 => 6 * 64,
        }
    }

    /// Bytes of one scale.
    pub fn scale_bytes(self) -> usize {
        match self {
            Self::Mxfp4 => 1,
            Self::Q8_0 | Self::Q6_0 => 2,
        }
    }

    /// The whole number (for MXFP4 twice the value) of row `lane` and column `c` of a block.
    fn code(self, block: &[u8], lane: usize, c: usize) -> i16 {
        let (pair, i) = (c / 8, c % 8 / 2);
        let v = 2 * pair + c % 2;
        let nibble = || block[pair * 64 + 4 * lane + i] >> (4 * (c % 2)) & 15;
        match self {
            Self::Mxfp4 => i16::from(DOUBLED_CODES[usize::from(nibble())]),
            Self::Q8_0 => i16::from(block[v * 64 + 4 * lane + i]) - 128,
            Self::Q6_0 => {
                let high = block[(4 + v / 4) * 64 + 4 * lane + i] >> (2 * (v % 4)) & 3;
                i16::from(nibble() | high << 4) - 32
            }
        }
    }

    /// Bytes of codes and of scales of a matrix.
    pub fn bytes(self, rows: usize, cols: usize) -> (usize, usize) {
        let blocks = rows / PANEL * (cols / BLOCK);
        (blocks * self.block_bytes(), blocks * PANEL * self.scale_bytes())
    }
}

/// Whether a matrix of this size can be packed.
pub fn is_packable(rows: usize, cols: usize) -> bool {
    rows > 0 && cols > 0 && rows.is_multiple_of(PANEL) && cols.is_multiple_of(BLOCK)
}

/// A packed matrix `[rows, cols]` = `[out, in]`.
#[derive(Debug, Clone, Copy)]
pub struct PackedMatrix<'a> {
    format: PackedFormat,
    codes: &'a [u8],
    scales: &'a [u8],
    rows: usize,
    cols: usize,
}

impl<'a> PackedMatrix<'a> {
    /// # Errors
    /// Rows that are no multiple of 16, columns that are no multiple of 32, slices of another size.
    pub fn new(
        format: PackedFormat,
        codes: &'a [u8],
        scales: &'a [u8],
        rows: usize,
        cols: usize,
    ) -> Result<Self> {
        if !is_packable(rows, cols) {
            let expected = "rows in multiples of 16 and columns in multiples of 32";
            return Err(Error::Invalid { what: "packed matrix", value: rows, expected });
        }
        let (code_bytes, scale_bytes) = format.bytes(rows, cols);
        check_len("packed codes", codes.len(), code_bytes)?;
        check_len("packed scales", scales.len(), scale_bytes)?;
        Ok(Self { format, codes, scales, rows, cols })
    }

    pub fn format(&self) -> PackedFormat {
        self.format
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn codes(&self) -> &'a [u8] {
        self.codes
    }

    pub fn scales(&self) -> &'a [u8] {
        self.scales
    }
    /// Writes row `row` as f32: exact, but where MXFP4 overflows f32.
    ///
    /// # Panics
    /// `row` is not below `rows`, `out` is shorter than `cols`.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        let (blocks, lane) = (self.cols / BLOCK, row % PANEL);
        let panel = row / PANEL * blocks;
        let (block_bytes, scale_bytes) = (self.format.block_bytes(), self.format.scale_bytes());
        for (b, out) in out[..self.cols].chunks_exact_mut(BLOCK).enumerate() {
            let codes = &self.codes[(panel + b) * block_bytes..][..block_bytes];
            let scale = &self.scales[((panel + b) * PANEL + lane) * scale_bytes..][..scale_bytes];
            let scale = match self.format {
                PackedFormat::Mxfp4 => half_scale(scale[0]),
                PackedFormat::Q8_0 | PackedFormat::Q6_0 => f16::from_le_bytes([scale[0], scale[1]]).to_f32(),
            };
            for (c, out) in out.iter_mut().enumerate() {
                *out = f32::from(self.format.code(codes, lane, c)) * scale;
            }
        }
    }
}

/// Packs MXFP4 weights as the checkpoint stores them, blocks `[rows, cols / 32, 16]` and scales `[rows, cols / 32]`,
/// into memory of the same size. Whole panels may be packed one by one, in parallel.
///
/// # Errors
/// Sizes that do not fit, or that [`is_packable`] refuses.
pub fn pack_mxfp4_into(
    blocks: &[u8],
    scales: &[u8],
    cols: usize,
    to_codes: &mut [u8],
    to_scales: &mut [u8],
) -> Result<()> {
    let (row_bytes, row_scales) = check_mxfp4(blocks, scales, cols)?;
    check_len("packed codes", to_codes.len(), blocks.len())?;
    check_len("packed scales", to_scales.len(), scales.len())?;
    let panels = blocks.chunks_exact(PANEL * row_bytes).zip(to_codes.chunks_exact_mut(PANEL * row_bytes));
    panels.for_each(|(from, to)| transpose::<4>(from, to));
    let panels = scales.chunks_exact(PANEL * row_scales).zip(to_scales.chunks_exact_mut(PANEL * row_scales));
    panels.for_each(|(from, to)| transpose::<1>(from, to));
    Ok(())
}

/// As [`pack_mxfp4_into`], in place. Whole panels may be packed one by one, in parallel.
///
/// # Errors
/// As [`pack_mxfp4_into`].
pub fn pack_mxfp4_in_place(blocks: &mut [u8], scales: &mut [u8], cols: usize) -> Result<()> {
    thread_local! {
        /// One panel; grows to the widest and stays.
        static PANEL_COPY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let (row_bytes, row_scales) = check_mxfp4(blocks, scales, cols)?;
    PANEL_COPY.with_borrow_mut(|copy| {
        copy.resize(PANEL * row_bytes, 0);
        for panel in blocks.chunks_exact_mut(PANEL * row_bytes) {
            copy.copy_from_slice(panel);
            transpose::<4>(copy, panel);
        }
        for panel in scales.chunks_exact_mut(PANEL * row_scales) {
            let copy = &mut copy[..PANEL * row_scales];
            copy.copy_from_slice(panel);
            transpose::<1>(copy, panel);
        }
    });
    Ok(())
}

/// Bytes of codes and of scales in a row.
fn check_mxfp4(blocks: &[u8], scales: &[u8], cols: usize) -> Result<(usize, usize)> {
    let rows = blocks.len() / (cols / 2).max(1);
    if !is_packable(rows, cols) {
        let expected = "rows in multiples of 16 and columns in multiples of 32";
        return Err(Error::Invalid { what: "rows of mxfp4 weights to pack", value: rows, expected });
    }
    let (row_bytes, row_scales) = (cols / BLOCK * BLOCK_BYTES, cols / BLOCK);
    check_len("mxfp4 blocks", blocks.len(), rows * row_bytes)?;
    check_len("mxfp4 scales", scales.len(), rows * row_scales)?;
    Ok((row_bytes, row_scales))
}

/// 16 rows of units of `N` bytes to columns of 16.
fn transpose<const N: usize>(from: &[u8], to: &mut [u8]) {
    let (from, to) = (from.as_chunks::<N>().0, to.as_chunks_mut::<N>().0.as_chunks_mut::<PANEL>().0);
    let units = to.len();
    let rows: [&[[u8; N]]; PANEL] = std::array::from_fn(|row| &from[row * units..][..units]);
    for (unit, column) in to.iter_mut().enumerate() {
        for (to, row) in column.iter_mut().zip(rows) {
            *to = row[unit];
        }
    }
}
