//! Panels over whole tiles of a `Q8_0` cache for few queries, by products of bytes (AVX-512 VNNI).
//!
//! Queries and probabilities become whole numbers of one byte or two: of a query with one scale, of probabilities with
//! one for a piece and 32 columns, relative to the largest of the piece, so that a peak elsewhere does not round a
//! long tail away. Scales of values are multiplied into the probabilities. Sums of a piece are exact.

use std::ops::Range;

use half::bf16;

use super::kernel::Shape;
use super::page::{BLOCK, ZERO};
use super::task::PANEL;

/// Words that a panel needs beside its scores.
pub(super) const WORK: usize = 2048;

/// A panel over whole tiles.
pub(super) struct Panel {
    pub(super) shape: Shape,
    /// Tiles, and scales of their rows; values, and scales.
    pub(super) k: *const u8,
    pub(super) k_scales: *const bf16,
    pub(super) v: *const i8,
    pub(super) v_scales: *const bf16,
    /// Scales of a block and the next are as far apart.
    pub(super) page_rows: usize,
    /// What [`put_query`] wrote for the panel.
    pub(super) query: *const f32,
    /// Bytes of a number: 1 or 2.
    pub(super) bytes: usize,
    pub(super) scores: *mut f32,
    /// Room for [`WORK`] words.
    pub(super) work: *mut f32,
    /// `[PANEL, columns]`, and what goes with each row.
    pub(super) o: *mut f32,
    pub(super) max: *mut f32,
    pub(super) sum: *mut f32,
    /// Lanes that any row sees, and that each row sees.
    pub(super) seen: Range<usize>,
    pub(super) lanes: [(usize, usize); PANEL],
}

/// Words of a panel's queries: fours of codes `[bytes][d / 4][PANEL]`, what each block's sum begins with
/// `[d / 32][PANEL]`, scales `[PANEL]`.
pub(super) fn query_words(d: usize, bytes: usize) -> usize {
    PANEL * (bytes * d / 4 + d / BLOCK + 1)
}

/// Takes a query into its row of a panel.
pub(super) fn put_query(q: &[f32], scale: f32, bytes: usize, row: usize, panel: &mut [f32]) {
    /// 1.5 · 2^23: adding it rounds to an integer, which then stands in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let d = q.len();
    let most: f32 = if bytes == 2 { 127.0 * 256.0 } else { 127.0 };
    let largest = q.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let inverse = if largest >= f32::MIN_POSITIVE * most { most / largest } else { 0.0 };
    let (codes, rest) = panel.split_at_mut(PANEL * bytes * d / 4);
    let (starts, scales) = rest.split_at_mut(PANEL * d / BLOCK);
    for (block, q) in q.chunks_exact(BLOCK).enumerate() {
        let mut sum = 0;
        for (four, q) in q.chunks_exact(4).enumerate() {
            let at = (block * BLOCK / 4 + four) * PANEL + row;
            let (mut high, mut low) = ([0; 4], [0; 4]);
            for (i, q) in q.iter().enumerate() {
                let code = (q * inverse + MAGIC).to_bits().cast_signed() - MAGIC.to_bits().cast_signed();
                sum += code;
                let upper = (code + 128) >> 8;
                (high[i], low[i]) = (upper as u8, (code - (upper << 8)) as u8);
            }
            if bytes == 2 {
                codes[at] = f32::from_bits(u32::from_le_bytes(high));
            }
            codes[at + (bytes - 1) * PANEL * d / 4] = f32::from_bits(u32::from_le_bytes(low));
        }
        // Codes of keys are stored with `ZERO` added.
        starts[block * PANEL + row] = f32::from_bits((-i32::from(ZERO) * sum).cast_unsigned());
    }
    // Not a number where a query is not, so that it shows.
    let finite = q.iter().fold(0.0, |s, q| s + q * 0.0);
    scales[row] = scale * largest / most + finite;
}

/// # Safety
/// AVX-512 with VNNI; memory as the fields of the panel say.
pub(super) unsafe fn attend(panel: &Panel) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's.
    unsafe {
        if panel.bytes == 2 { x86::attend_2(panel) } else { x86::attend_1(panel) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = panel;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    // The names carry their origin; a list of thirty would say nothing more.
    #[allow(clippy::wildcard_imports)]
    use std::arch::x86_64::*;

    use half::bf16;

    use super::Panel;
    use crate::attention::exp2::{self, Exp};
    use crate::attention::lanes::exp;
    use crate::attention::page::{BLOCK, TILE};
    use crate::attention::task::{KEYS, PANEL};

    /// Rows whose sums stand in registers.
    const ROWS: usize = 4;
    /// Keys of a tile in the order in which `codes` leaves its words.
    const ORDER: [usize; TILE] = [0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15];
    /// Where things stand in the work memory: pairs of probabilities `[bytes][PANEL][16][2 blocks]`, values
    /// `[2][16][2][16 words]`, factors of probabilities `[2 blocks][KEYS]`.
    const VALUES: usize = 2 * PANEL * 2 * TILE;
    const FACTORS: usize = VALUES + KEYS * TILE;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")]
    pub(super) unsafe fn attend_1(panel: &Panel) {
        // SAFETY: the instructions are enabled here; the rest is the caller's.
        unsafe { attend::<1>(panel) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")]
    pub(super) unsafe fn attend_2(panel: &Panel) {
        // SAFETY: as above.
        unsafe { attend::<2>(panel) }
    }

    #[inline(always)]
    unsafe fn attend<const B: usize>(panel: &Panel) {
        // SAFETY: the caller's.
        unsafe {
            scores::<B>(panel);
            let mut factors = [0.0; PANEL];
            for (row, factor) in factors.iter_mut().enumerate().take(panel.shape.rows) {
                *factor = probabilities(panel, row);
            }
            for column in (0..panel.shape.d).step_by(2 * BLOCK) {
                columns::<B>(panel, column, &factors);
            }
        }
    }

    /// 16 scales.
    #[inline(always)]
    unsafe fn load_scales(from: *const bf16) -> __m512 {
        // SAFETY: 16 readable scales.
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }

    /// The sum of products with high and low bytes.
    #[inline(always)]
    unsafe fn joined<const B: usize>(parts: [__m512i; B]) -> __m512 {
        // SAFETY: the instructions are enabled.
        unsafe {
            let mut sum = parts[B - 1];
            if B == 2 {
                sum = _mm512_add_epi32(sum, _mm512_slli_epi32::<8>(parts[0]));
            }
            _mm512_cvtepi32_ps(sum)
        }
    }

    #[inline(always)]
    unsafe fn scores<const B: usize>(panel: &Panel) {
        // SAFETY: tiles up to the last seen lane are there; two tiles of scores never end beyond KEYS.
        unsafe {
            for key in (0..panel.seen.end).step_by(2 * TILE) {
                // The second tile may lie beyond the page: it is then the first once more.
                let other = if key + TILE < panel.seen.end { key + TILE } else { key };
                for row in (0..panel.shape.rows).step_by(ROWS) {
                    scores_of::<B>(panel, [key, other], row);
                }
            }
        }
    }

    /// Two tiles of scores of some rows.
    #[inline(always)]
    unsafe fn scores_of<const B: usize>(panel: &Panel, keys: [usize; 2], row: usize) {
        let d = panel.shape.d;
        // SAFETY: as above; the panel has whole groups of rows.
        unsafe {
            let starts = panel.query.add(PANEL * B * d / 4);
            let scales = starts.add(PANEL * d / BLOCK);
            let (first, second) = (panel.k.add(keys[0] * d), panel.k.add(keys[1] * d));
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            for block in 0..d / BLOCK {
                let mut parts = [[[_mm512_setzero_si512(); B]; 2]; ROWS];
                for (r, parts) in parts.iter_mut().enumerate() {
                    let start = _mm512_castps_si512(_mm512_set1_ps(*starts.add(block * PANEL + row + r)));
                    (parts[0][B - 1], parts[1][B - 1]) = (start, start);
                }
                for four in block * (BLOCK / 4)..(block + 1) * (BLOCK / 4) {
                    let a = _mm512_loadu_si512(first.add(four * 4 * TILE).cast());
                    let b = _mm512_loadu_si512(second.add(four * 4 * TILE).cast());
                    if row == 0 {
                        exp2::prefetch(first.add(four * 4 * TILE));
                        exp2::prefetch(second.add(four * 4 * TILE));
                    }
                    for (r, parts) in parts.iter_mut().enumerate() {
                        let [first, second] = parts;
                        for (byte, (first, second)) in first.iter_mut().zip(second).enumerate() {
                            let at = panel.query.add((byte * d / 4 + four) * PANEL + row + r);
                            let q = _mm512_castps_si512(_mm512_set1_ps(*at));
                            *first = _mm512_dpbusd_epi32(*first, a, q);
                            *second = _mm512_dpbusd_epi32(*second, b, q);
                        }
                    }
                }
                let of_block = panel.k_scales.add(block * panel.page_rows);
                let (a, b) = (load_scales(of_block.add(keys[0])), load_scales(of_block.add(keys[1])));
                for (sums, parts) in sums.iter_mut().zip(&parts) {
                    sums[0] = _mm512_fmadd_ps(joined(parts[0]), a, sums[0]);
                    sums[1] = _mm512_fmadd_ps(joined(parts[1]), b, sums[1]);
                }
            }
            for (r, sums) in sums.into_iter().enumerate() {
                let scale = _mm512_set1_ps(*scales.add(row + r));
                let to = panel.scores.add((row + r) * KEYS + keys[0]);
                _mm512_storeu_ps(to, _mm512_mul_ps(sums[0], scale));
                _mm512_storeu_ps(to.add(TILE), _mm512_mul_ps(sums[1], scale));
            }
        }
    }

    /// Turns a row's scores into exp(score − the largest of the piece); returns what these are to be multiplied with.
    #[inline(always)]
    unsafe fn probabilities(panel: &Panel, row: usize) -> f32 {
        let (end, columns) = (panel.seen.end.next_multiple_of(TILE), panel.shape.columns);
        let lanes = panel.lanes[row].0..panel.lanes[row].1;
        // SAFETY: the memory of the row; `end` is at most KEYS.
        unsafe {
            let scores = panel.scores.add(row * KEYS);
            let (max, sum) = (&mut *panel.max.add(row), &mut *panel.sum.add(row));
            if lanes.is_empty() {
                std::ptr::write_bytes(scores, 0, end);
                return 0.0;
            }
            let largest = _mm512_reduce_max_ps(exp2::mask(scores, lanes, end));
            let mut factor = 1.0;
            if largest > *max {
                exp2::shrink(exp(*max - largest), sum, panel.o.add(row * columns), columns);
                *max = largest;
            } else {
                factor = exp(largest - *max);
            }
            let exp = Exp::of(largest);
            let mut total = _mm512_setzero_ps();
            for at in (0..end).step_by(TILE) {
                let p = exp.of_scores(_mm512_loadu_ps(scores.add(at)));
                total = _mm512_add_ps(total, p);
                _mm512_storeu_ps(scores.add(at), p);
            }
            *sum += factor * _mm512_reduce_add_ps(total);
            factor
        }
    }

    /// Two blocks of columns from `column`, or the last one.
    #[inline(always)]
    unsafe fn columns<const B: usize>(panel: &Panel, column: usize, factors: &[f32; PANEL]) {
        let blocks = if column + 2 * BLOCK <= panel.shape.d { 2 } else { 1 };
        // SAFETY: the caller's.
        unsafe {
            let steps = weigh::<B>(panel, column / BLOCK, blocks);
            for row in 0..panel.shape.rows {
                codes::<B>(panel, row, blocks);
            }
            interleave(panel, column, blocks);
            for half in 0..2 {
                let column = column + half * TILE;
                if B == 1 && panel.shape.rows > ROWS {
                    values::<B, PANEL>(panel, column, blocks, 0, half, &steps, factors);
                    continue;
                }
                for row in (0..panel.shape.rows).step_by(ROWS) {
                    values::<B, ROWS>(panel, column, blocks, row, half, &steps, factors);
                }
            }
        }
    }

    /// Factors that turn probabilities into codes of probability × scale of the value, for each block; returns what a
    /// step of these codes is worth.
    #[inline(always)]
    unsafe fn weigh<const B: usize>(panel: &Panel, block: usize, blocks: usize) -> [f32; 2] {
        let levels: f32 = if B == 2 { 65_280.0 } else { 255.0 };
        let mut steps = [0.0; 2];
        for (i, step) in steps.iter_mut().enumerate().take(blocks) {
            // SAFETY: scales of whole tiles up to the last seen lane.
            unsafe {
                let scales = panel.v_scales.add((block + i) * panel.page_rows);
                let to = panel.work.add(FACTORS + i * KEYS);
                let mut largest = _mm512_setzero_ps();
                for at in (0..panel.seen.end).step_by(TILE) {
                    largest = _mm512_max_ps(largest, load_scales(scales.add(at)));
                }
                let largest = _mm512_reduce_max_ps(largest);
                let factor = _mm512_set1_ps(if largest > 0.0 { levels / largest } else { 0.0 });
                for at in (0..panel.seen.end).step_by(TILE) {
                    _mm512_storeu_ps(to.add(at), _mm512_mul_ps(load_scales(scales.add(at)), factor));
                }
                *step = largest / levels;
            }
        }
        steps
    }

    /// A row's codes: bytes of the keys i, 16 + i, 32 + i and 48 + i together, and two blocks beside each other.
    #[inline(always)]
    unsafe fn codes<const B: usize>(panel: &Panel, row: usize, blocks: usize) {
        // SAFETY: scores and factors up to the last seen tile; the row's place in the work memory.
        unsafe {
            let mut words = [[_mm512_setzero_si512(); 2]; B];
            #[allow(clippy::needless_range_loop)] // the block is more than an index of words
            for block in 0..blocks {
                let mut c = [_mm512_setzero_si512(); 4];
                for (tile, c) in c.iter_mut().enumerate().take(panel.seen.end.div_ceil(TILE)) {
                    let p = _mm512_loadu_ps(panel.scores.add(row * KEYS + tile * TILE));
                    let factor = _mm512_loadu_ps(panel.work.add(FACTORS + block * KEYS + tile * TILE));
                    *c = _mm512_cvtps_epi32(_mm512_mul_ps(p, factor));
                }
                if B == 2 {
                    let high = [
                        _mm512_srli_epi32::<8>(c[0]),
                        c[1],
                        _mm512_slli_epi32::<8>(c[2]),
                        _mm512_slli_epi32::<16>(c[3]),
                    ];
                    words[0][block] = bytes_of(high);
                }
                let low = [
                    c[0],
                    _mm512_slli_epi32::<8>(c[1]),
                    _mm512_slli_epi32::<16>(c[2]),
                    _mm512_slli_epi32::<24>(c[3]),
                ];
                words[B - 1][block] = bytes_of(low);
            }
            for (byte, [a, b]) in words.into_iter().enumerate() {
                let to = panel.work.add((byte * PANEL + row) * 2 * TILE);
                _mm512_storeu_si512(to.cast(), _mm512_unpacklo_epi32(a, b));
                _mm512_storeu_si512(to.add(TILE).cast(), _mm512_unpackhi_epi32(a, b));
            }
        }
    }

    /// The lowest byte of the first, the second of the second, and so on.
    #[inline(always)]
    unsafe fn bytes_of([a, b, c, d]: [__m512i; 4]) -> __m512i {
        /// Bits of the second where those of the third are 1, else of the first.
        const SELECT: i32 = 0xd8;
        // SAFETY: the instructions are enabled.
        unsafe {
            let low = _mm512_ternarylogic_epi32::<SELECT>(a, b, _mm512_set1_epi32(0xff00));
            let high =
                _mm512_ternarylogic_epi32::<SELECT>(c, d, _mm512_set1_epi32(0xff00_0000_u32.cast_signed()));
            _mm512_ternarylogic_epi32::<SELECT>(low, high, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()))
        }
    }

    /// Values in the order of the codes: fours of keys, and two blocks beside each other.
    #[inline(always)]
    unsafe fn interleave(panel: &Panel, column: usize, blocks: usize) {
        let (d, tiles) = (panel.shape.d, panel.seen.end.div_ceil(TILE));
        let mask = if blocks == 2 { u64::MAX } else { 0xffff_ffff };
        // SAFETY: rows of whole tiles up to the last seen lane; codes of other rows are 0.
        unsafe {
            let near = word_order(0);
            let far = word_order(8);
            for (at, i) in ORDER.into_iter().enumerate() {
                let mut rows = [_mm512_setzero_si512(); 4];
                for (tile, row) in rows.iter_mut().enumerate() {
                    let key = if tile < tiles { tile * TILE + i } else { i };
                    let from = panel.v.add(key * d + column);
                    exp2::prefetch(from.cast::<u8>());
                    *row = _mm512_maskz_loadu_epi8(mask, from);
                }
                let [a, b, c, d] = rows;
                let low = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
                let high = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
                for (half, order) in [near, far].into_iter().enumerate() {
                    let to = panel.work.add(VALUES + (half * TILE + at) * 2 * TILE);
                    _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi16(low.0, order, low.1));
                    _mm512_storeu_si512(
                        to.add(TILE).cast(),
                        _mm512_permutex2var_epi16(high.0, order, high.1),
                    );
                }
            }
        }
    }

    /// Words w of both, those of the other block w + 16 of both, and so on for 8 words from `first`.
    #[inline(always)]
    unsafe fn word_order(first: u16) -> __m512i {
        let mut order = [0_u16; 32];
        for (i, fours) in order.chunks_exact_mut(4).enumerate() {
            let word = first + i as u16;
            fours.copy_from_slice(&[word, 32 + word, 16 + word, 48 + word]);
        }
        // SAFETY: 64 readable bytes.
        unsafe { _mm512_loadu_si512(order.as_ptr().cast()) }
    }

    /// Weighted values of 16 columns of each block, of some rows.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    unsafe fn values<const B: usize, const R: usize>(
        panel: &Panel,
        column: usize,
        blocks: usize,
        row: usize,
        half: usize,
        steps: &[f32; 2],
        factors: &[f32; PANEL],
    ) {
        // SAFETY: the work memory of whole groups of rows; `o` of those that count.
        unsafe {
            let mut sums = [[[_mm512_setzero_si512(); B]; 2]; R];
            // Read without asking for alignment.
            #[allow(clippy::cast_ptr_alignment)]
            let codes = panel.work.add(row * 2 * TILE).cast::<i64>();
            for at in 0..TILE {
                let from = panel.work.add(VALUES + (half * TILE + at) * 2 * TILE);
                let (a, b) = (_mm512_loadu_si512(from.cast()), _mm512_loadu_si512(from.add(TILE).cast()));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let [first, second] = sums;
                    for (byte, (first, second)) in first.iter_mut().zip(second).enumerate() {
                        let p = codes.add((byte * PANEL + r) * TILE + at).read_unaligned();
                        let p = _mm512_set1_epi64(p);
                        *first = _mm512_dpbusd_epi32(*first, p, a);
                        *second = _mm512_dpbusd_epi32(*second, p, b);
                    }
                }
            }
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            for (r, sums) in sums.into_iter().enumerate().take(panel.shape.rows - row) {
                let (a, b) = (joined(sums[0]), joined(sums[1]));
                let o = panel.o.add((row + r) * panel.shape.columns + column);
                for (block, order) in [even, odd].into_iter().enumerate().take(blocks) {
                    let o = o.add(block * BLOCK);
                    let step = _mm512_set1_ps(steps[block] * factors[row + r]);
                    let new = _mm512_permutex2var_ps(a, order, b);
                    _mm512_storeu_ps(o, _mm512_fmadd_ps(new, step, _mm512_loadu_ps(o)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_a_query_are_what_it_was() {
        let q: Vec<f32> = (0..64).map(|i| ((i * 37) % 64) as f32 / 7.0 - 4.0).collect();
        for (bytes, step) in [(1, 4.0 / 127.0), (2, 4.0 / 32_512.0)] {
            let mut panel = vec![0.0; query_words(64, bytes)];
            put_query(&q, 0.5, bytes, 3, &mut panel);
            let scale = panel[panel.len() - PANEL + 3] / 0.5;
            let codes: Vec<[i8; 4]> =
                panel.iter().map(|w| w.to_bits().to_le_bytes().map(u8::cast_signed)).collect();
            for (i, q) in q.iter().enumerate() {
                let byte = |b: usize| i32::from(codes[(b * 16 + i / 4) * PANEL + 3][i % 4]);
                let code = if bytes == 2 { 256 * byte(0) + byte(1) } else { byte(0) };
                assert!(
                    (code as f32 * scale - q).abs() <= 1.01 * q.abs().max(5.0) / 4.0 * step,
                    "{bytes} {i}"
                );
            }
        }
    }
}
