//! Launches that choose the next token and prepare the next step.

use bytemuck::{NoUninit, Pod, Zeroable};

use super::{MAX_GRID_Y, expect, launch};
use crate::cuda::gpu::{Gpu, GpuError};

/// Blocks that share a row at most; also how many partial results a row's scratch has room for.
const MAX_PARTS: u32 = 256;
/// Ids that a block looks at in one round.
const ROUND: u32 = 1024;

/// Bytes of scratch for `rows` rows. They must be zeros once; every launch leaves the counters in them at
/// zero, so that [`argmax`] and [`sample`] may share it if they are in one queue.
pub const fn scratch_bytes(rows: usize) -> usize {
    rows * 16 * (1 + MAX_PARTS as usize)
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
    /// For [`sample`]: f64 `[rows]`, at least 0 and below 1.
    pub uniform: u64,
    /// For [`sample`]: f32 `[rows]`; a row with 0 keeps the id of [`argmax`].
    pub temperatures: u64,
    /// [`scratch_bytes`] of the rows, aligned to 16.
    pub scratch: u64,
    pub rows: u32,
    pub vocab: u32,
    pub stride: u32,
    pub suppressed_count: u32,
}

/// Blocks that share a row: by the vocabulary alone, so that the order of sums is too.
fn parts(vocab: u32) -> u32 {
    vocab.div_ceil(ROUND).clamp(1, MAX_PARTS)
}

fn select(gpu: &dyn Gpu, kernel: &'static str, args: &SelectArgs) -> Result<(), GpuError> {
    let fits = args.vocab > 0 && args.vocab < u32::MAX - ROUND && args.stride >= args.vocab;
    expect(fits && args.rows <= MAX_GRID_Y, "choice of tokens", || {
        format!("{} rows of {} logits, {} apart", args.rows, args.vocab, args.stride)
    })?;
    expect(args.suppressed != 0 || args.suppressed_count == 0, "choice of tokens", || {
        "suppressed ids without an address".to_owned()
    })?;
    launch(gpu, kernel, [parts(args.vocab), args.rows], args)
}

/// The lowest id of the largest logit.
pub fn argmax(gpu: &dyn Gpu, args: &SelectArgs) -> Result<(), GpuError> {
    select(gpu, "argmax", args)
}

/// An id by its probability under the row's temperature, after [`argmax`] of the same rows: that where the
/// running sum of weights exceeds the uniform value's share of the whole. The order of ids depends on the
/// vocabulary alone, and up to 262,144 of them come in their own.
pub fn sample(gpu: &dyn Gpu, args: &SelectArgs) -> Result<(), GpuError> {
    expect(args.best != 0 && args.uniform != 0 && args.temperatures != 0, "choice of tokens", || {
        "a draw without largest logits, uniform values or temperatures".to_owned()
    })?;
    select(gpu, "sample", args)
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
    }
}
