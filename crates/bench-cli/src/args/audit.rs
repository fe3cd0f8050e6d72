//! Arguments of `audit`.

use super::keyword;
use bench_report::Format;
use clap::Args;
use std::path::PathBuf;

/// Hold published tables of results against their own arithmetic and against physics.
///
/// CSVs of arXiv 2508.16700 and of this program are recognised by their headers; other tables need a column
/// map in TOML. A map has: `name`, `about`; `[columns]` with model, device, `prompt_tokens`, `output_tokens`,
/// n, key (a list), ttft, kv, `kv_retained`, `allocated_before`, peak, `power_avg`, `power_baseline`, `j_per_1k_tok`,
/// `tok_per_j`, `params_total`, `params_active`; `[units]` with the unit of each column that has one (ms, s, us,
/// ns; B, kB, MB, GB, KiB, MiB, GiB; W; J, Wh; tok/s; tok/J; 1, 1e9); `[constants]` with model,
/// `prompt_tokens`, `output_tokens`, n, dtype, device, `bandwidth_bytes_s`; `[[quantiles]]` with of (e2el, ttft,
/// tpot, itl, rate), p50, p90, p95, p99; `[[rates]]` with column, claims (decode, request), counts (output,
/// all); `[[derived]]` with column, formula, tolerance; `[models]` from names in the table to presets.
///
/// Findings are output: the exit code is 0 when every file was read, 1 if one was not, 3 with
/// --fail-on-finding.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// CSV files; rules that compare tables see all of them
    #[arg(required_unless_present = "print_map", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Column map of the files whose headers are not known
    #[arg(long, value_name = "TOML")]
    pub map: Option<PathBuf>,
    /// Print a built-in column map as an example and end
    #[arg(long, value_name = "NAME")]
    pub print_map: Option<String>,
    /// Requests behind each row, where no column says it
    #[arg(long, value_name = "N")]
    pub n: Option<u64>,
    /// Precision of weights and cache [default: what the map says, else bf16]
    #[arg(long, value_parser = ["bf16", "f32"])]
    pub dtype: Option<String>,
    /// Memory bandwidth of the machine [default: of the device that a table names]
    #[arg(long, value_name = "GB_S")]
    pub bandwidth_gb_s: Option<f64>,
    /// Exit with 3 if there is any finding
    #[arg(long)]
    pub fail_on_finding: bool,
    /// How the findings are written
    #[arg(short = 'o', long = "output", value_parser = parse, default_value = "table", value_name = "table|md|csv|json")]
    pub output: Format,
}

fn parse(text: &str) -> Result<Format, String> {
    keyword(text, &Format::ALL.map(|(format, word)| (word, format))[..4])
}
