//! Dense decoders: Qwen3 (normalized queries and keys, tied embeddings in small ones), Llama and Yi.

use bench_kernels::norm::WeightOrder;
use candle_core::Tensor;

use crate::config::{Architecture, LayerType, ModelConfig};
use crate::error::Result;
use crate::hooks::{Hooks, Site};
use crate::model::Step;
use crate::model::load::Loader;
use crate::ops::attention::LayerAttention;
use crate::ops::linear::{Linear, Matrix};
use crate::ops::mlp::gated_silu;
use crate::ops::norm::RmsNorm;

struct AttentionBlock {
    layer: usize,
    norm: RmsNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Qwen3 normalizes each head of q and k before rope.
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    window: Option<usize>,
    head_dim: usize,
}

impl AttentionBlock {
    fn load(loader: &mut Loader<'_>, config: &ModelConfig, layer: usize) -> Result<Self> {
        let (hidden, d) = (config.hidden_size, config.head_dim);
        let (q, kv) = (config.num_attention_heads * d, config.num_key_value_heads * d);
        let prefix = format!("model.layers.{layer}.self_attn");
        let bias = config.attention_bias;
        let qk_norm = config.architecture == Architecture::Qwen3;
        let mut head_norm = |name: &str| {
            let norm = qk_norm.then(|| rms_norm(loader, config, &format!("{prefix}.{name}"), d));
            norm.transpose()
        };
        let (q_norm, k_norm) = (head_norm("q_norm")?, head_norm("k_norm")?);
        let mut linear =
            |name: &str, rows, cols| loader.linear(&format!("{prefix}.{name}_proj"), rows, cols, bias);
        Ok(Self {
            layer,
            q_proj: linear("q", q, hidden)?,
            k_proj: linear("k", kv, hidden)?,
            v_proj: linear("v", kv, hidden)?,
            o_proj: linear("o", hidden, q)?,
            norm: rms_norm(loader, config, &format!("model.layers.{layer}.input_layernorm"), hidden)?,
            q_norm,
            k_norm,
            window: config.sliding_window.filter(|_| config.layer_types[layer] == LayerType::Sliding),
            head_dim: d,
        })
    }

    fn forward(&self, x: &Tensor, step: &mut Step<'_, '_, '_>) -> Result<Tensor> {
        let l = self.layer;
        // What a block computes on the way is freed at its end: the peak of a layer decides what fits.
        let (q, k, v) = {
            let t = step.hooks.at(Site::AttnNorm(l), self.norm.forward(x)?)?;
            let heads = |linear: &Linear, norm| self.heads(&linear.forward(&t)?, norm);
            let q = heads(&self.q_proj, self.q_norm.as_ref())?;
            let k = heads(&self.k_proj, self.k_norm.as_ref())?;
            (q, k, heads(&self.v_proj, None)?)
        };
        let q = step.hooks.at(Site::Q(l), step.angles.rotate(q)?)?;
        let k = step.hooks.at(Site::K(l), step.angles.rotate(k)?)?;
        let v = step.hooks.at(Site::V(l), v)?;

        let attention = LayerAttention { layer: l, window: self.window, sinks: None };
        let t = attention.forward(q, k, v, &step.spans, step.sequences, step.hooks)?;
        let t = step.hooks.at(Site::AttnOut(l), t)?;
        let t = step.hooks.at(Site::AttnProj(l), self.o_proj.forward(&t)?)?;
        Ok((x + t)?)
    }

    /// `[T, heads · head_dim]` to `[T, heads, head_dim]`, each head normalized if there is a norm.
    fn heads(&self, x: &Tensor, norm: Option<&RmsNorm>) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        let x = x.reshape((tokens, width / self.head_dim, self.head_dim))?;
        norm.map_or(Ok(x.clone()), |norm| norm.forward(&x))
    }
}

struct MlpBlock {
    layer: usize,
    norm: RmsNorm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl MlpBlock {
    fn load(loader: &mut Loader<'_>, config: &ModelConfig, layer: usize) -> Result<Self> {
        let (hidden, width) = (config.hidden_size, config.intermediate_size);
        let prefix = format!("model.layers.{layer}");
        let norm = rms_norm(loader, config, &format!("{prefix}.post_attention_layernorm"), hidden)?;
        let mut linear =
            |name: &str, rows, cols| loader.linear(&format!("{prefix}.mlp.{name}_proj"), rows, cols, false);
        Ok(Self {
            layer,
            norm,
            gate_proj: linear("gate", width, hidden)?,
            up_proj: linear("up", width, hidden)?,
            down_proj: linear("down", hidden, width)?,
        })
    }

    fn forward(&self, x: &Tensor, step: &mut Step<'_, '_, '_>) -> Result<Tensor> {
        let l = self.layer;
        let (gate, up) = {
            let t = step.hooks.at(Site::MlpNorm(l), self.norm.forward(x)?)?;
            (self.gate_proj.forward(&t)?, self.up_proj.forward(&t)?)
        };
        let t = gated_silu(gate, up)?;
        let t = step.hooks.at(Site::MlpOut(l), self.down_proj.forward(&t)?)?;
        Ok((x + t)?)
    }
}

struct TransformerBlock {
    layer: usize,
    attn: AttentionBlock,
    mlp: MlpBlock,
}

impl TransformerBlock {
    fn forward(&self, x: Tensor, step: &mut Step<'_, '_, '_>) -> Result<Tensor> {
        let x = {
            let x = step.hooks.at(Site::ResidPre(self.layer), x)?;
            self.attn.forward(&x, step)?
        };
        let x = {
            let x = step.hooks.at(Site::ResidMid(self.layer), x)?;
            self.mlp.forward(&x, step)?
        };
        step.hooks.at(Site::ResidPost(self.layer), x)
    }
}

pub(crate) struct Transformer {
    embedding: Matrix,
    block: Vec<TransformerBlock>,
    norm: RmsNorm,
    unembedding: Matrix,
}

impl Transformer {
    pub(crate) fn load(loader: &mut Loader<'_>, config: &ModelConfig) -> Result<Self> {
        let embedding = loader.embedding(config)?;
        let mut block = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let attn = AttentionBlock::load(loader, config, layer)?;
            let mlp = MlpBlock::load(loader, config, layer)?;
            block.push(TransformerBlock { layer, attn, mlp });
            loader.layer_done();
        }
        let norm = rms_norm(loader, config, "model.norm", config.hidden_size)?;
        Ok(Self { unembedding: loader.unembedding(config, &embedding)?, embedding, block, norm })
    }

    /// The residual stream `[T, hidden]` after the last layer.
    pub(crate) fn forward(&self, ids: &[u32], step: &mut Step<'_, '_, '_>) -> Result<Tensor> {
        let mut x = step.hooks.at(Site::Embed, self.embedding.gather(ids, step.dtype)?)?;
        for block in &self.block {
            x = block.forward(x, step)?;
        }
        Ok(x)
    }

    /// Logits `[positions, vocab]` of some positions of the residual stream.
    pub(crate) fn unembed(&self, x: &Tensor, hooks: &mut Hooks<'_>) -> Result<Tensor> {
        let x = hooks.at(Site::FinalNorm, self.norm.forward(x)?)?;
        self.unembedding.product(&x, None, x.dtype())
    }
}

/// Llama and Qwen3 round before they multiply by the weight.
fn rms_norm(loader: &mut Loader<'_>, config: &ModelConfig, name: &str, width: usize) -> Result<RmsNorm> {
    loader.norm(name, width, config.rms_norm_eps, WeightOrder::AfterRounding)
}
