//! The arguments as typed. Names follow llama-bench where its letters apply, config keys elsewhere.

use bench_core::spec::{ActivationDtype, ExpertDtype, TargetKind};
use bench_report::Format;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Measure how open-weight language models behave when they are served.
#[derive(Debug, Parser)]
#[command(name = "ossbench", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print what a study resolves to, without running it
    Plan(PlanArgs),
    /// Run a study, then analyze and report it
    Run(RunArgs),
    /// Measure latency of models given on the command line, no config file needed
    Latency(LatencyArgs),
    /// Raw results to CSV, without figures and tables
    Analyze(ReportArgs),
    /// Rebuild every CSV, figure and table from raw results
    Report(ReportArgs),
    /// Say what this machine has, and whether a model fits
    Doctor(DoctorArgs),
    /// Write a generated checkpoint to disk in Hugging Face layout
    Synth(SynthArgs),
    /// Stream a completion of one prompt
    Generate(GenerateArgs),
    /// Talk to a model, line by line
    Chat(ChatArgs),
    /// Write logits and inner activations for given token ids, to hold against another implementation
    Logits(LogitsArgs),
}

/// Where results lie and what is drawn from them.
#[derive(Debug, Clone, Args)]
pub struct PathArgs {
    /// Folder of `raw/` and the CSVs
    #[arg(long, default_value = "results", value_name = "DIR")]
    pub results: PathBuf,
    /// Folder of the figures
    #[arg(long, default_value = "figs", value_name = "DIR")]
    pub figs: PathBuf,
    /// Folder of the LaTeX tables
    #[arg(long, default_value = "paper/tables", value_name = "DIR")]
    pub tables: PathBuf,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The study, see bench-configs/README.md
    pub config: PathBuf,
    /// Print the plan as JSON, as it is stored with the results
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// The study, see bench-configs/README.md
    pub config: PathBuf,
    /// Go on with a run that was cut: a run id, or the latest run of this study
    #[arg(long, value_name = "RUN_ID", num_args = 0..=1, default_missing_value = "latest")]
    pub resume: Option<String>,
    #[command(flatten)]
    pub common: RunCommon,
}

#[derive(Debug, Clone, Args)]
pub struct RunCommon {
    #[command(flatten)]
    pub paths: PathArgs,
    /// How the table on standard output is written
    #[arg(short = 'o', long = "output", value_parser = parse_format, default_value = "table", value_name = FORMATS)]
    pub output: Format,
    /// Run with a debug build; every row is marked INVALID
    #[arg(long)]
    pub allow_debug: bool,
    /// Exit with 3 if any cell is INVALID
    #[arg(long)]
    pub fail_on_invalid: bool,
}

#[derive(Debug, Args)]
pub struct LatencyArgs {
    /// `dummy:<preset>`, a folder, or a hub name; several with commas
    #[arg(short = 'm', long = "model", required = true, value_delimiter = ',', value_name = "MODEL")]
    pub models: Vec<String>,
    /// Prompt lengths in tokens, template included
    #[arg(
        short = 'p',
        long = "prompt-tokens",
        value_delimiter = ',',
        default_value = "128",
        value_name = "N,.."
    )]
    pub prompt_tokens: Vec<u32>,
    /// Output lengths in tokens
    #[arg(
        short = 'n',
        long = "output-tokens",
        value_delimiter = ',',
        default_value = "32",
        value_name = "N,.."
    )]
    pub output_tokens: Vec<u32>,
    /// Requests that run together
    #[arg(short = 'b', long = "batch", value_delimiter = ',', default_value = "1", value_name = "N,..")]
    pub batch: Vec<u32>,
    /// Measured repeats per cell
    #[arg(short = 'r', long = "repeats", default_value_t = 20, value_name = "N")]
    pub repeats: u32,
    /// Rounds over which the repeats are spread
    #[arg(long, value_name = "N")]
    pub rounds: Option<u32>,
    /// Unmeasured repeats before each trial
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub warmup: u32,
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Begins the name of the results folder
    #[arg(long, default_value = "latency")]
    pub name: String,
    /// `engine`, `mock` or `null`
    #[arg(long, value_parser = parse_target, default_value = "engine")]
    pub target: TargetKind,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub common: RunCommon,
}

/// How a model is loaded and run.
#[derive(Debug, Clone, Args)]
pub struct EngineArgs {
    /// Compute threads [default: all cores]
    #[arg(short = 't', long, value_name = "N")]
    pub threads: Option<u32>,
    /// Activations and KV cache
    #[arg(long, value_parser = parse_activation, default_value = "f32", value_name = "f32|bf16")]
    pub activation_dtype: ActivationDtype,
    /// `native` keeps MXFP4 experts, `bf16` dequantizes them
    #[arg(long, value_parser = parse_expert, default_value = "native", value_name = "native|bf16")]
    pub expert_dtype: ExpertDtype,
    /// Load the first N layers only
    #[arg(long, value_name = "N")]
    pub layers: Option<u32>,
}

#[derive(Debug, Clone, Args)]
pub struct SamplingArgs {
    /// 0 is greedy
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub temperature: f64,
    #[arg(long)]
    pub top_k: Option<u32>,
    #[arg(long)]
    pub top_p: Option<f64>,
}

#[derive(Debug, Args)]
pub struct ReportArgs {
    #[command(flatten)]
    pub paths: PathArgs,
    /// How the table on standard output is written
    #[arg(short = 'o', long = "output", value_parser = parse_format, default_value = "table", value_name = FORMATS)]
    pub output: Format,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// `dummy:<preset>`, a folder, or a hub name that was downloaded
    pub model: Option<String>,
    /// Context that must fit
    #[arg(long, default_value_t = 4096, value_name = "TOKENS")]
    pub context: u32,
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub batch: u32,
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct SynthArgs {
    /// Preset, e.g. gpt-oss-nano
    pub preset: String,
    /// Folder to write
    pub out: PathBuf,
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Write the first N layers only
    #[arg(long, value_name = "N")]
    pub layers: Option<u32>,
    /// Write into a folder that is not empty
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[arg(short = 'm', long, value_name = "MODEL")]
    pub model: String,
    /// The prompt; standard input if `-`
    pub prompt: String,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// When an answer ends.
#[derive(Debug, Clone, Args)]
pub struct LimitArgs {
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub max_tokens: u32,
    /// Longest wait for one token (the first one includes the prompt), seconds
    #[arg(long, default_value_t = 120, value_name = "S")]
    pub token_timeout: u64,
    /// Longest wait for the whole answer, seconds
    #[arg(long, default_value_t = 900, value_name = "S")]
    pub timeout: u64,
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Date in the system prompt
    #[arg(long, default_value = "2025-06-28")]
    pub date: String,
    /// `low`, `medium` or `high`, for models that reason
    #[arg(long, default_value = "medium", value_parser = ["low", "medium", "high"])]
    pub reasoning_effort: String,
    /// Complete the text itself, without a chat template
    #[arg(long)]
    pub plain: bool,
}

#[derive(Debug, Args)]
pub struct ChatArgs {
    #[arg(short = 'm', long, value_name = "MODEL")]
    pub model: String,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

#[derive(Debug, Args)]
pub struct LogitsArgs {
    #[arg(short = 'm', long, value_name = "MODEL")]
    pub model: String,
    /// Token ids of the prompt
    #[arg(long, required = true, value_delimiter = ',', value_name = "ID,..")]
    pub ids: Vec<u32>,
    /// Greedy steps after the prompt
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub greedy: u32,
    /// Sites to write, e.g. `resid_post.0,router.1`
    #[arg(long, value_delimiter = ',', value_name = "SITE,..")]
    pub sites: Vec<String>,
    /// Seed of generated weights
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Safetensors file to write
    #[arg(short = 'o', long = "out", value_name = "FILE")]
    pub out: PathBuf,
    #[command(flatten)]
    pub engine: EngineArgs,
}

const FORMATS: &str = "table|md|csv|json|jsonl|latex";

fn parse_format(text: &str) -> Result<Format, String> {
    keyword(text, &Format::ALL.map(|(format, word)| (word, format)))
}

fn parse_target(text: &str) -> Result<TargetKind, String> {
    keyword(text, &[("engine", TargetKind::Engine), ("mock", TargetKind::Mock), ("null", TargetKind::Null)])
}

fn parse_activation(text: &str) -> Result<ActivationDtype, String> {
    keyword(text, &[("f32", ActivationDtype::F32), ("bf16", ActivationDtype::Bf16)])
}

fn parse_expert(text: &str) -> Result<ExpertDtype, String> {
    keyword(text, &[("native", ExpertDtype::Native), ("bf16", ExpertDtype::Bf16)])
}

fn keyword<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let valid: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        format!("valid: {}", valid.join(", "))
    })
}
