//! The arguments of `ossbench latency`: what is measured, how it is asked, and what is kept.
//!
//! vLLM's names (`vllm bench serve`) and aiperf's stand beside our own where they mean the same; the list
//! of all of vLLM's flags is in `vllm`. Nothing is interpreted here.

use super::serve::{LoadArgs, PromptArgs, ServerArgs};
use super::vllm::Refused;
use super::{EngineArgs, PowerArgs, RunCommon, SamplingArgs, keyword};
use bench_core::spec::TargetKind;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct LatencyArgs {
    /// `dummy:<preset>`, a folder, or a hub name; with a server the name it serves; several with commas
    #[arg(
        short = 'm',
        long = "model",
        visible_alias = "model-names",
        required_unless_present = "vllm_flags",
        value_delimiter = ',',
        value_name = "MODEL"
    )]
    pub models: Vec<String>,
    /// Prompt lengths in tokens, template included [default: 128]
    #[arg(
        short = 'p',
        long = "prompt-tokens",
        visible_aliases = ["isl", "synthetic-input-tokens-mean"],
        alias = "prompt-input-tokens-mean",
        value_delimiter = ',',
        value_name = "N,.."
    )]
    pub prompt_tokens: Vec<u32>,
    /// Output lengths in tokens [default: 32]
    #[arg(
        short = 'n',
        long = "output-tokens",
        visible_aliases = ["osl", "output-tokens-mean"],
        alias = "prompt-output-tokens-mean",
        value_delimiter = ',',
        value_name = "N,.."
    )]
    pub output_tokens: Vec<u32>,
    /// Requests that run together, in-process [default: 1]
    #[arg(short = 'b', long = "batch", value_delimiter = ',', value_name = "N,..")]
    pub batch: Vec<u32>,
    /// Measured repeats per cell; with a server, times the requests in flight (or per second) [default: 20]
    #[arg(short = 'r', long = "repeats", value_name = "N")]
    pub repeats: Option<u32>,
    /// Rounds over which the repeats are spread
    #[arg(long, value_name = "N")]
    pub rounds: Option<u32>,
    /// Unmeasured repeats (with a server: requests) before each trial
    #[arg(
        long,
        visible_aliases = ["num-warmups", "warmup-request-count"],
        default_value_t = 2,
        value_name = "N"
    )]
    pub warmup: u32,
    #[arg(long, visible_alias = "random-seed", default_value_t = 42)]
    pub seed: u64,
    /// Begins the name of the results folder
    #[arg(long, default_value = "latency")]
    pub name: String,
    /// `engine`, `mock`, `null`, or `http`, which --base-url implies [default: engine]
    #[arg(long, value_parser = parse_target, value_name = "TARGET")]
    pub target: Option<TargetKind>,
    /// Print the study that these flags make, as a file for `ossbench run`, and end
    #[arg(long)]
    pub print_study: bool,
    /// List the flags of `vllm bench serve` and what becomes of each, and end
    #[arg(long)]
    pub vllm_flags: bool,
    #[command(flatten, next_help_heading = "Server")]
    pub server: ServerArgs,
    #[command(flatten, next_help_heading = "Server: prompts")]
    pub prompts: PromptArgs,
    #[command(flatten, next_help_heading = "Server: load")]
    pub load: LoadArgs,
    #[command(flatten, next_help_heading = "Engine")]
    pub engine: EngineArgs,
    #[command(flatten, next_help_heading = "Sampling")]
    pub sampling: SamplingArgs,
    #[command(flatten, next_help_heading = "Power")]
    pub power: PowerArgs,
    #[command(flatten, next_help_heading = "Results")]
    pub save: SaveArgs,
    /// No progress, only warnings
    #[arg(long)]
    pub disable_tqdm: bool,
    #[command(flatten)]
    pub common: RunCommon,
    #[command(flatten)]
    pub refused: Refused,
}

/// What counts as good, and what is kept besides the results folder.
#[derive(Debug, Clone, Default, Args)]
pub struct SaveArgs {
    /// Limits of a good request in milliseconds, e.g. `ttft:200 tpot:50 e2el:5000`
    #[arg(long, num_args = 1.., value_name = "METRIC:MS")]
    pub goodput: Vec<String>,
    /// Metrics of vLLM's summary and JSON: ttft, tpot, itl, e2el, `client_queue_time`,
    /// `e2el_including_client_queue` [default: ttft,tpot,itl]
    #[arg(long, value_delimiter = ',', value_name = "METRIC,..")]
    pub percentile_metrics: Vec<String>,
    /// Percentiles of vLLM's summary and JSON [default: 99]
    #[arg(long, value_delimiter = ',', value_name = "P,..")]
    pub metric_percentiles: Vec<f64>,
    /// Write a JSON file with vLLM's keys, and ours under `ossbench`; one for each cell
    #[arg(long)]
    pub save_result: bool,
    /// Add lists over all requests to it
    #[arg(long)]
    pub save_detailed: bool,
    /// Write it as a further line of the file
    #[arg(long)]
    pub append_result: bool,
    /// Folder of that file
    #[arg(long, value_name = "DIR")]
    pub result_dir: Option<PathBuf>,
    /// Name of that file
    #[arg(long, value_name = "FILE")]
    pub result_filename: Option<PathBuf>,
    /// Begins the name of that file, and stands in it
    #[arg(long)]
    pub label: Option<String>,
    /// Further members of that file
    #[arg(long, num_args = 1.., value_name = "KEY=VALUE")]
    pub metadata: Vec<String>,
}

fn parse_target(text: &str) -> Result<TargetKind, String> {
    let words = [
        ("engine", TargetKind::Engine),
        ("mock", TargetKind::Mock),
        ("null", TargetKind::Null),
        ("http", TargetKind::Http),
    ];
    keyword(text, &words)
}
