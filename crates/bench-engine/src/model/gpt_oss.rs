//! gpt-oss: attention with sinks in alternating windows, and a sparse mixture of experts, as `model.py` of
//! openai/gpt-oss has them. Loading, placement and quantization are elsewhere.

use bench_kernels::attention::Qkv;
use bench_kernels::norm::WeightOrder;

use crate::config::{LayerType, ModelConfig, MoeConfig};
use crate::error::{Error, Result};
use crate::hooks::Site;
use crate::model::load::Loader;
use crate::model::{Step, Workspace};
use crate::ops::attention::LayerAttention;
use crate::ops::linear::{Linear, Matrix};
use crate::ops::moe::{Experts, Router};
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
    heads: usize,
    kv_heads: usize,
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
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: d,
        })
    }

    fn forward(&self, ws: &mut Workspace, step: &mut Step<'_, '_, '_>) -> Result<()> {
        let Workspace { x, t, q, k, v, attn, scratch, y, .. } = ws;
        let (l, d) = (self.layer, self.head_dim);
        self.norm.forward(step, x.values(), t.reshape_as(x))?;
        step.at(Site::AttnNorm(l), t)?;

        self.q_proj.forward(step, t, q)?;
        self.k_proj.forward(step, t, k)?;
        self.v_proj.forward(step, t, v)?;
        step.rotate(q, self.heads, d)?;
        step.rotate(k, self.kv_heads, d)?;
        step.at_heads(Site::Q(l), q, self.heads)?;
        step.at_heads(Site::K(l), k, self.kv_heads)?;
        step.at_heads(Site::V(l), v, self.kv_heads)?;

        let attention = LayerAttention {
            layer: l,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: d,
            window: self.window,
            sinks: Some(&self.sinks),
        };
        let rows = Qkv { q: q.values(), k: k.values(), v: v.values() };
        attention.forward(step, scratch, &rows, attn)?;
        step.at(Site::AttnOut(l), attn)?;
        self.o_proj.forward(step, attn, y)?;
        step.at(Site::AttnProj(l), y)?;
        step.add(x, y)
    }
}

struct MlpBlock {
    layer: usize,
    norm: RmsNorm,
    router: Router,
    experts: Experts,
}

impl MlpBlock {
    fn load(loader: &mut Loader<'_>, config: &ModelConfig, moe: &MoeConfig, layer: usize) -> Result<Self> {
        let prefix = format!("model.layers.{layer}");
        let (experts, hidden) = (moe.num_local_experts, config.hidden_size);
        Ok(Self {
            layer,
            norm: rms_norm(loader, config, &format!("{prefix}.post_attention_layernorm"))?,
            router: Router {
                layer,
                linear: loader.small_linear(&format!("{prefix}.mlp.router"), experts, hidden)?,
                experts,
                experts_per_token: moe.num_experts_per_tok,
                mode: loader.expert_mode(),
            },
            experts: loader.experts(config, moe, layer)?,
        })
    }

    fn forward(&self, ws: &mut Workspace, step: &mut Step<'_, '_, '_>) -> Result<()> {
        let Workspace { x, t, moe, y, .. } = ws;
        self.norm.forward(step, x.values(), t.reshape_as(x))?;
        step.at(Site::MlpNorm(self.layer), t)?;
        self.router.forward(step, t, moe)?;
        self.experts.forward(step, t, moe, y)?;
        step.at(Site::MlpOut(self.layer), y)?;
        step.add(x, y)
    }
}

struct TransformerBlock {
    layer: usize,
    attn: AttentionBlock,
    mlp: MlpBlock,
}

impl TransformerBlock {
    fn forward(&self, ws: &mut Workspace, step: &mut Step<'_, '_, '_>) -> Result<()> {
        step.at(Site::ResidPre(self.layer), &mut ws.x)?;
        self.attn.forward(ws, step)?;
        step.at(Site::ResidMid(self.layer), &mut ws.x)?;
        self.mlp.forward(ws, step)?;
        step.at(Site::ResidPost(self.layer), &mut ws.x)
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
        // The largest matrix is quantized before the others are there: for a moment it is in memory twice.
        let unembedding = loader.unembedding(config, &embedding)?;
        let mut block = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let attn = AttentionBlock::load(loader, config, layer)?;
            let mlp = MlpBlock::load(loader, config, moe, layer)?;
            block.push(TransformerBlock { layer, attn, mlp });
            loader.layer_done();
        }
        let norm = rms_norm(loader, config, "model.norm")?;
        Ok(Self { embedding, block, norm, unembedding })
    }

    /// From token ids to the residual stream `[T, hidden]` after the last layer, in `ws.x`.
    pub(crate) fn forward(&self, ids: &[u32], ws: &mut Workspace, step: &mut Step<'_, '_, '_>) -> Result<()> {
        self.embedding.gather(ids, &mut ws.x)?;
        step.settle(ws.x.values_mut());
        step.at(Site::Embed, &mut ws.x)?;
        self.block.iter().try_for_each(|block| block.forward(ws, step))
    }

    /// From some rows of the residual stream, `ws.kept`, to their logits, `ws.logits` `[rows, vocab]`.
    pub(crate) fn unembed(&self, ws: &mut Workspace, step: &mut Step<'_, '_, '_>) -> Result<()> {
        let Workspace { kept, t, logits, .. } = ws;
        self.norm.forward(step, kept.values(), t.reshape_as(kept))?;
        step.at(Site::FinalNorm, t)?;
        self.unembedding.product(step, t, None, logits)
    }
}

/// gpt-oss multiplies by the weight before it rounds.
fn rms_norm(loader: &mut Loader<'_>, config: &ModelConfig, name: &str) -> Result<RmsNorm> {
    loader.norm(name, config.hidden_size, config.rms_norm_eps, WeightOrder::BeforeRounding)
}
