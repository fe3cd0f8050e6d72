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
/// Rows must be below `rows()`; pointers give `cols()` elements; the instructions of `L` must be enabled.
pub(crate) unsafe trait Rows: Copy + Sync {
    fn rows(&self) -> usize;
    fn cols(&self) -> usize;
    /// Whether inputs and decoded rows are in the order of `deinterleave`.
    const DEINTERLEAVED: bool;
    /// Dot products of rows `row..row + R` with one input.
    unsafe fn dot<L: Lanes, const R: usize>(&self, row: usize, x: *const f32) -> [f32; R];
    /// Writes row `row` as f32.
    unsafe fn decode<L: Lanes>(&self, row: usize, out: *mut f32);
}

/// Reorders each block of 32 to its even, then its odd elements: the order in which nibbles are unpacked.
pub(crate) fn deinterleave(x: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    for (block, out) in x.chunks_exact(BLOCK).zip(out.chunks_exact_mut(BLOCK)) {
        for i in 0..BLOCK / 2 {
            out[i] = block[2 * i];
            out[BLOCK / 2 + i] = block[2 * i + 1];
        }
    }
    out
}

/// Dot products of plain rows, `stride` elements apart, whose lanes `load` reads and whose tail `get` reads.
#[inline(always)]
unsafe fn dot_plain<L: Lanes, T: Copy, const R: usize>(
    w: *const T,
    cols: usize,
    x: *const f32,
    load: impl Fn(*const T) -> L,
    get: impl Fn(T) -> f32,
) -> [f32; R] {
    // SAFETY: all offsets stay below R · cols for w and below cols for x.
    unsafe {
        let mut sums = [L::splat(0.0); R];
        let whole = cols - cols % L::N;
        let mut k = 0;
        while k < whole {
            let xs = L::load(x.add(k));
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = load(w.add(r * cols + k)).mul_add(xs, *sum);
            }
            k += L::N;
        }
        let mut out = [0.0; R];
        for (r, out) in out.iter_mut().enumerate() {
            *out = sums[r].sum();
            for k in whole..cols {
                *out += get(*w.add(r * cols + k)) * *x.add(k);
            }
        }
        out
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

    #[inline(always)]
    unsafe fn dot<L: Lanes, const R: usize>(&self, row: usize, x: *const f32) -> [f32; R] {
        // SAFETY: the caller gives R rows inside the matrix.
        unsafe { dot_plain(self.data.as_ptr().add(row * self.cols), self.cols, x, |p| L::load(p), |w| w) }
    }

    #[inline(always)]
    unsafe fn decode<L: Lanes>(&self, row: usize, out: *mut f32) {
        // SAFETY: the caller gives a row inside the matrix and room for it.
        unsafe { out.copy_from_nonoverlapping(self.data.as_ptr().add(row * self.cols), self.cols) }
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

    #[inline(always)]
    unsafe fn dot<L: Lanes, const R: usize>(&self, row: usize, x: *const f32) -> [f32; R] {
        // SAFETY: the caller gives R rows inside the matrix.
        unsafe {
            dot_plain(
                self.data.as_ptr().add(row * self.cols),
                self.cols,
                x,
                |p| L::load_bf16(p),
                bf16::to_f32,
            )
        }
    }

    #[inline(always)]
    unsafe fn decode<L: Lanes>(&self, row: usize, out: *mut f32) {
        // SAFETY: the caller gives a row inside the matrix and room for it.
        unsafe {
            let w = self.data.as_ptr().add(row * self.cols);
            let whole = self.cols - self.cols % L::N;
            let mut k = 0;
            while k < whole {
                L::load_bf16(w.add(k)).store(out.add(k));
                k += L::N;
            }
            for k in whole..self.cols {
                *out.add(k) = (*w.add(k)).to_f32();
            }
        }
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

    #[inline(always)]
    unsafe fn dot<L: Lanes, const R: usize>(&self, row: usize, x: *const f32) -> [f32; R] {
        let row_blocks = self.cols / BLOCK;
        // SAFETY: block indices stay below (row + R) · row_blocks, x offsets below cols.
        unsafe {
            let codes = self.blocks.as_ptr().add(row * row_blocks * BLOCK_BYTES);
            let scales = self.scales.as_ptr().add(row * row_blocks);
            let mut sums = [L::splat(0.0); R];
            for b in 0..row_blocks {
                let x = x.add(b * BLOCK);
                for (r, sum) in sums.iter_mut().enumerate() {
                    let block = r * row_blocks + b;
                    let mut dot = L::splat(0.0);
                    let mut i = 0;
                    while i < BLOCK_BYTES {
                        let (even, odd) = L::load_fp4_doubled(codes.add(block * BLOCK_BYTES + i));
                        dot = even.mul_add(L::load(x.add(i)), dot);
                        dot = odd.mul_add(L::load(x.add(BLOCK_BYTES + i)), dot);
                        i += L::N;
                    }
                    *sum = dot.mul_add(L::splat(half_scale(*scales.add(block))), *sum);
                }
            }
            sums.map(|s| s.sum())
        }
    }

    #[inline(always)]
    unsafe fn decode<L: Lanes>(&self, row: usize, out: *mut f32) {
        let row_blocks = self.cols / BLOCK;
        // SAFETY: the caller gives a row inside the matrix and room for it.
        unsafe {
            for b in 0..row_blocks {
                let block = row * row_blocks + b;
                let half = L::splat(half_scale(self.scales[block]));
                let mut i = 0;
                while i < BLOCK_BYTES {
                    let (even, odd) = L::load_fp4_doubled(self.blocks.as_ptr().add(block * BLOCK_BYTES + i));
                    even.mul(half).store(out.add(b * BLOCK + i));
                    odd.mul(half).store(out.add(b * BLOCK + BLOCK_BYTES + i));
                    i += L::N;
                }
            }
        }
    }
}
