//! Arguments of `ossbench parity`.

use super::engine::{parse_activation, parse_device};
use bench_core::spec::ActivationDtype;
use clap::Args;
use std::path::PathBuf;

/// Where the references are, and what is held against them.
#[derive(Debug, Args)]
pub struct ParityArgs {
    /// Folder of tiny checkpoints and of `goldens/`, what another implementation computed for them
    #[arg(long, default_value = "tests/golden", value_name = "DIR")]
    pub golden: PathBuf,
    /// Where the models run: `cpu`, `cuda` or `cuda:N`
    #[arg(long, default_value = "cpu", value_parser = parse_device, value_name = "DEVICE")]
    pub device: String,
    /// Only this dtype of activations [default: both]
    #[arg(long, value_parser = parse_activation, value_name = "f32|bf16")]
    pub activation_dtype: Option<ActivationDtype>,
    /// Only this model of the folder [default: all]
    #[arg(short = 'm', long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Also write everything, with machine and build, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}
