//! The architecture of a checkpoint, as its `config.json` tells it.
//!
//! Field names are those of Hugging Face configs. Parsing and validation stand here; tensor names and sizes
//! are in `layout`, weights in `checkpoint`.

/// Model families that the engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    GptOss,
    Qwen3,
    /// Llama and its look-alikes (Yi).
    Llama,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerType {
    /// Key j is visible to query i iff i - sliding_window < j <= i.
    Sliding,
    Full,
}

/// Change of the rotary frequencies beyond `rope_theta`.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    Yarn {
        factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        original_max_position_embeddings: usize,
        truncate: bool,
    },
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: usize,
    },
}

/// Sparse mixture-of-experts block of gpt-oss.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeConfig {
    pub num_local_experts: usize,
    pub num_experts_per_tok: usize,
    pub swiglu_limit: f64,
    /// 1.702; in no checkpoint's config.
    pub swiglu_alpha: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub architecture: Architecture,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub tie_word_embeddings: bool,
    pub attention_bias: bool,
    /// One entry per layer.
    pub layer_types: Vec<LayerType>,
    pub sliding_window: Option<usize>,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    /// `None` for dense models.
    pub moe: Option<MoeConfig>,
    /// Whether the checkpoint stores its experts as MXFP4 blocks and scales.
    pub mxfp4: bool,
    pub eos_token_ids: Vec<u32>,
}
