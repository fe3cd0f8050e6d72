//! bf16 inputs times bf16 weights by `vdpbf16ps`, which multiplies pairs exactly and adds them in f32.
//!
//! Without that instruction the inputs are widened and go the way of f32: the products are the same, the order and
//! the rounding of their sums is not (the instruction rounds to even, and takes subnormals for zero).

use half::bf16;

use crate::error::{Result, check_len};
use crate::exec::Exec;
use crate::lanes::Lanes;
use crate::math::bf16_bits;
use crate::pieces::for_chunks;
use crate::product::Group;
use crate::scratch::{Use, with_f32};
use crate::variant::dispatch;
use crate::weights::Bf16Matrix;

/// Rounds `x` to the nearest bf16, ties to even.
///
/// # Errors
/// Lengths that differ.
pub fn to_bf16(exec: &Exec, x: &[f32], out: &mut [bf16]) -> Result<()> {
    check_len("bf16 output", out.len(), x.len())?;
    for_chunks(exec, out, |range, out| narrow(exec.variant(), &x[range], out));
    Ok(())
}

dispatch! { fn narrow(x: &[f32], out: &mut [bf16]) = narrow_body }

#[inline(always)]
unsafe fn narrow_body<L: Lanes>(x: &[f32], out: &mut [bf16]) {
    for (x, out) in x.iter().zip(out) {
        *out = bf16::from_bits(bf16_bits(*x) as u16);
    }
}

dispatch! { fn widen(x: &[bf16], out: &mut [f32]) = widen_body }

#[inline(always)]
unsafe fn widen_body<L: Lanes>(x: &[bf16], out: &mut [f32]) {
    for (x, out) in x.iter().zip(out) {
        *out = f32::from_bits(u32::from(x.to_bits()) << 16);
    }
}

/// As [`super::grouped`], for bf16 inputs x `[_, cols]` and bf16 weights.
pub(crate) fn grouped_bf16<'a>(
    exec: &Exec,
    x: &[bf16],
    model: Bf16Matrix<'a>,
    groups: usize,
    group: &(impl Fn(usize) -> Group<'a> + Sync),
    out: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    if exec.variant().has_bf16() {
        return pairs::grouped(exec, x, model, groups, group, out);
    }
    with_f32(Use::Inputs, x.len(), |wide| {
        for_chunks(exec, wide, |range, wide| widen(exec.variant(), &x[range], wide));
        super::rows::grouped(exec, wide, model, groups, group, out);
    });
}

#[cfg(target_arch = "x86_64")]
mod pairs {
    // The names carry their origin.
    #[allow(clippy::wildcard_imports)]
    use std::arch::x86_64::*;

    use half::bf16;

    use crate::exec::Exec;
    use crate::lanes::prefetch;
    use crate::matmul::Weights;
    use crate::matmul::rows::{columns_of_task, with_inputs};
    use crate::pieces::{Cut, Piece, even_part, run};
    use crate::product::{Group, RowMap};
    use crate::shared::SharedMut;
    use crate::weights::{Bf16Matrix, Rows};

    /// Weight rows of a tile; with six inputs, 24 sums in 32 registers.
    const ROWS: usize = 4;
    /// Inputs of a tile.
    const TILE_INPUTS: usize = 6;
    /// Inputs that stay in the second cache.
    const INPUTS: usize = 96;
    /// Inputs of a task.
    const CHUNK: usize = 8 * INPUTS;

    struct Task<'a> {
        x: &'a [bf16],
        w: Bf16Matrix<'a>,
        bias: Option<&'a [f32]>,
        rows: RowMap<'a>,
        piece: &'a Piece,
        out: SharedMut<'a, f32>,
    }

    pub(super) fn grouped<'a>(
        exec: &Exec,
        x: &[bf16],
        model: Bf16Matrix<'a>,
        groups: usize,
        group: &(impl Fn(usize) -> Group<'a> + Sync),
        out: &mut [f32],
    ) {
        let (width, cols) = (model.rows(), model.cols());
        let out = SharedMut::new(out);
        let span = |g| {
            let Group { rows, first, .. } = group(g);
            (first, rows.len())
        };
        let cut = |most| Cut { columns: columns_of_task(most, model.row_bytes()), inputs: CHUNK };
        run(exec, groups, width, span, cut, |piece| {
            let Group { w, bias, rows, .. } = group(piece.group);
            // The entry has checked formats and shapes.
            let w = match w {
                Weights::Bf16(w) if (w.rows(), w.cols()) == (width, cols) => w,
                _ => model,
            };
            // SAFETY: `has_bf16` has asked the processor for all of these instructions.
            unsafe { product(&Task { x, w, bias, rows, piece, out }) };
        });
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
    unsafe fn product(task: &Task<'_>) {
        let mut start = task.piece.inputs.start;
        while start < task.piece.inputs.end {
            let n = INPUTS.min(task.piece.inputs.end - start);
            let (mut row, end) = (task.piece.columns.start, task.piece.columns.end);
            while row < end {
                let rows = ROWS.min(end - row);
                for part in 0..n.div_ceil(TILE_INPUTS) {
                    let part = even_part(n, TILE_INPUTS, part);
                    // SAFETY: inputs and rows are the task's; the instructions are enabled here.
                    unsafe { with_inputs!(part.len(), tile(task, start + part.start, row, rows)) };
                }
                row += rows;
            }
            start += n;
        }
    }

    /// `M` inputs times up to four weight rows; rows that are not there repeat the last.
    #[inline(always)]
    unsafe fn tile<const M: usize>(task: &Task<'_>, i: usize, row: usize, rows: usize) {
        let cols = task.w.cols();
        let x: [*const bf16; M] =
            std::array::from_fn(|m| task.x[task.rows.get(i + m) * cols..][..cols].as_ptr());
        let w: [*const bf16; ROWS] = std::array::from_fn(|r| task.w.row_start(row + r.min(rows - 1)).cast());
        let ahead = task.w.row_start(row + ROWS);
        let whole = cols - cols % 32;
        // SAFETY: vectors stay inside rows of `cols` elements, masks hide what is behind them.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); ROWS]; M];
            let mut k = 0;
            while k < whole {
                let ws: [__m512bh; ROWS] = std::array::from_fn(|r| load(w[r].add(k)));
                for (sums, x) in sums.iter_mut().zip(&x) {
                    add(sums, &ws, load(x.add(k)));
                }
                if M == 1 {
                    for r in 0..ROWS {
                        prefetch(ahead.wrapping_add(2 * (r * cols + k)));
                    }
                }
                k += 32;
            }
            if whole < cols {
                let mask = (1_u32 << (cols - whole)) - 1;
                let ws: [__m512bh; ROWS] = std::array::from_fn(|r| load_some(mask, w[r].add(whole)));
                for (sums, x) in sums.iter_mut().zip(&x) {
                    add(sums, &ws, load_some(mask, x.add(whole)));
                }
            }
            // By way of memory: a loop over sums that is not unrolled would keep them there from the start.
            let mut kept = [[[0.0_f32; 16]; ROWS]; M];
            for (kept, sums) in kept.iter_mut().zip(&sums) {
                for (kept, sum) in kept.iter_mut().zip(sums) {
                    _mm512_storeu_ps(kept.as_mut_ptr(), *sum);
                }
            }
            for (m, kept) in kept.iter().enumerate() {
                put(task, i + m, row, rows, kept);
            }
        }
    }

    #[inline(always)]
    unsafe fn load(from: *const bf16) -> __m512bh {
        // SAFETY: the caller gives 32 elements; the load is unaligned.
        unsafe { bits(_mm512_loadu_si512(from.cast())) }
    }

    /// The first elements, zero behind them.
    #[inline(always)]
    unsafe fn load_some(mask: u32, from: *const bf16) -> __m512bh {
        // SAFETY: the caller gives as many elements as the mask has bits.
        unsafe { bits(_mm512_maskz_loadu_epi16(mask, from.cast())) }
    }

    #[inline(always)]
    unsafe fn bits(vector: __m512i) -> __m512bh {
        // SAFETY: both are 512 bits of which every pattern is valid.
        unsafe { std::mem::transmute(vector) }
    }

    #[inline(always)]
    unsafe fn add(sums: &mut [__m512; ROWS], w: &[__m512bh; ROWS], x: __m512bh) {
        for (sum, w) in sums.iter_mut().zip(w) {
            // SAFETY: the caller enables the instruction.
            *sum = unsafe { _mm512_dpbf16_ps(*sum, *w, x) };
        }
    }

    #[inline(always)]
    unsafe fn put(task: &Task<'_>, i: usize, row: usize, rows: usize, sums: &[[f32; 16]; ROWS]) {
        use crate::lanes::{F32x16, Lanes};
        // SAFETY: AVX-512 is enabled in the caller; pieces have disjoint rows or columns of the output.
        unsafe {
            let sums = F32x16::sum_4(std::array::from_fn(|r| F32x16::load(sums[r].as_ptr())));
            let at = (task.piece.first + i) * task.w.rows() + row;
            for (r, out) in task.out.slice(at..at + rows).iter_mut().enumerate() {
                *out = task.bias.map_or(sums[r], |bias| sums[r] + bias[row + r]);
            }
        }
    }
}
