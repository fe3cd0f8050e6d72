//! Arguments of `bench-kernels`.

use super::engine::parse_device;
use clap::Args;
use std::path::PathBuf;

/// Which kernels are measured or checked, where, and at whose shapes.
#[derive(Debug, Args)]
pub struct BenchKernelsArgs {
    /// Preset whose shapes are measured; weights are random
    #[arg(short = 'm', long, default_value = "gpt-oss-20b", value_name = "PRESET")]
    pub model: String,
    /// Where they run: `cpu`, `cuda` or `cuda:N`
    #[arg(long, default_value = "cpu", value_parser = parse_device, value_name = "DEVICE")]
    pub device: String,
    /// Hold the kernels of a GPU against plain arithmetic on random shapes, instead of measuring them; exit with 3 if
    /// one is beyond its bound
    #[arg(long, conflicts_with_all = ["model", "threads", "pin", "seconds_per_kernel"])]
    pub check: bool,
    /// Seed of the random shapes and values
    #[arg(long, default_value_t = 42, requires = "check")]
    pub seed: u64,
    /// Random shapes of each kernel
    #[arg(long, default_value_t = 20, requires = "check", value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub cases: u32,
    /// Threads [default: all cores]
    #[arg(short = 't', long, value_name = "N")]
    pub threads: Option<u32>,
    /// Bind each thread to a core of its own
    #[arg(long)]
    pub pin: bool,
    /// Repeat each kernel for so long, though three times at least
    #[arg(long, default_value_t = 0.5, value_name = "S")]
    pub seconds_per_kernel: f64,
    /// Only kernels whose name contains this; of checks, groups of kernels
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// Also write everything, with machine and build, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}
