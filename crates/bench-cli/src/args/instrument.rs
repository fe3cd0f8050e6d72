//! Arguments of the commands that judge the instrument itself: `calibrate` and `mock-server`.

use super::{FORMATS, parse_format};
use bench_report::Format;
use clap::Args;
use std::path::PathBuf;

/// The load under which the client is judged; several levels make several rows.
#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// Requests in flight
    #[arg(short = 'c', long, value_delimiter = ',', default_value = "1,64", value_name = "N,..")]
    pub concurrency: Vec<u32>,
    /// Requests per second of an open loop, instead of `--concurrency`
    #[arg(long, value_delimiter = ',', conflicts_with = "concurrency", value_name = "R,..")]
    pub rate: Vec<f64>,
    /// The server's time to first token
    #[arg(long, default_value_t = 50.0, value_name = "MS")]
    pub ttft_ms: f64,
    /// The server's distance between tokens
    #[arg(long, default_value_t = 10.0, value_name = "MS")]
    pub gap_ms: f64,
    /// Length of the prompts, in words
    #[arg(short = 'p', long, default_value_t = 128, value_name = "N")]
    pub prompt_tokens: u32,
    #[arg(short = 'n', long, default_value_t = 64, value_name = "N")]
    pub output_tokens: u32,
    /// Requests per row [default: 4 for each in flight or per second, at least 100]
    #[arg(long, value_name = "N")]
    pub requests: Option<u32>,
    /// Threads that send and read
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub client_threads: u32,
    /// Keep the cores from sleeping, as `server.keep_awake` does in a study
    #[arg(long)]
    pub keep_awake: bool,
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// `table`, `md`, `csv` or `json`
    #[arg(short = 'o', long = "output", value_parser = parse_format, default_value = "table", value_name = FORMATS)]
    pub output: Format,
}

/// A server of known token times, for any client.
#[derive(Debug, Args)]
pub struct MockServerArgs {
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Request's last byte to first token
    #[arg(long, default_value_t = 200.0, value_name = "MS")]
    pub ttft_ms: f64,
    /// Between tokens
    #[arg(long, default_value_t = 20.0, value_name = "MS")]
    pub gap_ms: f64,
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub tokens_per_chunk: u32,
    /// Name that it serves
    #[arg(short = 'm', long, default_value = "loopback", value_name = "NAME")]
    pub model: String,
    /// Pairs of threads, one that reads and one that writes
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub threads: usize,
    /// File that gets a JSON line for every request, with the server's own times
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
}
