//! Causal attention of new queries over cached and new keys, with sinks and a sliding window.
//!
//! Softmax is online, in f32; a row of scores never stands as a whole. Tasks are (sequence, KV head, some queries,
//! some keys), cut by shape only: where a sequence has few queries its keys are split, and parts are merged in the
//! order of their keys, so that results do not depend on threads. Nothing here allocates once scratch has grown.

mod dots;
#[cfg(target_arch = "x86_64")]
mod exp2;
mod ints;
mod kernel;
mod lanes;
mod page;
mod probs;
mod task;
mod unpack;

use std::sync::atomic::AtomicUsize;

use crate::error::{Error, Result, check_len};
use crate::exec::Exec;
use crate::shared::SharedMut;
pub use page::{KvDtype, KvPage};
pub use probs::probabilities;

/// Query rows (queries × heads that share a KV head) worked on together, about.
const QUERY_ROWS: usize = 64;
/// Keys of one task where keys are split, of few and of many.
const SPLITS: [usize; 2] = [512, 1024];
/// From so many keys on, they are many.
const MANY_KEYS: usize = 8192;
/// With this many tasks of a sequence, its keys are not split.
const ENOUGH_TASKS: usize = 64;

/// What is fixed for a layer.
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
    pub products: Products,
}

/// What queries and probabilities are rounded to before they are multiplied with keys and values. A choice, not an
/// order: where the processor has no instructions for it, the products are those of `F32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Products {
    /// To nothing.
    #[default]
    F32,
    /// bf16; over a `Q8_0` cache with few queries, whole numbers of 16 bits. New keys and values are rounded to bf16,
    /// and so is what an `F32` cache holds.
    Bits16,
    /// As `Bits16`, but of 8 bits over a `Q8_0` cache with few queries.
    Bits8,
}

/// The new tokens of one sequence: rows `start..start + len` of a pass, after `past` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Which sequence [`KvStore`] is asked for.
    pub sequence: usize,
    pub start: usize,
    pub len: usize,
    pub past: usize,
}

/// The rows of a pass: q `[T, heads, head_dim]`, k and v `[T, kv_heads, head_dim]`.
#[derive(Debug, Clone, Copy)]
pub struct Qkv<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
}

/// Consecutive positions in consecutive rows of a page.
#[derive(Debug, Clone, Copy)]
pub struct KvBlock<'a> {
    pub page: &'a KvPage,
    pub first_row: usize,
    pub first_position: usize,
    pub len: usize,
}

/// Where the keys and values before a span stand. Blocks of a sequence hold different positions, in any order, each
/// that a query of the span sees.
pub trait KvStore: Sync {
    /// Number of blocks.
    fn blocks(&self, sequence: usize) -> usize;
    fn block(&self, sequence: usize, index: usize) -> KvBlock<'_>;
}

/// Lists of blocks, one for each sequence.
impl KvStore for Vec<Vec<KvBlock<'_>>> {
    fn blocks(&self, sequence: usize) -> usize {
        self[sequence].len()
    }

    fn block(&self, sequence: usize, index: usize) -> KvBlock<'_> {
        self[sequence][index]
    }
}

/// Memory that calls share; it grows to what the largest needed.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    plans: Vec<Plan>,
    /// What tasks on a part of the keys hand over, see [`Plan::part`].
    parts: Vec<f32>,
    /// For each group of tasks that share rows: how many have finished.
    finished: Vec<AtomicUsize>,
}

/// How the work of a span is cut.
#[derive(Debug, Clone, Copy)]
struct Plan {
    span: Span,
    first_task: usize,
    /// Queries of a task, and parts of the queries.
    queries: usize,
    query_parts: usize,
    /// The keys are split here and at every `split` positions after it.
    first_key: usize,
    split: usize,
    key_parts: usize,
    /// The first of `kv_heads · query_parts` counters.
    first_counter: usize,
    /// Where the parts begin, and the floats of one: `[rows, head_dim]`, then maxima and sums of the rows.
    first_part: usize,
    part_len: usize,
}

impl Plan {
    fn new(args: &Attention<'_>, span: Span) -> Self {
        let group = args.heads / args.kv_heads;
        let queries = (QUERY_ROWS / group).max(1);
        let query_parts = span.len.div_ceil(queries);
        let seen = args.window.map_or(0, |w| (span.past + 1).saturating_sub(w));
        let end = span.past + span.len;
        let split = SPLITS[usize::from(end - seen >= MANY_KEYS)];
        let first_key = seen / split * split;
        let splits = end - seen > split && args.kv_heads * query_parts < ENOUGH_TASKS;
        let key_parts = if splits { (end - first_key).div_ceil(split) } else { 1 };
        let part_len = queries.min(span.len) * group * (args.head_dim + 2);
        Self {
            span,
            first_task: 0,
            queries,
            query_parts,
            first_key,
            split,
            key_parts,
            first_counter: 0,
            first_part: 0,
            part_len,
        }
    }

    /// Tasks that together make the rows of some queries and a KV head.
    fn groups(&self, args: &Attention<'_>) -> usize {
        args.kv_heads * self.query_parts
    }
}

/// Attends from the queries of all spans to the keys that `caches` holds for their sequences and to the new keys of
/// their own span; `out` has the shape of q. Qkv of no span are left alone.
///
/// # Errors
/// Sizes that do not fit together.
pub fn attention(
    exec: &Exec,
    args: &Attention<'_>,
    rows: &Qkv<'_>,
    spans: &[Span],
    caches: &dyn KvStore,
    out: &mut [f32],
    scratch: &mut AttentionScratch,
) -> Result<()> {
    check(args, rows, spans, caches)?;
    check_len("attention output", out.len(), rows.q.len())?;
    let tasks = scratch.plan(args, spans);
    let AttentionScratch { plans, parts, finished } = scratch;
    let (plans, finished): (&[Plan], &[AtomicUsize]) = (plans, finished);
    let (out, parts) = (SharedMut::new(out), SharedMut::new(parts.as_mut_slice()));
    let splits = plans.iter().any(|p| p.key_parts > 1);
    let run = |task: usize| {
        let plan = plans[plans.partition_point(|p| p.first_task <= task) - 1];
        let task = task::Task::new(args, rows, caches, plan, task - plan.first_task);
        task.run(exec.variant(), out, parts, finished);
    };
    // Parts of keys are read one after the other.
    if splits {
        exec.run_streams(tasks, run);
    } else {
        exec.run(tasks, run);
    }
    Ok(())
}

impl AttentionScratch {
    /// Cuts the spans to tasks and makes room for their parts; returns the number of tasks.
    fn plan(&mut self, args: &Attention<'_>, spans: &[Span]) -> usize {
        let (mut tasks, mut counters, mut floats) = (0, 0, 0);
        self.plans.clear();
        for span in spans.iter().filter(|s| s.len > 0) {
            let mut plan = Plan::new(args, *span);
            (plan.first_task, plan.first_counter, plan.first_part) = (tasks, counters, floats);
            tasks += plan.groups(args) * plan.key_parts;
            if plan.key_parts > 1 {
                counters += plan.groups(args);
                floats += plan.groups(args) * plan.key_parts * plan.part_len;
            }
            self.plans.push(plan);
        }
        if self.finished.len() < counters {
            self.finished.resize_with(counters, AtomicUsize::default);
        }
        for counter in &mut self.finished {
            *counter.get_mut() = 0;
        }
        if self.parts.len() < floats {
            self.parts.resize(floats, 0.0);
        }
        tasks
    }
}

/// Checks all sizes that the kernels rely on.
fn check(args: &Attention<'_>, rows: &Qkv<'_>, spans: &[Span], caches: &dyn KvStore) -> Result<()> {
    let Attention { heads, kv_heads, head_dim, .. } = *args;
    if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
        let expected = "a multiple of the number of kv heads, above zero";
        return Err(Error::Invalid { what: "number of heads", value: heads, expected });
    }
    KvDtype::F32.check(head_dim)?;
    let tokens = rows.q.len() / (heads * head_dim);
    check_len("attention queries", rows.q.len(), tokens * heads * head_dim)?;
    check_len("attention keys", rows.k.len(), tokens * kv_heads * head_dim)?;
    check_len("attention values", rows.v.len(), rows.k.len())?;
    if let Some(sinks) = args.sinks {
        check_len("attention sinks", sinks.len(), heads)?;
    }
    let mut next = 0;
    for span in spans {
        if span.start < next || span.start + span.len > tokens {
            let expected = "spans in order, without overlap, inside the rows";
            return Err(Error::Invalid { what: "start of a span", value: span.start, expected });
        }
        next = span.start + span.len;
        for index in 0..caches.blocks(span.sequence) {
            let KvBlock { page, first_row, len, .. } = caches.block(span.sequence, index);
            page.dtype.check(page.head_dim)?;
            check_len("kv heads of a page", page.kv_heads, kv_heads)?;
            check_len("head_dim of a page", page.head_dim, head_dim)?;
            if first_row + len > page.rows {
                let expected = "rows that the page has";
                return Err(Error::Invalid { what: "end of a kv block", value: first_row + len, expected });
            }
        }
    }
    Ok(())
}
