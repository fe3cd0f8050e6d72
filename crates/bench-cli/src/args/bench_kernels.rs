//! Arguments of `bench-kernels`.

use clap::Args;
use std::path::PathBuf;

/// Which kernels are measured, at whose shapes, with how many threads.
#[derive(Debug, Args)]
pub struct BenchKernelsArgs {
    /// Preset whose shapes are measured; weights are random
    #[arg(short = 'm', long, default_value = "gpt-oss-20b", value_name = "PRESET")]
    pub model: String,
    /// Threads [default: all cores]
    #[arg(short = 't', long, value_name = "N")]
    pub threads: Option<u32>,
    /// Bind each thread to a core of its own
    #[arg(long)]
    pub pin: bool,
    /// Repeat each kernel for so long, though three times at least
    #[arg(long, default_value_t = 0.5, value_name = "S")]
    pub seconds_per_kernel: f64,
    /// Only kernels whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// Also write everything, with machine and build, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}
