//! Arguments of `ape`.

use super::keyword;
use bench_report::Format;
use clap::Args;
use std::path::PathBuf;

/// Efficiency of stored runs, or of the study's own result files.
#[derive(Debug, Args)]
pub struct ApeArgs {
    /// Folder of the CSVs of stored runs
    #[arg(long, default_value = "results", value_name = "DIR", conflicts_with = "study")]
    pub results: PathBuf,
    /// Folder of the original study's CSVs: its table computed again, and ours beside it
    #[arg(long, value_name = "DIR")]
    pub study: Option<PathBuf>,
    /// Memory bandwidth of the study's machine [default: 3900, of an H100 NVL]
    #[arg(long, requires = "study", value_name = "GB_S")]
    pub bandwidth_gb_s: Option<f64>,
    /// How the tables on standard output are written
    #[arg(short = 'o', long = "output", value_parser = parse, default_value = "table", value_name = "table|md|csv|json")]
    pub output: Format,
}

fn parse(text: &str) -> Result<Format, String> {
    keyword(text, &Format::ALL.map(|(format, word)| (word, format))[..4])
}
