//! Views on weight matrices, row-major `[rows, cols]` = `[out, in]`, as a checkpoint stores them.
//!
//! Constructors check sizes, so that the kernels may rely on them.

use half::bf16;

use crate::error::{Error, Result, check_len};
use crate::lanes::Lanes;
use crate::mxfp4::{BLOCK, BLOCK_BYTES, half_scale};

#[derive(Debug, Clone, Copy)]
pub struct F32Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
}

#[derive(Debug, Clone, Copy)]
pub struct Bf16Matrix<'a> {
    data: &'a [bf16],
    rows: usize,
    cols: usize,
}

/// Blocks `[rows, cols / 32, 16]` and scales `[rows, cols / 32]`.
#[derive(Debug, Clone, Copy)]
pub struct Mxfp4Matrix<'a> {
    blocks: &'a [u8],
    scales: &'a [u8],
    rows: usize,
    cols: usize,
}

impl<'a> F32Matrix<'a> {
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Result<Self> {
        check_len("f32 matrix", data.len(), rows * cols)?;
        Ok(Self { data, rows, cols })
    }
}

impl<'a> Bf16Matrix<'a> {
    pub fn new(data: &'a [bf16], rows: usize, cols: usize) -> Result<Self> {
        check_len("bf16 matrix", data.len(), rows * cols)?;
        Ok(Self { data, rows, cols })
    }
}

impl<'a> Mxfp4Matrix<'a> {
    pub fn new(blocks: &'a [u8], scales: &'a [u8], rows: usize, cols: usize) -> Result<Self> {
        if !cols.is_multiple_of(BLOCK) {
            return Err(Error::Invalid { what: "mxfp4 columns", value: cols, expected: "a multiple of 32" });
        }
        check_len("mxfp4 blocks", blocks.len(), rows * cols / 2)?;
        check_len("mxfp4 scales", scales.len(), rows * cols / BLOCK)?;
        Ok(Self { blocks, scales, rows, cols })
    }
}

/// What the matrix product asks of a weight format.
///
/// # Safety
/// Rows must be below `rows()`, vectors inside `cols()`; the instructions of `L` must be enabled.
pub(crate) unsafe trait Rows: Copy + Sync {
    /// Whether columns, and so inputs, are in the order of `deinterleave`.
    const DEINTERLEAVED: bool;
    fn rows(&self) -> usize;
    fn cols(&self) -> usize;
    /// Bytes that a row occupies.
    fn row_bytes(&self) -> usize;
    /// Where row `row` starts, to be fetched early.
    fn row_start(&self, row: usize) -> *const u8;
    /// Columns `k..k + L::N` of row `row`; k is a multiple of `L::N`.
    unsafe fn load<L: Lanes>(&self, row: usize, k: usize) -> L;
    /// One column, for what is left of a row.
    unsafe fn get(&self, row: usize, k: usize) -> f32;

    /// Writes row `row` as f32.
    #[inline(always)]
    unsafe fn decode<L: Lanes>(&self, row: usize, out: *mut f32) {
        let whole = self.cols() - self.cols() % L::N;
        let mut k = 0;
        // SAFETY: the caller gives a row inside the matrix and room for it.
        unsafe {
            while k < whole {
                self.load::<L>(row, k).store(out.add(k));
                k += L::N;
            }
            for k in whole..self.cols() {
                *out.add(k) = self.get(row, k);
            }
        }
    }
}

/// Reorders each block of 32 to its even, then its odd elements: the order in which nibbles are unpacked.
pub(crate) fn deinterleave(x: &[f32], out: &mut [f32]) {
    for (block, out) in x.chunks_exact(BLOCK).zip(out.chunks_exact_mut(BLOCK)) {
        for i in 0..BLOCK / 2 {
            out[i] = block[2 * i];
            out[BLOCK / 2 + i] = block[2 * i + 1];
        }
    }
}

// SAFETY: all reads are inside the slices, whose length the constructor checked.
unsafe impl Rows for F32Matrix<'_> {
    const DEINTERLEAVED: bool = false;

    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn row_bytes(&self) -> usize {
        4 * self.cols
    }

    #[inline(always)]
    fn row_start(&self, row: usize) -> *const u8 {
        self.data.as_ptr().wrapping_add(row * self.cols).cast()
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(&self, row: usize, k: usize) -> L {
        // SAFETY: the caller gives a vector inside a row.
        unsafe { L::load(self.data.as_ptr().add(row * self.cols + k)) }
    }

    #[inline(always)]
    unsafe fn get(&self, row: usize, k: usize) -> f32 {
        // SAFETY: the caller gives an element of the matrix.
        unsafe { *self.data.as_ptr().add(row * self.cols + k) }
    }
}

// SAFETY: as for f32.
unsafe impl Rows for Bf16Matrix<'_> {
    const DEINTERLEAVED: bool = false;

    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn row_bytes(&self) -> usize {
        2 * self.cols
    }

    #[inline(always)]
    fn row_start(&self, row: usize) -> *const u8 {
        self.data.as_ptr().wrapping_add(row * self.cols).cast()
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(&self, row: usize, k: usize) -> L {
        // SAFETY: the caller gives a vector inside a row.
        unsafe { L::load_bf16(self.data.as_ptr().add(row * self.cols + k)) }
    }

    #[inline(always)]
    unsafe fn get(&self, row: usize, k: usize) -> f32 {
        // SAFETY: the caller gives an element of the matrix.
        let bits = unsafe { (*self.data.as_ptr().add(row * self.cols + k)).to_bits() };
        f32::from_bits(u32::from(bits) << 16)
    }
}

// SAFETY: as for f32; columns are whole blocks, and blocks whole vectors of up to 16 lanes.
unsafe impl Rows for Mxfp4Matrix<'_> {
    const DEINTERLEAVED: bool = true;

    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn row_bytes(&self) -> usize {
        self.cols / BLOCK * (BLOCK_BYTES + 1)
    }

    #[inline(always)]
    fn row_start(&self, row: usize) -> *const u8 {
        self.blocks.as_ptr().wrapping_add(row * self.cols / 2)
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(&self, row: usize, k: usize) -> L {
        let block = row * (self.cols / BLOCK) + k / BLOCK;
        let (odd, i) = (k % BLOCK / BLOCK_BYTES, k % BLOCK_BYTES);
        // SAFETY: the caller gives a vector inside a row, which is inside one half of a block.
        unsafe {
            let codes = L::load_bytes(self.blocks.as_ptr().add(block * BLOCK_BYTES + i));
            let half = L::splat(half_scale(*self.scales.as_ptr().add(block)));
            L::fp4_doubled(L::shift_right(codes, 4 * odd as u32)).mul(half)
        }
    }

    #[inline(always)]
    unsafe fn get(&self, _row: usize, _k: usize) -> f32 {
        // Columns are whole blocks: nothing is ever left of a row.
        0.0
    }
}
