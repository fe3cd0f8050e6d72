//! Causal attention of one sequence's new queries over cached and new keys, with sinks and a sliding window.
//!
//! Keys come as blocks (cache pages, the two parts of a ring, the chunk itself), so that nothing is gathered.
//! Softmax is online in f32: scores of 64 keys at a time, never a whole row, unless the probabilities are asked for.

use std::ops::Range;

use half::bf16;

use crate::error::{Error, Result, check_len};
use crate::lanes::Lanes;
use crate::matmul::tile;
use crate::shared::{SharedMut, for_ranges};
use crate::variant::{Variant, dispatch};

/// Keys worked on together.
const KEYS: usize = 64;
/// Query rows (queries × heads that share a KV head) worked on together, about.
const QUERY_ROWS: usize = 32;

#[derive(Debug, Clone, Copy)]
pub enum KvData<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl KvData<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::Bf16(data) => data.len(),
        }
    }

    /// Copies `out.len()` elements from `at`, widened.
    fn widen(&self, at: usize, out: &mut [f32]) {
        match self {
            Self::F32(data) => out.copy_from_slice(&data[at..at + out.len()]),
            Self::Bf16(data) => {
                for (out, value) in out.iter_mut().zip(&data[at..]) {
                    *out = f32::from_bits(u32::from(value.to_bits()) << 16);
                }
            }
        }
    }
}

/// Keys and values of consecutive positions; element d of head h and row i stands at `h · head_stride + i · row_stride + d`.
#[derive(Debug, Clone, Copy)]
pub struct KvBlock<'a> {
    pub k: KvData<'a>,
    pub v: KvData<'a>,
    /// Position of the first row in the sequence.
    pub first_position: usize,
    /// Number of rows.
    pub len: usize,
    pub head_stride: usize,
    pub row_stride: usize,
}

#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Factor on q · k.
    pub scale: f32,
    /// Key j is visible to query i iff i − window < j ≤ i.
    pub window: Option<usize>,
    /// One more logit per head, without a value.
    pub sinks: Option<&'a [f32]>,
    /// Position of the first query.
    pub first_query: usize,
}

/// Attends from q `[queries, heads, head_dim]` to all positions in `blocks`; out has the shape of q.
///
/// `probs`, when given, is filled with `[heads, queries, keys (+ 1)]`, keys being all positions up to the last query,
/// and the sink's share last if there are sinks.
pub fn attention(
    args: &Attention<'_>,
    q: &[f32],
    blocks: &[KvBlock<'_>],
    out: &mut [f32],
    probs: Option<&mut [f32]>,
) -> Result<()> {
    attention_with(Variant::active(), args, q, blocks, out, probs)
}

/// `attention` on a chosen instruction set, for tests and measurements.
pub fn attention_with(
    variant: Variant,
    args: &Attention<'_>,
    q: &[f32],
    blocks: &[KvBlock<'_>],
    out: &mut [f32],
    mut probs: Option<&mut [f32]>,
) -> Result<()> {
    let queries = check(args, q, blocks, out)?;
    let prob_columns = args.first_query + queries + usize::from(args.sinks.is_some());
    if let Some(probs) = probs.as_deref_mut() {
        check_len("attention probabilities", probs.len(), args.heads * queries * prob_columns)?;
        probs.fill(0.0);
    }
    let group = args.heads / args.kv_heads;
    let queries_per_task = QUERY_ROWS.div_ceil(group);
    let parts = queries.div_ceil(queries_per_task);
    let shared = (SharedMut::new(out), probs.map(SharedMut::new));
    let keys: usize = blocks.iter().map(|b| b.len).sum();
    let operations = 2 * q.len() * keys;
    for_ranges(args.kv_heads * parts, 1, operations, |tasks| {
        for task in tasks {
            let (kv_head, part) = (task / parts, task % parts);
            let first = part * queries_per_task;
            let range = first..(first + queries_per_task).min(queries);
            let task = Task {
                args,
                q,
                blocks,
                kv_head,
                range,
                queries,
                out: shared.0,
                probs: shared.1,
                prob_columns,
            };
            attend(variant, &task);
        }
    });
    Ok(())
}

/// Checks all sizes that the kernel relies on; returns the number of queries.
fn check(args: &Attention<'_>, q: &[f32], blocks: &[KvBlock<'_>], out: &[f32]) -> Result<usize> {
    if args.kv_heads == 0 || args.heads == 0 || !args.heads.is_multiple_of(args.kv_heads) {
        let expected = "a multiple of the number of kv heads, above zero";
        return Err(Error::Invalid { what: "number of heads", value: args.heads, expected });
    }
    let width = (args.heads * args.head_dim).max(1);
    let queries = q.len() / width;
    check_len("attention queries", q.len(), queries * width)?;
    check_len("attention output", out.len(), q.len())?;
    if let Some(sinks) = args.sinks {
        check_len("attention sinks", sinks.len(), args.heads)?;
    }
    for block in blocks.iter().filter(|b| b.len > 0) {
        let needed =
            (args.kv_heads - 1) * block.head_stride + (block.len - 1) * block.row_stride + args.head_dim;
        for (what, data) in [("attention keys", block.k), ("attention values", block.v)] {
            if data.len() < needed {
                return Err(Error::Length { what, found: data.len(), expected: needed });
            }
        }
    }
    Ok(queries)
}

/// Some queries, for all heads that share one KV head.
struct Task<'a> {
    args: &'a Attention<'a>,
    q: &'a [f32],
    blocks: &'a [KvBlock<'a>],
    kv_head: usize,
    range: Range<usize>,
    queries: usize,
    out: SharedMut<'a, f32>,
    probs: Option<SharedMut<'a, f32>>,
    prob_columns: usize,
}

/// What the online softmax keeps for each row; row = query · group + head.
struct Rows {
    group: usize,
    /// Number of rows, and the same rounded up to the tile's four.
    len: usize,
    padded: usize,
    /// Scaled queries `[padded, head_dim]`.
    q: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<f32>,
    /// Weighted values so far `[padded, head_dim]`.
    o: Vec<f32>,
    /// Scores, then unnormalized probabilities of the current keys `[padded, KEYS]`.
    scores: Vec<f32>,
    /// Keys, then values of the current tile `[KEYS, head_dim]`.
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Rows {
    fn new(task: &Task<'_>) -> Self {
        let args = task.args;
        let (group, d) = (args.heads / args.kv_heads, args.head_dim);
        let len = task.range.len() * group;
        let padded = len.next_multiple_of(4);
        let mut q = vec![0.0; padded * d];
        for (i, query) in task.range.clone().enumerate() {
            let from = (query * args.heads + task.kv_head * group) * d;
            for (to, q) in q[i * group * d..][..group * d].iter_mut().zip(&task.q[from..]) {
                *to = q * args.scale;
            }
        }
        // A sink starts the sum as a key with value zero would.
        let (mut max, mut sum) = (vec![f32::NEG_INFINITY; padded], vec![0.0; padded]);
        if let Some(sinks) = args.sinks {
            for row in 0..len {
                max[row] = sinks[task.kv_head * group + row % group];
                sum[row] = 1.0;
            }
        }
        let o = vec![0.0; padded * d];
        let scores = vec![0.0; padded * KEYS];
        Self { group, len, padded, q, max, sum, o, scores, k: vec![0.0; KEYS * d], v: vec![0.0; KEYS * d] }
    }
}

impl Task<'_> {
    /// Positions that the query of `row` sees.
    fn visible(&self, row: usize, group: usize) -> Range<usize> {
        let position = self.args.first_query + self.range.start + row / group;
        self.args.window.map_or(0, |w| (position + 1).saturating_sub(w))..position + 1
    }

    /// Positions that any query of this task sees.
    fn visible_to_any(&self, group: usize) -> Range<usize> {
        let last_row = (self.range.len() * group).saturating_sub(1);
        self.visible(0, group).start..self.visible(last_row, group).end
    }

    /// Where the probabilities of `row` stand.
    fn prob_row(&self, row: usize, group: usize) -> Range<usize> {
        let head = self.kv_head * group + row % group;
        let start = (head * self.queries + self.range.start + row / group) * self.prob_columns;
        start..start + self.prob_columns
    }
}

dispatch! { fn attend(task: &Task<'_>) = attend_body }

#[inline(always)]
unsafe fn attend_body<L: Lanes>(task: &Task<'_>) {
    let mut rows = Rows::new(task);
    let d = task.args.head_dim;
    let wanted = task.visible_to_any(rows.group);
    for block in task.blocks {
        let mut at = wanted.start.saturating_sub(block.first_position);
        let end = wanted.end.saturating_sub(block.first_position).min(block.len);
        while at < end {
            let keys = KEYS.min(end - at);
            load_keys(task, block, at, keys, &mut rows);
            // SAFETY: `rows` has padded rows and KEYS keys; `dispatch!` enables the instructions.
            unsafe {
                score::<L>(&mut rows, keys, d);
                softmax_step(task, &mut rows, block.first_position + at, keys);
                add_values::<L>(&mut rows, keys, d);
            }
            at += keys;
        }
    }
    finish(task, &rows);
}

#[inline(always)]
fn load_keys(task: &Task<'_>, block: &KvBlock<'_>, at: usize, keys: usize, rows: &mut Rows) {
    let d = task.args.head_dim;
    for i in 0..keys {
        let from = task.kv_head * block.head_stride + (at + i) * block.row_stride;
        block.k.widen(from, &mut rows.k[i * d..(i + 1) * d]);
        block.v.widen(from, &mut rows.v[i * d..(i + 1) * d]);
    }
}

/// scores = q · kᵀ; those of padded rows and keys are left over from before and ignored.
#[inline(always)]
unsafe fn score<L: Lanes>(rows: &mut Rows, keys: usize, d: usize) {
    for row in (0..rows.padded).step_by(4) {
        let q = rows.q[row * d..].as_ptr();
        let mut key = 0;
        while key < keys {
            // SAFETY: rows are padded to four; KEYS is a multiple of four, so that four keys are there.
            let step = unsafe {
                if L::N == 16 {
                    put_scores(&mut rows.scores, row, key, tile::<L, 4, 4>(q, rows.k[key * d..].as_ptr(), d))
                } else {
                    put_scores(&mut rows.scores, row, key, tile::<L, 4, 2>(q, rows.k[key * d..].as_ptr(), d))
                }
            };
            key += step;
        }
    }
}

#[inline(always)]
fn put_scores<const R: usize>(scores: &mut [f32], row: usize, key: usize, tile: [[f32; R]; 4]) -> usize {
    for (i, values) in tile.iter().enumerate() {
        scores[(row + i) * KEYS + key..][..R].copy_from_slice(values);
    }
    R
}

/// Turns the scores of each row into exp(score − max), and rescales what was summed under an older maximum.
#[inline(always)]
fn softmax_step(task: &Task<'_>, rows: &mut Rows, first_position: usize, keys: usize) {
    let d = task.args.head_dim;
    for row in 0..rows.len {
        let visible = task.visible(row, rows.group);
        let scores = &mut rows.scores[row * KEYS..][..keys];
        let from = visible.start.saturating_sub(first_position).min(keys);
        let to = visible.end.saturating_sub(first_position).clamp(from, keys);
        scores[..from].fill(0.0);
        scores[to..].fill(0.0);
        if from == to {
            continue;
        }
        let scores = &mut scores[from..to];
        if let Some(probs) = task.probs {
            // SAFETY: each row of probabilities belongs to one row of one task.
            let probs = unsafe { probs.slice(task.prob_row(row, rows.group)) };
            probs[first_position + from..first_position + to].copy_from_slice(scores);
        }
        let max = scores.iter().fold(rows.max[row], |m, &s| if s > m { s } else { m });
        if max > rows.max[row] {
            let shrink = exp(rows.max[row] - max);
            rows.sum[row] *= shrink;
            rows.o[row * d..][..d].iter_mut().for_each(|o| *o *= shrink);
            rows.max[row] = max;
        }
        for score in scores.iter_mut() {
            *score = exp(*score - max);
        }
        rows.sum[row] += sum(scores);
    }
}

/// o += probabilities · v.
#[inline(always)]
unsafe fn add_values<L: Lanes>(rows: &mut Rows, keys: usize, d: usize) {
    for row in (0..rows.padded).step_by(4) {
        let p = rows.scores[row * KEYS..].as_ptr();
        let mut at = 0;
        // SAFETY: four rows of `o` and `scores` are there, `at` stays below d, keys below KEYS.
        unsafe {
            while at + 2 * L::N <= d {
                add_columns::<L, 2>(&mut rows.o[row * d..], p, &rows.v, keys, d, at);
                at += 2 * L::N;
            }
            while at + L::N <= d {
                add_columns::<L, 1>(&mut rows.o[row * d..], p, &rows.v, keys, d, at);
                at += L::N;
            }
            for i in 0..4 {
                for at in at..d {
                    for key in 0..keys {
                        rows.o[(row + i) * d + at] += *p.add(i * KEYS + key) * rows.v[key * d + at];
                    }
                }
            }
        }
    }
}

/// `C` vectors of columns from `at` for four rows.
#[inline(always)]
unsafe fn add_columns<L: Lanes, const C: usize>(
    o: &mut [f32],
    p: *const f32,
    v: &[f32],
    keys: usize,
    d: usize,
    at: usize,
) {
    let (o, v) = (o.as_mut_ptr(), v.as_ptr());
    // SAFETY: the caller gives four rows and columns up to at + C · N.
    unsafe {
        let mut sums: [[L; C]; 4] =
            std::array::from_fn(|i| std::array::from_fn(|c| L::load(o.add(i * d + at + c * L::N))));
        for key in 0..keys {
            let vs: [L; C] = std::array::from_fn(|c| L::load(v.add(key * d + at + c * L::N)));
            for (i, sums) in sums.iter_mut().enumerate() {
                let p = L::splat(*p.add(i * KEYS + key));
                for (sum, v) in sums.iter_mut().zip(vs) {
                    *sum = p.mul_add(v, *sum);
                }
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            for (c, sum) in sums.into_iter().enumerate() {
                sum.store(o.add(i * d + at + c * L::N));
            }
        }
    }
}

#[inline(always)]
fn finish(task: &Task<'_>, rows: &Rows) {
    let (args, d) = (task.args, task.args.head_dim);
    for row in 0..rows.len {
        let head = task.kv_head * rows.group + row % rows.group;
        let at = ((task.range.start + row / rows.group) * args.heads + head) * d;
        // SAFETY: each query and head belongs to one row of one task.
        let out = unsafe { task.out.slice(at..at + d) };
        for (out, o) in out.iter_mut().zip(&rows.o[row * d..]) {
            *out = o / rows.sum[row];
        }
        let Some(probs) = task.probs else { continue };
        // SAFETY: as above.
        let probs = unsafe { probs.slice(task.prob_row(row, rows.group)) };
        for p in &mut probs[task.visible(row, rows.group)] {
            *p = exp(*p - rows.max[row]) / rows.sum[row];
        }
        if let (Some(sinks), Some(last)) = (args.sinks, probs.last_mut()) {
            *last = exp(sinks[head] - rows.max[row]) / rows.sum[row];
        }
    }
}

/// Eight running sums.
#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 8];
    let (whole, rest) = values.as_chunks::<8>();
    for chunk in whole {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += value;
        }
    }
    sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// e^x for x ≤ 0 within 2 ulp, without branches so that loops over it become vector code.
///
/// Reduction by ln 2 in two parts and the degree-5 polynomial of Cephes' `expf` (Moshier, netlib).
#[inline(always)]
fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer
    let clamped = if x < -87.0 { -87.0 } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    // The low bits of `shifted` are n; the shift drops the rest.
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { y * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        for i in 0..870_000 {
            let x = -(i as f32) * 1e-4;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) - expected).abs() <= expected * 2.4e-7, "{x}");
        }
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY), exp(-1000.0)), (1.0, 0.0, 0.0));
    }
}
