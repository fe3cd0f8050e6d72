//! The sizes of a model that measurements are divided by or held against.
//!
//! Filled by a target that knows its model; theory of memory, bytes and operations per token is computed from here.

use crate::spec::ExpertMode;
use serde::{Deserialize, Serialize};

/// Sizes of one model as it was run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    pub architecture: String,
    pub num_hidden_layers: u32,
    /// All parameters, the input embedding included.
    pub parameters: u64,
    /// Per token: all but the input embedding, and of the experts only those that a token uses, whichever are
    /// computed.
    pub active_parameters: u64,
    /// Bytes of parameters resident on the device.
    pub weights_bytes: u64,
    /// `kv_theory_bytes` of one token in every layer, windows not yet full.
    pub kv_bytes_per_token: u64,
    pub activation_dtype: String,
    pub expert_dtype: String,
    /// `dense-all` where every expert is computed for every token; `None`: those that the router chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert_mode: Option<String>,
    /// Of attention, dense MLPs and the unembedding: `bf16`, `q8_0`, `q6_0`. As the next two `None` in runs of
    /// before there was a choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dense_dtype: Option<String>,
    /// `f32`, `int16`, `int8`; `None` also for a server, which does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matmul_precision: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_dtype: Option<String>,
    /// Rows of one forward pass on a GPU, where the largest that a plan asks for has more and is divided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass_rows: Option<u64>,
    /// Instruction set of the kernels, `avx512`.
    pub kernels: String,
    pub shape: ModelShape,
}

/// The dimensions of a model, with the bytes that each part of its weights takes as it was loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelShape {
    pub hidden_size: u32,
    pub vocab_size: u32,
    pub num_attention_heads: u32,
    pub num_key_value_heads: u32,
    pub head_dim: u32,
    /// Of each layer; `None` attends to everything.
    pub windows: Vec<Option<u32>>,
    /// Bytes of one value of keys and values, without what a block of them shares.
    pub kv_value_bytes: u32,
    /// Bytes of one head's key at one position, where it is more than its values: `q8_0` has a scale for 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_head_bytes: Option<u32>,
    pub weights: WeightShape,
    /// `None` for dense models.
    pub experts: Option<ExpertShape>,
    pub max_context_tokens: u32,
}

impl ModelShape {
    /// Keys and values of one token in one layer.
    pub fn kv_layer_bytes(&self) -> u64 {
        let head = self.kv_head_bytes.unwrap_or(self.head_dim * self.kv_value_bytes);
        2 * u64::from(self.num_key_value_heads) * u64::from(head)
    }
}

impl ModelFacts {
    /// Whether every expert is computed for every token.
    pub fn computes_all_experts(&self) -> bool {
        self.shape.experts.is_some() && self.expert_mode.as_deref() == Some(ExpertMode::DenseAll.key())
    }

    /// Experts of a layer that are computed for one token; `None` for dense models.
    pub fn experts_computed(&self) -> Option<u32> {
        let experts = self.shape.experts?;
        Some(if self.computes_all_experts() { experts.num_experts } else { experts.experts_per_token })
    }

    /// Parameters that one token is multiplied with: the active ones, and where all experts are computed those of
    /// the others too.
    pub fn multiplied_parameters(&self) -> u64 {
        match self.shape.experts {
            Some(e) if self.computes_all_experts() => {
                let each = self.shape.weights.experts.parameters / u64::from(e.num_experts.max(1));
                self.active_parameters + each * u64::from(e.num_experts.saturating_sub(e.experts_per_token))
            }
            _ => self.active_parameters,
        }
    }

    /// What differs from bf16 weights, products in f32, a cache like the activations and the experts that the
    /// router chose, in words.
    pub fn shortcuts(&self) -> Vec<String> {
        let unlike = |what: &str, is: Option<&String>, usual: &str| {
            is.filter(|is| *is != usual).map(|is| format!("{what} {is}"))
        };
        let all = [
            unlike("attention and unembedding", self.dense_dtype.as_ref(), "bf16"),
            unlike("products", self.matmul_precision.as_ref(), "f32"),
            unlike("KV cache", self.kv_dtype.as_ref(), &self.activation_dtype),
        ];
        let all_experts = self.computes_all_experts().then(|| "all experts computed (ablation)".to_owned());
        all.into_iter().flatten().chain(all_experts).collect()
    }
}

/// Bytes and parameters of one part of the weights, over all layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Part {
    pub parameters: u64,
    pub bytes: u64,
}

/// Weights by what they are for; the embedding is counted once where it is tied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WeightShape {
    pub embedding: Part,
    /// Empty where the embedding is tied: then that is what a token multiplies with. Bytes without parameters are
    /// a copy of a tied one in another format, which is multiplied with instead.
    pub lm_head: Part,
    pub attention: Part,
    pub norms: Part,
    pub router: Part,
    /// All experts of all layers, biases and scales included.
    pub experts: Part,
    /// Dense MLP.
    pub mlp: Part,
}

impl WeightShape {
    pub fn parts(&self) -> [Part; 7] {
        [self.embedding, self.lm_head, self.attention, self.norms, self.router, self.experts, self.mlp]
    }
}

/// The mixture of experts of each layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertShape {
    pub num_experts: u32,
    pub experts_per_token: u32,
    /// Layers that have experts.
    pub layers: u32,
}

/// Which experts the requests of one repeat touched: counted by the engine's router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExpertUse {
    pub repeat: u32,
    pub prefill: Touched,
    pub decode: Touched,
}

/// Distinct experts summed over forward passes and layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Touched {
    /// Forward passes times layers with experts.
    pub layer_passes: u64,
    /// Distinct experts of each layer and pass, summed.
    pub experts: u64,
    /// Tokens of each layer and pass, summed.
    pub tokens: u64,
}

/// Memory bandwidth as it was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bandwidth {
    pub schema_version: u32,
    /// `cpu`, or the GPU's name.
    pub device: String,
    /// Of the processor that read; `None` for a GPU.
    pub threads: Option<u32>,
    /// Size of the arrays, well beyond all caches.
    pub bytes: u64,
    /// Median bytes per second of reading one array.
    pub read_bytes_s: f64,
    /// Median bytes per second of copying one array to another, bytes read and written counted.
    pub copy_bytes_s: f64,
    /// Repeats behind the medians, with the slowest and fastest read.
    pub repeats: u32,
    pub read_min_bytes_s: f64,
    pub read_max_bytes_s: f64,
}

/// Expected number of distinct experts that `tokens` tokens touch in one layer if each chose `per_token` of
/// `experts` evenly and on its own: E (1 - (1 - k/E)^n).
pub fn expected_experts(experts: u32, per_token: u32, tokens: f64) -> f64 {
    let (experts, per_token) = (f64::from(experts), f64::from(per_token));
    experts * (1.0 - (1.0 - per_token / experts).powf(tokens))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expected_experts_of_one_token_are_its_own_and_of_many_all() {
        assert!((expected_experts(32, 4, 1.0) - 4.0).abs() < 1e-12);
        assert!((expected_experts(32, 4, 2.0) - 7.5).abs() < 1e-12);
        assert!(expected_experts(32, 4, 1000.0) > 31.999);
    }
}
