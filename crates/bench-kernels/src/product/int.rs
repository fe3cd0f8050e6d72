//! Whole-number rows times packed weights: exact integer sums within a block, f32 sums over blocks.
//!
//! Few rows read weights as they are stored, once, at the speed of memory. More rows share a panel that is
//! unpacked to bytes in cache. Each output is one sum in the order of the blocks, however rows are tiled.

mod codes;
mod tile;

use std::cell::Cell;

use codes::{Codes, Fp4, Q6, Q8, Source, Stored, Unpacked};
use tile::{Ahead, Out, Place, Tile};

use crate::exec::Exec;
use crate::mxfp4::BLOCK;
use crate::packed::{PANEL, PackedFormat};
use crate::product::PackedGroup;
use crate::product::ints::{Ints, Plain};
use crate::rows::{IntPrecision, IntRows};
use crate::scratch::Lines;
use crate::shared::SharedMut;
use crate::variant::Variant;

/// Codes of one task: long enough for the prefetcher, short enough for two threads to end together.
const TASK_BYTES: usize = 96 << 10;
/// Up to so many rows, unpacking in registers for each tile costs less than a copy in cache.
const FEW: usize = 32;
/// Up to so many rows, panels are read one after the other, not two at once.
const ONE_STREAM: usize = 4;

thread_local! {
    /// Panels as bytes, then their scales as f32; grows to the largest task and stays.
    static SCRATCH: Cell<Lines> = const { Cell::new(Lines::new()) };
}

/// What all tasks of a product share.
struct Job<'a> {
    x: &'a IntRows,
    out: SharedMut<'a, f32>,
    /// Columns of the output.
    width: usize,
    /// Blocks of a row.
    blocks: usize,
}

/// Consecutive panels of one group.
struct Task<'a> {
    job: &'a Job<'a>,
    group: PackedGroup<'a>,
    panels: std::ops::Range<usize>,
}

/// The entry has checked all sizes: rows of x have `cols` columns, all groups are of one shape and format, their
/// rows inside x, their output rows inside out and without overlap.
pub(super) fn packed_int<'a>(
    exec: &Exec,
    x: &IntRows,
    groups: usize,
    group: &(impl Fn(usize) -> PackedGroup<'a> + Sync),
    out: &mut [f32],
) {
    let w = group(0).w;
    let (width, blocks) = (w.rows(), w.cols() / BLOCK);
    let panels = width / PANEL;
    let panel_bytes = blocks * w.format().block_bytes();
    // Pairs, because tiles take two panels.
    let step = (TASK_BYTES / panel_bytes).next_multiple_of(2).max(2);
    let steps = panels.div_ceil(step);
    let job = Job { x, out: SharedMut::new(out), width, blocks };
    exec.run_streams(groups * steps, |task| {
        let group = group(task / steps);
        if group.rows.is_empty() {
            return;
        }
        let first = task % steps * step;
        let task = Task { job: &job, group, panels: first..panels.min(first + step) };
        run_task(exec.variant(), &task);
    });
}

fn run_task(variant: Variant, task: &Task<'_>) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,avx2,fma,f16c")]
    fn vbmi(task: &Task<'_>) {
        // SAFETY: the instructions are enabled in this function; the entry has checked sizes.
        unsafe { run::<crate::product::ints::Vnni<true>, Fp4, true>(task) }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    fn avx512(task: &Task<'_>) {
        // SAFETY: as above.
        unsafe { run_format::<crate::product::ints::Vnni<false>>(task) }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn avx2(task: &Task<'_>) {
        // SAFETY: as above.
        unsafe { run_format::<crate::product::ints::Avx2>(task) }
    }
    #[cfg(target_arch = "aarch64")]
    #[target_feature(enable = "neon,dotprod")]
    fn neon_dot(task: &Task<'_>) {
        // SAFETY: as above.
        unsafe { run_format::<crate::product::ints::Neon<true>>(task) }
    }
    #[cfg(target_arch = "aarch64")]
    #[target_feature(enable = "neon")]
    fn neon(task: &Task<'_>) {
        // SAFETY: as above.
        unsafe { run_format::<crate::product::ints::Neon<false>>(task) }
    }
    match variant {
        // SAFETY: the guard asks the processor (the answer is cached).
        #[cfg(target_arch = "x86_64")]
        Variant::Avx512 if has_vbmi(variant) && is_fp4_in_16_bits(task) => unsafe { vbmi(task) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Variant::Avx512 if variant.is_supported() && is_x86_feature_detected!("avx512vnni") => unsafe {
            avx512(task);
        },
        // SAFETY: as above; every AVX-512 processor has AVX2.
        #[cfg(target_arch = "x86_64")]
        Variant::Avx512 | Variant::Avx2 if variant.is_supported() && is_x86_feature_detected!("f16c") => unsafe {
            avx2(task);
        },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Variant::Neon if variant.has_dot_product() => unsafe { neon_dot(task) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Variant::Neon if variant.is_supported() => unsafe { neon(task) },
        // SAFETY: plain Rust needs no feature; the entry has checked sizes.
        _ => unsafe { run_format::<Plain>(task) },
    }
}

/// What decoding takes: for it alone a second set of kernels is worth compiling.
#[cfg(target_arch = "x86_64")]
fn is_fp4_in_16_bits(task: &Task<'_>) -> bool {
    (task.group.w.format(), task.job.x.precision()) == (PackedFormat::Mxfp4, IntPrecision::Int16)
}

#[cfg(target_arch = "x86_64")]
fn has_vbmi(variant: Variant) -> bool {
    variant.is_supported() && is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vbmi")
}

/// # Safety
/// The instructions of `I` are enabled; sizes are those that [`packed_int`] asks for; here and below.
#[inline(always)]
unsafe fn run_format<I: Ints>(task: &Task<'_>) {
    // SAFETY: the caller's.
    unsafe {
        match (task.group.w.format(), task.job.x.precision()) {
            (PackedFormat::Mxfp4, IntPrecision::Int8) => run::<I, Fp4, false>(task),
            (PackedFormat::Mxfp4, IntPrecision::Int16) => run::<I, Fp4, true>(task),
            (PackedFormat::Q8_0, IntPrecision::Int8) => run::<I, Q8, false>(task),
            (PackedFormat::Q8_0, IntPrecision::Int16) => run::<I, Q8, true>(task),
            (PackedFormat::Q6_0, IntPrecision::Int8) => run::<I, Q6, false>(task),
            (PackedFormat::Q6_0, IntPrecision::Int16) => run::<I, Q6, true>(task),
        }
    }
}

#[inline(always)]
unsafe fn run<I: Ints, C: Codes, const WIDE: bool>(task: &Task<'_>) {
    let blocks = task.job.blocks;
    let panels = task.panels.len();
    // Few rows are bound by memory, which is fastest as one stream.
    let pairs = if I::LARGE && task.group.rows.len() > ONE_STREAM { panels / 2 } else { 0 };
    // SAFETY: panels lie inside the matrix.
    unsafe {
        let stored = Stored::<C>::new(&task.group.w, task.panels.start, blocks);
        if C::IS_BYTES || !I::LARGE || task.group.rows.len() <= FEW {
            for pair in 0..pairs {
                rows_of::<I, _, 2, WIDE>(task, &stored, 2 * pair);
            }
        } else {
            // Taken out: a closure would not be compiled with the instructions of this function.
            let mut lines = SCRATCH.take();
            let room = lines.get(panels * blocks * (8 + 1) * 64).cast::<u8>();
            let unpacked = Unpacked::<C>::fill::<I>(&stored, panels, blocks, room);
            for pair in 0..pairs {
                rows_of::<I, _, 2, WIDE>(task, &unpacked, 2 * pair);
            }
            SCRATCH.set(lines);
        }
        for panel in 2 * pairs..panels {
            rows_of::<I, _, 1, WIDE>(task, &stored, panel);
        }
    }
}

/// All rows of the group with `P` panels from `panel` on, in tiles of about equal size.
#[inline(always)]
unsafe fn rows_of<I: Ints, S: Source, const P: usize, const WIDE: bool>(
    task: &Task<'_>,
    source: &S,
    panel: usize,
) {
    let largest = match (I::LARGE, WIDE) {
        (true, false) => 6,
        (true, true) => 4,
        (false, false) => 3,
        (false, true) => 2,
    };
    // Tiles that are not asked for need not be compiled.
    let (three, four, six) = (I::LARGE || !WIDE, I::LARGE, I::LARGE && !WIDE);
    let m = task.group.rows.len();
    let tiles = m.div_ceil(largest);
    let out = Out::new(task, task.panels.start + panel);
    // One tile reads its panels from memory all the time.
    let next = if tiles > 1 { source.next::<P>(panel) } else { None };
    let mut ahead = next.map_or(Ahead::NOTHING, |(line, lines)| Ahead::new(line, lines, tiles));
    let mut first = 0;
    for tile in 0..tiles {
        let rows = m / tiles + usize::from(tile < m % tiles);
        let at = Place { panel, first, is_cold: tile == 0 };
        // SAFETY: panels are the task's, rows the group's.
        unsafe {
            match rows {
                6 if six => Tile::<I, S, P, 6, WIDE>::run(task, source, at, &mut ahead, &out),
                5 if six => Tile::<I, S, P, 5, WIDE>::run(task, source, at, &mut ahead, &out),
                4 if four => Tile::<I, S, P, 4, WIDE>::run(task, source, at, &mut ahead, &out),
                3 if three => Tile::<I, S, P, 3, WIDE>::run(task, source, at, &mut ahead, &out),
                2 => Tile::<I, S, P, 2, WIDE>::run(task, source, at, &mut ahead, &out),
                _ => Tile::<I, S, P, 1, WIDE>::run(task, source, at, &mut ahead, &out),
            }
        }
        first += rows;
    }
}
