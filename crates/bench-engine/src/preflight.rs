//! Does it fit: what a model needs in memory against what the machine has, before anything is loaded.
//!
//! Arithmetic over the layout; the one estimate, activations, errs on the large side.

use serde::Serialize;

use crate::Error;
use crate::config::{ExpertDtype, ModelConfig};
use crate::layout;
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
        max_context_tokens: max_context(config, need, available),
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

/// The program itself: code, tokenizer, stacks, buffers of the run.
const PROGRAM_BYTES: u64 = 256 << 20;

fn required(config: &ModelConfig, need: &Need) -> u64 {
    PROGRAM_BYTES
        .saturating_add(layout::weights_bytes(config, need.expert_dtype))
        .saturating_add(kv_bytes(config, need))
        .saturating_add(activation_bytes(config, need))
}

fn kv_bytes(config: &ModelConfig, need: &Need) -> u64 {
    let one = layout::kv_bytes(config, need.context_tokens, need.activation_dtype.size(), true);
    one.saturating_mul(need.batch as u64)
}

/// Values alive at once in one layer of a prefill chunk, in f32: residual and its copies, projections, MLP or
/// the chosen experts' inner values, and the logits of the last positions.
fn activation_bytes(config: &ModelConfig, need: &Need) -> u64 {
    let tokens = need.prefill_chunk.min(need.context_tokens).max(1) * need.batch;
    let heads = config.num_attention_heads + 2 * config.num_key_value_heads;
    let experts = config.moe.as_ref().map_or(1, |moe| moe.num_experts_per_tok);
    let per_token = 6 * config.hidden_size
        + 3 * heads * config.head_dim
        + experts * (3 * config.intermediate_size + config.hidden_size);
    let values = tokens as u64 * per_token as u64 + 2 * (need.batch * config.vocab_size) as u64;
    4 * values
}

fn max_context(config: &ModelConfig, need: &Need, available: Option<u64>) -> usize {
    let limit = config.max_position_embeddings;
    let Some(available) = available else { return limit };
    let fits = |tokens| required(config, &Need { context_tokens: tokens, ..*need }) <= available;
    if fits(limit) {
        return limit;
    }
    // `required` grows with the context: bisect between a context that fits (or 0) and one that does not.
    let (mut fitting, mut failing) = (0, limit);
    while failing - fitting > 1 {
        let middle = fitting + (failing - fitting) / 2;
        if fits(middle) { fitting = middle } else { failing = middle }
    }
    fitting
}

fn suggest(config: &ModelConfig, need: &Need, available: Option<u64>) -> String {
    let fits =
        |config: &ModelConfig, need: &Need| available.is_none_or(|free| required(config, need) <= free);
    let mut ways = Vec::new();
    let native = Need { expert_dtype: ExpertDtype::Native, ..*need };
    if need.expert_dtype == ExpertDtype::Bf16 && config.mxfp4 && fits(config, &native) {
        ways.push("it fits with --expert-dtype native".to_owned());
    }
    let max_context = max_context(config, need, available);
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
