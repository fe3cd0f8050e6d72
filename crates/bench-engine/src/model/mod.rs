//! The model as callers see it: build from weights, prefill, decode, with ragged batches and hooks.
//!
//! A forward pass takes the new tokens of all sequences in one list; spans say whose they are. What the layers
//! compute stands in `gpt_oss` and `dense`.

mod dense;
mod gpt_oss;
mod load;

use candle_core::{DType, Tensor};

use crate::cache::Sequence;
use crate::config::{Architecture, ExpertDtype, ModelConfig};
use crate::error::{Error, Result};
use crate::hooks::{Hooks, Site};
use crate::ops::rope::Angles;
use crate::ops::with_f32;
use crate::rope::RotaryEmbedding;
use crate::weights::WeightSource;

/// The dtype between operations, and that of the KV cache.
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

    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    pub activation_dtype: ActivationDtype,
    pub expert_dtype: ExpertDtype,
    /// Only the first layers; `None` for all.
    pub num_layers: Option<usize>,
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
}

/// A loaded model; it has no state of its own, so that several threads may run it with their own sequences.
pub struct Model {
    config: ModelConfig,
    activation_dtype: ActivationDtype,
    rope: RotaryEmbedding,
    transformer: Transformer,
    weights_bytes: u64,
}

/// The tokens of one sequence in a forward pass: rows `start..start + len`, after `past` tokens in its cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) sequence: usize,
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) past: usize,
}

/// What the layers of one forward pass share.
pub(crate) struct Step<'a, 's, 'h> {
    pub(crate) spans: Vec<Span>,
    pub(crate) angles: Angles,
    pub(crate) sequences: &'a mut [&'s mut Sequence],
    pub(crate) hooks: &'a mut Hooks<'h>,
    pub(crate) dtype: DType,
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
    /// Missing tensors, wrong shapes or dtypes, with file and tensor; more layers asked for than there are.
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
        let mut loader = load::Loader::new(weights, options.expert_dtype, config.num_hidden_layers, progress);
        let transformer = match config.architecture {
            Architecture::GptOss => Transformer::GptOss(gpt_oss::Transformer::load(&mut loader, &config)?),
            Architecture::Qwen3 | Architecture::Llama => {
                Transformer::Dense(dense::Transformer::load(&mut loader, &config)?)
            }
        };
        let weights_bytes = loader.bytes();
        let rope = RotaryEmbedding::new(config.head_dim, config.rope_theta, &config.rope_scaling);
        Ok(Self { config, activation_dtype: options.activation_dtype, rope, transformer, weights_bytes })
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

    /// A sequence without tokens.
    pub fn sequence(&self) -> Sequence {
        Sequence::new(&self.config, self.activation_dtype)
    }

    /// Runs `ids[i]` through sequence i, at most `chunk` tokens of each at a time, without padding.
    ///
    /// Returns the logits of each sequence's last position, f32 `[sequences, vocab]`. Hooks see one value per
    /// chunk, with the rows of all sequences that still have tokens one after the other.
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
        self.run(sequences, ids, chunk, hooks, Keep::Last)
    }

    /// Runs one token of each sequence; logits as in [`Model::prefill`].
    pub fn decode_step(
        &self,
        sequences: &mut [&mut Sequence],
        ids: &[u32],
        hooks: &mut Hooks<'_>,
    ) -> Result<Tensor> {
        let ids: Vec<&[u32]> = ids.chunks(1).collect();
        self.run(sequences, &ids, 1, hooks, Keep::Last)
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
        self.run(sequences, ids, chunk, hooks, Keep::All)
    }

    fn run(
        &self,
        sequences: &mut [&mut Sequence],
        ids: &[&[u32]],
        chunk: usize,
        hooks: &mut Hooks<'_>,
        keep: Keep,
    ) -> Result<Tensor> {
        self.check(sequences, ids, hooks)?;
        let chunk = chunk.max(1);
        let mut kept: Vec<Vec<Tensor>> = vec![Vec::new(); ids.len()];
        let longest = ids.iter().map(|ids| ids.len()).max().unwrap_or(0);
        for start in (0..longest).step_by(chunk) {
            let parts: Vec<(usize, &[u32])> = ids
                .iter()
                .enumerate()
                .filter(|(_, ids)| start < ids.len())
                .map(|(i, ids)| (i, &ids[start..(start + chunk).min(ids.len())]))
                .collect();
            let (hidden, spans) = self.forward(sequences, &parts, hooks)?;
            for span in spans {
                let ends = start + span.len == ids[span.sequence].len();
                match keep {
                    Keep::All => kept[span.sequence].push(hidden.narrow(0, span.start, span.len)?),
                    // A copy, so that the rest of the chunk is freed.
                    Keep::Last if ends => {
                        let last = hidden.narrow(0, span.start + span.len - 1, 1)?;
                        kept[span.sequence].push(last.force_contiguous()?);
                    }
                    Keep::Last => {}
                }
            }
        }
        self.logits(&Tensor::cat(&kept.concat(), 0)?, hooks)
    }

    fn check(&self, sequences: &[&mut Sequence], ids: &[&[u32]], hooks: &Hooks<'_>) -> Result<()> {
        if sequences.len() != ids.len() || ids.is_empty() {
            return Err(Error::BatchMismatch { sequences: sequences.len(), ids: ids.len() });
        }
        let (vocab_size, limit) = (self.config.vocab_size, self.config.max_position_embeddings);
        for (i, (sequence, ids)) in sequences.iter().zip(ids).enumerate() {
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

    /// One pass over all layers: the residual stream `[T, hidden]` and whose rows they are.
    fn forward(
        &self,
        sequences: &mut [&mut Sequence],
        parts: &[(usize, &[u32])],
        hooks: &mut Hooks<'_>,
    ) -> Result<(Tensor, Vec<Span>)> {
        let (mut spans, mut ids) = (Vec::with_capacity(parts.len()), Vec::new());
        for &(sequence, part) in parts {
            sequences[sequence].begin()?;
            spans.push(Span { sequence, start: ids.len(), len: part.len(), past: sequences[sequence].len() });
            ids.extend_from_slice(part);
        }
        let positions = spans.iter().flat_map(|s| s.past..s.past + s.len);
        let (cos, sin) = match self.activation_dtype {
            ActivationDtype::F32 => self.rope.cos_sin(positions),
            ActivationDtype::Bf16 => self.rope.cos_sin_bf16(positions),
        };
        let dtype = self.activation_dtype.dtype();
        let mut step = Step { spans, angles: Angles { cos, sin }, sequences, hooks, dtype };
        let hidden = match &self.transformer {
            Transformer::GptOss(t) => t.forward(&ids, &mut step)?,
            Transformer::Dense(t) => t.forward(&ids, &mut step)?,
        };
        let Step { spans, sequences, .. } = step;
        for span in &spans {
            sequences[span.sequence].finish(span.len);
        }
        Ok((hidden, spans))
    }

    /// Logits, f32, of some rows of the residual stream.
    fn logits(&self, hidden: &Tensor, hooks: &mut Hooks<'_>) -> Result<Tensor> {
        let logits = match &self.transformer {
            Transformer::GptOss(t) => t.unembed(hidden, hooks)?,
            Transformer::Dense(t) => t.unembed(hidden, hooks)?,
        };
        let logits = hooks.at(Site::Logits, logits.to_dtype(DType::F32)?)?;
        let not_finite = |values: &[f32]| Ok(values.iter().filter(|v| !v.is_finite()).count());
        let count = with_f32("logits", &logits, not_finite)?;
        if count > 0 {
            let site = format!("{} positions", logits.dim(0)?);
            return Err(Error::NonFiniteLogits { site, count });
        }
        Ok(logits)
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (bytes, dtype) = (self.weights_bytes, self.activation_dtype.name());
        write!(f, "{:?} of {bytes} bytes, activations {dtype}", self.config.architecture)
    }
}
