//! gpt-oss: attention with sinks in alternating windows, and a sparse mixture of experts, as `model.py` of
//! openai/gpt-oss has them. Loading, placement and quantization are elsewhere.

use bench_kernels::norm::WeightOrder;
use candle_core::Tensor;

use crate::config::{LayerType, ModelConfig, MoeConfig};
use crate::error::{Error, Result};
use crate::hooks::{Hooks, Site};
use crate::model::Step;
use crate::model::load::Loader;
use crate::ops::attention::LayerAttention;
use crate::ops::linear::{Linear, Matrix};
use crate::ops::moe::{Experts, choose, weigh};
use crate::ops::norm::RmsNorm;

struct AttentionBlock {
    layer: usize,
    norm: RmsNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    sinks: Vec<f32>,
    window: Option<usize>,
    head_dim: usize,
}

impl AttentionBlock {
    fn load(loader: &mut Loader<'_>, config: &ModelConfig, layer: usize) -> Result<Self> {
        let (hidden, d) = (config.hidden_size, config.head_dim);
        let (q, kv) = (config.num_attention_heads * d, config.num_key_value_heads * d);
        let prefix = format!("model.layers.{layer}.self_attn");
        let bias = config.attention_bias;
        let mut linear =
            |name: &str, rows, cols| loader.linear(&format!("{prefix}.{name}_proj"), rows, cols, bias);
        Ok(Self {
            layer,
            q_proj: linear("q", q, hidden)?,
            k_proj: linear("k", kv, hidden)?,
            v_proj: linear("v", kv, hidden)?,
            o_proj: linear("o", hidden, q)?,
            norm: rms_norm(loader, config, &format!("model.layers.{layer}.input_layernorm"))?,
            sinks: loader.vector(&format!("{prefix}.sinks"), &[config.num_attention_heads])?,
            window: config.sliding_window.filter(|_| config.layer_types[layer] == LayerType::Sliding),
            head_dim: d,
        })
    }

    fn forward(&self, x: &Tensor, step: &mut Step<'_, '_, '_>) -> Result<Tensor> {
        let l = self.layer;
        // What a block computes on the way is freed at its end: the peak of a layer decides what fits.
        let (q, k, v) = {
            let t = step.hooks.at(Site::AttnNorm(l), self.norm.forward(x)?)?;
            let heads = |linear: &Linear| self.split_heads(&linear.forward(&t)?);
            (heads(&self.q_proj)?, heads(&self.k_proj)?, heads(&self.v_proj)?)
        };
        let q = step.hooks.at(Site::Q(l), step.angles.rotate(q)?)?;
        let k = step.hooks.at(Site::K(l), step.angles.rotate(k)?)?;
        let v = step.hooks.at(Site::V(l), v)?;

        let attention = LayerAttention { layer: l, window: self.window, sinks: Some(&self.sinks) };
        let t = attention.forward(q, k, v, &step.spans, step.sequences, step.hooks)?;
        let t = step.hooks.at(Site::AttnOut(l), t)?;
        let t = step.hooks.at(Site::AttnProj(l), self.o_proj.forward(&t)?)?;
        Ok((x + t)?)
    }

    /// `[T, heads · head_dim]` to `[T, heads, head_dim]`.
    fn split_heads(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        Ok(x.reshape((tokens, width / self.head_dim, self.head_dim))?)
    }
}

struct MlpBlock {
    layer: usize,
    norm: RmsNorm,
    router: Linear,
    experts: Experts,
    experts_per_token: usize,
}

impl MlpBlock {
    fn load(loader: &mut Loader<'_>, config: &ModelConfig, moe: &MoeConfig, layer: usize) -> Result<Self> {
        let prefix = format!("model.layers.{layer}");
        Ok(Self {
            layer,
            norm: rms_norm(loader, config, &format!("{prefix}.post_attention_layernorm"))?,
            router: loader.linear(
                &format!("{prefix}.mlp.router"),
                moe.num_local_experts,
                config.hidden_size,
                true,
            )?,
            experts: loader.experts(config, moe, layer)?,
            experts_per_token: moe.num_experts_per_tok,
        })
    }

    fn forward(&self, x: &Tensor, step: &mut Step<'_, '_, '_>) -> Result<Tensor> {
        let l = self.layer;
        let t = step.hooks.at(Site::MlpNorm(l), self.norm.forward(x)?)?;

        let g = step.hooks.at(Site::Router(l), self.router.forward(&t)?)?;
        let chosen = step.hooks.at(Site::ExpertIndex(l), choose(&g, self.experts_per_token)?)?;
        let weights = step.hooks.at(Site::ExpertWeight(l), weigh(&g, &chosen)?)?;

        let t = self.experts.forward(&t, &chosen, &weights, step.hooks)?;
        let t = step.hooks.at(Site::MlpOut(l), t)?;
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
        let moe = config.moe.as_ref().ok_or_else(|| Error::InvalidModel {
            what: "config".to_owned(),
            problem: "gpt-oss without experts: num_local_experts is missing".to_owned(),
        })?;
        let embedding = loader.embedding(config)?;
        let mut block = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let attn = AttentionBlock::load(loader, config, layer)?;
            let mlp = MlpBlock::load(loader, config, moe, layer)?;
            block.push(TransformerBlock { layer, attn, mlp });
            loader.layer_done();
        }
        let norm = rms_norm(loader, config, "model.norm")?;
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

/// gpt-oss multiplies by the weight before it rounds.
fn rms_norm(loader: &mut Loader<'_>, config: &ModelConfig, name: &str) -> Result<RmsNorm> {
    loader.norm(name, config.hidden_size, config.rms_norm_eps, WeightOrder::BeforeRounding)
}
