//! Arguments of `bandwidth`.

use clap::Args;

/// With how many threads memory is read.
#[derive(Debug, Args)]
pub struct BandwidthArgs {
    /// Threads that read and copy [default: all cores]
    #[arg(short = 't', long, value_name = "N")]
    pub threads: Option<u32>,
    /// Print it as it is stored with a run
    #[arg(long)]
    pub json: bool,
}
