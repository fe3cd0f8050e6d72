//! The loops that take the time: scores of a panel, the softmax of a row, weighted values.
//!
//! Lanes are keys in scores and columns in values, so that nothing is summed across lanes but a row's maximum.

use std::ops::Range;

use half::bf16;

use super::lanes::{AttentionLanes, exp};
use super::page::TILE;
use super::task::{KEYS, PANEL};

/// How far ahead of the loads cache lines are asked for.
const AHEAD_BYTES: usize = 2048;

/// Where keys and values of a piece stand.
#[derive(Clone, Copy)]
pub(super) enum Source {
    /// k `[d, KEYS]`, v `[KEYS, columns]`, in cache lines.
    Unpacked { k: *const f32, v: *const f32 },
    /// Whole tiles `[tile][d / 2][TILE][2]`, and rows `[d]`; d is a multiple of 32.
    Bf16 { k: *const bf16, v: *const bf16 },
}

/// A panel.
pub(super) struct Shape {
    /// Rows that count; memory is there for all of a panel.
    pub(super) rows: usize,
    pub(super) d: usize,
    pub(super) columns: usize,
}

/// `scores[row, key] = q[row] · k[key]` for keys below `end`, and some beyond it.
#[inline(always)]
pub(super) unsafe fn scores<L: AttentionLanes>(
    shape: &Shape,
    source: Source,
    q: *const f32,
    scores: *mut f32,
    end: usize,
) {
    // SAFETY: the caller's; half panels stand beside each other in q.
    unsafe {
        if L::N == 16 {
            match shape.rows {
                1..=2 => scores_of::<L, 2>(shape.d, source, q, scores, end),
                3..=4 => scores_of::<L, 4>(shape.d, source, q, scores, end),
                5..=6 => scores_of::<L, 6>(shape.d, source, q, scores, end),
                _ => scores_of::<L, 8>(shape.d, source, q, scores, end),
            }
        } else {
            for first in (0..shape.rows).step_by(4) {
                scores_of::<L, 4>(shape.d, source, q.add(first), scores.add(first * KEYS), end);
            }
        }
    }
}

#[inline(always)]
unsafe fn scores_of<L: AttentionLanes, const R: usize>(
    d: usize,
    source: Source,
    q: *const f32,
    scores: *mut f32,
    end: usize,
) {
    // SAFETY: the caller's; two vectors of lanes never end beyond KEYS.
    unsafe {
        for key in (0..end).step_by(2 * L::N) {
            let mut sums = [[L::splat(0.0); 2]; R];
            match source {
                Source::Unpacked { k, .. } => {
                    for i in 0..d {
                        let k = k.add(i * KEYS + key);
                        add_products(&mut sums, q.add(i * PANEL), [L::load(k), L::load(k.add(L::N))]);
                    }
                }
                Source::Bf16 { k, .. } => {
                    let at = |key: usize| k.add(key / TILE * TILE * d + key % TILE * 2);
                    // The second vector may lie beyond the tiles of the page: it is then the first once more.
                    let second = if key + L::N < end { key + L::N } else { key };
                    let (first, second) = (at(key), at(second));
                    for pair in 0..d / 2 {
                        let at = pair * TILE * 2;
                        L::prefetch(first.add(at).cast::<u8>().wrapping_add(AHEAD_BYTES));
                        L::prefetch(second.add(at).cast::<u8>().wrapping_add(AHEAD_BYTES));
                        let (a, b) = (L::load_pairs(first.add(at)), L::load_pairs(second.add(at)));
                        add_products(&mut sums, q.add(2 * pair * PANEL), [a.0, b.0]);
                        add_products(&mut sums, q.add((2 * pair + 1) * PANEL), [a.1, b.1]);
                    }
                }
            }
            for (row, sums) in sums.into_iter().enumerate() {
                sums[0].store(scores.add(row * KEYS + key));
                sums[1].store(scores.add(row * KEYS + key + L::N));
            }
        }
    }
}

/// One element of R queries times that element of two vectors of keys.
#[inline(always)]
unsafe fn add_products<L: AttentionLanes, const R: usize>(sums: &mut [[L; 2]; R], q: *const f32, k: [L; 2]) {
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller gives R elements.
        let q = unsafe { L::splat(*q.add(row)) };
        for (sum, k) in sums.iter_mut().zip(k) {
            // SAFETY: the instructions are enabled.
            *sum = unsafe { q.mul_add(k, *sum) };
        }
    }
}

/// Turns a row's scores of `lanes` into exp(score − max), those of the other lanes below `end` into 0, and rescales
/// what was summed under an older maximum.
#[inline(always)]
pub(super) unsafe fn softmax<L: AttentionLanes>(
    scores: *mut f32,
    lanes: Range<usize>,
    end: usize,
    max: &mut f32,
    sum: &mut f32,
    o: *mut f32,
    columns: usize,
) {
    // SAFETY: the caller gives KEYS scores and `columns` of `o`.
    unsafe {
        let end = end.next_multiple_of(L::N);
        let row = std::slice::from_raw_parts_mut(scores, end);
        if lanes.is_empty() {
            return row.fill(0.0);
        }
        raise_max::<L>(scores, lanes, end, max, sum, o, columns);
        let offset = L::splat(-*max);
        let mut total = L::splat(0.0);
        for at in (0..end).step_by(L::N) {
            let p = L::load(scores.add(at)).add(offset).exp();
            p.store(scores.add(at));
            total = total.add(p);
        }
        *sum += total.sum();
    }
}

/// Masks scores below `end` that are not in `lanes`, and rescales what was summed under a smaller maximum.
#[inline(always)]
pub(super) unsafe fn raise_max<L: AttentionLanes>(
    scores: *mut f32,
    lanes: Range<usize>,
    end: usize,
    max: &mut f32,
    sum: &mut f32,
    o: *mut f32,
    columns: usize,
) {
    // SAFETY: the caller gives `end` scores and `columns` of `o`, both whole vectors.
    unsafe {
        let row = std::slice::from_raw_parts_mut(scores, end);
        row[..lanes.start].fill(f32::NEG_INFINITY);
        row[lanes.end..].fill(f32::NEG_INFINITY);
        let mut largest = L::splat(*max);
        for at in (0..end).step_by(L::N) {
            largest = largest.max(L::load(scores.add(at)));
        }
        let largest = largest.max_lane();
        if largest > *max {
            let shrink = exp(*max - largest);
            *sum *= shrink;
            for at in (0..columns).step_by(L::N) {
                L::load(o.add(at)).mul(L::splat(shrink)).store(o.add(at));
            }
            *max = largest;
        }
    }
}

/// `o[row] += Σ p[row, key] · v[key]` over the keys of `lanes`.
#[inline(always)]
pub(super) unsafe fn values<L: AttentionLanes>(
    shape: &Shape,
    source: Source,
    p: *const f32,
    o: *mut f32,
    lanes: Range<usize>,
) {
    // SAFETY: the caller's.
    unsafe {
        if L::N == 16 {
            match shape.rows {
                1..=2 => values_of::<L, 2>(shape, source, p, o, lanes),
                3..=4 => values_of::<L, 4>(shape, source, p, o, lanes),
                5..=6 => values_of::<L, 6>(shape, source, p, o, lanes),
                _ => values_of::<L, 8>(shape, source, p, o, lanes),
            }
        } else {
            for first in (0..shape.rows).step_by(4) {
                let (p, o) = (p.add(first * KEYS), o.add(first * shape.columns));
                values_of::<L, 4>(shape, source, p, o, lanes.clone());
            }
        }
    }
}

#[inline(always)]
unsafe fn values_of<L: AttentionLanes, const R: usize>(
    shape: &Shape,
    source: Source,
    p: *const f32,
    o: *mut f32,
    lanes: Range<usize>,
) {
    let mut at = 0;
    // SAFETY: `columns` is a multiple of TILE, hence of N.
    unsafe {
        while at + 2 * L::N <= shape.columns {
            columns_of::<L, R, 2>(shape, source, p, o, lanes.clone(), at);
            at += 2 * L::N;
        }
        while at < shape.columns {
            columns_of::<L, R, 1>(shape, source, p, o, lanes.clone(), at);
            at += L::N;
        }
    }
}

/// `C` vectors of columns from `at`.
#[inline(always)]
unsafe fn columns_of<L: AttentionLanes, const R: usize, const C: usize>(
    shape: &Shape,
    source: Source,
    p: *const f32,
    o: *mut f32,
    lanes: Range<usize>,
    at: usize,
) {
    // SAFETY: the caller gives R rows, and columns up to at + C · N.
    unsafe {
        let o = o.add(at);
        let mut sums: [[L; C]; R] =
            std::array::from_fn(|r| std::array::from_fn(|c| L::load(o.add(r * shape.columns + c * L::N))));
        match source {
            Source::Unpacked { v, .. } => {
                for key in lanes {
                    let v = v.add(key * shape.columns + at);
                    add_weighted(&mut sums, p.add(key), std::array::from_fn(|c| L::load(v.add(c * L::N))));
                }
            }
            Source::Bf16 { v, .. } => {
                for key in lanes {
                    let v = v.add(key * shape.d + at);
                    L::prefetch(v.cast::<u8>().wrapping_add(AHEAD_BYTES));
                    add_weighted(
                        &mut sums,
                        p.add(key),
                        std::array::from_fn(|c| L::load_bf16(v.add(c * L::N))),
                    );
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (c, sum) in sums.into_iter().enumerate() {
                sum.store(o.add(r * shape.columns + c * L::N));
            }
        }
    }
}

/// One key's values with the weights of R rows.
#[inline(always)]
unsafe fn add_weighted<L: AttentionLanes, const R: usize, const C: usize>(
    sums: &mut [[L; C]; R],
    p: *const f32,
    v: [L; C],
) {
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: rows of scores stand KEYS apart.
        let p = unsafe { L::splat(*p.add(row * KEYS)) };
        for (sum, v) in sums.iter_mut().zip(v) {
            // SAFETY: the instructions are enabled.
            *sum = unsafe { p.mul_add(v, *sum) };
        }
    }
}
