//! Arguments of `ossbench fidelity`.

use super::EngineArgs;
use clap::{Args, ValueEnum};

/// How far faster arithmetic is from f32, and whether that is within its bound.
#[derive(Debug, Args)]
pub struct FidelityArgs {
    #[arg(short = 'm', long, value_name = "MODEL")]
    pub model: String,
    /// Tokens of the text whose next-token distributions are compared
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub positions: u32,
    /// Tokens per forward pass
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub chunk: u32,
    /// Seed of generated weights and of the text
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Every choice of weights, products and cache, instead of the one that the flags make
    #[arg(long, conflicts_with_all = ["activation_dtype", "expert_mode", "dense_dtype", "matmul_precision", "kv_dtype"])]
    pub all: bool,
    /// Exit with 3 if a bound does not hold, with the experts that the reference chose, with those that each chose
    /// itself, or in any of the two
    #[arg(long, value_name = "WHICH", num_args = 0..=1, default_missing_value = "any")]
    pub gate: Option<Gate>,
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Which comparisons a gate looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Gate {
    Forced,
    Free,
    Any,
}
