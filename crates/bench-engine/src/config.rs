//! The architecture of a checkpoint, as its `config.json` tells it.
//!
//! Field names are those of Hugging Face configs. Parsing and validation stand here; tensor names and sizes
//! are in `layout`, weights in `checkpoint`. A key that a model's arithmetic depends on is never guessed.

mod fields;
mod parse;

use std::path::Path;

use crate::Error;

/// Model families that the engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    GptOss,
    Qwen3,
    /// Llama and its look-alikes (Yi).
    Llama,
}

impl Architecture {
    pub const ALL: [Self; 3] = [Self::GptOss, Self::Qwen3, Self::Llama];

    /// The `model_type` of config.json.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::GptOss => "gpt_oss",
            Self::Qwen3 => "qwen3",
            Self::Llama => "llama",
        }
    }

    /// The class name in `architectures` of config.json.
    pub fn class_name(self) -> &'static str {
        match self {
            Self::GptOss => "GptOssForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Llama => "LlamaForCausalLM",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerType {
    /// Key j is visible to query i iff i - `sliding_window` < j <= i.
    Sliding,
    Full,
}

/// In which form the expert matrices of an MXFP4 checkpoint are held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExpertDtype {
    /// As the checkpoint has them.
    #[default]
    Native,
    /// Dequantized at load: four times the memory, as transformers does without MXFP4 kernels.
    Bf16,
}

impl ExpertDtype {
    /// As options spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Bf16 => "bf16",
        }
    }
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

impl ModelConfig {
    /// Parses the text of a `config.json`; both the transformers 4 spelling (`rope_scaling`, `rope_theta`) and
    /// that of transformers 5 (`rope_parameters`, `dtype`).
    ///
    /// # Errors
    /// [`Error::Config`] names the key and what was expected; [`Error::UnsupportedModelType`] lists what runs.
    pub fn from_json(json: &str) -> Result<Self, Error> {
        parse::config(json, "config.json")
    }

    /// Reads `config.json` of a checkpoint folder, and joins the `eos_token_id` of `generation_config.json`
    /// where that file exists: gpt-oss names two of its three stop tokens only there.
    ///
    /// # Errors
    /// As [`Self::from_json`], and [`Error::Io`] for a missing or unreadable file.
    pub fn from_folder(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("config.json");
        if !path.exists() {
            let problem = if folder.is_dir() { "has no config.json" } else { "is not a folder" }.to_owned();
            return Err(Error::NotACheckpoint { folder: folder.to_owned(), problem });
        }
        let mut config =
            parse::config(&read_small_text(&path, MAX_CONFIG_BYTES)?, &path.display().to_string())?;
        let path = folder.join("generation_config.json");
        if path.exists() {
            let ids = parse::generation_eos(
                &read_small_text(&path, MAX_CONFIG_BYTES)?,
                &path.display().to_string(),
                &config,
            )?;
            config.join_eos(&ids);
        }
        Ok(config)
    }

    /// Adds stop tokens that are not yet known, in their order.
    pub(crate) fn join_eos(&mut self, ids: &[u32]) {
        for id in ids {
            if !self.eos_token_ids.contains(id) {
                self.eos_token_ids.push(*id);
            }
        }
    }

    /// The same model cut to its first `layers` layers.
    ///
    /// # Errors
    /// [`Error::Layers`] when there are not that many, or none is asked for.
    pub fn with_layers(mut self, layers: usize) -> Result<Self, Error> {
        if layers == 0 || layers > self.num_hidden_layers {
            return Err(Error::Layers { requested: layers, available: self.num_hidden_layers });
        }
        self.num_hidden_layers = layers;
        self.layer_types.truncate(layers);
        Ok(self)
    }

    /// Positions that layer `layer` keeps of a context of `tokens`.
    pub fn kept_positions(&self, layer: usize, tokens: usize) -> usize {
        match (self.layer_types.get(layer), self.sliding_window) {
            (Some(LayerType::Sliding), Some(window)) => tokens.min(window),
            _ => tokens,
        }
    }
}

/// Largest config that is read; a parsed JSON tree can take twenty times the bytes of its text.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// Reads a small text file; the size is checked first, so that a wrong path cannot fill the memory.
pub(crate) fn read_small_text(path: &Path, limit: u64) -> Result<String, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    if bytes > limit {
        let reason = format!("has {bytes} bytes, such a file has at most {limit}");
        return Err(Error::Config { file: path.display().to_string(), reason });
    }
    std::fs::read_to_string(path).map_err(io)
}
