//! f32 inputs times row-major weights.
//!
//! Few inputs read each weight once, straight from its format. More share rows decoded to f32, and walk the columns
//! in blocks, so that four weight rows stay in the first cache and the inputs in the second.

use std::ops::Range;

use crate::exec::Exec;
use crate::lanes::{Lanes, prefetch};
use crate::pieces::{Cut, Piece, even_part, run};
use crate::product::{Group, RowMap};
use crate::scratch::{Use, with_f32};
use crate::shared::SharedMut;
use crate::variant::dispatch;
use crate::weights::{Rows, deinterleave};

/// Weight rows of a tile.
const ROWS: usize = 4;
/// Weight rows that are decoded together.
const DECODED: usize = 16;
/// Inputs that are worked on while they are in the second cache.
const INPUTS: usize = 96;
/// Inputs of a task.
const CHUNK: usize = 8 * INPUTS;
/// Columns of which four weight rows and six inputs fill the first cache, about.
const COLUMNS: usize = 1024;
/// Bytes of weights that make a task with one input.
const STREAM_BYTES: usize = 96 * 1024;

/// Inputs of a tile: 24 sums in 32 registers, or 8 in 16.
const fn tile_inputs<L: Lanes>() -> usize {
    if L::N == 16 { 6 } else { 2 }
}

/// Calls a function of a constant number of inputs with a number that is known when it runs.
macro_rules! with_inputs {
    ($n:expr, $f:ident $(::<$($g:ty),*>)? ($($arg:expr),* $(,)?)) => {
        match $n {
            1 => $f::<$($($g,)*)? 1>($($arg),*),
            2 => $f::<$($($g,)*)? 2>($($arg),*),
            3 => $f::<$($($g,)*)? 3>($($arg),*),
            4 => $f::<$($($g,)*)? 4>($($arg),*),
            5 => $f::<$($($g,)*)? 5>($($arg),*),
            _ => $f::<$($($g,)*)? 6>($($arg),*),
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use with_inputs;

pub(super) fn grouped<'a, W: Rows + Stored<'a>>(
    exec: &Exec,
    x: &[f32],
    model: W,
    groups: usize,
    group: &(impl Fn(usize) -> Group<'a> + Sync),
    out: &mut [f32],
) {
    if !W::DEINTERLEAVED {
        return run_groups(exec, x, model, groups, group, out);
    }
    with_f32(Use::Inputs, x.len(), |reordered| {
        deinterleave(x, reordered);
        run_groups(exec, reordered, model, groups, group, out);
    });
}

fn run_groups<'a, W: Rows + Stored<'a>>(
    exec: &Exec,
    x: &[f32],
    model: W,
    groups: usize,
    group: &(impl Fn(usize) -> Group<'a> + Sync),
    out: &mut [f32],
) {
    let cols = model.cols();
    let stride = cols.next_multiple_of(16);
    let out = SharedMut::new(out);
    let span = |g| {
        let Group { rows, first, .. } = group(g);
        (first, rows.len())
    };
    let cut = |most| Cut { columns: columns_of_task(most, model.row_bytes()), inputs: CHUNK };
    run(exec, groups, model.rows(), span, cut, |piece| {
        let Group { w, bias, rows, .. } = group(piece.group);
        // The entry has checked formats and shapes.
        let w = W::of(w).filter(|w| (w.rows(), w.cols()) == (model.rows(), cols)).unwrap_or(model);
        let task = Task { x, w, bias, rows, piece, out };
        let sums = piece.inputs.len().min(INPUTS) * DECODED * 16;
        with_f32(Use::Task, DECODED * stride + sums, |scratch| {
            let (decoded, sums) = scratch.split_at_mut(DECODED * stride);
            product(exec.variant(), &task, decoded, sums);
        });
    });
}

/// Weight rows of a task: a stretch of memory for one input, as many as are decoded together for more.
pub(super) fn columns_of_task(inputs: usize, row_bytes: usize) -> usize {
    if inputs > 1 {
        return DECODED;
    }
    (STREAM_BYTES / row_bytes.max(1)).max(ROWS).next_multiple_of(ROWS)
}

/// How a format is found in [`crate::matmul::Weights`].
pub(super) trait Stored<'a>: Sized {
    fn of(w: crate::matmul::Weights<'a>) -> Option<Self>;
}

macro_rules! stored {
    ($matrix:ident, $format:ident) => {
        impl<'a> Stored<'a> for crate::weights::$matrix<'a> {
            fn of(w: crate::matmul::Weights<'a>) -> Option<Self> {
                if let crate::matmul::Weights::$format(w) = w { Some(w) } else { None }
            }
        }
    };
}
stored!(F32Matrix, F32);
stored!(Bf16Matrix, Bf16);
stored!(Mxfp4Matrix, Mxfp4);

struct Task<'a, W> {
    x: &'a [f32],
    w: W,
    bias: Option<&'a [f32]>,
    rows: RowMap<'a>,
    piece: &'a Piece,
    out: SharedMut<'a, f32>,
}

impl<W: Rows> Task<'_, W> {
    /// The `M` inputs from the group's row `i`.
    #[inline(always)]
    fn inputs<const M: usize>(&self, i: usize) -> [*const f32; M] {
        let cols = self.w.cols();
        std::array::from_fn(|m| self.x[self.rows.get(i + m) * cols..][..cols].as_ptr())
    }

    /// Writes the sums of the group's row `i` and the weight rows from `column`.
    #[inline(always)]
    fn put(&self, i: usize, column: usize, sums: &[f32]) {
        let at = (self.piece.first + i) * self.w.rows() + column;
        // SAFETY: pieces have disjoint rows or columns of the output.
        let out = unsafe { self.out.slice(at..at + sums.len()) };
        match self.bias {
            Some(bias) => {
                for ((out, sum), bias) in out.iter_mut().zip(sums).zip(&bias[column..]) {
                    *out = sum + bias;
                }
            }
            None => out.copy_from_slice(sums),
        }
    }
}

dispatch! {
    fn product<W: Rows>(task: &Task<'_, W>, decoded: &mut [f32], sums: &mut [f32]) = product_body
}

#[inline(always)]
unsafe fn product_body<L: Lanes, W: Rows>(task: &Task<'_, W>, decoded: &mut [f32], sums: &mut [f32]) {
    let n = task.piece.inputs.len();
    // SAFETY: `dispatch!` enables the instructions; `run_groups` made room.
    unsafe {
        if n <= tile_inputs::<L>() {
            with_inputs!(n, stream::<L, W>(task));
        } else {
            product_of_many::<L, W>(task, decoded, sums);
        }
    }
}

/// `M` inputs that are all of a task: no weight is used twice.
#[inline(always)]
unsafe fn stream<L: Lanes, W: Rows, const M: usize>(task: &Task<'_, W>) {
    let i = task.piece.inputs.start;
    let x = task.inputs::<M>(i);
    let Range { start: mut row, end } = task.piece.columns;
    // SAFETY: rows stay below `end`, inputs have all columns.
    unsafe {
        while row + ROWS <= end {
            let sums = dot::<L, W, M, ROWS>(&task.w, row, &x);
            for (m, sums) in sums.iter().enumerate() {
                task.put(i + m, row, sums);
            }
            row += ROWS;
        }
        for row in row..end {
            for (m, sums) in dot::<L, W, M, 1>(&task.w, row, &x).iter().enumerate() {
                task.put(i + m, row, sums);
            }
        }
    }
}

/// `M` inputs times `R` weight rows in their own format.
#[inline(always)]
unsafe fn dot<L: Lanes, W: Rows, const M: usize, const R: usize>(
    w: &W,
    row: usize,
    x: &[*const f32; M],
) -> [[f32; R]; M] {
    let cols = w.cols();
    let whole = cols - cols % L::N;
    // Bytes of a row that a step reads, in lines that are fetched as far ahead as this and the next rows are long.
    let ahead: [*const u8; R] = std::array::from_fn(|r| w.row_start(row + R + r));
    let step = w.row_bytes() * L::N / cols.max(1);
    // SAFETY: the caller gives R rows inside the matrix and inputs of `cols` elements.
    unsafe {
        let mut sums = [[L::splat(0.0); R]; M];
        let (mut k, mut byte) = (0, 0);
        while k < whole {
            let mut ws = [L::splat(0.0); R];
            for (r, lanes) in ws.iter_mut().enumerate() {
                *lanes = w.load::<L>(row + r, k);
            }
            for (sums, x) in sums.iter_mut().zip(x) {
                let x = L::load(x.add(k));
                for (sum, w) in sums.iter_mut().zip(&ws) {
                    *sum = w.mul_add(x, *sum);
                }
            }
            for ahead in &ahead {
                prefetch(ahead.wrapping_add(byte));
            }
            (k, byte) = (k + L::N, byte + step);
        }
        // By way of memory: loops over sums that are not unrolled would keep them there from the start.
        let mut kept = [[[0.0_f32; 16]; R]; M];
        for (kept, sums) in kept.iter_mut().zip(&sums) {
            for (kept, sum) in kept.iter_mut().zip(sums) {
                sum.store(kept.as_mut_ptr());
            }
        }
        let mut out = [[0.0; R]; M];
        for (m, out) in out.iter_mut().enumerate() {
            *out = all_sums::<L, R>(std::array::from_fn(|r| L::load(kept[m][r].as_ptr())));
            for (r, out) in out.iter_mut().enumerate() {
                for k in whole..cols {
                    *out += *x[m].add(k) * w.get(row + r, k);
                }
            }
        }
        out
    }
}

/// The sums over the lanes of four vectors or of one.
#[inline(always)]
unsafe fn all_sums<L: Lanes, const R: usize>(vectors: [L; R]) -> [f32; R] {
    let mut out = [0.0; R];
    let (fours, rest) = vectors.as_chunks::<4>();
    let (out_fours, out_rest) = out.as_chunks_mut::<4>();
    // SAFETY: the caller enables the instructions.
    unsafe {
        for (out, four) in out_fours.iter_mut().zip(fours) {
            *out = L::sum_4(*four);
        }
        for (out, vector) in out_rest.iter_mut().zip(rest) {
            *out = vector.sum();
        }
    }
    out
}

#[inline(always)]
unsafe fn product_of_many<L: Lanes, W: Rows>(task: &Task<'_, W>, decoded: &mut [f32], sums: &mut [f32]) {
    let cols = task.w.cols();
    let (whole, stride) = (cols - cols % L::N, cols.next_multiple_of(16));
    let columns = task.piece.columns.clone();
    let tiles = columns.len().div_ceil(ROWS);
    // SAFETY: there is room for 16 decoded rows and the sums of INPUTS inputs.
    unsafe {
        for (r, row) in columns.clone().enumerate() {
            task.w.decode::<L>(row, decoded[r * stride..][..cols].as_mut_ptr());
        }
        let mut start = task.piece.inputs.start;
        while start < task.piece.inputs.end {
            let n = INPUTS.min(task.piece.inputs.end - start);
            let inputs = n.div_ceil(tile_inputs::<L>());
            for block in 0..(whole / L::N).div_ceil(COLUMNS / L::N).max(1) {
                let part = even_part(whole / L::N, COLUMNS / L::N, block);
                let part = part.start * L::N..part.end * L::N;
                for tile in 0..tiles {
                    let w = decoded.as_ptr().add(tile * ROWS * stride);
                    for input in 0..inputs {
                        let range = even_part(n, tile_inputs::<L>(), input);
                        let sums = sums[(tile * n + range.start) * ROWS * L::N..].as_mut_ptr();
                        let (i, part) = (start + range.start, part.clone());
                        with_inputs!(range.len(), add_tile::<L, W>(task, i, w, part, sums));
                    }
                }
            }
            for tile in 0..tiles {
                finish::<L, W>(task, start..start + n, tile, decoded, &sums[tile * n * ROWS * L::N..]);
            }
            start += n;
        }
    }
}

/// Adds the products of some columns of `M` inputs and four decoded rows to their sums, a vector for each.
#[inline(always)]
unsafe fn add_tile<L: Lanes, W: Rows, const M: usize>(
    task: &Task<'_, W>,
    i: usize,
    w: *const f32,
    columns: Range<usize>,
    sums: *mut f32,
) {
    let x = task.inputs::<M>(i);
    let stride = task.w.cols().next_multiple_of(16);
    // SAFETY: the caller gives four rows and sums for M inputs; columns are whole vectors.
    unsafe {
        let mut acc = [[L::splat(0.0); ROWS]; M];
        if columns.start > 0 {
            for (m, acc) in acc.iter_mut().enumerate() {
                *acc = std::array::from_fn(|r| L::load(sums.add((m * ROWS + r) * L::N)));
            }
        }
        let mut k = columns.start;
        while k < columns.end {
            let ws: [L; ROWS] = std::array::from_fn(|r| L::load(w.add(r * stride + k)));
            for (acc, x) in acc.iter_mut().zip(&x) {
                let x = L::load(x.add(k));
                for (acc, w) in acc.iter_mut().zip(&ws) {
                    *acc = w.mul_add(x, *acc);
                }
            }
            k += L::N;
        }
        for (m, acc) in acc.iter().enumerate() {
            for (r, acc) in acc.iter().enumerate() {
                acc.store(sums.add((m * ROWS + r) * L::N));
            }
        }
    }
}

/// Adds up the lanes of each sum, and the columns that fill no vector.
#[inline(always)]
unsafe fn finish<L: Lanes, W: Rows>(
    task: &Task<'_, W>,
    inputs: Range<usize>,
    tile: usize,
    decoded: &[f32],
    sums: &[f32],
) {
    let cols = task.w.cols();
    let (whole, stride) = (cols - cols % L::N, cols.next_multiple_of(16));
    let first = tile * ROWS;
    let rows = ROWS.min(task.piece.columns.len() - first);
    for (i, sums) in inputs.zip(sums.chunks_exact(ROWS * L::N)) {
        // SAFETY: four vectors for each input.
        let mut totals =
            unsafe { L::sum_4(std::array::from_fn(|r| L::load(sums[r * L::N..][..L::N].as_ptr()))) };
        if whole < cols {
            let x = &self::Task::inputs::<1>(task, i)[0];
            for (r, total) in totals[..rows].iter_mut().enumerate() {
                for k in whole..cols {
                    // SAFETY: an input has all columns.
                    *total += unsafe { *x.add(k) } * decoded[(first + r) * stride + k];
                }
            }
        }
        task.put(i, task.piece.columns.start + first, &totals[..rows]);
    }
}
