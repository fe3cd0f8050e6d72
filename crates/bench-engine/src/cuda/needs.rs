//! What a model takes of a GPU's memory, byte for byte as it is asked for, without a device.
//!
//! The arena of forward passes is measured by cutting it; what the driver rounds up is not counted.

use crate::config::{ExpertDtype, ModelConfig};
use crate::cuda::Shape;
use crate::cuda::cache::table_bytes;
use crate::cuda::workspace::{Places, Size, keys};
use crate::layout::{self, Role, TensorSpec};
use crate::model::{DenseDtype, LoadOptions};
use crate::preflight::{Gpu, Need, Parts};

/// All parts but the cache, which is the host's, and the program.
pub(crate) fn parts(config: &ModelConfig, need: &Need, gpu: Gpu) -> Parts {
    let options = LoadOptions {
        activation_dtype: need.activation_dtype,
        kv_dtype: Some(need.kv_dtype),
        expert_mode: need.expert_mode,
        pass_rows: need.pass_rows,
        ..LoadOptions::default()
    };
    let shape = Shape::of(config, &options, gpu.multiprocessors);
    let batch = need.batch;
    // The first pass is the largest: a chunk of each prompt, of which the last rows are kept in the end. One that is
    // divided is as large as its first part, or as a step.
    let (chunk, together) = shape.divide(need.prefill_chunk.min(need.context_tokens), batch);
    let rows = (together * chunk).max(batch.min(shape.pass_rows));
    let size = Size { rows, sequences: batch, kept: batch, keys: keys(need.context_tokens) };
    let (_, activation_bytes) = Places::cut(0, &shape, size);
    Parts {
        weights_bytes: weights_bytes(config, need),
        activation_bytes: activation_bytes as u64,
        workspace_bytes: workspace_bytes(config, batch),
        loading_bytes: loading_bytes(config, need),
        ..Parts::default()
    }
}

/// Matrices as they are loaded, vectors in f32.
fn weights_bytes(config: &ModelConfig, need: &Need) -> u64 {
    let q8 = need.dense_dtype == DenseDtype::Q8_0;
    let of = |spec: &TensorSpec| {
        let n = spec.elements();
        match (spec.role, spec.shape.len()) {
            (Role::ExpertBlocks, _) if need.expert_dtype == ExpertDtype::Bf16 => 2 * spec.parameters(),
            (Role::ExpertScales, _) if need.expert_dtype == ExpertDtype::Bf16 => 0,
            (Role::ExpertBlocks | Role::ExpertScales, _) => n,
            (Role::Norm | Role::ExpertBias, _) | (_, 1) => 4 * n,
            (Role::Attention | Role::Mlp | Role::LmHead, _) if q8 => q8_bytes(n),
            _ => 2 * n,
        }
    };
    let tensors: u64 = layout::tensors(config).iter().map(of).sum();
    // Rows of a tied embedding are looked up as they are.
    let copy = q8 && config.tie_word_embeddings;
    tensors + if copy { q8_bytes((config.vocab_size * config.hidden_size) as u64) } else { 0 }
}

/// A code each, and two bytes of scale for 32.
fn q8_bytes(elements: u64) -> u64 {
    elements + elements / 16
}

/// Angles of all positions, and a table of page addresses for each sequence.
fn workspace_bytes(config: &ModelConfig, batch: usize) -> u64 {
    let angles = 2 * size_of::<f32>() * config.max_position_embeddings * (config.head_dim / 2);
    // A cache of a length that is known has one page in each layer.
    (angles + batch * table_bytes(config.num_hidden_layers, 1)) as u64
}

/// What a matrix is made from stands beside it until it is there, whatever it came from.
fn loading_bytes(config: &ModelConfig, need: &Need) -> u64 {
    let (hidden, vocab) = (config.hidden_size, config.vocab_size);
    let q = config.num_attention_heads * config.head_dim;
    let qkv = q + 2 * config.num_key_value_heads * config.head_dim;
    let mlp = if config.moe.is_none() { config.intermediate_size } else { 0 };
    let widest = qkv.max(q).max(mlp).max(vocab);
    let dense = if need.dense_dtype == DenseDtype::Q8_0 { 2 * (widest * hidden) as u64 } else { 0 };
    let expanded =
        |spec: &&TensorSpec| spec.role == Role::ExpertBlocks && need.expert_dtype == ExpertDtype::Bf16;
    // Codes of 32 weights are 16 bytes, their scale is one.
    let experts = layout::tensors(config).iter().filter(expanded).map(|s| s.bytes() + s.bytes() / 16).max();
    dense.max(experts.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight;
    use crate::preset;
    use crate::{ActivationDtype, ExpertMode, KvDtype};

    /// As an H200 is asked for it.
    fn need(context_tokens: usize, batch: usize) -> Need {
        Need {
            activation_dtype: ActivationDtype::Bf16,
            kv_dtype: KvDtype::Bf16,
            context_tokens,
            batch,
            prefill_chunk: 2048,
            gpu: Some(Gpu { multiprocessors: 132 }),
            ..Need::of(&LoadOptions::default())
        }
    }

    #[test]
    fn the_published_models_fit_where_people_run_them() {
        let fits = |name: &str, context, batch, memory: u64| {
            let config = preset::config(name).unwrap();
            let parts = preflight::parts(&config, &need(context, batch), 0);
            let checked = preflight::check(&config, &need(context, batch), Some(memory));
            assert_eq!(checked.activation_bytes_estimate, parts.activation_bytes + parts.workspace_bytes);
            (checked.fits, parts.activation_bytes)
        };
        assert!(fits("gpt-oss-20b", 4096, 1, 16 << 30).0);
        assert!(fits("gpt-oss-120b", 4096, 1, 79 << 30).0);
        assert!(fits("qwen3-32b", 4096, 8, 79 << 30).0);
        assert!(!fits("llama-3.1-70b", 128, 1, 120 << 30).0);
        // A chunk of 2,048 tokens: two of its places are 8,192 slots of 2,880 values of four bytes, half of all.
        let (_, activations) = fits("gpt-oss-20b", 4096, 1, 16 << 30);
        assert!((340_000_000..420_000_000).contains(&activations), "{activations}");
    }

    #[test]
    fn weights_are_the_layouts_with_vectors_in_f32() {
        for name in ["gpt-oss-20b", "qwen3-32b", "llama-3.1-70b"] {
            let config = preset::config(name).unwrap();
            let on_gpu = preflight::parts(&config, &need(1, 1), 0).weights_bytes;
            let on_host = preflight::parts(&config, &Need { gpu: None, ..need(1, 1) }, 0).weights_bytes;
            assert_eq!(on_gpu, on_host, "{name}");
            let q8 = Need { dense_dtype: DenseDtype::Q8_0, ..need(1, 1) };
            let quantized = preflight::parts(&config, &q8, 0);
            assert!(quantized.weights_bytes < on_gpu && quantized.loading_bytes > 0, "{name}");
        }
    }

    #[test]
    fn the_largest_context_and_batch_fit_and_one_more_does_not() {
        let config = preset::config("gpt-oss-20b").unwrap();
        let memory = 24 << 30;
        let total = |context, batch| preflight::parts(&config, &need(context, batch), 0).total_bytes();
        let batch = preflight::max_batch(&config, &need(4096, 1), 0, memory);
        assert!(total(4096, batch) <= memory && total(4096, batch + 1) > memory, "{batch}");
        let small = total(9_999, 8);
        let context = preflight::max_context(&config, &need(1, 8), 0, small);
        assert!(total(context, 8) <= small && total(context + 1, 8) > small, "{context}");
    }

    #[test]
    fn large_passes_are_divided_by_what_products_count_and_by_memory() {
        let config = preset::config("gpt-oss-20b").unwrap();
        let all = |batch| Need { expert_mode: ExpertMode::DenseAll, ..need(2048 + 128, batch) };
        let bytes = |need: &Need| preflight::parts(&config, need, 0).activation_bytes;
        // 32 slots of 2,880 values for each of at most 46,603 rows: 22 prompts of 2,048.
        let rows = |sequences: usize| Need { pass_rows: Some(2048 * sequences), ..all(64) };
        assert_eq!(bytes(&all(64)), bytes(&rows(22)));
        assert!(bytes(&rows(21)) < bytes(&rows(22)) && bytes(&rows(23)) == bytes(&rows(22)));
        // Two and a half times as large undivided, as the chosen experts alone are.
        assert_eq!(preflight::divided(&config, &need(2176, 64), None).pass_rows, None);
        let wide = bytes(&need(2176, 64));
        assert!((20_000_000_000..40_000_000_000).contains(&wide), "{wide}");

        let total = |need: &Need| preflight::parts(&config, need, preflight::PROGRAM_BYTES).total_bytes();
        let fitting = |free: u64| preflight::check(&config, &all(64), Some(free));
        let whole = fitting(total(&all(64)));
        assert!(whole.fits && whole.pass_rows.is_none());
        // Three parts of 22 do not fit: four of 16 do, though 21 would.
        let four = fitting(total(&all(64)) - 1);
        assert_eq!((four.fits, four.pass_rows), (true, Some(16 * 2048)));
        assert_eq!(four.required_bytes, total(&rows(16)));
        let one = fitting(total(&rows(1)));
        assert_eq!((one.fits, one.pass_rows), (true, Some(2048)));
        let none = fitting(total(&rows(1)) - 1);
        assert!(!none.fits && none.pass_rows.is_none() && none.suggestion.is_some());
        // A context that fits only in parts is one that fits.
        let longest = fitting(total(&rows(1))).max_context_tokens;
        assert!((2176..2400).contains(&longest), "{longest}");
        // One prompt alone is not divided, nor is anything on the host.
        let single = Need { prefill_chunk: 1 << 17, ..all(1) };
        assert!(!preflight::check(&config, &single, Some(total(&single) - 1)).fits);
        let host = Need { gpu: None, ..all(64) };
        assert!(!preflight::check(&config, &host, Some(total(&host) - 1)).fits);
    }

    #[test]
    fn what_is_refused_on_a_gpu_says_what_is_free_and_who_has_the_rest() {
        use crate::place::DeviceMemory;
        let config = preset::config("gpt-oss-20b").unwrap();
        let at = |free: u64, own: u64| {
            let memory = DeviceMemory { free_bytes: free << 30, total_bytes: 80 << 30, own_bytes: own << 30 };
            let refused =
                preflight::require_on("m", &config, &need(4096, 1), memory, "cuda:0 (A)".to_owned());
            refused.map_err(|error| error.to_string())
        };
        assert_eq!(at(20, 0), Ok(()));
        let shared = at(8, 0).unwrap_err();
        for text in ["m does not fit on cuda:0 (A)", "8.0 GiB of 80.0 GiB are free", "end them (nvidia-smi"] {
            assert!(shared.contains(text), "{shared}");
        }
        assert!(shared.contains(", 72.0 GiB of 80.0 GiB are in use by other processes; "), "{shared}");
        assert!(shared.contains("--layers"), "{shared}");
        // What this process holds itself is nobody else's.
        assert!(!at(8, 72).unwrap_err().contains("other processes"));
    }
}
