//! Keys and values of a piece as f32, keys transposed: once for all panels of a task.

use half::bf16;

use super::lanes::AttentionLanes;
use super::page::{BLOCK, KvDtype, KvPage, TILE, ZERO};
use super::task::{KEYS, Piece};
use super::{Attention, Qkv};

/// Qkv of the pass itself; `span_start` is the row of the span's first token.
#[inline(always)]
pub(super) unsafe fn new_rows<L: AttentionLanes>(
    rows: &Qkv<'_>,
    args: &Attention<'_>,
    piece: &Piece,
    span_start: usize,
    kv_head: usize,
    k: &mut [f32],
    v: &mut [f32],
) {
    let (stride, d) = (args.kv_heads * args.head_dim, args.head_dim);
    let at = (span_start + piece.first_row) * stride + kv_head * d;
    // SAFETY: `check` has seen that the rows of all spans are there.
    unsafe { float_rows::<L>(&rows.k[at..], &rows.v[at..], stride, piece.lanes.end, d, k, v) }
}

/// Qkv of a page. Lanes before those wanted are unpacked too.
#[inline(always)]
pub(super) unsafe fn page<L: AttentionLanes>(
    page: &KvPage,
    head: usize,
    piece: &Piece,
    k: &mut [f32],
    v: &mut [f32],
) {
    let (d, n) = (page.head_dim, piece.lanes.end);
    let at = (head * page.rows + piece.first_row) * d;
    let whole = piece.first_row + n <= page.rows / TILE * TILE;
    // SAFETY: `check` has seen the page; `n` rows from `first_row` are in it, as whole tiles if `whole`.
    unsafe {
        match page.dtype {
            KvDtype::F32 => float_rows::<L>(&page.k_as()[at..], &page.v_as()[at..], d, n, d, k, v),
            _ if !whole => read_rows(page, head, piece, k, v),
            KvDtype::Bf16 => {
                bf16_keys::<L>(&page.k_as()[at..], n, d, k);
                bf16_values::<L>(&page.v_as()[at..], n, d, v);
            }
            KvDtype::Q8_0 => {
                let scales_at = head * (d / BLOCK) * page.rows + piece.first_row;
                q8_keys::<L>(&page.k_as()[at..], &page.k_scales()[scales_at..], page.rows, n, d, k);
                q8_values::<L>(&page.v_as()[at..], &page.v_scales()[scales_at..], page.rows, n, d, v);
            }
        }
    }
}

/// `n` rows that stand `stride` apart.
#[inline(always)]
unsafe fn float_rows<L: AttentionLanes>(
    from_k: &[f32],
    from_v: &[f32],
    stride: usize,
    n: usize,
    d: usize,
    k: &mut [f32],
    v: &mut [f32],
) {
    let columns = d.next_multiple_of(TILE);
    let (squares_n, squares_d) = (n / L::N * L::N, d / L::N * L::N);
    for row in (0..squares_n).step_by(L::N) {
        for i in (0..squares_d).step_by(L::N) {
            let (from, to) = (from_k[row * stride + i..].as_ptr(), k[i * KEYS + row..].as_mut_ptr());
            // SAFETY: N rows of N elements are there on both sides.
            unsafe { L::transpose(from, stride, to, KEYS) }
        }
    }
    for row in 0..n {
        let from = &from_k[row * stride..][..d];
        for i in if row < squares_n { squares_d } else { 0 }..d {
            k[i * KEYS + row] = from[i];
        }
        v[row * columns..][..d].copy_from_slice(&from_v[row * stride..][..d]);
    }
}

/// The narrow tile at a page's end, one by one.
fn read_rows(page: &KvPage, head: usize, piece: &Piece, k: &mut [f32], v: &mut [f32]) {
    let columns = page.head_dim.next_multiple_of(TILE);
    for row in 0..piece.lanes.end {
        page.read(head, piece.first_row + row, |i, key, value| {
            k[i * KEYS + row] = key;
            v[row * columns + i] = value;
        });
    }
}

#[inline(always)]
unsafe fn bf16_keys<L: AttentionLanes>(from: &[bf16], n: usize, d: usize, k: &mut [f32]) {
    for row in (0..n).step_by(L::N) {
        for pair in 0..d / 2 {
            let from = &from[row / TILE * TILE * d + (pair * TILE + row % TILE) * 2..][..2 * L::N];
            let to = &mut k[2 * pair * KEYS + row..][..KEYS + L::N];
            // SAFETY: N pairs, and N elements in two rows of k.
            unsafe {
                let (first, second) = L::load_pairs(from.as_ptr());
                first.store(to.as_mut_ptr());
                second.store(to.as_mut_ptr().add(KEYS));
            }
        }
    }
}

#[inline(always)]
unsafe fn bf16_values<L: AttentionLanes>(from: &[bf16], n: usize, d: usize, v: &mut [f32]) {
    let columns = d.next_multiple_of(TILE);
    for (from, to) in from.chunks_exact(d).zip(v.chunks_exact_mut(columns)).take(n) {
        let whole = d / L::N * L::N;
        for i in (0..whole).step_by(L::N) {
            // SAFETY: N elements from i are there.
            unsafe { L::load_bf16(from[i..].as_ptr()).store(to[i..].as_mut_ptr()) }
        }
        for i in whole..d {
            to[i] = from[i].to_f32();
        }
    }
}

/// Scales `[d / 32][rows]`.
#[inline(always)]
unsafe fn q8_keys<L: AttentionLanes>(
    from: &[u8],
    scales: &[bf16],
    rows: usize,
    n: usize,
    d: usize,
    k: &mut [f32],
) {
    for row in (0..n).step_by(L::N) {
        for block in 0..d / BLOCK {
            let scales = &scales[block * rows + row..][..L::N];
            // SAFETY: N scales; N fours; N elements in four rows of k.
            unsafe {
                let scale = L::load_bf16(scales.as_ptr());
                let zero = scale.mul(L::splat(-f32::from(ZERO)));
                for four in block * (BLOCK / 4)..(block + 1) * (BLOCK / 4) {
                    let from = &from[row / TILE * TILE * d + (four * TILE + row % TILE) * 4..][..4 * L::N];
                    let to = &mut k[4 * four * KEYS + row..][..3 * KEYS + L::N];
                    for (i, codes) in L::load_fours(from.as_ptr()).into_iter().enumerate() {
                        codes.mul_add(scale, zero).store(to.as_mut_ptr().add(i * KEYS));
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn q8_values<L: AttentionLanes>(
    from: &[i8],
    scales: &[bf16],
    rows: usize,
    n: usize,
    d: usize,
    v: &mut [f32],
) {
    for (row, (from, to)) in from.chunks_exact(d).zip(v.chunks_exact_mut(d)).take(n).enumerate() {
        for i in (0..d).step_by(L::N) {
            // SAFETY: d is a multiple of 32, so that N elements from i are there.
            unsafe {
                let scale = L::splat(scales[i / BLOCK * rows + row].to_f32());
                L::load_i8(from[i..].as_ptr()).mul(scale).store(to[i..].as_mut_ptr());
            }
        }
    }
}
