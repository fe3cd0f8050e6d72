//! The arguments of `ossbench safety`: what is asked, of whom, and where transcripts go.

use super::{EngineArgs, FORMATS, LimitArgs, SamplingArgs, SecretArgs, parse_format};
use bench_report::Format;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct SafetyArgs {
    /// `dummy:<preset>`, a folder, or a hub name; with --base-url the name that the server serves it under
    #[arg(short = 'm', long, value_name = "MODEL", required_unless_present_any = ["table", "print_rule"])]
    pub model: Option<String>,
    /// Prompts of your own: TOML ([[prompts]]) or JSONL with id, category, text [default: ours]
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Go on with a run that was cut: a run id, or the latest run of this model
    #[arg(long, value_name = "RUN_ID", num_args = 0..=1, default_missing_value = "latest")]
    pub resume: Option<String>,
    /// Write the overview of licenses and policies, and end
    #[arg(long, conflicts_with_all = ["model", "prompts", "resume", "print_rule"])]
    pub table: bool,
    /// Metadata of your own for --table [default: ours]
    #[arg(long, value_name = "FILE", requires = "table", conflicts_with = "model")]
    pub metadata: Option<PathBuf>,
    /// Print the rule by which refusals are counted, and end
    #[arg(long)]
    pub print_rule: bool,
    /// Ask an OpenAI-compatible server instead of the built-in engine
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,
    #[command(flatten)]
    pub secrets: SecretArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Folder of `safety/`
    #[arg(long, default_value = "results", value_name = "DIR")]
    pub results: PathBuf,
    /// How the table on standard output is written
    #[arg(short = 'o', long = "output", value_parser = parse_format, default_value = "table", value_name = FORMATS)]
    pub output: Format,
}
