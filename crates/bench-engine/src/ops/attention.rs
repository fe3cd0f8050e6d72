//! Attention of the sequences of a forward pass, each over its own cache; nothing is padded.

use bench_kernels::attention::{Attention, KvBlock, KvData, attention};
use candle_core::{DType, Tensor};

use crate::cache::Sequence;
use crate::error::Result;
use crate::hooks::{Hooks, Site};
use crate::model::Span;
use crate::ops::{from_f32, kernel_error, to_f32, with_f32};

/// What is fixed for a layer.
pub(crate) struct LayerAttention<'a> {
    pub(crate) layer: usize,
    pub(crate) window: Option<usize>,
    pub(crate) sinks: Option<&'a [f32]>,
}

impl LayerAttention<'_> {
    /// From q `[T, heads, head_dim]`, k and v `[T, kv_heads, head_dim]` to `[T, heads · head_dim]`; k and v are
    /// then appended to the caches. `spans` says which rows belong to which sequence.
    pub(crate) fn forward(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        spans: &[Span],
        sequences: &mut [&mut Sequence],
        hooks: &mut Hooks<'_>,
    ) -> Result<Tensor> {
        let (tokens, heads, head_dim) = q.dims3()?;
        let kv_heads = k.dim(1)?;
        let (k, v) = (to_f32("attention", k)?, to_f32("attention", v)?);
        let mut out = vec![0.0; tokens * heads * head_dim];
        let mut probs = Vec::new();
        with_f32("attention", q, |q| {
            for span in spans {
                let of =
                    |heads: usize| span.start * heads * head_dim..(span.start + span.len) * heads * head_dim;
                let args = Attention {
                    heads,
                    kv_heads,
                    head_dim,
                    scale: 1.0 / (head_dim as f32).sqrt(),
                    window: self.window,
                    sinks: self.sinks,
                    first_query: span.past,
                };
                let (k, v) = (&k[of(kv_heads)], &v[of(kv_heads)]);
                let cache = sequences[span.sequence].layer_mut(self.layer);
                let mut blocks = cache.blocks();
                blocks.push(new_rows(k, v, span, kv_heads, head_dim));
                let mut wanted = self.room_for_probs(hooks, heads, span);
                let out = &mut out[of(heads)];
                attention(&args, &q[of(heads)], &blocks, out, wanted.as_deref_mut())
                    .map_err(kernel_error("attention"))?;
                drop(blocks);
                cache.append(k, v);
                probs.extend(wanted.map(|p| (p, heads, span.len)));
            }
            Ok(())
        })?;
        for (values, heads, queries) in probs {
            let columns = values.len() / (heads * queries);
            hooks
                .at(Site::AttnProbs(self.layer), from_f32(values, &[heads, queries, columns], DType::F32)?)?;
        }
        from_f32(out, &[tokens, heads * head_dim], q.dtype())
    }

    /// Memory for the probabilities of a sequence, if a hook reads them.
    fn room_for_probs(&self, hooks: &Hooks<'_>, heads: usize, span: &Span) -> Option<Vec<f32>> {
        let columns = span.past + span.len + usize::from(self.sinks.is_some());
        hooks.reads(Site::AttnProbs(self.layer)).then(|| vec![0.0; heads * span.len * columns])
    }
}

/// The tokens of this pass, which are not in the cache yet.
fn new_rows<'a>(k: &'a [f32], v: &'a [f32], span: &Span, kv_heads: usize, head_dim: usize) -> KvBlock<'a> {
    KvBlock {
        k: KvData::F32(k),
        v: KvData::F32(v),
        first_position: span.past,
        len: span.len,
        head_stride: head_dim,
        row_stride: kv_heads * head_dim,
    }
}
