//! The model as callers see it: build from weights, prefill, decode, with ragged batches and hooks.
//!
//! A forward pass takes the new tokens of all sequences in one list; spans say whose they are. What the layers
//! compute stands in `gpt_oss` and `dense`.

mod dense;
mod gpt_oss;
pub(crate) mod load;
mod logits;
mod pack;
mod packed_cache;
mod step;

use bench_kernels::Exec;
pub use bench_kernels::attention::KvDtype;
use bench_kernels::vectors::non_finite_count;
use candle_core::{Device, Tensor};

use crate::cache::Sequence;
use crate::config::{Architecture, ExpertDtype, ModelConfig, MoeConfig};
use crate::error::{Error, Result};
use crate::hooks::{Hooks, Routing, Site};
use crate::ops::kernel_error;
use crate::ops::rope::Angles;
use crate::place::Place;
use crate::rope::RotaryEmbedding;
use crate::weights::WeightSource;
pub use logits::Logits;
pub use packed_cache::{LoadNotes, PackedCache};
pub use step::Workspace;
pub(crate) use step::{Span, Step};

/// The dtype between operations, and that of the KV cache unless another is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ActivationDtype {
    #[default]
    F32,
    Bf16,
}

impl ActivationDtype {
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// How the matrices of attention and the unembedding are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DenseDtype {
    /// As the checkpoint has them, which is bf16 as a rule.
    #[default]
    Native,
    /// 8 bits and an f16 scale for 32 weights.
    Q8_0,
    /// 6 bits and an f16 scale for 32 weights.
    Q6_0,
}

/// How activations enter a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MatmulPrecision {
    /// As they are; the reference of the others.
    #[default]
    F32,
    /// With quantized weights as blocks of 16-bit integers; with bf16 weights as they are.
    Int16,
    /// Where arithmetic is the limit (prompts, large batches) as blocks of 8-bit integers with quantized weights,
    /// as bf16 with bf16 weights; elsewhere as `Int16`.
    Int8,
}

/// Which experts are computed for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExpertMode {
    /// Those that the router chose.
    #[default]
    Routed,
    /// All of them, with weight 0 where the router did not choose: the result of the others at the cost of all.
    DenseAll,
}

impl ExpertMode {
    /// As options spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::DenseAll => "dense-all",
        }
    }

    /// Refuses all experts of a model that has none.
    ///
    /// # Errors
    /// [`Error::InvalidModel`].
    pub fn check(self, config: &ModelConfig) -> Result<()> {
        if self == Self::Routed || config.moe.is_some() {
            return Ok(());
        }
        Err(Error::InvalidModel {
            what: "expert mode dense-all".to_owned(),
            problem: format!(
                "{} is a dense model, which has no experts; run it with --expert-mode routed",
                config.architecture.class_name()
            ),
        })
    }

    /// Experts of a layer that are computed for one token.
    pub fn computed(self, moe: &MoeConfig) -> usize {
        match self {
            Self::Routed => moe.num_experts_per_tok,
            Self::DenseAll => moe.num_local_experts,
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    pub activation_dtype: ActivationDtype,
    pub expert_dtype: ExpertDtype,
    pub expert_mode: ExpertMode,
    pub dense_dtype: DenseDtype,
    pub matmul_precision: MatmulPrecision,
    /// `None`: that of the activations.
    pub kv_dtype: Option<KvDtype>,
    /// Instruction set and threads.
    pub exec: bench_kernels::Exec,
    pub place: Place,
    /// Only the first layers; `None` for all.
    pub num_layers: Option<usize>,
    /// Where quantized matrices are kept for the next start; `None`: nowhere. Of no effect on a GPU, which quantizes
    /// faster than it could be brought there.
    pub packed_cache: Option<PackedCache>,
    /// Most rows of one pass on a GPU, where larger ones are divided by sequences. `None`: as many as its kernels can
    /// count.
    pub pass_rows: Option<usize>,
}

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
    /// `layers`, or `B` for bytes.
    pub unit: &'static str,
}

enum Transformer {
    GptOss(gpt_oss::Transformer),
    Dense(dense::Transformer),
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::Transformer),
}

/// A loaded model; it has no state of its own, so that several threads may run it with their own sequences.
pub struct Model {
    config: ModelConfig,
    exec: Exec,
    activation_dtype: ActivationDtype,
    kv_dtype: KvDtype,
    precision: MatmulPrecision,
    rope: RotaryEmbedding,
    transformer: Transformer,
    weights_bytes: u64,
    notes: LoadNotes,
}

/// Which positions are unembedded.
#[derive(Clone, Copy, PartialEq)]
enum Keep {
    Last,
    All,
}

impl Model {
    /// Builds the model on the CPU. Mapped weights stay mapped; `progress` is called after each layer.
    ///
    /// # Errors
    /// Missing tensors, wrong shapes or dtypes, with file and tensor; more layers asked for than there are, all
    /// experts of a dense model.
    pub fn build(
        config: ModelConfig,
        weights: &dyn WeightSource,
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let config = match options.num_layers {
            Some(layers) => config.with_layers(layers)?,
            None => config,
        };
        options.expert_mode.check(&config)?;
        let kv_dtype = options.kv();
        kv_dtype.check(config.head_dim).map_err(kernel_error("kv cache"))?;
        let rope = RotaryEmbedding::new(config.head_dim, config.rope_theta, &config.rope_scaling);
        #[cfg(feature = "cuda")]
        if let Place::Cuda(device) = &options.place {
            let model = crate::cuda::Transformer::build(device, &config, weights, options, &rope, progress)?;
            let weights_bytes = model.weights_bytes();
            return Ok(Self::of(config, options, rope, Transformer::Cuda(model), weights_bytes));
        }
        let mut loader = load::Loader::new(weights, options, config.num_hidden_layers, progress);
        let transformer = match config.architecture {
            Architecture::GptOss => Transformer::GptOss(gpt_oss::Transformer::load(&mut loader, &config)?),
            Architecture::Qwen3 | Architecture::Llama => {
                Transformer::Dense(dense::Transformer::load(&mut loader, &config)?)
            }
        };
        let (weights_bytes, notes) = loader.finish();
        Ok(Self { notes, ..Self::of(config, options, rope, transformer, weights_bytes) })
    }

    fn of(
        config: ModelConfig,
        options: &LoadOptions,
        rope: RotaryEmbedding,
        transformer: Transformer,
        weights_bytes: u64,
    ) -> Self {
        Self {
            config,
            exec: options.exec.clone(),
            activation_dtype: options.activation_dtype,
            kv_dtype: options.kv(),
            precision: options.matmul_precision,
            rope,
            transformer,
            weights_bytes,
            notes: LoadNotes::default(),
        }
    }

    /// What loading it had to tell.
    pub fn load_notes(&self) -> &LoadNotes {
        &self.notes
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub fn activation_dtype(&self) -> ActivationDtype {
        self.activation_dtype
    }

    /// Bytes of the parameters in memory, mapped ones included.
    pub fn weights_bytes(&self) -> u64 {
        self.weights_bytes
    }

    /// Most rows of one pass: those of more sequences go through the layers in parts. `None` on the host, which divides
    /// nothing.
    pub fn pass_rows(&self) -> Option<usize> {
        #[cfg(feature = "cuda")]
        if let Transformer::Cuda(model) = &self.transformer {
            return Some(model.pass_rows());
        }
        None
    }

    /// A sequence without tokens.
    pub fn sequence(&self) -> Sequence {
        #[cfg(feature = "cuda")]
        if let Transformer::Cuda(model) = &self.transformer {
            return Sequence::on_device(model.cache(&self.config), self.kv_dtype);
        }
        Sequence::new(&self.config, self.kv_dtype)
    }

    /// Memory for forward passes, empty at first. Whoever runs many passes keeps one.
    pub fn workspace(&self) -> Workspace {
        Workspace {
            #[cfg(feature = "cuda")]
            device: match &self.transformer {
                Transformer::Cuda(model) => Some(model.lease()),
                _ => None,
            },
            ..Workspace::default()
        }
    }

    /// The experts that passes with this workspace and these hooks touched since the last call.
    ///
    /// # Errors
    /// A device that fails.
    pub fn take_routing(&self, workspace: &mut Workspace, hooks: &mut Hooks<'_>) -> Result<Routing> {
        #[cfg(feature = "cuda")]
        if workspace.device.is_some() {
            return workspace.device()?.take_routing();
        }
        Ok(hooks.take_routing())
    }

    /// Runs `ids[i]` through sequence i, at most `chunk` tokens of each at a time, without padding.
    ///
    /// Returns the logits of each sequence's last position, f32 `[sequences, vocab]`. Hooks see one value per
    /// chunk, with the rows of all sequences that still have tokens one after the other; where a GPU divides the pass
    /// (see [`LoadOptions::pass_rows`]), one for each part.
    ///
    /// # Errors
    /// Empty prompts, ids outside the vocabulary, contexts beyond `max_position_embeddings`, unknown sites, logits
    /// that are not finite. A sequence whose forward pass failed must be reset.
    pub fn prefill(
        &self,
        sequences: &mut [&mut Sequence],
        ids: &[&[u32]],
        chunk: usize,
        hooks: &mut Hooks<'_>,
    ) -> Result<Tensor> {
        let mut workspace = self.workspace();
        self.prefill_in(&mut workspace, sequences, ids, chunk, hooks)?;
        workspace.into_logits()
    }

    /// Runs one token of each sequence; logits as in [`Model::prefill`].
    pub fn decode_step(
        &self,
        sequences: &mut [&mut Sequence],
        ids: &[u32],
        hooks: &mut Hooks<'_>,
    ) -> Result<Tensor> {
        let mut workspace = self.workspace();
        self.decode_step_in(&mut workspace, sequences, ids, hooks)?;
        workspace.into_logits()
    }

    /// As [`Model::prefill`], but returns the logits of every position, f32 `[sum of lengths, vocab]`, sequence
    /// after sequence.
    pub fn forward_all(
        &self,
        sequences: &mut [&mut Sequence],
        ids: &[&[u32]],
        chunk: usize,
        hooks: &mut Hooks<'_>,
    ) -> Result<Tensor> {
        let mut workspace = self.workspace();
        self.run(&mut workspace, sequences, |i| ids[i], ids.len(), chunk, hooks, Keep::All)?;
        workspace.into_logits()
    }

    /// As [`Model::prefill`], in memory that is kept; the logits stay there until the next pass.
    pub fn prefill_in<'w>(
        &self,
        workspace: &'w mut Workspace,
        sequences: &mut [&mut Sequence],
        ids: &[&[u32]],
        chunk: usize,
        hooks: &mut Hooks<'_>,
    ) -> Result<Logits<'w>> {
        self.run(workspace, sequences, |i| ids[i], ids.len(), chunk, hooks, Keep::Last)?;
        Ok(Logits::new(workspace))
    }

    /// As [`Model::decode_step`], in memory that is kept. Without hooks, a step like the one before takes nothing
    /// from the heap but pages of the caches.
    pub fn decode_step_in<'w>(
        &self,
        workspace: &'w mut Workspace,
        sequences: &mut [&mut Sequence],
        ids: &[u32],
        hooks: &mut Hooks<'_>,
    ) -> Result<Logits<'w>> {
        self.run(workspace, sequences, |i| &ids[i..=i], ids.len(), 1, hooks, Keep::Last)?;
        Ok(Logits::new(workspace))
    }

    #[allow(clippy::too_many_arguments)]
    fn run<'i>(
        &self,
        ws: &mut Workspace,
        sequences: &mut [&mut Sequence],
        ids: impl Fn(usize) -> &'i [u32],
        count: usize,
        chunk: usize,
        hooks: &mut Hooks<'_>,
        keep: Keep,
    ) -> Result<()> {
        self.check(sequences, &ids, count, hooks)?;
        let chunk = chunk.max(1);
        #[cfg(feature = "cuda")]
        if let Transformer::Cuda(model) = &self.transformer {
            let input = crate::cuda::Input { ids: &ids, count, chunk, all: keep == Keep::All };
            return model.run(ws.device()?, sequences, &input, hooks);
        }
        let (longest, all) = (0..count).map(|i| ids(i).len()).fold((0, 0), |(m, n), l| (m.max(l), n + l));
        ws.kept.reshape(if keep == Keep::All { all } else { count }, self.config.hidden_size);
        for start in (0..longest).step_by(chunk) {
            let part = |i: usize| {
                let ids = ids(i);
                &ids[start.min(ids.len())..(start + chunk).min(ids.len())]
            };
            self.forward(ws, sequences, &part, count, hooks)?;
            let (mut row, Workspace { spans, kept, x, .. }) = (0, &mut *ws);
            let (kept, hidden) = (kept.values_mut(), self.config.hidden_size);
            let mut keep_row = |from: usize, to: usize| {
                kept[to * hidden..(to + 1) * hidden].copy_from_slice(x.row(from));
            };
            let mut sequence = 0;
            for span in spans.iter() {
                while sequence < span.sequence {
                    row += ids(sequence).len();
                    sequence += 1;
                }
                match keep {
                    Keep::All => (0..span.len).for_each(|i| keep_row(span.start + i, row + start + i)),
                    Keep::Last if start + span.len == ids(span.sequence).len() => {
                        keep_row(span.start + span.len - 1, span.sequence);
                    }
                    Keep::Last => {}
                }
            }
        }
        self.logits(ws, hooks)
    }

    fn check<'i>(
        &self,
        sequences: &[&mut Sequence],
        ids: &impl Fn(usize) -> &'i [u32],
        count: usize,
        hooks: &Hooks<'_>,
    ) -> Result<()> {
        if sequences.len() != count || count == 0 {
            return Err(Error::BatchMismatch { sequences: sequences.len(), ids: count });
        }
        let (vocab_size, limit) = (self.config.vocab_size, self.config.max_position_embeddings);
        for (i, sequence) in sequences.iter().enumerate() {
            let ids = ids(i);
            if ids.is_empty() {
                return Err(Error::EmptyPrompt { sequence: i });
            }
            if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
                return Err(Error::TokenOutOfVocabulary { id, vocab_size });
            }
            let wanted = sequence.len() + ids.len();
            if wanted > limit {
                return Err(Error::ContextTooLong { wanted, limit });
            }
        }
        hooks.check(&self.config)
    }

    /// One pass over all layers with `part(i)` of sequence i, which may be empty; the residual stream `[T, hidden]`
    /// is then in `ws.x`, and `ws.spans` says whose its rows are.
    fn forward<'i>(
        &self,
        ws: &mut Workspace,
        sequences: &mut [&mut Sequence],
        part: &impl Fn(usize) -> &'i [u32],
        count: usize,
        hooks: &mut Hooks<'_>,
    ) -> Result<()> {
        // Taken out, so that layers may read them while they write to the rest.
        let mut spans = std::mem::take(&mut ws.spans);
        let (mut ids, mut angles) = (std::mem::take(&mut ws.ids), std::mem::take(&mut ws.angles));
        spans.clear();
        ids.clear();
        let mut began = Ok(());
        for sequence in (0..count).filter(|&i| !part(i).is_empty()) {
            began = began.and(sequences[sequence].begin());
            let (start, past) = (ids.len(), sequences[sequence].len());
            ids.extend_from_slice(part(sequence));
            spans.push(Span { sequence, start, len: ids.len() - start, past });
        }
        let positions = spans.iter().flat_map(|s| s.past..s.past + s.len);
        self.rope.cos_sin_into(positions, self.is_bf16(), &mut angles.cos, &mut angles.sin);
        let ran = began.and_then(|()| {
            let mut step = self.step(&spans, &angles, sequences, hooks);
            match &self.transformer {
                Transformer::GptOss(t) => t.forward(&ids, ws, &mut step),
                Transformer::Dense(t) => t.forward(&ids, ws, &mut step),
                #[cfg(feature = "cuda")]
                Transformer::Cuda(_) => Err(Error::OtherSequence),
            }
        });
        if ran.is_ok() {
            for span in &spans {
                sequences[span.sequence].finish(span.len);
            }
        }
        (ws.spans, ws.ids, ws.angles) = (spans, ids, angles);
        ran
    }

    fn step<'a, 's, 'h>(
        &'a self,
        spans: &'a [Span],
        angles: &'a Angles,
        sequences: &'a mut [&'s mut Sequence],
        hooks: &'a mut Hooks<'h>,
    ) -> Step<'a, 's, 'h> {
        let (precision, bf16) = (self.precision, self.is_bf16());
        Step { exec: &self.exec, precision, bf16, spans, angles, sequences, hooks }
    }

    fn is_bf16(&self) -> bool {
        self.activation_dtype == ActivationDtype::Bf16
    }

    /// The logits, f32, of the rows that were kept.
    fn logits(&self, ws: &mut Workspace, hooks: &mut Hooks<'_>) -> Result<()> {
        let angles = Angles::default();
        let mut step = self.step(&[], &angles, &mut [], hooks);
        match &self.transformer {
            Transformer::GptOss(t) => t.unembed(ws, &mut step)?,
            Transformer::Dense(t) => t.unembed(ws, &mut step)?,
            #[cfg(feature = "cuda")]
            Transformer::Cuda(_) => return Err(Error::OtherSequence),
        }
        step.at(Site::Logits, &mut ws.logits)?;
        let count = non_finite_count(self.exec.variant(), ws.logits.values());
        if count > 0 {
            let site = format!("{} positions", ws.logits.rows());
            return Err(Error::NonFiniteLogits { site, count });
        }
        Ok(())
    }
}

impl Workspace {
    /// The logits of the last pass as a tensor of their own.
    fn into_logits(mut self) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if self.device.is_some() {
            let device = self.device()?;
            let vocab = device.vocab();
            let values = device.logits()?;
            return Ok(Tensor::from_slice(values, &[values.len() / vocab, vocab], &Device::Cpu)?);
        }
        let shape = [self.logits.rows(), self.logits.cols()];
        Ok(Tensor::from_slice(self.logits.values(), &shape, &Device::Cpu)?)
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (bytes, dtype) = (self.weights_bytes, self.activation_dtype.name());
        write!(f, "{:?} of {bytes} bytes, activations {dtype}", self.config.architecture)
    }
}
