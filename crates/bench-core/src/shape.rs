//! The sizes of a model that measurements are divided by or held against.
//!
//! Filled by a target that knows its model; whoever divides by active parameters takes them from here.

use serde::{Deserialize, Serialize};

/// Sizes of one model as it was run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    pub architecture: String,
    pub num_hidden_layers: u32,
    /// All parameters, the input embedding included.
    pub parameters: u64,
    /// Per token: all but the input embedding, and of the experts only those that a token uses.
    pub active_parameters: u64,
    /// Bytes of parameters resident on the device.
    pub weights_bytes: u64,
    /// `kv_theory_bytes` of one token in every layer, windows not yet full.
    pub kv_bytes_per_token: u64,
    pub activation_dtype: String,
    pub expert_dtype: String,
    /// Instruction set of the kernels, `avx512`.
    pub kernels: String,
}
