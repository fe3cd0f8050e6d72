//! The inner loop: `P` panels times `M` rows, whose sums stay in registers.

// Sums, weights and rows of a tile are indexed alike.
#![allow(clippy::needless_range_loop)]

use std::marker::PhantomData;

use super::Task;
use super::codes::{Codes, Source};
use crate::lanes::prefetch_later;
use crate::packed::PANEL;
use crate::product::ints::Ints;
use crate::rows::{BYTES, HEAD, IntPrecision};
use crate::shared::SharedMut;

/// Where a tile's sums go.
pub(super) struct Out<'a> {
    all: SharedMut<'a, f32>,
    bias: Option<&'a [f32]>,
    /// Output row of the group's first row.
    slot: usize,
    width: usize,
    column: usize,
}

impl<'a> Out<'a> {
    pub(super) fn new(task: &Task<'a>, panel: usize) -> Self {
        let (group, job) = (&task.group, task.job);
        let column = panel * PANEL;
        Self { all: job.out, bias: group.bias, slot: group.first, width: job.width, column }
    }

    /// # Safety
    /// No other task has these columns and rows.
    #[inline(always)]
    unsafe fn put<I: Ints>(&self, panel: usize, row: usize, sums: I::Floats) {
        let column = self.column + panel * PANEL;
        let at = (self.slot + row) * self.width + column;
        // SAFETY: the slices have 16 elements.
        unsafe {
            let sums = match self.bias {
                Some(bias) => I::add(sums, I::floats(bias[column..column + PANEL].as_ptr())),
                None => sums,
            };
            I::store_floats(sums, self.all.slice(at..at + PANEL).as_mut_ptr());
        }
    }
}

/// Where a tile starts.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// In its source.
    pub(super) panel: usize,
    /// In the group's rows.
    pub(super) first: usize,
    /// Whether these panels are read for the first time, from beyond the caches.
    pub(super) is_cold: bool,
}

/// Quarters of blocks that a tile goes through for each block.
const QUARTERS: u32 = 4;

/// Codes that later tiles will read, asked for evenly while all tiles of the panels before them run: where a panel is
/// used again from cache, memory would be idle, and wait for arithmetic as arithmetic then waits for it.
pub(super) struct Ahead {
    line: *const u8,
    /// Lines for each block of the panels.
    lines: u32,
    /// Quarters for each block, of all tiles.
    quarters: u32,
    due: u32,
}

impl Ahead {
    pub(super) const NOTHING: Self = Self { line: std::ptr::null(), lines: 0, quarters: 1, due: 0 };

    /// From `line` on, `lines` for each block, during `tiles` tiles of as many blocks.
    pub(super) fn new(line: *const u8, lines: usize, tiles: usize) -> Self {
        Self { line, lines: lines as u32, quarters: QUARTERS * tiles as u32, due: 0 }
    }

    #[inline(always)]
    fn quarter(&mut self) {
        self.due += self.lines;
        while self.due >= self.quarters {
            self.due -= self.quarters;
            prefetch_later(self.line);
            self.line = self.line.wrapping_add(64);
        }
    }
}

/// `WIDE` rows have 16 bits.
pub(super) struct Tile<I, S, const P: usize, const M: usize, const WIDE: bool>(PhantomData<(I, S)>);

/// Sums of one block. With codes below 256 and bytes of at most 128, high ones stay within 2^20, low ones and what
/// takes back the offset (128 · 32 · 32512) within 2^28, 256 · high + low within 2^30.
struct Sums<I: Ints, const P: usize, const M: usize> {
    hi: [[I::Sums; M]; P],
    lo: [[I::Sums; M]; P],
}

impl<I: Ints, S: Source, const P: usize, const M: usize, const WIDE: bool> Tile<I, S, P, M, WIDE> {
    /// Panels `panel..` of the source times rows `first..` of the group.
    ///
    /// # Safety
    /// Those exist, the output is the task's, the instructions of `I` are enabled.
    #[inline(always)]
    pub(super) unsafe fn run(task: &Task<'_>, source: &S, at: Place, ahead: &mut Ahead, out: &Out<'_>) {
        let Place { panel, first, .. } = at;
        let (x, row_words) = (task.job.x.words(), task.job.x.row_words());
        let words = if WIDE { IntPrecision::Int16.words() } else { IntPrecision::Int8.words() };
        let mut rows = [x.as_ptr(); M];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = x[task.group.rows.get(first + i) * row_words..][..row_words].as_ptr();
        }
        // SAFETY: rows have a record for each block.
        unsafe {
            let mut totals = [[I::convert(I::zero()); M]; P];
            for block in 0..task.job.blocks {
                let mut sums = Self::start(&rows);
                Self::quarter::<0>(&mut sums, source, at, block, &rows);
                ahead.quarter();
                Self::quarter::<1>(&mut sums, source, at, block, &rows);
                ahead.quarter();
                Self::quarter::<2>(&mut sums, source, at, block, &rows);
                ahead.quarter();
                Self::quarter::<3>(&mut sums, source, at, block, &rows);
                ahead.quarter();
                for p in 0..P {
                    let scales = source.scales::<I>(panel + p, block);
                    for i in 0..M {
                        let sum = if WIDE { I::combine(sums.hi[p][i], sums.lo[p][i]) } else { sums.hi[p][i] };
                        let scale = I::mul(I::splat(rows[i]), scales);
                        totals[p][i] = I::mul_add(I::convert(sum), scale, totals[p][i]);
                    }
                }
                for row in &mut rows {
                    *row = row.wrapping_add(words);
                }
            }
            for (p, totals) in totals.iter().enumerate() {
                for (i, total) in totals.iter().enumerate() {
                    out.put::<I>(p, first + i, *total);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn start(rows: &[*const u32; M]) -> Sums<I, P, M> {
        // SAFETY: records have a sum.
        unsafe {
            let mut sums = Sums { hi: [[I::zero(); M]; P], lo: [[I::zero(); M]; P] };
            for i in 0..M {
                let start = S::Format::start::<I>(rows[i].add(1));
                for p in 0..P {
                    if WIDE {
                        sums.lo[p][i] = start;
                    } else {
                        sums.hi[p][i] = start;
                    }
                }
            }
            sums
        }
    }

    /// Columns 8J.. of a block, even ones, then odd ones.
    #[inline(always)]
    unsafe fn quarter<const J: usize>(
        sums: &mut Sums<I, P, M>,
        source: &S,
        at: Place,
        block: usize,
        rows: &[*const u32; M],
    ) {
        let Place { panel, is_cold, .. } = at;
        // SAFETY: the block exists; records have their codes.
        unsafe {
            // One by one between the products: requests in bursts hold up the loads behind them.
            if is_cold {
                for p in 0..P {
                    source.prefetch::<I, J>(panel + p, block);
                }
            }
            let mut w = [source.pair::<I, J>(panel, block); P];
            for (p, w) in w.iter_mut().enumerate() {
                *w = source.pair::<I, J>(panel + p, block);
            }
            for v in 0..2 {
                for i in 0..M {
                    let at = rows[i].add(HEAD + 2 * J + v);
                    let x = I::quad(at);
                    for p in 0..P {
                        sums.hi[p][i] = S::Format::dot::<I>(sums.hi[p][i], w[p][v], x);
                    }
                    if WIDE {
                        let x = I::quad(at.add(BYTES));
                        for p in 0..P {
                            sums.lo[p][i] = S::Format::dot::<I>(sums.lo[p][i], w[p][v], x);
                        }
                    }
                }
            }
        }
    }
}
