//! The arguments as typed. Names follow llama-bench where its letters apply, config keys elsewhere.

use bench_report::Format;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

mod ablate;
mod ape;
mod audit;
mod bandwidth;
mod bench_kernels;
mod compare;
mod engine;
mod fidelity;
mod fit;
mod instrument;
mod latency;
mod memory;
mod parity;
mod power;
mod safety;
mod search;
mod serve;
mod verify;
mod vllm;

pub use ablate::{AblateArgs, Ablation};
pub use ape::ApeArgs;
pub use audit::AuditArgs;
pub use bandwidth::BandwidthArgs;
pub use bench_kernels::BenchKernelsArgs;
pub use compare::{CompareArgs, Wanted};
pub use engine::EngineArgs;
pub use fidelity::{FidelityArgs, Gate};
pub use fit::{FitArgs, FitAttemptArgs};
pub use instrument::{CalibrateArgs, MockServerArgs};
pub use latency::{LatencyArgs, SaveArgs};
pub use memory::MemoryArgs;
pub use parity::ParityArgs;
pub use power::PowerArgs;
pub use safety::SafetyArgs;
pub use search::{Over, SearchArgs};
pub use serve::{Backend, LoadArgs, Pattern, PromptArgs, SecretArgs, ServerArgs};
pub use verify::VerifyArgs;
pub use vllm::{FLAGS, Flag, Refused, Support};

/// Measure how open-weight language models behave when they are served.
#[derive(Debug, Parser)]
#[command(name = "ossbench", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Every command and argument, for tests and references.
    pub fn definition() -> clap::Command {
        <Self as clap::CommandFactory>::command()
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print what a study resolves to, without running it
    Plan(PlanArgs),
    /// Run a study, then analyze and report it
    Run(RunArgs),
    /// Find the highest rate or concurrency that meets the limits of a study, and the knee
    Search(SearchArgs),
    /// Measure latency of models or servers given on the command line, no config file needed
    Latency(Box<LatencyArgs>),
    /// Measure memory and KV cache over context, each trial in a process of its own
    Memory(MemoryArgs),
    /// Measure what this client itself adds, against a loopback server of known token times
    Calibrate(CalibrateArgs),
    /// Serve scripted token times on this machine, to hold any client against
    MockServer(MockServerArgs),
    /// Raw results to CSV, without figures and tables
    Analyze(ReportArgs),
    /// Rebuild every CSV, figure and table from raw results
    Report(ReportArgs),
    /// Hold raw files against their sums, and rows, figures and tables against what raw files give now
    Verify(VerifyArgs),
    /// Hold two runs against each other, cell by cell: difference, interval, verdict; a gate for CI
    Compare(Box<CompareArgs>),
    /// Measure how fast this machine reads and copies memory
    Bandwidth(BandwidthArgs),
    /// Measure each kernel at a model's shapes, beside what memory and arithmetic of this machine allow
    BenchKernels(BenchKernelsArgs),
    /// Print efficiency per active parameter of stored runs, or of the original study's files
    Ape(ApeArgs),
    /// Hold published tables of results against their own arithmetic and against physics
    Audit(AuditArgs),
    /// Vary one thing at a time: decoding, precision, expert mode, context, server, batch
    Ablate(Box<AblateArgs>),
    /// Ask benign and borderline prompts and count refusals; or write the overview of licenses
    Safety(Box<SafetyArgs>),
    /// Say what this machine has, and whether a model fits
    Doctor(DoctorArgs),
    /// Measure how far faster arithmetic is from f32: divergence, agreement, bound
    Fidelity(Box<FidelityArgs>),
    /// Hold tiny models on any device against what another implementation computed for them; a gate
    Parity(ParityArgs),
    /// Say which context and batch of a model fit in a memory, and find out by trial whether that is so
    Fit(Box<FitArgs>),
    #[command(hide = true)]
    FitAttempt(FitAttemptArgs),
    /// Write a generated checkpoint to disk in Hugging Face layout
    Synth(SynthArgs),
    /// Stream a completion of one prompt
    Generate(GenerateArgs),
    /// Talk to a model, line by line
    Chat(ChatArgs),
    /// Write logits and inner activations for given token ids, to hold against another implementation
    Logits(LogitsArgs),
    /// Run one trial for the run that started this process; not for people
    #[command(name = bench_runner::targets::isolated::COMMAND, hide = true)]
    EngineProcess,
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
    /// Server to measure, instead of the one in the study
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,
    /// Model, instead of the one in the study
    #[arg(short = 'm', long, value_name = "MODEL")]
    pub model: Option<String>,
    #[command(flatten)]
    pub secrets: SecretArgs,
    #[command(flatten, next_help_heading = "Power")]
    pub power: PowerArgs,
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
    /// How progress is shown: auto is a bar on a terminal and lines elsewhere, none leaves warnings
    #[arg(long, value_parser = parse_ui, default_value = "auto", value_name = "auto|bar|tui|plain|none")]
    pub ui: Ui,
    /// Run with a debug build; every row is marked INVALID
    #[arg(long)]
    pub allow_debug: bool,
    /// Exit with 3 if any cell is INVALID
    #[arg(long)]
    pub fail_on_invalid: bool,
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
    /// Where the model would run: `cpu`, `cuda` or `cuda:N` [default: cpu]
    #[arg(long, value_parser = engine::parse_device, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Context that must fit
    #[arg(long, default_value_t = 4096, value_name = "TOKENS")]
    pub context: u32,
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub batch: u32,
    #[arg(long)]
    pub json: bool,
}

impl DoctorArgs {
    /// Where the model would run.
    pub fn device(&self) -> &str {
        self.device.as_deref().unwrap_or("cpu")
    }
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

/// How a run is shown while it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ui {
    /// A bar on a terminal, lines elsewhere.
    Auto,
    Bar,
    /// A full screen.
    Tui,
    Plain,
    /// Warnings only.
    None,
}

const FORMATS: &str = "table|md|csv|json|jsonl|latex";

fn parse_format(text: &str) -> Result<Format, String> {
    keyword(text, &Format::ALL.map(|(format, word)| (word, format)))
}

fn parse_ui(text: &str) -> Result<Ui, String> {
    let words =
        [("auto", Ui::Auto), ("bar", Ui::Bar), ("tui", Ui::Tui), ("plain", Ui::Plain), ("none", Ui::None)];
    keyword(text, &words)
}

fn keyword<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let valid: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        format!("valid: {}", valid.join(", "))
    })
}
