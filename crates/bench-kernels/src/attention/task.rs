//! One task: the rows of some queries and a KV head over some of their keys, piece by piece.
//!
//! A row is a query and one of the heads that share the KV head: row = query · group + head. Eight rows are a panel.
//! Memory belongs to the thread and is kept.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::bf16;

use super::dots;
use super::ints;
use super::kernel::{self, Source};
use super::lanes::{AttentionLanes, exp};
use super::page::{BLOCK, KvDtype, KvPage, TILE};
use super::unpack;
use super::{Attention, KvBlock, KvStore, Plan, Products, Qkv};
use crate::scratch::Lines;
use crate::shared::SharedMut;
use crate::variant::{Variant, dispatch};

/// Keys worked on together.
pub(super) const KEYS: usize = 64;
/// Qkv of a panel.
pub(super) const PANEL: usize = 8;
/// Panels up to which keys and values are not unpacked first, but read from their layout for each panel.
const DIRECT_PANELS: usize = 2;

pub(super) struct Task<'a> {
    args: &'a Attention<'a>,
    rows: &'a Qkv<'a>,
    caches: &'a dyn KvStore,
    plan: Plan,
    kv_head: usize,
    /// Queries, as rows of the span.
    queries: Range<usize>,
    /// Heads that share a KV head.
    group: usize,
    /// Which tasks work on the same rows, and which part of the keys is this one's.
    share: usize,
    key_part: usize,
}

/// Floats that begin on a cache line.
#[derive(Default)]
struct Aligned(Lines);

impl Aligned {
    /// `len` floats, of any value.
    fn get(&mut self, len: usize) -> &mut [f32] {
        let len = len.max(1);
        // SAFETY: there is room for `len` floats, all initialized.
        unsafe { std::slice::from_raw_parts_mut(self.0.get(4 * len), len) }
    }
}

/// A thread's memory.
#[derive(Default)]
struct Memory {
    q: Aligned,
    o: Aligned,
    max: Aligned,
    sum: Aligned,
    scores: Aligned,
    q_pairs: Aligned,
    q_codes: Aligned,
    work: Aligned,
    k: Aligned,
    v: Aligned,
    halves: Aligned,
}

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

/// What the online softmax keeps of each row.
pub(super) struct State<'a> {
    /// Scaled queries `[panels, head_dim, PANEL]`.
    q: &'a mut [f32],
    /// Weighted values so far `[rows, columns]`.
    o: &'a mut [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
    /// Scores, then unnormalized probabilities of the piece `[rows of a panel, KEYS]`.
    scores: &'a mut [f32],
    /// For dot products of bf16, empty without: pairs of the queries' elements `[panels, head_dim / 2, PANEL]`.
    q_pairs: &'a mut [f32],
    /// For products of bytes, empty without: [`ints::query_words`] of each panel.
    q_codes: &'a mut [f32],
    work: &'a mut [f32],
    /// Unpacked keys `[head_dim, KEYS]` and values `[KEYS, columns]`.
    k: &'a mut [f32],
    v: &'a mut [f32],
    /// The same rounded to bf16, as a page has them: KEYS keys, then KEYS values.
    halves: &'a mut [f32],
    /// Qkv, and columns of `o`: `head_dim` up to a multiple of 16.
    rows: usize,
    columns: usize,
}

impl<'a> Task<'a> {
    /// Later queries see more keys; they come first, so that no long task is left for the end.
    pub(super) fn new(
        args: &'a Attention<'a>,
        rows: &'a Qkv<'a>,
        caches: &'a dyn KvStore,
        plan: Plan,
        index: usize,
    ) -> Self {
        let (share, key_part) = (index / plan.key_parts, index % plan.key_parts);
        let (kv_head, query_part) = (share / plan.query_parts, share % plan.query_parts);
        let first = (plan.query_parts - 1 - query_part) * plan.queries;
        let queries = first..(first + plan.queries).min(plan.span.len);
        let group = args.heads / args.kv_heads;
        Self { args, rows, caches, plan, kv_head, queries, group, share, key_part }
    }

    pub(super) fn run(
        &self,
        variant: Variant,
        out: SharedMut<'_, f32>,
        parts: SharedMut<'_, f32>,
        finished: &[AtomicUsize],
    ) {
        MEMORY.with_borrow_mut(|memory| {
            let mut state = self.state(variant, memory);
            attend(variant, self, &mut state);
            if self.plan.key_parts == 1 {
                return self.finish(&state, out);
            }
            self.hand_over(&state, parts);
            let counter = &finished[self.plan.first_counter + self.share];
            // The last of the tasks on these rows sees what the others have written.
            if counter.fetch_add(1, Ordering::AcqRel) + 1 == self.plan.key_parts {
                self.merge(&mut state, parts);
                self.finish(&state, out);
            }
        });
    }

    fn state<'m>(&self, variant: Variant, memory: &'m mut Memory) -> State<'m> {
        let (group, d) = (self.group, self.args.head_dim);
        let (rows, columns) = (self.queries.len() * group, d.next_multiple_of(TILE));
        let padded = rows.next_multiple_of(PANEL);
        let q = memory.q.get(padded * d);
        let q_pairs = self.query_pairs(variant, &mut memory.q_pairs, padded);
        let q_codes = self.query_codes(variant, &mut memory.q_codes, rows);
        // Nothing is computed with the queries themselves where there are pairs.
        let filled = if q_pairs.is_empty() { padded * d } else { 0 };
        q[..filled].fill(0.0);
        for (i, query) in self.queries.clone().enumerate().filter(|_| filled > 0) {
            let first = ((self.plan.span.start + query) * self.args.heads + self.kv_head * group) * d;
            for head in 0..group {
                let row = i * group + head;
                let panel = &mut q[row / PANEL * PANEL * d + row % PANEL..];
                for (to, q) in panel.iter_mut().step_by(PANEL).zip(&self.rows.q[first + head * d..][..d]) {
                    *to = q * self.args.scale;
                }
            }
        }
        let (max, sum, o) = (memory.max.get(padded), memory.sum.get(padded), memory.o.get(padded * columns));
        max[..padded].fill(f32::NEG_INFINITY);
        sum[..padded].fill(0.0);
        o[..padded * columns].fill(0.0);
        // A sink starts the sum as a key with value zero would.
        if let Some(sinks) = self.args.sinks.filter(|_| self.key_part == 0) {
            for row in 0..rows {
                (max[row], sum[row]) = (sinks[self.kv_head * group + row % group], 1.0);
            }
        }
        let (k, v) = (memory.k.get(d * KEYS), memory.v.get(KEYS * columns));
        let halves = memory.halves.get(if q_pairs.is_empty() { 0 } else { d * KEYS });
        let (scores, work) = (memory.scores.get(PANEL * KEYS), memory.work.get(ints::WORK));
        State { q, o, max, sum, scores, q_pairs, q_codes, work, k, v, halves, rows, columns }
    }

    /// The queries for dot products of bf16; nothing where they do not serve.
    fn query_pairs<'m>(&self, variant: Variant, memory: &'m mut Aligned, padded: usize) -> &'m mut [f32] {
        let (group, d) = (self.group, self.args.head_dim);
        let rounded = self.args.products != Products::F32 && variant.has_bf16();
        let len = if rounded && d.is_multiple_of(2 * TILE) { padded * d / 2 } else { 0 };
        let pairs = &mut memory.get(len)[..len];
        pairs.fill(0.0);
        for row in 0..if len > 0 { self.queries.len() * group } else { 0 } {
            let query = self.plan.span.start + self.queries.start + row / group;
            let first = (query * self.args.heads + self.kv_head * group + row % group) * d;
            let to = &mut pairs[row / PANEL * PANEL * d / 2 + row % PANEL..];
            dots::put_query(&self.rows.q[first..first + d], to);
        }
        pairs
    }

    /// The queries for products of bytes; nothing where they do not serve.
    fn query_codes<'m>(&self, variant: Variant, memory: &'m mut Aligned, rows: usize) -> &'m mut [f32] {
        let (group, d, span) = (self.group, self.args.head_dim, &self.plan.span);
        let Some(bytes) = self.code_bytes() else { return &mut [] };
        // Of the whole span, so that its last queries are not computed in another way than the others.
        let few = span.len * group <= DIRECT_PANELS * PANEL;
        let q8 = self.caches.blocks(span.sequence) > 0
            && self.caches.block(span.sequence, 0).page.dtype == KvDtype::Q8_0;
        if !few || !q8 || variant != Variant::Avx512 {
            return &mut [];
        }
        let words = ints::query_words(d, bytes);
        let len = rows.div_ceil(PANEL) * words;
        let codes = &mut memory.get(len)[..len];
        codes.fill(0.0);
        for row in 0..rows {
            let query = span.start + self.queries.start + row / group;
            let first = (query * self.args.heads + self.kv_head * group + row % group) * d;
            let panel = &mut codes[row / PANEL * words..][..words];
            ints::put_query(&self.rows.q[first..first + d], self.args.scale, bytes, row % PANEL, panel);
        }
        codes
    }

    /// Bytes of a whole number.
    fn code_bytes(&self) -> Option<usize> {
        match self.args.products {
            Products::F32 => None,
            Products::Bits16 => Some(2),
            Products::Bits8 => Some(1),
        }
    }

    /// Positions that the query of `row` sees.
    fn visible(&self, row: usize) -> Range<usize> {
        let position = self.plan.span.past + self.queries.start + row / self.group;
        self.args.window.map_or(0, |w| (position + 1).saturating_sub(w))..position + 1
    }

    /// Positions that any of the rows sees.
    fn visible_to_any(&self, rows: Range<usize>) -> Range<usize> {
        self.visible(rows.start).start..self.visible(rows.end - 1).end
    }

    /// The lanes that each of some rows sees; all of a piece in most.
    fn lanes(&self, rows: Range<usize>, piece: &Piece, seen: &Range<usize>) -> [(usize, usize); PANEL] {
        let by_all = self.visible(rows.end - 1).start..self.visible(rows.start).end;
        let mut lanes = [(seen.start, seen.end); PANEL];
        if piece.seen(&by_all) != *seen {
            for (row, lanes) in rows.zip(&mut lanes) {
                let own = piece.seen(&self.visible(row));
                *lanes = (own.start, own.end);
            }
        }
        lanes
    }

    /// Positions that are this task's.
    fn keys(&self, rows: usize) -> Range<usize> {
        let seen = self.visible_to_any(0..rows);
        if self.plan.key_parts == 1 {
            return seen;
        }
        let first = self.plan.first_key + self.key_part * self.plan.split;
        seen.start.max(first)..seen.end.min(first + self.plan.split)
    }

    /// Stores the state as a part, for `merge`.
    fn hand_over(&self, state: &State<'_>, parts: SharedMut<'_, f32>) {
        let d = self.args.head_dim;
        // SAFETY: a part belongs to one task until the counter says that all have finished.
        let part = unsafe { parts.slice(self.part(self.key_part)) };
        let (o, rest) = part.split_at_mut(state.rows * d);
        for (to, o) in o.chunks_exact_mut(d).zip(state.o.chunks_exact(state.columns)) {
            to.copy_from_slice(&o[..d]);
        }
        rest[..state.rows].copy_from_slice(&state.max[..state.rows]);
        rest[state.rows..2 * state.rows].copy_from_slice(&state.sum[..state.rows]);
    }

    fn part(&self, key_part: usize) -> Range<usize> {
        let at = self.plan.first_part + (self.share * self.plan.key_parts + key_part) * self.plan.part_len;
        at..at + self.plan.part_len
    }

    /// Takes all parts together, in the order of their keys.
    fn merge(&self, state: &mut State<'_>, parts: SharedMut<'_, f32>) {
        let (rows, d) = (state.rows, self.args.head_dim);
        // SAFETY: all tasks on these rows have finished, and only the last of them comes here.
        let part = |i| unsafe { &*parts.slice(self.part(i)) };
        state.max[..rows].fill(f32::NEG_INFINITY);
        state.sum[..rows].fill(0.0);
        state.o[..rows * state.columns].fill(0.0);
        for i in 0..self.plan.key_parts {
            for (max, m) in state.max[..rows].iter_mut().zip(&part(i)[rows * d..]) {
                *max = if *m > *max { *m } else { *max };
            }
        }
        for i in 0..self.plan.key_parts {
            let (o, rest) = part(i).split_at(rows * d);
            let (maxima, sums) = rest.split_at(rows);
            for row in 0..rows {
                let weight = exp(maxima[row] - state.max[row]);
                state.sum[row] += weight * sums[row];
                let to = &mut state.o[row * state.columns..][..d];
                for (to, o) in to.iter_mut().zip(&o[row * d..]) {
                    *to += weight * o;
                }
            }
        }
    }

    fn finish(&self, state: &State<'_>, out: SharedMut<'_, f32>) {
        let (group, d) = (self.group, self.args.head_dim);
        for (i, query) in self.queries.clone().enumerate() {
            let at = ((self.plan.span.start + query) * self.args.heads + self.kv_head * group) * d;
            // SAFETY: each query and head belongs to one group of tasks, of which one comes here.
            let out = unsafe { out.slice(at..at + group * d) };
            for (head, out) in out.chunks_exact_mut(d).enumerate() {
                let row = i * group + head;
                let inverse = 1.0 / state.sum[row];
                for (out, o) in out.iter_mut().zip(&state.o[row * state.columns..]) {
                    *out = o * inverse;
                }
            }
        }
    }
}

dispatch! { fn attend(task: &Task<'_>, state: &mut State<'_>) = attend_body }

#[inline(always)]
unsafe fn attend_body<L: AttentionLanes>(task: &Task<'_>, state: &mut State<'_>) {
    let wanted = task.keys(state.rows);
    let sequence = task.plan.span.sequence;
    for index in 0..task.caches.blocks(sequence) {
        let block = task.caches.block(sequence, index);
        let from = wanted.start.max(block.first_position);
        let to = wanted.end.min(block.first_position + block.len);
        if from >= to {
            continue;
        }
        let row = |position: usize| position - block.first_position + block.first_row;
        let (mut at, end) = (row(from), row(to));
        while at < end {
            let piece = Piece::of_block(&block, at, end);
            // SAFETY: `check` has seen the page; `dispatch!` enables the instructions.
            unsafe { cached::<L>(task, state, &block, &piece) };
            at = piece.first_row + piece.lanes.end;
        }
    }
    let past = task.plan.span.past;
    let mut at = wanted.start.max(past);
    while at < wanted.end {
        let piece = Piece { first_row: at - past, lanes: 0..KEYS.min(wanted.end - at), position: at };
        // SAFETY: as above.
        unsafe {
            unpack::new_rows::<L>(
                task.rows,
                task.args,
                &piece,
                task.plan.span.start,
                task.kv_head,
                state.k,
                state.v,
            );
            unpacked::<L>(task, state, &piece);
        }
        at += KEYS;
    }
}

/// Qkv that are worked on together.
pub(super) struct Piece {
    /// The row in lane 0; it may lie before those wanted, where a tile begins.
    pub(super) first_row: usize,
    /// Lanes of wanted rows.
    pub(super) lanes: Range<usize>,
    /// Position of the first wanted lane.
    position: usize,
}

impl Piece {
    /// From row `at`, ending at row `end` or before. Whole tiles, or the narrow last one of the page.
    fn of_block(block: &KvBlock<'_>, at: usize, end: usize) -> Self {
        let whole = block.page.rows / TILE * TILE;
        let (first_row, limit) = match block.page.dtype {
            KvDtype::F32 => (at, end),
            _ if at < whole => (at / TILE * TILE, end.min(whole)),
            _ => (whole, end),
        };
        let lanes = at - first_row..KEYS.min(limit - first_row);
        Self { first_row, lanes, position: at - block.first_row + block.first_position }
    }

    /// The lanes that a row sees.
    fn seen(&self, visible: &Range<usize>) -> Range<usize> {
        let lane = |position: usize| {
            (self.lanes.start + position.saturating_sub(self.position))
                .clamp(self.lanes.start, self.lanes.end)
        };
        lane(visible.start)..lane(visible.end)
    }
}

/// A piece of a page.
#[inline(always)]
unsafe fn cached<L: AttentionLanes>(
    task: &Task<'_>,
    state: &mut State<'_>,
    block: &KvBlock<'_>,
    piece: &Piece,
) {
    let (page, d) = (block.page, task.args.head_dim);
    let panels = state.rows.div_ceil(PANEL);
    let narrow = piece.first_row + piece.lanes.end > page.rows / TILE * TILE;
    // SAFETY: the rows of the piece are in the page, and whole tiles where the layout has tiles.
    unsafe {
        let direct = page.dtype == KvDtype::Bf16 && !narrow && d.is_multiple_of(2 * TILE);
        let by_dots = !state.q_pairs.is_empty();
        if direct && (by_dots || panels <= DIRECT_PANELS) {
            let at = (task.kv_head * page.rows + piece.first_row) * d;
            let (k, v) = (page.k_as::<bf16>().as_ptr().add(at), page.v_as::<bf16>().as_ptr().add(at));
            if by_dots {
                panels_by_dots(task, state, piece, k, v);
            } else {
                panels_of::<L>(task, state, piece, Source::Bf16 { k, v });
            }
        } else if page.dtype == KvDtype::Q8_0 && !narrow && !state.q_codes.is_empty() {
            panels_by_codes(task, state, piece, page);
        } else {
            unpack::page::<L>(page, task.kv_head, piece, state.k, state.v);
            unpacked::<L>(task, state, piece);
        }
    }
}

/// A piece whose keys and values were unpacked.
#[inline(always)]
unsafe fn unpacked<L: AttentionLanes>(task: &Task<'_>, state: &mut State<'_>, piece: &Piece) {
    let (k, v) = (state.k.as_ptr(), state.v.as_ptr());
    if state.q_pairs.is_empty() {
        // SAFETY: KEYS keys and values stand there.
        return unsafe { panels_of::<L>(task, state, piece, Source::Unpacked { k, v }) };
    }
    let (d, rows) = (task.args.head_dim, piece.lanes.end);
    let k = state.halves.as_mut_ptr().cast::<bf16>();
    // SAFETY: pairs of queries say that there is BF16, that d is a multiple of 32, and room for KEYS rows of each.
    unsafe {
        let v = k.add(KEYS * d);
        dots::round(state.k, state.v, d, rows, (k, v));
        panels_by_dots(task, state, piece, k, v);
    }
}

/// All panels over one piece.
#[inline(always)]
unsafe fn panels_of<L: AttentionLanes>(
    task: &Task<'_>,
    state: &mut State<'_>,
    piece: &Piece,
    source: Source,
) {
    let (d, columns) = (task.args.head_dim, state.columns);
    for first in (0..state.rows).step_by(PANEL) {
        let rows = PANEL.min(state.rows - first);
        let seen = piece.seen(&task.visible_to_any(first..first + rows));
        if seen.is_empty() {
            continue;
        }
        // SAFETY: panels are padded to whole ones in q and o; lanes lie below KEYS.
        unsafe {
            let (q, o) = (state.q.as_ptr().add(first * d), state.o.as_mut_ptr().add(first * columns));
            let scores = state.scores.as_mut_ptr();
            let shape = kernel::Shape { rows, d, columns };
            kernel::scores::<L>(&shape, source, q, scores, seen.end);
            for row in 0..rows {
                let lanes = piece.seen(&task.visible(first + row));
                let (max, sum) = (&mut state.max[first + row], &mut state.sum[first + row]);
                let (scores, o) = (scores.add(row * KEYS), o.add(row * columns));
                kernel::softmax::<L>(scores, lanes, seen.end, max, sum, o, columns);
            }
            kernel::values::<L>(&shape, source, scores, o, seen);
        }
    }
}

/// All panels over a piece of whole tiles, by dot products of bf16.
unsafe fn panels_by_dots(
    task: &Task<'_>,
    state: &mut State<'_>,
    piece: &Piece,
    k: *const bf16,
    v: *const bf16,
) {
    let (d, columns) = (task.args.head_dim, state.columns);
    for first in (0..state.rows).step_by(PANEL) {
        let rows = PANEL.min(state.rows - first);
        let seen = piece.seen(&task.visible_to_any(first..first + rows));
        if seen.is_empty() {
            continue;
        }
        let lanes = task.lanes(first..first + rows, piece, &seen);
        // SAFETY: panels are padded to whole ones; the caller gives whole tiles.
        unsafe {
            dots::attend(&dots::Panel {
                shape: kernel::Shape { rows, d, columns },
                k,
                v,
                q: state.q_pairs.as_ptr().cast::<u32>().add(first * d / 2),
                scale: task.args.scale,
                scores: state.scores.as_mut_ptr(),
                p: state.work.as_mut_ptr().cast(),
                o: state.o.as_mut_ptr().add(first * columns),
                max: state.max.as_mut_ptr().add(first),
                sum: state.sum.as_mut_ptr().add(first),
                seen,
                lanes,
            });
        }
    }
}

/// All panels over a piece of whole tiles of a `Q8_0` page, by products of bytes.
unsafe fn panels_by_codes(task: &Task<'_>, state: &mut State<'_>, piece: &Piece, page: &KvPage) {
    let (d, columns, bytes) = (task.args.head_dim, state.columns, task.code_bytes().unwrap_or(1));
    let at = (task.kv_head * page.rows + piece.first_row) * d;
    let scales_at = task.kv_head * (d / BLOCK) * page.rows + piece.first_row;
    for first in (0..state.rows).step_by(PANEL) {
        let rows = PANEL.min(state.rows - first);
        let seen = piece.seen(&task.visible_to_any(first..first + rows));
        if seen.is_empty() {
            continue;
        }
        let lanes = task.lanes(first..first + rows, piece, &seen);
        // SAFETY: panels are padded to whole ones; the caller gives whole tiles; codes say that there is VNNI.
        unsafe {
            ints::attend(&ints::Panel {
                shape: kernel::Shape { rows, d, columns },
                k: page.k_as::<u8>().as_ptr().add(at),
                k_scales: page.k_scales().as_ptr().add(scales_at),
                v: page.v_as::<i8>().as_ptr().add(at),
                v_scales: page.v_scales().as_ptr().add(scales_at),
                page_rows: page.rows,
                query: state.q_codes.as_ptr().add(first / PANEL * ints::query_words(d, bytes)),
                bytes,
                scores: state.scores.as_mut_ptr(),
                work: state.work.as_mut_ptr(),
                o: state.o.as_mut_ptr().add(first * columns),
                max: state.max.as_mut_ptr().add(first),
                sum: state.sum.as_mut_ptr().add(first),
                seen,
                lanes,
            });
        }
    }
}
