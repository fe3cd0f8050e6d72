//! Arguments of `bandwidth`.

use clap::Args;

/// Whose memory is read, and with how many threads.
#[derive(Debug, Args)]
pub struct BandwidthArgs {
    /// Whose memory: `cpu`, `cuda` or `cuda:N`
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Threads that read and copy [default: all cores]
    #[arg(short = 't', long, value_name = "N")]
    pub threads: Option<u32>,
    /// Print it as it is stored with a run
    #[arg(long)]
    pub json: bool,
}
