//! Does it fit: what a model needs in memory against what the machine has, before anything is loaded.
//!
//! Arithmetic over the layout. Activations are what the layers of the CPU engine hold at once; how evenly the
//! experts are chosen is the one thing that shapes do not tell. A refusal keeps a margin, a prediction does not.

use serde::Serialize;

use crate::Error;
use crate::config::{ExpertDtype, ModelConfig};
use crate::layout::{self, Role, TensorSpec};
use crate::model::ActivationDtype;

/// What is to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    pub expert_dtype: ExpertDtype,
    pub activation_dtype: ActivationDtype,
    /// Prompt and output of one sequence.
    pub context_tokens: usize,
    pub batch: usize,
    /// Tokens per forward pass of the prefill.
    pub prefill_chunk: usize,
    /// Weights are mapped from files: they can be dropped and read again, but running so is slow.
    pub mapped: bool,
}

/// The answer, all in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Preflight {
    pub weights_bytes: u64,
    /// KV cache at the end of the context, windows honoured.
    pub kv_bytes: u64,
    pub activation_bytes_estimate: u64,
    pub required_bytes: u64,
    /// `None` where the system does not tell; then nothing is refused.
    pub available_bytes: Option<u64>,
    pub fits: bool,
    pub weights_mapped: bool,
    /// Largest context of this batch that fits, 0 if not even one token does.
    pub max_context_tokens: usize,
    /// What would fit, where this does not.
    pub suggestion: Option<String>,
}

/// Holds `need` against `available` bytes (see [`crate::system::available_memory`]).
pub fn check(config: &ModelConfig, need: &Need, available: Option<u64>) -> Preflight {
    let weights_bytes = layout::weights_bytes(config, need.expert_dtype);
    let required_bytes = required(config, need);
    let fits = available.is_none_or(|available| required_bytes <= available);
    Preflight {
        weights_bytes,
        kv_bytes: kv_bytes(config, need),
        activation_bytes_estimate: activation_bytes(config, need),
        required_bytes,
        available_bytes: available,
        fits,
        weights_mapped: need.mapped,
        max_context_tokens: max_context_of(config, need, available),
        suggestion: (!fits).then(|| suggest(config, need, available)),
    }
}

/// `check` as a gate.
///
/// # Errors
/// [`Error::DoesNotFit`] says what is needed, what there is, and what would fit.
pub fn require(name: &str, config: &ModelConfig, need: &Need, available: Option<u64>) -> Result<(), Error> {
    let preflight = check(config, need, available);
    match (preflight.suggestion, preflight.available_bytes) {
        (Some(suggestion), Some(available_bytes)) => Err(Error::DoesNotFit {
            model: name.to_owned(),
            required: preflight.required_bytes,
            weights: preflight.weights_bytes,
            kv: preflight.kv_bytes,
            context: need.context_tokens,
            available: available_bytes,
            suggestion,
        }),
        _ => Ok(()),
    }
}

/// Bytes as people read them.
pub fn gib(bytes: u64) -> String {
    const GIB: f64 = (1_u64 << 30) as f64;
    match bytes as f64 / GIB {
        small if small < 0.1 => format!("{:.1} MiB", small * 1024.0),
        large => format!("{large:.1} GiB"),
    }
}

/// The program itself where nobody measured it: code, tokenizer, stacks, buffers of the run. A process that has
/// loaded the o200k tokenizer has about half of it in memory; the rest is the margin of a refusal.
const PROGRAM_BYTES: u64 = 256 << 20;

/// What a process needs in memory, part by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Parts {
    /// Vectors, which are widened to f32, with their four bytes.
    pub weights_bytes: u64,
    /// At the end of the context, windows honoured, no page in excess.
    pub kv_bytes: u64,
    pub activation_bytes: u64,
    pub program_bytes: u64,
}

impl Parts {
    pub fn total_bytes(&self) -> u64 {
        let Self { weights_bytes, kv_bytes, activation_bytes, program_bytes } = *self;
        [weights_bytes, kv_bytes, activation_bytes, program_bytes].into_iter().fold(0, u64::saturating_add)
    }
}

/// Predicts what `need` takes, in a process that needs `program_bytes` for itself.
pub fn parts(config: &ModelConfig, need: &Need, program_bytes: u64) -> Parts {
    Parts {
        weights_bytes: layout::weights_bytes(config, need.expert_dtype) + widened_bytes(config),
        kv_bytes: kv_bytes(config, need),
        activation_bytes: activation_bytes(config, need),
        program_bytes,
    }
}

/// What vectors take beyond their bytes in the checkpoint: they are kept in f32 instead of bf16.
fn widened_bytes(config: &ModelConfig) -> u64 {
    let is_vector =
        |spec: &&TensorSpec| spec.shape.len() == 1 || matches!(spec.role, Role::ExpertBias | Role::Norm);
    layout::tensors(config).iter().filter(is_vector).map(|spec| 2 * spec.elements()).sum()
}

fn required(config: &ModelConfig, need: &Need) -> u64 {
    parts(config, need, PROGRAM_BYTES).total_bytes()
}

fn kv_bytes(config: &ModelConfig, need: &Need) -> u64 {
    let one = layout::kv_bytes(config, need.context_tokens, need.activation_dtype.size(), true);
    one.saturating_mul(need.batch as u64)
}

/// How much more than an even share of the tokens the busiest expert of any layer gets; generated routers with
/// random prompts show up to this much.
const BUSIEST_EXPERT: f64 = 2.0;

/// Part of the activations that the system's allocator holds on top, in holes and in what it has not given back.
/// Resident peaks of dense-nano exceed what it allocates by about 5 % of its activations; those of gpt-oss-nano by
/// 0 to 27 %, from one run to the next, which is up to 4 % of the whole process to either side of the prediction.
const HELD_BACK: f64 = 0.06;

/// Most bytes that a forward pass takes at once beside weights and cache: in its largest layer stage, or when the
/// logits of the batch are chosen from.
fn activation_bytes(config: &ModelConfig, need: &Need) -> u64 {
    let tokens = (need.prefill_chunk.min(need.context_tokens).max(1) * need.batch) as f64;
    // Ids, and the cosines and sines of all positions.
    let position = 8 + 4 * config.head_dim;
    let stage = attention_stage(config, need.activation_dtype).max(mlp_stage(config, need));
    // The logits in f32, their rows as they are handed out, and for one row the sorted candidates of a sampler.
    let logits = (8 * need.batch + 28) * config.vocab_size;
    ((1.0 + HELD_BACK) * (tokens * (position as f64 + stage)).max(logits as f64)) as u64
}

/// Bytes of `n` values of one token: as a tensor, and as the f32 copy that a kernel reads.
fn value_bytes(dtype: ActivationDtype) -> (f64, f64) {
    match dtype {
        ActivationDtype::F32 => (4.0, 0.0),
        ActivationDtype::Bf16 => (2.0, 4.0),
    }
}

/// Bytes per token while attention runs: the residual stream, q, k and v, the f32 output.
fn attention_stage(config: &ModelConfig, dtype: ActivationDtype) -> f64 {
    let (tensor, copy) = value_bytes(dtype);
    let q = (config.num_attention_heads * config.head_dim) as f64;
    let kv = (config.num_key_value_heads * config.head_dim) as f64;
    tensor * config.hidden_size as f64 + (tensor + copy) * (q + 2.0 * kv) + 4.0 * q
}

/// Bytes per token while the MLP runs: of a dense one gate, up and their product; of experts the normed input, the
/// f32 sum, the slots, and what the busiest expert holds of its share of the tokens.
fn mlp_stage(config: &ModelConfig, need: &Need) -> f64 {
    let (tensor, copy) = value_bytes(need.activation_dtype);
    let (hidden, inner) = (config.hidden_size as f64, config.intermediate_size as f64);
    let Some(moe) = &config.moe else {
        return tensor * hidden + 2.0 * (tensor + copy) * inner + 4.0 * inner;
    };
    let (experts, k) = (moe.num_local_experts as f64, moe.num_experts_per_tok as f64);
    let share = (BUSIEST_EXPERT * k / experts).min(1.0);
    // The MXFP4 kernel reorders its input.
    let reordered = if config.mxfp4 && need.expert_dtype == ExpertDtype::Native { inner } else { 0.0 };
    let expert = 4.0 * (2.0 * hidden + 3.0 * inner + reordered);
    let slots = 20.0 * k + tensor * (experts + k);
    2.0 * tensor * hidden + copy * (hidden + k) + 4.0 * hidden + slots + share * expert
}

/// Largest context of `need.batch` sequences that fits in `memory` bytes, 0 if not even one token does.
pub fn max_context(config: &ModelConfig, need: &Need, program_bytes: u64, memory: u64) -> usize {
    let fits = |context_tokens| {
        parts(config, &Need { context_tokens, ..*need }, program_bytes).total_bytes() <= memory
    };
    largest(config.max_position_embeddings, fits)
}

/// Most sequences of `need.context_tokens` that fit in `memory` bytes, 0 if not even one does.
pub fn max_batch(config: &ModelConfig, need: &Need, program_bytes: u64, memory: u64) -> usize {
    let fits = |batch| parts(config, &Need { batch, ..*need }, program_bytes).total_bytes() <= memory;
    largest(MAX_BATCH, fits)
}

/// Sequences beyond which nobody asks.
pub const MAX_BATCH: usize = 1 << 20;

/// The largest number up to `limit` that fits, by bisection; 0 if 1 does not. What fits fits in smaller numbers too.
fn largest(limit: usize, fits: impl Fn(usize) -> bool) -> usize {
    if fits(limit) {
        return limit;
    }
    let (mut fitting, mut failing) = (0, limit);
    while failing - fitting > 1 {
        let middle = fitting + (failing - fitting) / 2;
        if fits(middle) { fitting = middle } else { failing = middle }
    }
    fitting
}

fn max_context_of(config: &ModelConfig, need: &Need, available: Option<u64>) -> usize {
    let memory = available.unwrap_or(u64::MAX);
    max_context(config, need, PROGRAM_BYTES, memory)
}

fn suggest(config: &ModelConfig, need: &Need, available: Option<u64>) -> String {
    let fits =
        |config: &ModelConfig, need: &Need| available.is_none_or(|free| required(config, need) <= free);
    let mut ways = Vec::new();
    let native = Need { expert_dtype: ExpertDtype::Native, ..*need };
    if need.expert_dtype == ExpertDtype::Bf16 && config.mxfp4 && fits(config, &native) {
        ways.push("it fits with --expert-dtype native".to_owned());
    }
    let max_context = max_context_of(config, need, available);
    if max_context > 0 {
        ways.push(format!("a context of at most {max_context} tokens fits"));
    } else {
        let fits_with = |n: &usize| config.clone().with_layers(*n).is_ok_and(|cut| fits(&cut, need));
        if let Some(n) = (1..config.num_hidden_layers).rev().find(fits_with) {
            ways.push(format!("--layers {n} fits"));
        }
    }
    if ways.is_empty() {
        "take a smaller model, e.g. dummy:gpt-oss-nano".to_owned()
    } else {
        ways.join(", or ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preset;

    const NEED: Need = Need {
        expert_dtype: ExpertDtype::Native,
        activation_dtype: ActivationDtype::Bf16,
        context_tokens: 4096,
        batch: 1,
        prefill_chunk: 512,
        mapped: true,
    };

    #[test]
    fn gpt_oss_20b_fits_a_16_gib_machine_and_not_an_8_gib_one() {
        let config = preset::config("gpt-oss-20b").unwrap();
        let fitting = check(&config, &NEED, Some(15 << 30));
        assert!(fitting.fits && fitting.suggestion.is_none(), "{fitting:?}");
        assert_eq!(fitting.weights_bytes, 13_761_264_768);
        // 12 full layers of 4,096 and 12 sliding ones of 128 positions, 2 KiB each.
        assert_eq!(fitting.kv_bytes, 2048 * (12 * 4096 + 12 * 128));
        let failing = check(&config, &NEED, Some(8 << 30));
        assert!(!failing.fits && failing.max_context_tokens == 0);
        let text = failing.suggestion.unwrap();
        assert!(text.contains("--layers 1"), "{text}");
        let error = require("x", &config, &NEED, Some(8 << 30)).unwrap_err().to_string();
        assert!(error.contains("8.0 GiB") && error.contains("--layers"), "{error}");
    }

    #[test]
    fn the_largest_context_fits_and_one_more_does_not() {
        let config = preset::config("llama-3.1-70b").unwrap();
        let available = layout::weights_bytes(&config, ExpertDtype::Native) + (4 << 30) + PROGRAM_BYTES;
        let n = check(&config, &NEED, Some(available)).max_context_tokens;
        assert!(n > 4096 && n < config.max_position_embeddings, "{n}");
        let at = |context_tokens| check(&config, &Need { context_tokens, ..NEED }, Some(available)).fits;
        assert!(at(n) && !at(n + 1));
    }

    #[test]
    fn dequantized_experts_are_refused_where_native_ones_fit() {
        let config = preset::config("gpt-oss-20b").unwrap();
        let need = Need { expert_dtype: ExpertDtype::Bf16, ..NEED };
        let text = check(&config, &need, Some(24 << 30)).suggestion.unwrap();
        assert!(text.contains("--expert-dtype native"), "{text}");
    }
}
