//! Arguments of `verify`.

use super::{PathArgs, keyword};
use bench_report::Format;
use clap::Args;

/// Stored results held against what the raw traces say now.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Runs to verify, ids or folders [default: all]
    #[arg(value_name = "RUN")]
    pub runs: Vec<String>,
    #[command(flatten)]
    pub paths: PathArgs,
    /// How the findings on standard output are written
    #[arg(short = 'o', long = "output", value_parser = parse, default_value = "table", value_name = "table|json")]
    pub output: Format,
}

fn parse(text: &str) -> Result<Format, String> {
    keyword(text, &[("table", Format::Table), ("json", Format::Json)])
}
