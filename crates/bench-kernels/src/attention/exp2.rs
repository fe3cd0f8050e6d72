//! What the products of few bits share (AVX-512): a softmax whose powers are as exact as what they are rounded to
//! afterwards, and the stream from memory.

// The names carry their origin; a list of twenty would say nothing more.
#[allow(clippy::wildcard_imports)]
use std::arch::x86_64::*;
use std::f32::consts::LOG2_E;
use std::ops::Range;

use super::page::TILE;

/// 2^x on [0, 1), highest power first: the polynomial whose largest relative error, 2.6e-6, is smallest (Remez).
const POLYNOMIAL: [f32; 5] = [0.013_534_168, 0.052_011_46, 0.241_442_76, 0.693_003_83, 1.000_002_6];

/// How far ahead of the loads cache lines are asked for: a piece of 64 bf16 keys of 64, since keys and values take
/// turns.
const AHEAD_BYTES: usize = 8192;

/// Asks for the cache line that is needed next but some: into the second cache, since the first has no room for so
/// many lines on their way.
#[inline(always)]
pub(super) fn prefetch(from: *const u8) {
    // SAFETY: a hint; addresses outside of memory are ignored.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(AHEAD_BYTES).cast()) }
}

/// e^(x − max) within 3e-6.
#[derive(Clone, Copy)]
pub(super) struct Exp {
    offset: __m512,
}

impl Exp {
    /// # Safety
    /// AVX-512 F and DQ must be enabled in the caller, here and below.
    #[inline(always)]
    pub(super) unsafe fn of(max: f32) -> Self {
        // SAFETY: the caller's.
        Self { offset: unsafe { _mm512_set1_ps(-max * LOG2_E) } }
    }

    /// Scores that are −∞ yield 0; what is not a number stays so.
    #[inline(always)]
    pub(super) unsafe fn of_scores(self, scores: __m512) -> __m512 {
        // SAFETY: the caller's.
        unsafe {
            let x = _mm512_fmadd_ps(scores, _mm512_set1_ps(LOG2_E), self.offset);
            // What is above the next lower integer, to which the last step rounds for itself.
            let part = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF }>(x);
            let mut p = _mm512_set1_ps(POLYNOMIAL[0]);
            for c in &POLYNOMIAL[1..] {
                p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(*c));
            }
            _mm512_scalef_ps(p, x)
        }
    }
}

/// Masks scores below `end` that are not in `lanes`; returns the largest of each lane of 16.
///
/// # Safety
/// As above; `end` scores, whole vectors and at least one.
#[inline(always)]
pub(super) unsafe fn mask(scores: *mut f32, lanes: Range<usize>, end: usize) -> __m512 {
    // SAFETY: the caller's.
    unsafe {
        if lanes.start > 0 || lanes.end < end {
            let row = std::slice::from_raw_parts_mut(scores, end);
            row[..lanes.start].fill(f32::NEG_INFINITY);
            row[lanes.end..].fill(f32::NEG_INFINITY);
        }
        let mut largest = _mm512_loadu_ps(scores);
        for at in (TILE..end).step_by(TILE) {
            largest = _mm512_max_ps(largest, _mm512_loadu_ps(scores.add(at)));
        }
        largest
    }
}

/// Multiplies what a row has summed.
///
/// # Safety
/// As above; `columns` of `o`, whole vectors.
#[inline(always)]
pub(super) unsafe fn shrink(factor: f32, sum: &mut f32, o: *mut f32, columns: usize) {
    *sum *= factor;
    for at in (0..columns).step_by(TILE) {
        // SAFETY: the caller's.
        unsafe {
            let o = o.add(at);
            _mm512_storeu_ps(o, _mm512_mul_ps(_mm512_loadu_ps(o), _mm512_set1_ps(factor)));
        }
    }
}
