//! Attention of the sequences of a forward pass, each over its own cache; nothing is padded.

use std::ops::Range;

use bench_kernels::attention::{Attention, KvBlock, KvData, attention};
use candle_core::{DType, Tensor};

use crate::cache::{LayerCache, Sequence};
use crate::error::Result;
use crate::hooks::{Hooks, Site};
use crate::model::Span;
use crate::ops::{from_f32, kernel_error, with_f32};

/// What is fixed for a layer.
pub(crate) struct LayerAttention<'a> {
    pub(crate) layer: usize,
    pub(crate) window: Option<usize>,
    pub(crate) sinks: Option<&'a [f32]>,
}

impl LayerAttention<'_> {
    /// From q `[T, heads, head_dim]`, k and v `[T, kv_heads, head_dim]` to `[T, heads · head_dim]`; k and v are
    /// then appended to the caches. `spans` says which rows belong to which sequence. The three are freed.
    pub(crate) fn forward(
        &self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spans: &[Span],
        sequences: &mut [&mut Sequence],
        hooks: &mut Hooks<'_>,
    ) -> Result<Tensor> {
        let (tokens, heads, head_dim) = q.dims3()?;
        let shape = Shape { heads, kv_heads: k.dim(1)?, head_dim };
        let (dtype, mut out) = (q.dtype(), vec![0.0; tokens * heads * head_dim]);
        let mut probs = Vec::new();
        with_f32("attention", &q, |q| {
            with_f32("attention", &k, |k| {
                with_f32("attention", &v, |v| {
                    for span in spans {
                        let rows = Rows {
                            q: &q[shape.of(span, heads)],
                            k: &k[shape.of(span, shape.kv_heads)],
                            v: &v[shape.of(span, shape.kv_heads)],
                        };
                        let cache = sequences[span.sequence].layer_mut(self.layer);
                        let mut wanted = self.room_for_probs(hooks, heads, span);
                        let out = &mut out[shape.of(span, heads)];
                        self.attend(&shape, span, &rows, cache, out, wanted.as_deref_mut())?;
                        probs.extend(wanted.map(|p| (p, span.len)));
                    }
                    Ok(())
                })
            })
        })?;
        drop((q, k, v));
        for (values, queries) in probs {
            let columns = values.len() / (heads * queries);
            hooks
                .at(Site::AttnProbs(self.layer), from_f32(values, &[heads, queries, columns], DType::F32)?)?;
        }
        from_f32(out, &[tokens, heads * head_dim], dtype)
    }

    /// One sequence: its new queries over its cache and its new rows, which then go into the cache.
    fn attend(
        &self,
        shape: &Shape,
        span: &Span,
        rows: &Rows<'_>,
        cache: &mut LayerCache,
        out: &mut [f32],
        probs: Option<&mut [f32]>,
    ) -> Result<()> {
        let args = Attention {
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
            window: self.window,
            sinks: self.sinks,
            first_query: span.past,
        };
        let mut blocks = cache.blocks();
        blocks.push(new_rows(rows, span, shape));
        attention(&args, rows.q, &blocks, out, probs).map_err(kernel_error("attention"))?;
        drop(blocks);
        cache.append(rows.k, rows.v);
        Ok(())
    }

    /// Memory for the probabilities of a sequence, if a hook reads them.
    fn room_for_probs(&self, hooks: &Hooks<'_>, heads: usize, span: &Span) -> Option<Vec<f32>> {
        let columns = span.past + span.len + usize::from(self.sinks.is_some());
        hooks.reads(Site::AttnProbs(self.layer)).then(|| vec![0.0; heads * span.len * columns])
    }
}

/// Heads and their width.
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Shape {
    /// The elements of a sequence in a tensor `[T, heads, head_dim]`.
    fn of(&self, span: &Span, heads: usize) -> Range<usize> {
        span.start * heads * self.head_dim..(span.start + span.len) * heads * self.head_dim
    }
}

/// The rows of one sequence in this pass.
struct Rows<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

/// The tokens of this pass, which are not in the cache yet.
fn new_rows<'a>(rows: &Rows<'a>, span: &Span, shape: &Shape) -> KvBlock<'a> {
    KvBlock {
        k: KvData::F32(rows.k),
        v: KvData::F32(rows.v),
        first_position: span.past,
        len: span.len,
        head_stride: shape.head_dim,
        row_stride: shape.kv_heads * shape.head_dim,
    }
}
