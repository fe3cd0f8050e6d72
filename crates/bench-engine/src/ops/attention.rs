//! Attention of the sequences of a forward pass, each over its own cache; nothing is padded.

use bench_kernels::attention::{
    Attention, AttentionScratch, KvDtype, Products, Qkv, attention, probabilities,
};
use candle_core::DType;

use crate::cache::LayerCaches;
use crate::error::Result;
use crate::hooks::Site;
use crate::model::{MatmulPrecision, Step};
use crate::ops::rows::Rows;
use crate::ops::{kernel_error, tensor};

/// What is fixed for a layer.
pub(crate) struct LayerAttention<'a> {
    pub(crate) layer: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) window: Option<usize>,
    pub(crate) sinks: Option<&'a [f32]>,
}

impl LayerAttention<'_> {
    /// Writes `[T, heads · head_dim]`; keys and values are then appended to the caches of their sequences.
    pub(crate) fn forward(
        &self,
        step: &mut Step<'_, '_, '_>,
        scratch: &mut AttentionScratch,
        rows: &Qkv<'_>,
        out: &mut Rows,
    ) -> Result<()> {
        let args = Attention {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            window: self.window,
            sinks: self.sinks,
            products: products(step),
        };
        let out = out.reshape(rows.q.len() / (self.heads * self.head_dim), self.heads * self.head_dim);
        let caches = LayerCaches { sequences: &*step.sequences, layer: self.layer };
        attention(step.exec, &args, rows, step.spans, &caches, out, scratch)
            .map_err(kernel_error("attention"))?;
        step.settle(out);
        self.show_probs(step, &args, rows)?;
        let width = self.kv_heads * self.head_dim;
        for span in step.spans {
            let new = span.start * width..(span.start + span.len) * width;
            let cache = step.sequences[span.sequence].layer_mut(self.layer);
            cache.append(&rows.k[new.clone()], &rows.v[new])?;
        }
        Ok(())
    }

    /// The probabilities of each sequence, if a hook reads them.
    fn show_probs(&self, step: &mut Step<'_, '_, '_>, args: &Attention<'_>, rows: &Qkv<'_>) -> Result<()> {
        let site = Site::AttnProbs(self.layer);
        if !step.hooks.reads(site) {
            return Ok(());
        }
        for span in step.spans {
            let columns = span.past + span.len + usize::from(self.sinks.is_some());
            let mut probs = vec![0.0; self.heads * span.len * columns];
            let caches = LayerCaches { sequences: &*step.sequences, layer: self.layer };
            probabilities(step.exec, args, rows, span, &caches, &mut probs)
                .map_err(kernel_error("attention probabilities"))?;
            let probs = tensor(&probs, &[self.heads, span.len, columns], DType::F32)?;
            step.hooks.at(site, probs)?;
        }
        Ok(())
    }
}

/// Queries and probabilities are rounded as what they are multiplied with already is, unless all is to be exact; a
/// cache in f32 asks for that too. Activations in bf16 make queries that rounding leaves as they are.
fn products(step: &Step<'_, '_, '_>) -> Products {
    match step.sequences.first().map(|s| s.kv_dtype()) {
        None | Some(KvDtype::F32) => Products::F32,
        Some(KvDtype::Bf16) if step.bf16 => Products::Bits16,
        Some(_) if step.precision == MatmulPrecision::F32 => Products::F32,
        Some(KvDtype::Q8_0) if step.precision == MatmulPrecision::Int8 => Products::Bits8,
        Some(_) => Products::Bits16,
    }
}
