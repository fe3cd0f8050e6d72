//! Panels over bf16 keys and values, by dot products of bf16 pairs (AVX-512 BF16).
//!
//! Queries are rounded to bf16, as keys are; probabilities too, as values are, and the sum that divides them is that
//! of the rounded ones. Nothing is computed in f32 here but what is between the products.

use std::ops::Range;

use half::bf16;

use super::kernel::Shape;
use super::task::PANEL;

/// A panel over whole tiles of a bf16 cache.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) struct Panel {
    pub(super) shape: Shape,
    /// As in [`super::kernel::Source::Bf16`].
    pub(super) k: *const bf16,
    pub(super) v: *const bf16,
    /// Pairs of elements of the queries `[d / 2, PANEL]`, not scaled.
    pub(super) q: *const u32,
    pub(super) scale: f32,
    pub(super) scores: *mut f32,
    /// Room for pairs of probabilities `[PANEL, KEYS / 2]`.
    pub(super) p: *mut u32,
    /// `[PANEL, columns]`, and what goes with each row.
    pub(super) o: *mut f32,
    pub(super) max: *mut f32,
    pub(super) sum: *mut f32,
    /// Lanes that any row sees, and that each row sees.
    pub(super) seen: Range<usize>,
    pub(super) lanes: [(usize, usize); PANEL],
}

/// Takes a query into `pairs` `[d / 2]` with `PANEL` between them.
pub(super) fn put_query(q: &[f32], pairs: &mut [f32]) {
    for (q, to) in q.chunks_exact(2).zip(pairs.iter_mut().step_by(PANEL)) {
        *to = f32::from_bits(nearest(q[0]) | nearest(q[1]) << 16);
    }
}

/// The bits of the nearest bf16. Without a branch, since it is taken for each query of each task.
fn nearest(v: f32) -> u32 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if v.is_nan() { 0x7fc0 } else { rounded }
}

/// Rounds a piece that was unpacked, keys `[d, KEYS]` and values `[KEYS, d]`, to the layout of a bf16 page: as many
/// tiles as `rows` need, values of a last odd row beside a row of zeros.
///
/// # Safety
/// AVX-512 BF16; `d` is a multiple of 32, and there is room for KEYS rows.
pub(super) unsafe fn round(k: &[f32], v: &mut [f32], d: usize, rows: usize, to: (*mut bf16, *mut bf16)) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's.
    unsafe {
        x86::round(k, v, d, rows, to);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (k, v, d, rows, to);
}

/// # Safety
/// [`available`]; memory as the fields of the panel say.
pub(super) unsafe fn attend(panel: &Panel) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's.
    unsafe {
        x86::attend(panel);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = panel;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    // The names carry their origin; a list of twenty would say nothing more.
    #[allow(clippy::wildcard_imports)]
    use std::arch::x86_64::*;

    use half::bf16;

    use super::{PANEL, Panel};
    use crate::attention::exp2::{self, Exp};
    use crate::attention::lanes::exp;
    use crate::attention::page::TILE;
    use crate::attention::task::KEYS;

    /// How far scores may lie above the maximum that the sums stand under: e^8 costs f32 and bf16 nothing, and nearly
    /// all later pieces need no other maximum.
    const HEADROOM: f32 = 8.0;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
    pub(super) unsafe fn round(
        k: &[f32],
        v: &mut [f32],
        d: usize,
        rows: usize,
        (to_k, to_v): (*mut bf16, *mut bf16),
    ) {
        for at in 0..rows.div_ceil(TILE) * (d / 2) {
            let (tile, pair) = (at / (d / 2), at % (d / 2));
            let from = &k[2 * pair * KEYS + tile * TILE..][..KEYS + TILE];
            // SAFETY: two rows of 16 keys; 32 numbers of the tile.
            unsafe {
                let (a, b) = (_mm512_loadu_ps(from.as_ptr()), _mm512_loadu_ps(from.as_ptr().add(KEYS)));
                let pairs = _mm512_or_si512(words(a), _mm512_slli_epi32::<16>(words(b)));
                _mm512_storeu_si512(to_k.add(tile * TILE * d + pair * 2 * TILE).cast(), pairs);
            }
        }
        let even = rows.next_multiple_of(2);
        v[rows * d..even * d].fill(0.0);
        for at in (0..even * d).step_by(2 * TILE) {
            let from = &v[at..][..2 * TILE];
            // SAFETY: 32 numbers on both sides.
            unsafe {
                let (a, b) = (_mm512_loadu_ps(from.as_ptr()), _mm512_loadu_ps(from.as_ptr().add(TILE)));
                let bits = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a));
                _mm512_storeu_si512(to_v.add(at).cast(), bits);
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
    pub(super) unsafe fn attend(panel: &Panel) {
        // SAFETY: the instructions are enabled here; the rest is the caller's.
        unsafe {
            match panel.shape.rows {
                1..=2 => rows::<2>(panel),
                3..=4 => rows::<4>(panel),
                5..=6 => rows::<6>(panel),
                _ => rows::<8>(panel),
            }
        }
    }

    /// Numbers rounded to bf16, in the low halves of words.
    #[inline(always)]
    unsafe fn words(v: __m512) -> __m512i {
        // SAFETY: the instructions are enabled; any bits are 16 words.
        unsafe {
            let halves = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v));
            _mm512_cvtepu16_epi32(halves)
        }
    }

    #[inline(always)]
    unsafe fn rows<const R: usize>(panel: &Panel) {
        // SAFETY: the caller's.
        unsafe {
            scores::<R>(panel);
            for row in 0..panel.shape.rows {
                probabilities(panel, row);
            }
            // Rows that only fill up the panel.
            for row in panel.shape.rows..R {
                std::ptr::write_bytes(panel.p.add(row * KEYS / 2), 0, KEYS / 2);
            }
            for at in (0..panel.shape.d).step_by(2 * TILE) {
                columns::<R>(panel, at);
            }
        }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512bh {
        // SAFETY: 64 readable bytes; any bits are 32 bf16.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(from.cast())) }
    }

    /// The same pair in all lanes.
    #[inline(always)]
    unsafe fn splat(from: *const u32) -> __m512bh {
        // SAFETY: a readable pair; any bits are 32 bf16.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32((*from).cast_signed())) }
    }

    #[inline(always)]
    unsafe fn scores<const R: usize>(panel: &Panel) {
        let tile_bytes = TILE * panel.shape.d * 2;
        // SAFETY: tiles up to the last seen lane are there; two tiles of scores never end beyond KEYS.
        unsafe {
            let scale = _mm512_set1_ps(panel.scale);
            for key in (0..panel.seen.end).step_by(2 * TILE) {
                let first = panel.k.cast::<u8>().add(key / TILE * tile_bytes);
                // The second tile may lie beyond the page: it is then the first once more.
                let second = if key + TILE < panel.seen.end { first.add(tile_bytes) } else { first };
                let mut sums = [[_mm512_setzero_ps(); 2]; R];
                for pair in 0..panel.shape.d / 2 {
                    let (a, b) = (first.add(pair * 4 * TILE), second.add(pair * 4 * TILE));
                    exp2::prefetch(a);
                    exp2::prefetch(b);
                    let (a, b) = (load(a), load(b));
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let q = splat(panel.q.add(pair * PANEL + row));
                        sums[0] = _mm512_dpbf16_ps(sums[0], a, q);
                        sums[1] = _mm512_dpbf16_ps(sums[1], b, q);
                    }
                }
                for (row, sums) in sums.into_iter().enumerate() {
                    let scores = panel.scores.add(row * KEYS + key);
                    _mm512_storeu_ps(scores, _mm512_mul_ps(sums[0], scale));
                    _mm512_storeu_ps(scores.add(TILE), _mm512_mul_ps(sums[1], scale));
                }
            }
        }
    }

    /// exp(score − max) of a row, rounded, and its part of the sum.
    #[inline(always)]
    unsafe fn probabilities(panel: &Panel, row: usize) {
        let (end, columns) = (panel.seen.end.next_multiple_of(2 * TILE), panel.shape.columns);
        let lanes = panel.lanes[row].0..panel.lanes[row].1;
        // SAFETY: the memory of the row; `end` is at most KEYS.
        unsafe {
            let (scores, p) = (panel.scores.add(row * KEYS), panel.p.add(row * KEYS / 2));
            let (max, sum) = (&mut *panel.max.add(row), &mut *panel.sum.add(row));
            if lanes.is_empty() {
                return std::ptr::write_bytes(p, 0, end / 2);
            }
            let largest = exp2::mask(scores, lanes, end);
            if _mm512_cmp_ps_mask::<_CMP_GT_OQ>(largest, _mm512_set1_ps(*max + HEADROOM)) != 0 {
                let largest = _mm512_reduce_max_ps(largest);
                exp2::shrink(exp(*max - largest), sum, panel.o.add(row * columns), columns);
                *max = largest;
            }
            let exp = Exp::of(*max);
            let ones = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(0x3f80_3f80));
            let mut total = _mm512_setzero_ps();
            for at in (0..end).step_by(2 * TILE) {
                let first = exp.of_scores(_mm512_loadu_ps(scores.add(at)));
                let second = exp.of_scores(_mm512_loadu_ps(scores.add(at + TILE)));
                let pairs = _mm512_cvtne2ps_pbh(second, first);
                total = _mm512_dpbf16_ps(total, pairs, ones);
                let bits = std::mem::transmute::<__m512bh, __m512i>(pairs);
                _mm512_storeu_si512(p.add(at / 2).cast(), bits);
            }
            *sum += _mm512_reduce_add_ps(total);
        }
    }

    /// 32 columns from `at`: two rows of values at a time, their elements interleaved to pairs.
    #[inline(always)]
    unsafe fn columns<const R: usize>(panel: &Panel, at: usize) {
        let (d, columns) = (panel.shape.d, panel.shape.columns);
        // SAFETY: rows of whole tiles are there, so that the second row of a pair is too.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); 2]; R];
            for pair in panel.seen.start / 2..panel.seen.end.div_ceil(2) {
                let v = panel.v.add(2 * pair * d + at).cast::<u8>();
                exp2::prefetch(v);
                exp2::prefetch(v.wrapping_add(2 * d));
                let (a, b) = (_mm512_loadu_si512(v.cast()), _mm512_loadu_si512(v.add(2 * d).cast()));
                let low = std::mem::transmute::<__m512i, __m512bh>(_mm512_unpacklo_epi16(a, b));
                let high = std::mem::transmute::<__m512i, __m512bh>(_mm512_unpackhi_epi16(a, b));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let p = splat(panel.p.add(row * KEYS / 2 + pair));
                    sums[0] = _mm512_dpbf16_ps(sums[0], low, p);
                    sums[1] = _mm512_dpbf16_ps(sums[1], high, p);
                }
            }
            // Interleaving takes four columns of each eight: low has 0..4 and 8..12, high the others.
            let first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
            let second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
            for (row, sums) in sums.into_iter().enumerate() {
                let o = panel.o.add(row * columns + at);
                for (i, order) in [first, second].into_iter().enumerate() {
                    let o = o.add(i * TILE);
                    let new = _mm512_permutex2var_ps(sums[0], order, sums[1]);
                    _mm512_storeu_ps(o, _mm512_add_ps(_mm512_loadu_ps(o), new));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_rounded_to_even_pairs() {
        let mut pairs = [0.0; PANEL + 1];
        put_query(&[1.5, -0.25, 1.003_906_2, 1.011_718_8], &mut pairs);
        let pair = |a: f32, b: f32| a.to_bits() >> 16 | b.to_bits();
        assert_eq!([0, PANEL].map(|i| pairs[i].to_bits()), [pair(1.5, -0.25), pair(1.0, 1.015_625)]);
    }
}
