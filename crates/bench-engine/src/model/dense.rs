//! Dense decoders: Qwen3 (normalized queries and keys, tied embeddings in small ones), Llama and Yi.

use bench_kernels::attention::Qkv;
use bench_kernels::norm::WeightOrder;

use crate::config::{Architecture, LayerType, ModelConfig};
use crate::error::Result;
use crate::hooks::Site;
use crate::model::load::Loader;
use crate::model::{Step, Workspace};
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
        if let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) {
            q_norm.apply(step, q.values_mut())?;
            k_norm.apply(step, k.values_mut())?;
        }
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
            sinks: None,
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

    fn forward(&self, ws: &mut Workspace, step: &mut Step<'_, '_, '_>) -> Result<()> {
        let Workspace { x, t, gate, up, act, y, .. } = ws;
        let l = self.layer;
        self.norm.forward(step, x.values(), t.reshape_as(x))?;
        step.at(Site::MlpNorm(l), t)?;
        self.gate_proj.forward(step, t, gate)?;
        self.up_proj.forward(step, t, up)?;
        gated_silu(step, gate, up, act.reshape_as(gate))?;
        self.down_proj.forward(step, act, y)?;
        step.at(Site::MlpOut(l), y)?;
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
        let embedding = loader.embedding(config)?;
        // The largest matrix is quantized before the others are there: for a moment it is in memory twice.
        let unembedding = loader.unembedding(config, &embedding)?;
        let mut block = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let attn = AttentionBlock::load(loader, config, layer)?;
            let mlp = MlpBlock::load(loader, config, layer)?;
            block.push(TransformerBlock { layer, attn, mlp });
            loader.layer_done();
        }
        let norm = rms_norm(loader, config, "model.norm", config.hidden_size)?;
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

/// Llama and Qwen3 round before they multiply by the weight.
fn rms_norm(loader: &mut Loader<'_>, config: &ModelConfig, name: &str, width: usize) -> Result<RmsNorm> {
    loader.norm(name, width, config.rms_norm_eps, WeightOrder::AfterRounding)
}
