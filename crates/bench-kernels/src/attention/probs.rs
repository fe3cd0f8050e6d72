//! Attention probabilities for whoever wants to see them: plain loops beside the fast path, one row at a time.

use std::ops::Range;

use super::{Attention, KvStore, Qkv, Span, check};
use crate::error::{Result, check_len};
use crate::exec::Exec;
use crate::shared::SharedMut;

/// Fills `probs` `[heads, queries, keys (+ 1)]` of one span, keys being all positions up to its last query, and the
/// sink's share last if there are sinks.
///
/// # Errors
/// Sizes that do not fit together.
pub fn probabilities(
    exec: &Exec,
    args: &Attention<'_>,
    rows: &Qkv<'_>,
    span: &Span,
    caches: &dyn KvStore,
    probs: &mut [f32],
) -> Result<()> {
    check(args, rows, &[*span], caches)?;
    let columns = span.past + span.len + usize::from(args.sinks.is_some());
    check_len("attention probabilities", probs.len(), args.heads * span.len * columns)?;
    let shared = SharedMut::new(probs);
    let (d, group) = (args.head_dim, args.heads / args.kv_heads);
    exec.run(args.heads, |head| {
        // SAFETY: the rows of a head belong to one task.
        let probs = unsafe { shared.slice(head * span.len * columns..(head + 1) * span.len * columns) };
        probs.fill(0.0);
        let query = |i: usize| &rows.q[((span.start + i) * args.heads + head) * d..][..d];
        let kv_head = head / group;
        for index in 0..caches.blocks(span.sequence) {
            let block = caches.block(span.sequence, index);
            for row in 0..block.len {
                let key = |q: &[f32]| {
                    let mut sum = 0.0;
                    block.page.read(kv_head, block.first_row + row, |i, k, _| sum += q[i] * k);
                    sum
                };
                score(args, span, block.first_position + row, probs, columns, |i| key(query(i)));
            }
        }
        for row in 0..span.len {
            let k = &rows.k[((span.start + row) * args.kv_heads + kv_head) * d..][..d];
            let product = |i| query(i).iter().zip(k).map(|(q, k)| q * k).sum();
            score(args, span, span.past + row, probs, columns, product);
        }
        for (i, probs) in probs.chunks_exact_mut(columns).enumerate() {
            normalize(probs, visible(args, span.past + i), args.sinks.map(|s| s[head]));
        }
    });
    Ok(())
}

fn visible(args: &Attention<'_>, position: usize) -> Range<usize> {
    args.window.map_or(0, |w| (position + 1).saturating_sub(w))..position + 1
}

/// The scores of one key, in the rows of the queries that see it.
fn score(
    args: &Attention<'_>,
    span: &Span,
    position: usize,
    probs: &mut [f32],
    columns: usize,
    product: impl Fn(usize) -> f32,
) {
    for (i, probs) in probs.chunks_exact_mut(columns).enumerate() {
        if visible(args, span.past + i).contains(&position) {
            probs[position] = args.scale * product(i);
        }
    }
}

/// Softmax over a row's visible positions and the sink.
fn normalize(row: &mut [f32], visible: Range<usize>, sink: Option<f32>) {
    let max = row[visible.clone()].iter().copied().chain(sink).fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for p in &mut row[visible.clone()] {
        *p = (*p - max).exp();
        sum += *p;
    }
    if let (Some(sink), Some(last)) = (sink, row.last_mut()) {
        *last = (sink - max).exp();
        sum += *last;
    }
    for p in row {
        *p /= sum;
    }
}
