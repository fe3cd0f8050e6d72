//! The model on a GPU: weights in device memory, forward passes as launches, a decode step as a graph.
//!
//! What the layers compute is `gpt_oss` and `dense` of `model`, operation by operation and rounding by rounding. The
//! host sees token ids and, where it asks, logits; hooks are offered copies between launches.

mod cache;
mod choose;
mod decode;
mod forward;
mod launch;
mod load;
pub(crate) mod needs;
mod offer;
mod run;
mod workspace;

use std::sync::Arc;

use bench_kernels::cuda::device::{Buffer, Category, Device, Pool};
use bench_kernels::cuda::tiles::Format;
use bench_kernels::cuda::{BF16, CLAMPED, Gpu, GpuError, ROUND_FIRST};

pub(crate) use cache::DeviceCache;
pub(crate) use run::Input;
pub(crate) use workspace::{DeviceWorkspace, Idle, Leased};

use crate::cache::Sequence;
use crate::config::{Architecture, ModelConfig};
use crate::error::{Error, Result};
use crate::hooks::Hooks;
use crate::model::{ActivationDtype, KvDtype, LoadOptions, Progress};
use crate::rope::RotaryEmbedding;
use crate::weights::WeightSource;

/// A matrix `[experts ·] [rows, cols]` in device memory.
#[derive(Clone)]
pub(crate) struct Matrix {
    format: Format,
    codes: Arc<Buffer>,
    scales: Option<Arc<Buffer>>,
    rows: usize,
    cols: usize,
}

impl Matrix {
    fn codes(&self) -> u64 {
        self.codes.address()
    }

    /// 0 where there are none.
    fn scales(&self) -> u64 {
        self.scales.as_ref().map_or(0, |scales| scales.address())
    }
}

/// A vector in f32, or none.
type Vector = Option<Buffer>;

fn address(vector: &Vector) -> u64 {
    vector.as_ref().map_or(0, Buffer::address)
}

struct Attention {
    norm: Vector,
    /// Rows of q, then of k, then of v.
    qkv: Matrix,
    qkv_bias: Vector,
    q_norm: Vector,
    k_norm: Vector,
    sinks: Vector,
    out: Matrix,
    out_bias: Vector,
    window: Option<usize>,
}

enum Mlp {
    Dense {
        gate: Matrix,
        up: Matrix,
        down: Matrix,
    },
    Experts {
        router: Matrix,
        router_bias: Vector,
        up: Matrix,
        up_bias: Vector,
        down: Matrix,
        down_bias: Vector,
    },
}

struct Layer {
    attention: Attention,
    mlp_norm: Vector,
    mlp: Mlp,
}

/// Sizes that launches need, once per model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// Columns of q, and of q, k and v together.
    q: usize,
    qkv: usize,
    intermediate: usize,
    vocab: usize,
    /// 0 in dense models.
    experts: usize,
    /// Experts that the router chooses for a token, and those that are computed: the same, or all; 1 in dense models.
    chosen: usize,
    slots: usize,
    eps: f32,
    alpha: f32,
    limit: f32,
    /// Whether values are rounded to bf16 between operations.
    bf16: bool,
    /// bf16 parts of an activation: 1 where it is rounded, 3 where it is f32.
    planes: usize,
    kv_bf16: bool,
    /// Most rows of one pass.
    pass_rows: usize,
    multiprocessors: u32,
    /// Flags of norms and of everything else.
    norm_flags: u32,
    flags: u32,
}

impl Shape {
    fn of(config: &ModelConfig, options: &LoadOptions, multiprocessors: u32) -> Self {
        let bf16 = options.activation_dtype == ActivationDtype::Bf16;
        let q = config.num_attention_heads * config.head_dim;
        let moe = config.moe.as_ref();
        let gpt_oss = config.architecture == Architecture::GptOss;
        let flags = if bf16 { BF16 } else { 0 };
        let shape = Self {
            layers: config.num_hidden_layers,
            hidden: config.hidden_size,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            q,
            qkv: q + 2 * config.num_key_value_heads * config.head_dim,
            intermediate: config.intermediate_size,
            vocab: config.vocab_size,
            experts: moe.map_or(0, |m| m.num_local_experts),
            chosen: moe.map_or(1, |m| m.num_experts_per_tok),
            slots: moe.map_or(1, |m| options.expert_mode.computed(m)),
            eps: config.rms_norm_eps as f32,
            alpha: moe.map_or(0.0, |m| m.swiglu_alpha as f32),
            limit: moe.map_or(0.0, |m| m.swiglu_limit as f32),
            bf16,
            planes: if bf16 { 1 } else { 3 },
            kv_bf16: options.kv() == KvDtype::Bf16,
            pass_rows: 0,
            multiprocessors,
            norm_flags: flags | if gpt_oss { 0 } else { ROUND_FIRST },
            flags: flags | if gpt_oss { CLAMPED } else { 0 },
        };
        let countable = shape.countable_rows();
        Self { pass_rows: options.pass_rows.map_or(countable, |rows| rows.clamp(1, countable)), ..shape }
    }

    /// Rows of which products can count all values, of all planes and slots, in 32 bits.
    fn countable_rows(&self) -> usize {
        let widest = self.hidden.max(self.q).max(self.slots * self.intermediate);
        (u32::MAX as usize / (self.planes * widest)).max(1)
    }

    /// Tokens of a sequence in one pass, and sequences of `batch` equal ones, where passes of `chunk` tokens of each
    /// are asked for.
    fn divide(&self, chunk: usize, batch: usize) -> (usize, usize) {
        let chunk = chunk.clamp(1, self.pass_rows);
        (chunk, batch.min(self.pass_rows / chunk))
    }

    /// Whether experts are computed that the router did not choose.
    fn computes_all(&self) -> bool {
        self.slots > self.chosen
    }

    /// Whether attention of prompts multiplies in bf16.
    fn on_tensor_cores(&self) -> bool {
        self.bf16 && self.kv_bf16
    }

    fn kv_row_bytes(&self) -> usize {
        2 * self.kv_heads * self.head_dim * if self.kv_bf16 { 2 } else { 4 }
    }
}

/// A model whose weights are in device memory.
pub(crate) struct Transformer {
    device: Device,
    shape: Shape,
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Vector,
    unembedding: Matrix,
    /// `[max_position_embeddings, head_dim / 2]`
    cos: Buffer,
    sin: Buffer,
    weights_bytes: u64,
    /// Workspaces of batches that have ended: their memory and graphs serve the next.
    idle: Idle,
    /// Of the caches of batches that have ended, likewise.
    pool: Pool,
}

/// One forward pass: whose rows are whose, and what is offered to whom.
pub(crate) struct Pass<'a, 's, 'h> {
    pub(crate) ids: &'a [u32],
    pub(crate) spans: &'a [crate::model::Span],
    pub(crate) sequences: &'a mut [&'s mut Sequence],
    pub(crate) hooks: &'a mut Hooks<'h>,
}

impl Transformer {
    /// Copies or makes the weights on `device`.
    ///
    /// # Errors
    /// Tensors that are missing or that a GPU does not take as they are; no memory; instructions asked for that it does
    /// not have.
    pub(crate) fn build(
        device: &Device,
        config: &ModelConfig,
        weights: &dyn WeightSource,
        options: &LoadOptions,
        rope: &RotaryEmbedding,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        device.decide_products()?;
        let shape = Shape::of(config, options, device.multiprocessors());
        load::build(device, config, shape, weights, options, rope, progress)
    }

    pub(crate) fn weights_bytes(&self) -> u64 {
        self.weights_bytes
    }

    /// See [`LoadOptions::pass_rows`].
    pub(crate) fn pass_rows(&self) -> usize {
        self.shape.pass_rows
    }

    /// A cache without tokens.
    pub(crate) fn cache(&self, config: &ModelConfig) -> DeviceCache {
        DeviceCache::new(&self.device, &self.pool, config, &self.shape)
    }

    /// A workspace that an earlier batch has left, or a new one.
    pub(crate) fn lease(&self) -> Leased {
        self.idle.lease(|| DeviceWorkspace::new(&self.device, self.shape))
    }
}

/// Device memory that holds a copy of `bytes`.
fn buffer_of(device: &Device, bytes: &[u8], category: Category) -> Result<Buffer> {
    let buffer = device.buffer(bytes.len(), category).map_err(gpu_error)?;
    device.upload(buffer.address(), bytes).map_err(gpu_error)?;
    Ok(buffer)
}

impl From<GpuError> for Error {
    fn from(error: GpuError) -> Self {
        Self::Device(error)
    }
}

/// What the device says, as this crate's error.
pub(crate) fn gpu_error(error: impl Into<GpuError>) -> Error {
    Error::Device(error.into())
}
