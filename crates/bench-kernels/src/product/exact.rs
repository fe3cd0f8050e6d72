//! f32 rows times packed weights, summed in f32: the path whose only error is that of the weights' format.
//!
//! Lanes are weight rows. A block's 32 columns are summed in order, then scaled and added to the sum of the blocks
//! before it: one order for every number of inputs. Few inputs decode each weight in registers, more share a copy.

use crate::exec::Exec;
use crate::lanes::{Lanes, prefetch};
use crate::mxfp4::BLOCK;
use crate::packed::{PANEL, PackedFormat};
use crate::pieces::{Cut, Piece, even_part, run};
use crate::product::PackedGroup;
use crate::scratch::{Use, with_f32};
use crate::shared::SharedMut;
use crate::variant::dispatch;

/// Panels of a task.
const PANELS: usize = 4;
/// Inputs of a task.
const CHUNK: usize = 768;

/// Vectors of decoded weights side by side: with 12 inputs 24 sums in 32 registers, with 4 inputs 8 in 16.
const fn tile_inputs<L: Lanes>() -> usize {
    if L::N == 16 { 12 } else { 4 }
}

/// The entry has checked all sizes: x `[_, cols]`, all groups of one shape and format, rows inside x, output rows
/// inside out and without overlap.
pub(super) fn packed_f32<'a>(
    exec: &Exec,
    x: &[f32],
    groups: usize,
    group: &(impl Fn(usize) -> PackedGroup<'a> + Sync),
    out: &mut [f32],
) {
    let model = group(0).w;
    let (width, cols) = (model.rows(), model.cols());
    let out = SharedMut::new(out);
    let span = |g| {
        let PackedGroup { rows, first, .. } = group(g);
        (first, rows.len())
    };
    run(
        exec,
        groups,
        width,
        span,
        |_| Cut { columns: PANELS * PANEL, inputs: CHUNK },
        |piece| {
            let group = group(piece.group);
            let task = Task { x, group, piece, out };
            // Two panels at a time, and the scales of their blocks.
            let room = 2 * PANEL * (cols + cols / BLOCK);
            with_f32(Use::Task, room, |scratch| match group.w.format() {
                PackedFormat::Mxfp4 => mxfp4(exec.variant(), &task, scratch),
                PackedFormat::Q8_0 => q8(exec.variant(), &task, scratch),
                PackedFormat::Q6_0 => q6(exec.variant(), &task, scratch),
            });
        },
    );
}

struct Task<'a> {
    x: &'a [f32],
    group: PackedGroup<'a>,
    piece: &'a Piece,
    out: SharedMut<'a, f32>,
}

impl Task<'_> {
    /// The `M` inputs from the group's row `i`.
    #[inline(always)]
    fn inputs<const M: usize>(&self, i: usize) -> [*const f32; M] {
        let cols = self.group.w.cols();
        std::array::from_fn(|m| self.x[self.group.rows.get(i + m) * cols..][..cols].as_ptr())
    }

    /// Writes the sums of the group's row `i` and the weight rows from `column`.
    #[inline(always)]
    fn put(&self, i: usize, column: usize, sums: &[f32]) {
        let at = (self.piece.first + i) * self.group.w.rows() + column;
        // SAFETY: pieces have disjoint rows or columns of the output.
        let out = unsafe { self.out.slice(at..at + sums.len()) };
        match self.group.bias {
            Some(bias) => {
                for ((out, sum), bias) in out.iter_mut().zip(sums).zip(&bias[column..]) {
                    *out = sum + bias;
                }
            }
            None => out.copy_from_slice(sums),
        }
    }
}

/// How codes become numbers.
///
/// # Safety
/// Pointers are those of a block inside a packed matrix, at the first lane that is wanted.
trait Codes {
    const BLOCK_BYTES: usize;
    const SCALE_BYTES: usize;
    /// What is read for eight columns: four bytes, and where there are, four more.
    type Raw<L: Lanes>: Copy;
    /// Columns `8 · j..8 · j + 8`.
    unsafe fn load<L: Lanes>(block: *const u8, j: usize) -> Self::Raw<L>;
    /// Column `8 · j + t` of them.
    unsafe fn decode<L: Lanes>(raw: Self::Raw<L>, j: usize, t: usize) -> L;
    unsafe fn scales<L: Lanes>(at: *const u8) -> L;
}

struct Mxfp4;
struct Q8;
struct Q6;

impl Codes for Mxfp4 {
    const BLOCK_BYTES: usize = 256;
    const SCALE_BYTES: usize = 1;
    type Raw<L: Lanes> = L::Words;

    #[inline(always)]
    unsafe fn load<L: Lanes>(block: *const u8, j: usize) -> L::Words {
        // SAFETY: four vectors of 64 bytes are there.
        unsafe { L::load_words(block.add(64 * j)) }
    }

    #[inline(always)]
    unsafe fn decode<L: Lanes>(raw: L::Words, _j: usize, t: usize) -> L {
        // SAFETY: the caller enables the instructions, here and below.
        unsafe { L::fp4_doubled(L::shift_right(raw, 4 * t as u32)) }
    }

    #[inline(always)]
    unsafe fn scales<L: Lanes>(at: *const u8) -> L {
        // SAFETY: a byte for each lane.
        unsafe { L::load_half_scales(at) }
    }
}

impl Codes for Q8 {
    const BLOCK_BYTES: usize = 512;
    const SCALE_BYTES: usize = 2;
    type Raw<L: Lanes> = [L::Words; 2];

    #[inline(always)]
    unsafe fn load<L: Lanes>(block: *const u8, j: usize) -> [L::Words; 2] {
        // SAFETY: eight vectors of 64 bytes are there.
        unsafe { [L::load_words(block.add(128 * j)), L::load_words(block.add(128 * j + 64))] }
    }

    #[inline(always)]
    unsafe fn decode<L: Lanes>(raw: [L::Words; 2], _j: usize, t: usize) -> L {
        // SAFETY: as above.
        unsafe {
            let byte = L::and(L::shift_right(raw[t % 2], 8 * (t / 2) as u32), 255);
            L::from_words(byte).add(L::splat(-128.0))
        }
    }

    #[inline(always)]
    unsafe fn scales<L: Lanes>(at: *const u8) -> L {
        // SAFETY: two bytes for each lane.
        unsafe { L::load_f16(at) }
    }
}

impl Codes for Q6 {
    const BLOCK_BYTES: usize = 384;
    const SCALE_BYTES: usize = 2;
    type Raw<L: Lanes> = [L::Words; 2];

    #[inline(always)]
    unsafe fn load<L: Lanes>(block: *const u8, j: usize) -> [L::Words; 2] {
        // SAFETY: four vectors of low bits and two of high bits are there.
        unsafe { [L::load_words(block.add(64 * j)), L::load_words(block.add(64 * (4 + j / 2)))] }
    }

    #[inline(always)]
    unsafe fn decode<L: Lanes>([low, high]: [L::Words; 2], j: usize, t: usize) -> L {
        let shift = 8 * (t / 2) + 2 * ((2 * j + t % 2) % 4);
        // SAFETY: as above.
        unsafe {
            let low = L::and(L::shift_right(low, 4 * t as u32), 15);
            let high = L::shift_left(L::and(L::shift_right(high, shift as u32), 3), 4);
            L::from_words(L::or(low, high)).add(L::splat(-32.0))
        }
    }

    #[inline(always)]
    unsafe fn scales<L: Lanes>(at: *const u8) -> L {
        // SAFETY: two bytes for each lane.
        unsafe { L::load_f16(at) }
    }
}

dispatch! { fn mxfp4(task: &Task<'_>, scratch: &mut [f32]) = mxfp4_body }
dispatch! { fn q8(task: &Task<'_>, scratch: &mut [f32]) = q8_body }
dispatch! { fn q6(task: &Task<'_>, scratch: &mut [f32]) = q6_body }

#[inline(always)]
unsafe fn mxfp4_body<L: Lanes>(task: &Task<'_>, scratch: &mut [f32]) {
    // SAFETY: `dispatch!` enables the instructions, here and below.
    unsafe { product::<L, Mxfp4>(task, scratch) }
}

#[inline(always)]
unsafe fn q8_body<L: Lanes>(task: &Task<'_>, scratch: &mut [f32]) {
    // SAFETY: as above.
    unsafe { product::<L, Q8>(task, scratch) }
}

#[inline(always)]
unsafe fn q6_body<L: Lanes>(task: &Task<'_>, scratch: &mut [f32]) {
    // SAFETY: as above.
    unsafe { product::<L, Q6>(task, scratch) }
}

#[inline(always)]
unsafe fn product<L: Lanes, C: Codes>(task: &Task<'_>, scratch: &mut [f32]) {
    let n = task.piece.inputs.len();
    let i = task.piece.inputs.start;
    let columns = task.piece.columns.clone();
    let panels = columns.start / PANEL..columns.end / PANEL;
    // SAFETY: panels are the task's; columns of a piece are whole panels.
    unsafe {
        if n <= 2 {
            let mut panel = panels.start;
            while panel < panels.end {
                let four = panels.end - panel >= PANELS && L::N == 16;
                match (n, four) {
                    (1, true) => stream::<L, C, 1, PANELS>(task, i, panel),
                    (1, false) => stream::<L, C, 1, 1>(task, i, panel),
                    (_, true) => stream::<L, C, 2, PANELS>(task, i, panel),
                    (_, false) => stream::<L, C, 2, 1>(task, i, panel),
                }
                panel += if four { PANELS } else { 1 };
            }
            return;
        }
        for panel in panels.clone().step_by(2) {
            let side_by_side = 2.min(panels.end - panel);
            decode_panels::<L, C>(task, panel, side_by_side, scratch);
            for part in 0..n.div_ceil(tile_inputs::<L>()) {
                let part = even_part(n, tile_inputs::<L>(), part);
                tiles::<L>(task, i + part.start, part.len(), panel * PANEL, side_by_side, scratch);
            }
        }
    }
}

/// `M` inputs times `P` panels, each weight decoded where it is used.
#[inline(always)]
unsafe fn stream<L: Lanes, C: Codes, const M: usize, const P: usize>(
    task: &Task<'_>,
    i: usize,
    panel: usize,
) {
    let x = task.inputs::<M>(i);
    let blocks = task.group.w.cols() / BLOCK;
    let panel_bytes = blocks * C::BLOCK_BYTES;
    let (codes, scales) = (task.group.w.codes().as_ptr(), task.group.w.scales().as_ptr());
    for lane in (0..PANEL).step_by(L::N) {
        // SAFETY: the caller gives P panels of the matrix; inputs have all columns.
        unsafe {
            let mut totals = [[L::splat(0.0); P]; M];
            for b in 0..blocks {
                let mut sums = [[L::splat(0.0); P]; M];
                let block = codes.add((panel * blocks + b) * C::BLOCK_BYTES + 4 * lane);
                for j in 0..4 {
                    let mut raw = [C::load::<L>(block, j); P];
                    for (p, raw) in raw.iter_mut().enumerate() {
                        *raw = C::load::<L>(block.add(p * panel_bytes), j);
                        let ahead = block.wrapping_add((P + p) * panel_bytes);
                        for line in 0..C::BLOCK_BYTES / 256 {
                            prefetch(ahead.wrapping_add(256 * line + 64 * j));
                        }
                    }
                    for t in 0..8 {
                        let mut ws = [L::splat(0.0); P];
                        for (w, raw) in ws.iter_mut().zip(&raw) {
                            *w = C::decode::<L>(*raw, j, t);
                        }
                        for (sums, x) in sums.iter_mut().zip(&x) {
                            let x = L::splat(*x.add(b * BLOCK + 8 * j + t));
                            for (sum, w) in sums.iter_mut().zip(&ws) {
                                *sum = w.mul_add(x, *sum);
                            }
                        }
                    }
                }
                let mut factors = [L::splat(0.0); P];
                for (p, factor) in factors.iter_mut().enumerate() {
                    let at = ((panel + p) * blocks + b) * PANEL + lane;
                    *factor = C::scales::<L>(scales.add(at * C::SCALE_BYTES));
                }
                for (totals, sums) in totals.iter_mut().zip(&sums) {
                    for ((total, sum), scale) in totals.iter_mut().zip(sums).zip(&factors) {
                        *total = sum.mul_add(*scale, *total);
                    }
                }
            }
            // By way of memory: a loop over sums that is not unrolled would keep them there from the start.
            let mut kept = [[[0.0_f32; 16]; P]; M];
            for (kept, totals) in kept.iter_mut().zip(&totals) {
                for (kept, total) in kept.iter_mut().zip(totals) {
                    total.store(kept.as_mut_ptr());
                }
            }
            for (m, kept) in kept.iter().enumerate() {
                for (p, kept) in kept.iter().enumerate() {
                    task.put(i + m, (panel + p) * PANEL + lane, &kept[..L::N]);
                }
            }
        }
    }
}

/// Writes the codes of one panel or two side by side as f32, `[block, 33, panels · 16]`, scales last.
#[inline(always)]
unsafe fn decode_panels<L: Lanes, C: Codes>(task: &Task<'_>, panel: usize, panels: usize, out: &mut [f32]) {
    let blocks = task.group.w.cols() / BLOCK;
    let width = panels * PANEL;
    let (codes, scales) = (task.group.w.codes().as_ptr(), task.group.w.scales().as_ptr());
    let out = out.as_mut_ptr();
    for b in 0..blocks {
        for p in 0..panels {
            for lane in (0..PANEL).step_by(L::N) {
                let at = (panel + p) * blocks + b;
                // SAFETY: the caller gives panels of the matrix and room for two.
                unsafe {
                    let out = out.add(b * (BLOCK + 1) * width + p * PANEL + lane);
                    let block = codes.add(at * C::BLOCK_BYTES + 4 * lane);
                    for j in 0..4 {
                        let raw = C::load::<L>(block, j);
                        for t in 0..8 {
                            C::decode::<L>(raw, j, t).store(out.add((8 * j + t) * width));
                        }
                    }
                    C::scales::<L>(scales.add((at * PANEL + lane) * C::SCALE_BYTES))
                        .store(out.add(BLOCK * width));
                }
            }
        }
    }
}

/// Calls `tile` with a constant number of inputs.
macro_rules! with_inputs {
    ($n:expr, $v:literal, $($arg:expr),*) => {
        match $n {
            1 => tile::<L, 1, $v>($($arg),*),
            2 => tile::<L, 2, $v>($($arg),*),
            3 => tile::<L, 3, $v>($($arg),*),
            4 => tile::<L, 4, $v>($($arg),*),
            5 => tile::<L, 5, $v>($($arg),*),
            6 => tile::<L, 6, $v>($($arg),*),
            7 => tile::<L, 7, $v>($($arg),*),
            8 => tile::<L, 8, $v>($($arg),*),
            9 => tile::<L, 9, $v>($($arg),*),
            10 => tile::<L, 10, $v>($($arg),*),
            11 => tile::<L, 11, $v>($($arg),*),
            _ => tile::<L, 12, $v>($($arg),*),
        }
    };
}

/// Up to a tile's inputs times all lanes of the decoded panels.
#[inline(always)]
unsafe fn tiles<L: Lanes>(
    task: &Task<'_>,
    i: usize,
    n: usize,
    column: usize,
    panels: usize,
    decoded: &[f32],
) {
    let width = panels * PANEL;
    // SAFETY: `decoded` holds all blocks of `width` lanes.
    unsafe {
        let mut lane = 0;
        while lane < width {
            let w = decoded[lane..].as_ptr();
            if width - lane >= 2 * L::N {
                with_inputs!(n, 2, task, i, w, width, column + lane);
                lane += 2 * L::N;
            } else {
                with_inputs!(n, 1, task, i, w, width, column + lane);
                lane += L::N;
            }
        }
    }
}

/// `M` inputs times `V` vectors of decoded weight rows.
#[inline(always)]
unsafe fn tile<L: Lanes, const M: usize, const V: usize>(
    task: &Task<'_>,
    i: usize,
    w: *const f32,
    width: usize,
    column: usize,
) {
    let x = task.inputs::<M>(i);
    let mut totals = [[[0.0_f32; 16]; V]; M];
    // SAFETY: the caller gives blocks of 33 · width numbers; inputs have all columns.
    unsafe {
        for b in 0..task.group.w.cols() / BLOCK {
            let w = w.add(b * (BLOCK + 1) * width);
            let mut sums = [[L::splat(0.0); V]; M];
            for k in 0..BLOCK {
                let mut ws = [L::splat(0.0); V];
                for (v, lanes) in ws.iter_mut().enumerate() {
                    *lanes = L::load(w.add(k * width + v * L::N));
                }
                for (sums, x) in sums.iter_mut().zip(&x) {
                    let x = L::splat(*x.add(b * BLOCK + k));
                    for (sum, w) in sums.iter_mut().zip(&ws) {
                        *sum = w.mul_add(x, *sum);
                    }
                }
            }
            let mut scales = [L::splat(0.0); V];
            for (v, scale) in scales.iter_mut().enumerate() {
                *scale = L::load(w.add(BLOCK * width + v * L::N));
            }
            for (totals, sums) in totals.iter_mut().zip(&sums) {
                for ((total, sum), scale) in totals.iter_mut().zip(sums).zip(&scales) {
                    sum.mul_add(*scale, L::load(total.as_ptr())).store(total.as_mut_ptr());
                }
            }
        }
    }
    for (m, totals) in totals.iter().enumerate() {
        for (v, total) in totals.iter().enumerate() {
            task.put(i + m, column + v * L::N, &total[..L::N]);
        }
    }
}
