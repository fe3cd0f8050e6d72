//! Does it fit: what a model needs in memory against what the machine has, before anything is loaded.
//!
//! Arithmetic over the layout; no device is asked. Activations are the memory that forward passes work in, which is
//! kept from the first to the last of a batch: of the CPU engine by a formula, on a GPU by the very plan by which it is
//! cut. A refusal keeps a margin, a prediction does not.

use bench_kernels::packed::PackedFormat;
use bench_kernels::rows::IntPrecision;
use serde::Serialize;

use crate::Error;
use crate::config::{ExpertDtype, ModelConfig};
#[cfg(feature = "cuda")]
use crate::cuda::needs;
use crate::dtype::Stored;
use crate::error::DoesNotFit;
use crate::layout::{self, Role, TensorSpec};
use crate::model::{ActivationDtype, DenseDtype, ExpertMode, KvDtype, LoadOptions, MatmulPrecision};
use crate::place::{DeviceMemory, Place};
use crate::system::available_memory;

/// What is to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    pub expert_dtype: ExpertDtype,
    pub expert_mode: ExpertMode,
    pub activation_dtype: ActivationDtype,
    pub dense_dtype: DenseDtype,
    pub kv_dtype: KvDtype,
    pub matmul_precision: MatmulPrecision,
    /// Prompt and output of one sequence.
    pub context_tokens: usize,
    pub batch: usize,
    /// Tokens per forward pass of the prefill.
    pub prefill_chunk: usize,
    /// Weights are mapped from files: they can be dropped and read again, but running so is slow.
    pub mapped: bool,
    /// `None`: on the host.
    pub gpu: Option<Gpu>,
    /// See [`LoadOptions::pass_rows`].
    pub pass_rows: Option<usize>,
}

/// What memory on a GPU depends on, beside the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gpu {
    pub multiprocessors: u32,
}

impl Need {
    /// One token of one sequence of a generated model that is loaded so.
    pub fn of(options: &LoadOptions) -> Self {
        Self {
            expert_dtype: options.expert_dtype,
            expert_mode: options.expert_mode,
            activation_dtype: options.activation_dtype,
            dense_dtype: options.dense_dtype,
            kv_dtype: options.kv(),
            matmul_precision: options.matmul_precision,
            context_tokens: 1,
            batch: 1,
            prefill_chunk: 1,
            mapped: false,
            gpu: options.place.multiprocessors().map(|multiprocessors| Gpu { multiprocessors }),
            pass_rows: options.pass_rows,
        }
    }

    pub(crate) fn stored(&self) -> Stored {
        Stored { experts: self.expert_dtype, dense: self.dense_dtype }
    }
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
    /// Rows of one pass on a GPU, where it fits only so that larger passes are divided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass_rows: Option<usize>,
    /// Largest context of this batch that fits, 0 if not even one token does.
    pub max_context_tokens: usize,
    /// What would fit, where this does not.
    pub suggestion: Option<String>,
}

/// `need` with passes that fit in `available` bytes: on a GPU those of several sequences are divided, into no more parts
/// than they have to be, of whole sequences. What fits as it is, or not at all, stays.
#[must_use]
pub fn divided(config: &ModelConfig, need: &Need, available: Option<u64>) -> Need {
    let fits = |need: &Need| available.is_none_or(|available| required(config, need) <= available);
    if need.gpu.is_none() || need.batch < 2 || fits(need) {
        return *need;
    }
    let chunk = need.prefill_chunk.min(need.context_tokens).max(1);
    let of = |sequences: usize| {
        let rows = sequences.saturating_mul(chunk);
        Need { pass_rows: Some(need.pass_rows.map_or(rows, |most| most.min(rows))), ..*need }
    };
    let sequences = largest(need.batch - 1, |sequences| fits(&of(sequences)));
    if sequences == 0 {
        return *need;
    }
    // About as many in each part.
    let parts = need.batch.div_ceil(sequences);
    of(need.batch.div_ceil(parts))
}

/// Whether `need` fits in `available` bytes, with passes divided if need be.
fn fits(config: &ModelConfig, need: &Need, available: Option<u64>) -> bool {
    available.is_none_or(|free| required(config, &divided(config, need, available)) <= free)
}

/// Holds `need` against `available` bytes (see [`crate::system::available_memory`]), with passes [`divided`].
pub fn check(config: &ModelConfig, need: &Need, available: Option<u64>) -> Preflight {
    let need = &divided(config, need, available);
    let weights_bytes = layout::weights_bytes(config, need.stored());
    let parts = parts(config, need, PROGRAM_BYTES);
    let required_bytes = parts.total_bytes();
    let fits = available.is_none_or(|available| required_bytes <= available);
    Preflight {
        weights_bytes,
        kv_bytes: kv_bytes(config, need),
        activation_bytes_estimate: parts.activation_bytes + parts.workspace_bytes,
        required_bytes,
        available_bytes: available,
        fits,
        weights_mapped: need.mapped,
        pass_rows: need.pass_rows,
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

/// [`require`] where the model is to run: on a GPU the refusal says who holds its memory. Gives `need` as it fits, see
/// [`divided`].
///
/// # Errors
/// [`Error::DoesNotFit`], [`Error::DoesNotFitOn`], a device that fails.
pub fn require_at(name: &str, config: &ModelConfig, need: &Need, place: &Place) -> Result<Need, Error> {
    match (place.memory()?, place.label()) {
        (Some(memory), Some(device)) => {
            require_on(name, config, need, memory, device)?;
            Ok(divided(config, need, Some(memory.free_bytes)))
        }
        _ => require(name, config, need, available_memory()).map(|()| *need),
    }
}

pub(crate) fn require_on(
    name: &str,
    config: &ModelConfig,
    need: &Need,
    memory: DeviceMemory,
    device: String,
) -> Result<(), Error> {
    let preflight = check(config, need, Some(memory.free_bytes));
    let Some(suggestion) = preflight.suggestion else { return Ok(()) };
    let others = memory.others_bytes();
    // The driver's own share is smaller.
    let shared = others > memory.total_bytes / 10;
    let helps = shared && preflight.required_bytes <= memory.free_bytes + others;
    let end = if helps { "end them (nvidia-smi shows them), or take another device, or " } else { "" };
    Err(Error::DoesNotFitOn(Box::new(DoesNotFit {
        model: name.to_owned(),
        device,
        required: preflight.required_bytes,
        weights: preflight.weights_bytes,
        kv: preflight.kv_bytes,
        activations: preflight.activation_bytes_estimate,
        context: need.context_tokens,
        batch: need.batch,
        memory,
        others: shared.then_some(others),
        suggestion: format!("{end}{suggestion}"),
    })))
}

/// Bytes that a model may take where it is to run; `None` where nobody tells.
pub fn available(place: &Place) -> Option<u64> {
    match place.memory() {
        Ok(Some(memory)) => Some(memory.free_bytes),
        Ok(None) => available_memory(),
        Err(_) => None,
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
///
/// On a GPU it is what the driver takes beyond what it is asked for: whole pages of 2 MiB, graphs, kernels. What its
/// context takes is gone from what is free as soon as the device is open.
pub const PROGRAM_BYTES: u64 = 256 << 20;

/// What a process needs in memory, on the host or on a GPU, part by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Parts {
    /// Vectors, which are widened to f32, with their four bytes.
    pub weights_bytes: u64,
    /// At the end of the context, windows honoured, no page in excess.
    pub kv_bytes: u64,
    pub activation_bytes: u64,
    /// Tables that stand beside on a GPU: angles of all positions, addresses of pages.
    pub workspace_bytes: u64,
    pub program_bytes: u64,
    /// Largest tensor that stands in memory twice for a moment while weights are packed: before there is a cache.
    pub loading_bytes: u64,
}

impl Parts {
    pub fn total_bytes(&self) -> u64 {
        let running = self.kv_bytes.saturating_add(self.activation_bytes).max(self.loading_bytes);
        [self.weights_bytes, self.workspace_bytes, self.program_bytes, running]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

/// Predicts what `need` takes, in a process that needs `program_bytes` for itself.
pub fn parts(config: &ModelConfig, need: &Need, program_bytes: u64) -> Parts {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = need.gpu {
        return Parts { kv_bytes: kv_bytes(config, need), program_bytes, ..needs::parts(config, need, gpu) };
    }
    Parts {
        weights_bytes: layout::weights_bytes(config, need.stored()) + widened_bytes(config),
        kv_bytes: kv_bytes(config, need),
        activation_bytes: activation_bytes(config, need),
        workspace_bytes: 0,
        program_bytes,
        loading_bytes: loading_bytes(config, need),
    }
}

/// Quantized matrices are memory of their own. The pages of a file that they come from can be dropped, so that there
/// are never two copies; a generated matrix is whole until its quantized form is. MXFP4 is packed where it lies.
fn loading_bytes(config: &ModelConfig, need: &Need) -> u64 {
    if need.mapped {
        return 0;
    }
    let stored = need.stored();
    let quantized =
        |spec: &&TensorSpec| matches!(stored.packed(spec), Some(PackedFormat::Q8_0 | PackedFormat::Q6_0));
    layout::tensors(config).iter().filter(quantized).map(TensorSpec::bytes).max().unwrap_or(0)
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
    let one = layout::kv_bytes(config, need.context_tokens, need.kv_dtype, true);
    one.saturating_mul(need.batch as u64)
}

/// Bytes that forward passes work in, as [`crate::Workspace`] holds them: the rows of the largest pass, in f32 and in
/// the forms in which products take them, and the logits of the batch.
fn activation_bytes(config: &ModelConfig, need: &Need) -> u64 {
    let tokens = need.prefill_chunk.min(need.context_tokens).max(1) * need.batch;
    let q = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    // The residual stream, its norm and what is added to it; q, k, v and the output of attention.
    let rows = 3 * config.hidden_size + 2 * q + 2 * kv;
    // Ids, cosines and sines.
    let position = 4 + 4 * config.head_dim;
    let dense = product_bytes(need, need.stored().dense.packed().is_some(), tokens);
    let (mlp, mlp_inputs) = match &config.moe {
        None => (4 * 3 * config.intermediate_size, dense * config.intermediate_size as f64),
        Some(moe) => {
            let k = need.expert_mode.computed(moe);
            let slot = 3 * config.intermediate_size + config.hidden_size;
            // Choice, weight, and three lists of slots; with all experts the router's own beside them.
            let chosen =
                if need.expert_mode == ExpertMode::DenseAll { 2 * moe.num_experts_per_tok } else { 0 };
            let routing = 4 * (moe.num_local_experts + 5 * k + chosen);
            let native = config.mxfp4 && need.expert_dtype == ExpertDtype::Native;
            let experts = product_bytes(need, native, tokens * k / moe.num_local_experts);
            let inputs = experts * (k * config.intermediate_size) as f64;
            // The norm feeds experts in a form of their own.
            let norm = if native && need.dense_dtype == DenseDtype::Native { experts } else { 0.0 };
            (4 * k * slot + routing, inputs + norm * config.hidden_size as f64)
        }
    };
    let inputs = dense * (config.hidden_size + q) as f64 + mlp_inputs;
    let token = (4 * rows + position + mlp) as f64 + inputs;
    let logits = 4 * need.batch * (config.vocab_size + config.hidden_size);
    (tokens as f64 * token) as u64 + logits as u64
}

/// Bytes of one value in the form in which a product of `rows` rows takes it, beside the value itself.
fn product_bytes(need: &Need, packed: bool, rows: usize) -> f64 {
    let precision = crate::ops::linear::precision(need.matmul_precision, rows);
    match (precision, packed) {
        // A record of a scale, a sum and the codes for each 32 values.
        (Some(IntPrecision::Int8), true) => 40.0 / 32.0,
        (Some(IntPrecision::Int16), true) => 72.0 / 32.0,
        (Some(IntPrecision::Int8), false) => 2.0,
        (None, _) | (Some(IntPrecision::Int16), false) => 0.0,
    }
}

/// Largest context of `need.batch` sequences that fits in `memory` bytes, 0 if not even one token does; as for
/// [`max_batch`] without dividing passes.
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
    let fits = |context_tokens| fits(config, &Need { context_tokens, ..*need }, available);
    largest(config.max_position_embeddings, fits)
}

/// The largest smaller batch of this context that fits, if there is one.
fn fitting_batch(config: &ModelConfig, need: &Need, available: Option<u64>) -> Option<usize> {
    let fits = |batch| fits(config, &Need { batch, ..*need }, available);
    Some(largest(need.batch.checked_sub(1).filter(|n| *n > 0)?, fits)).filter(|n| *n > 0)
}

fn suggest(config: &ModelConfig, need: &Need, available: Option<u64>) -> String {
    let fits = |config: &ModelConfig, need: &Need| fits(config, need, available);
    let mut ways = Vec::new();
    let native = Need { expert_dtype: ExpertDtype::Native, ..*need };
    if need.expert_dtype == ExpertDtype::Bf16 && config.mxfp4 && fits(config, &native) {
        ways.push("it fits with --expert-dtype native".to_owned());
    }
    let routed = Need { expert_mode: ExpertMode::Routed, ..*need };
    if need.expert_mode == ExpertMode::DenseAll && fits(config, &routed) {
        ways.push("it fits with --expert-mode routed".to_owned());
    }
    let max_context = max_context_of(config, need, available);
    if max_context > 0 {
        ways.push(format!("a context of at most {max_context} tokens fits"));
    } else if let Some(batch) = fitting_batch(config, need, available) {
        ways.push(format!("a batch of at most {batch} fits"));
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
        expert_mode: ExpertMode::Routed,
        activation_dtype: ActivationDtype::Bf16,
        dense_dtype: DenseDtype::Native,
        kv_dtype: KvDtype::Bf16,
        matmul_precision: MatmulPrecision::F32,
        context_tokens: 4096,
        batch: 1,
        prefill_chunk: 512,
        mapped: true,
        gpu: None,
        pass_rows: None,
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
    fn all_experts_take_rows_of_their_own_and_routing_is_suggested() {
        let config = preset::config("gpt-oss-20b").unwrap();
        let all = Need { expert_mode: ExpertMode::DenseAll, ..NEED };
        let bytes = |need: &Need| check(&config, need, None).activation_bytes_estimate;
        // For each of 512 tokens 28 experts more: gate, up and what they make, and what goes out, in f32; choice,
        // weight and three lists for each, and the router's four choices and weights.
        let more = 28 * (4 * (3 * 2880 + 2880) + 4 * 5) + 4 * 2 * 4;
        assert_eq!(bytes(&all) - bytes(&NEED), 512 * more);
        assert_eq!(check(&config, &all, None).weights_bytes, check(&config, &NEED, None).weights_bytes);
        let routed = check(&config, &NEED, None).required_bytes;
        let text = check(&config, &all, Some(routed)).suggestion.unwrap();
        assert!(text.contains("--expert-mode routed"), "{text}");
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
    fn quantized_weights_and_cache_need_less_and_packing_one_tensor_more() {
        let config = preset::config("gpt-oss-20b").unwrap();
        let bf16 = check(&config, &NEED, None);
        let q8 =
            check(&config, &Need { dense_dtype: DenseDtype::Q8_0, kv_dtype: KvDtype::Q8_0, ..NEED }, None);
        // 24 layers of q, k, v and o, and the unembedding: 34 instead of 64 bytes for 32 weights.
        assert_eq!(bf16.weights_bytes - q8.weights_bytes, (637_009_920 + 579_133_440) / 16 * 15);
        assert_eq!(q8.kv_bytes * 128, bf16.kv_bytes * 68);
        let at =
            |mapped, dense_dtype| parts(&config, &Need { mapped, dense_dtype, context_tokens: 1, ..NEED }, 0);
        assert_eq!(at(true, DenseDtype::Q8_0).loading_bytes, 0);
        // MXFP4 is packed where it lies; the unembedding is quantized to memory of its own.
        assert_eq!(at(false, DenseDtype::Native).loading_bytes, 0);
        let made = at(false, DenseDtype::Q8_0);
        assert_eq!(made.loading_bytes, 2 * 201_088 * 2880);
        assert_eq!(made.total_bytes(), made.weights_bytes + made.loading_bytes);
        let long = parts(&config, &Need { mapped: false, context_tokens: 131_072, ..NEED }, 0);
        assert!(long.kv_bytes > long.loading_bytes);
        assert_eq!(long.total_bytes(), long.weights_bytes + long.kv_bytes + long.activation_bytes);
    }

    #[test]
    fn dequantized_experts_are_refused_where_native_ones_fit() {
        let config = preset::config("gpt-oss-20b").unwrap();
        let need = Need { expert_dtype: ExpertDtype::Bf16, ..NEED };
        let text = check(&config, &need, Some(24 << 30)).suggestion.unwrap();
        assert!(text.contains("--expert-dtype native"), "{text}");
    }
}
