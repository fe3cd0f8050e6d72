//! `out = x · wᵀ + bias` for weights in any of the stored formats: the one place where dense and expert products run.
//!
//! One input row reads each weight once, straight from its format. More rows share a decoded copy of four weight
//! rows at a time. Each output element is one sum in one fixed order, whatever the number of threads and inputs.

use crate::error::{Result, check_len};
use crate::lanes::Lanes;
use crate::shared::{SharedMut, for_ranges};
use crate::variant::{Variant, dispatch};
pub use crate::weights::{Bf16Matrix, F32Matrix, Mxfp4Matrix};
use crate::weights::{Rows, deinterleave};

/// Weight rows that are worked on together.
const ROWS: usize = 4;

/// A weight matrix in one of the stored formats.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    F32(F32Matrix<'a>),
    Bf16(Bf16Matrix<'a>),
    Mxfp4(Mxfp4Matrix<'a>),
}

impl Weights<'_> {
    pub fn rows(&self) -> usize {
        match self {
            Self::F32(w) => w.rows(),
            Self::Bf16(w) => w.rows(),
            Self::Mxfp4(w) => w.rows(),
        }
    }

    pub fn cols(&self) -> usize {
        match self {
            Self::F32(w) => w.cols(),
            Self::Bf16(w) => w.cols(),
            Self::Mxfp4(w) => w.cols(),
        }
    }
}

/// `out[i, j] = Σ_k x[i, k] · w[j, k] + bias[j]` with x `[m, cols]`, w `[rows, cols]`, out `[m, rows]`, in parallel.
pub fn matmul(x: &[f32], m: usize, w: &Weights<'_>, bias: Option<&[f32]>, out: &mut [f32]) -> Result<()> {
    matmul_with(Variant::active(), x, m, w, bias, out)
}

/// `matmul` on a chosen instruction set, for tests and measurements.
pub fn matmul_with(
    variant: Variant,
    x: &[f32],
    m: usize,
    w: &Weights<'_>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Result<()> {
    check_len("matmul input", x.len(), m * w.cols())?;
    check_len("matmul output", out.len(), m * w.rows())?;
    if let Some(bias) = bias {
        check_len("matmul bias", bias.len(), w.rows())?;
    }
    match w {
        Weights::F32(w) => run(variant, x, m, *w, bias, out),
        Weights::Bf16(w) => run(variant, x, m, *w, bias, out),
        Weights::Mxfp4(w) => run(variant, x, m, *w, bias, out),
    }
    Ok(())
}

fn run<W: Rows>(variant: Variant, x: &[f32], m: usize, w: W, bias: Option<&[f32]>, out: &mut [f32]) {
    let reordered = W::DEINTERLEAVED.then(|| deinterleave(x));
    let x = reordered.as_deref().unwrap_or(x);
    let out = SharedMut::new(out);
    for_ranges(w.rows(), ROWS, m * w.rows() * w.cols(), |rows| {
        let task = Task { x, m, w, bias, out, first: rows.start, end: rows.end };
        if m == 1 { product_of_one(variant, &task) } else { product_of_many(variant, &task) }
    });
}

/// The weight rows `first..end` of a product.
struct Task<'a, W> {
    x: &'a [f32],
    m: usize,
    w: W,
    bias: Option<&'a [f32]>,
    out: SharedMut<'a, f32>,
    first: usize,
    end: usize,
}

impl<W: Rows> Task<'_, W> {
    /// # Safety
    /// `row` is one of this task's rows, which no other task has.
    #[inline(always)]
    unsafe fn put(&self, input: usize, row: usize, sum: f32) {
        let at = input * self.w.rows() + row;
        // SAFETY: tasks have disjoint rows.
        unsafe { self.out.slice(at..at + 1)[0] = self.bias.map_or(sum, |bias| sum + bias[row]) };
    }
}

dispatch! { fn product_of_one<W: Rows>(task: &Task<'_, W>) = product_of_one_body }
dispatch! { fn product_of_many<W: Rows>(task: &Task<'_, W>) = product_of_many_body }

#[inline(always)]
unsafe fn product_of_one_body<L: Lanes, W: Rows>(task: &Task<'_, W>) {
    let mut row = task.first;
    // SAFETY: rows stay below `end`, x has `cols` elements; `dispatch!` enables the instructions.
    unsafe {
        while row + ROWS <= task.end {
            for (r, sum) in task.w.dot::<L, ROWS>(row, task.x.as_ptr()).into_iter().enumerate() {
                task.put(0, row + r, sum);
            }
            row += ROWS;
        }
        for row in row..task.end {
            task.put(0, row, task.w.dot::<L, 1>(row, task.x.as_ptr())[0]);
        }
    }
}

#[inline(always)]
unsafe fn product_of_many_body<L: Lanes, W: Rows>(task: &Task<'_, W>) {
    let cols = task.w.cols();
    let mut decoded = vec![0.0_f32; ROWS * cols];
    for row in (task.first..task.end).step_by(ROWS) {
        let rows = ROWS.min(task.end - row);
        // SAFETY: `decoded` has room for four rows, `tiles` reads those and the m inputs.
        unsafe {
            for r in 0..rows {
                task.w.decode::<L>(row + r, decoded.as_mut_ptr().add(r * cols));
            }
            if rows < ROWS {
                (0..rows).for_each(|r| tiles::<L, W, 1>(task, row + r, decoded.as_ptr().add(r * cols)));
            } else if L::N == 16 {
                tiles::<L, W, ROWS>(task, row, decoded.as_ptr());
            } else {
                // Sixteen registers hold 4 × 2 sums and what they are made of, not 4 × 4.
                tiles::<L, W, 2>(task, row, decoded.as_ptr());
                tiles::<L, W, 2>(task, row + 2, decoded.as_ptr().add(2 * cols));
            }
        }
    }
}

/// All inputs against `R` decoded weight rows that start at `w`.
#[inline(always)]
unsafe fn tiles<L: Lanes, W: Rows, const R: usize>(task: &Task<'_, W>, row: usize, w: *const f32) {
    let cols = task.w.cols();
    let mut i = 0;
    // SAFETY: inputs stay below m, the caller gives R rows.
    unsafe {
        while i + 4 <= task.m {
            let sums = tile::<L, 4, R>(task.x.as_ptr().add(i * cols), w, cols);
            put_tile(task, i, row, sums);
            i += 4;
        }
        for i in i..task.m {
            let sums = tile::<L, 1, R>(task.x.as_ptr().add(i * cols), w, cols);
            put_tile(task, i, row, sums);
        }
    }
}

#[inline(always)]
unsafe fn put_tile<W: Rows, const M: usize, const R: usize>(
    task: &Task<'_, W>,
    input: usize,
    row: usize,
    sums: [[f32; R]; M],
) {
    for (i, sums) in sums.into_iter().enumerate() {
        for (r, sum) in sums.into_iter().enumerate() {
            // SAFETY: the rows are this task's.
            unsafe { task.put(input + i, row + r, sum) };
        }
    }
}

/// `M` inputs times `R` weight rows, both f32 and `cols` apart; sums stay in registers.
#[inline(always)]
pub(crate) unsafe fn tile<L: Lanes, const M: usize, const R: usize>(
    x: *const f32,
    w: *const f32,
    cols: usize,
) -> [[f32; R]; M] {
    let whole = cols - cols % L::N;
    // SAFETY: the caller gives M · cols and R · cols elements.
    unsafe {
        let mut sums = [[L::splat(0.0); R]; M];
        let mut k = 0;
        while k < whole {
            let ws: [L; R] = std::array::from_fn(|r| L::load(w.add(r * cols + k)));
            for (i, sums) in sums.iter_mut().enumerate() {
                let xs = L::load(x.add(i * cols + k));
                for (sum, w) in sums.iter_mut().zip(ws) {
                    *sum = w.mul_add(xs, *sum);
                }
            }
            k += L::N;
        }
        let mut out = [[0.0; R]; M];
        for i in 0..M {
            for r in 0..R {
                out[i][r] = sums[i][r].sum();
                for k in whole..cols {
                    out[i][r] += *x.add(i * cols + k) * *w.add(r * cols + k);
                }
            }
        }
        out
    }
}
