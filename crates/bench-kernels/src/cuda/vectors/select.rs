//! Launches that choose the next token (`cuda/choice.cu`) and prepare the next step.

use bytemuck::{NoUninit, Pod, Zeroable};

use super::{MAX_GRID_Y, expect, launch};
use crate::cuda::gpu::{Gpu, GpuError};
use crate::draw::Draw;

/// Blocks that share a row at most; also how many partial results a row's scratch has room for.
const MAX_PARTS: u32 = 256;
/// Ids that a block looks at in one round.
const ROUND: u32 = 1024;
/// Digits of a logit, each a launch, and values of the first.
const DIGITS: u32 = 3;
const BINS: usize = 2048;
/// Blocks of a multiprocessor among which rows are divided where they are cut.
const CUTTING: u32 = 4;

/// Bytes of scratch for `rows` rows. They must be zeros once; every launch leaves the counters in them at
/// zero, so that [`argmax`] and [`sample`] may share it if they are in one queue.
pub const fn scratch_bytes(rows: usize) -> usize {
    rows * 16 * (1 + MAX_PARTS as usize)
}

/// Bytes in which top-k and top-p of `rows` rows are worked out. They must be zeros once, as those of
/// [`scratch_bytes`].
pub const fn cut_bytes(rows: usize) -> usize {
    rows * (8 * BINS + 24)
}

/// How a row's token is drawn, as the device reads it.
#[derive(Debug, Clone, Copy, PartialEq, NoUninit, Zeroable)]
#[repr(C)]
pub struct RowDraw {
    uniform: f64,
    temperature: f32,
    top_p: f32,
    /// 0: all.
    top_k: u32,
    reserved: u32,
}

impl RowDraw {
    /// `draw` over `vocab` ids.
    pub fn new(draw: &Draw, vocab: u32) -> Self {
        let top_k = draw.top_k.map_or(0, |k| if k.get() < vocab { k.get() } else { 0 });
        Self { uniform: draw.uniform, temperature: draw.temperature, top_p: draw.top_p, top_k, reserved: 0 }
    }

    /// Launches that find out what is left of this row.
    fn cuts(&self) -> u32 {
        let kinds = u32::from(self.top_k > 0) + u32::from(self.top_p < 1.0);
        if self.temperature > 0.0 { DIGITS * kinds } else { 0 }
    }
}

/// Of f32 logits `[rows, vocab]`, each row `stride` elements after the one before: `ids` u32 `[rows]`.
///
/// An id of `suppressed` u32 `[suppressed_count]`, a logit that is no number or minus infinity are never
/// chosen; a row with nothing else has the id `u32::MAX`.
#[derive(Debug, Clone, Copy, NoUninit, Zeroable)]
#[repr(C)]
pub struct SelectArgs {
    pub logits: u64,
    /// 0 if there are none.
    pub suppressed: u64,
    pub ids: u64,
    /// Largest logit f32 `[rows]`: written by [`argmax`] unless 0, needed by [`sample`].
    pub best: u64,
    /// How many logits are infinite or no numbers, u32 `[rows]`; 0: not wanted.
    pub non_finite: u64,
    /// For [`sample`]: [`RowDraw`] `[rows]`; a row of temperature 0 keeps the id of [`argmax`].
    pub draws: u64,
    /// For [`sample`] of rows with top-k or top-p: [`cut_bytes`] of the rows, aligned to 8.
    pub cuts: u64,
    /// [`scratch_bytes`] of the rows, aligned to 16.
    pub scratch: u64,
    pub rows: u32,
    pub vocab: u32,
    pub stride: u32,
    pub suppressed_count: u32,
    /// Which launch of a cut it is; [`sample`] counts them.
    pub pass: u32,
    pub reserved: u32,
}

/// Blocks that share a row.
fn parts(vocab: u32) -> u32 {
    vocab.div_ceil(ROUND).clamp(1, MAX_PARTS)
}

fn select(gpu: &dyn Gpu, kernel: &'static str, args: &SelectArgs, parts: u32) -> Result<(), GpuError> {
    let fits = args.vocab > 0 && args.vocab < u32::MAX - ROUND && args.stride >= args.vocab;
    expect(fits && args.rows <= MAX_GRID_Y, "choice of tokens", || {
        format!("{} rows of {} logits, {} apart", args.rows, args.vocab, args.stride)
    })?;
    expect(args.suppressed != 0 || args.suppressed_count == 0, "choice of tokens", || {
        "suppressed ids without an address".to_owned()
    })?;
    launch(gpu, kernel, [parts, args.rows], args)
}

/// The lowest id of the largest logit.
pub fn argmax(gpu: &dyn Gpu, args: &SelectArgs) -> Result<(), GpuError> {
    select(gpu, "argmax", args, parts(args.vocab))
}

/// An id for each row as [`Draw::choose`] has it, after [`argmax`] of the same rows. `draws` are what stands at
/// `args.draws`: three launches for those with top-k or top-p, three more if one has both, and one that draws.
pub fn sample(gpu: &dyn Gpu, args: &SelectArgs, draws: &[RowDraw]) -> Result<(), GpuError> {
    let what = "choice of tokens";
    expect(draws.len() == args.rows as usize, what, || {
        format!("{} draws for {} rows", draws.len(), args.rows)
    })?;
    expect(args.best != 0 && args.draws != 0, what, || "a draw without largest logits or values".to_owned())?;
    let cuts = draws.iter().map(RowDraw::cuts).max().unwrap_or(0);
    expect(args.cuts != 0 || cuts == 0, what, || "top-k or top-p without room to cut".to_owned())?;
    // Blocks add up what they count: no more of them than run at a time.
    let most = (CUTTING * gpu.multiprocessors()).div_ceil(args.rows.max(1));
    for pass in 0..cuts {
        select(gpu, "narrow", &SelectArgs { pass, ..*args }, parts(args.vocab).min(most.max(1)))?;
    }
    select(gpu, "sample", args, parts(args.vocab))
}

/// Rows `start..start + len` of a step belong to sequence `sequence`, whose cache holds `past` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Span {
    pub start: u32,
    pub len: u32,
    pub past: u32,
    pub sequence: u32,
}

/// After a step of `sequences` spans: `ids[i] = chosen[i]`, `spans[i].past += spans[i].len`.
///
/// With `history` (u32 `[history_steps, sequences]`) the chosen are also noted in its row `*steps`, if there
/// is one; with `steps` (one u32) that number grows by one.
#[derive(Debug, Clone, Copy, NoUninit, Zeroable)]
#[repr(C)]
pub struct AdvanceArgs {
    pub spans: u64,
    pub chosen: u64,
    /// It may be `chosen`.
    pub ids: u64,
    /// 0: not wanted.
    pub history: u64,
    /// 0: not wanted.
    pub steps: u64,
    pub sequences: u32,
    pub history_steps: u32,
}

pub fn advance(gpu: &dyn Gpu, args: &AdvanceArgs) -> Result<(), GpuError> {
    launch(gpu, "advance", [1, 1], args)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn parts_cover_a_vocabulary() {
        for vocab in [1, 1023, 1024, 1025, 32_000, 201_088, 262_144, 262_145, 1_000_000] {
            let parts = parts(vocab);
            let size = vocab.div_ceil(parts).div_ceil(ROUND) * ROUND;
            assert!(parts <= MAX_PARTS && parts * size >= vocab, "{vocab}");
        }
        assert_eq!(parts(201_088), 197);
        assert_eq!(scratch_bytes(2), 2 * 4112);
        assert_eq!(cut_bytes(3), 3 * 16_408);
    }

    #[test]
    fn only_what_cuts_is_launched_for() {
        let draw = |temperature, top_k, top_p| Draw {
            uniform: 0.5,
            temperature,
            top_k: NonZeroU32::new(top_k),
            top_p,
        };
        let cuts = |how| RowDraw::new(&how, 100).cuts();
        assert_eq!([cuts(Draw::GREEDY), cuts(draw(0.0, 3, 0.5)), cuts(draw(1.0, 0, 1.0))], [0; 3]);
        assert_eq!([cuts(draw(1.0, 3, 1.0)), cuts(draw(1.0, 0, 0.5)), cuts(draw(1.0, 3, 0.5))], [3, 3, 6]);
        // All ids are no cut.
        assert_eq!(
            [cuts(draw(1.0, 100, 1.0)), cuts(draw(1.0, 101, 0.5)), cuts(draw(1.0, 99, 1.0))],
            [0, 3, 3]
        );
    }
}
