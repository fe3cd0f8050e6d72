//! The result tables of the original study, column for column.
//!
//! Compatibility views: their figures follow the study's own formulas and names, though some of them say
//! something else than what they hold (`TPOT_tokps` is a rate that includes prefill). The long table is the one to use.

mod derive;
mod single;

use crate::RunInput;
use crate::wide::csv_line;
use bench_core::row::{STUDY_LATENCY_COLUMNS, StudyLatencyRow};
use serde_json::{Value, json};

/// Every table of the study, with its file name.
pub(crate) fn csvs(runs: &[RunInput]) -> [(&'static str, String); 4] {
    let cells = single::cells(runs);
    [
        ("study_unified_latency.csv", csv(runs)),
        ("study_unified_memory.csv", single::memory(&cells)),
        ("study_unified_energy.csv", single::energy(&cells)),
        ("study_ape_analysis.csv", single::ape(&cells)),
    ]
}

/// The table of all runs: by run, model, prompt and output tokens.
fn csv(runs: &[RunInput]) -> String {
    let mut rows: Vec<(&str, &StudyLatencyRow)> =
        runs.iter().flat_map(|run| run.study_rows.iter().map(|row| (run.run_id.as_str(), row))).collect();
    rows.sort_by(|a, b| key(a).cmp(&key(b)));
    let mut text = csv_line(STUDY_LATENCY_COLUMNS.iter().map(|c| Value::String((*c).to_owned())));
    for (_, row) in rows {
        text.push_str(&csv_line(values(row)));
    }
    text
}

/// All that is text or a whole number, then the bits of the TTFT, so that the order of the input
/// does not show.
fn key<'a>(
    (run_id, row): &(&'a str, &'a StudyLatencyRow),
) -> (&'a str, &'a str, u32, u32, &'a str, Option<u64>) {
    let ttft = row.ttft_ms.map(f64::to_bits);
    (run_id, &row.model_short, row.prompt_tokens, row.gen_tokens, &row.model, ttft)
}

/// In the order of `STUDY_LATENCY_COLUMNS`.
fn values(row: &StudyLatencyRow) -> [Value; 12] {
    [
        json!(row.model_short),
        json!(row.model),
        json!(row.model_type),
        json!(row.prompt_tokens),
        json!(row.gen_tokens),
        json!(row.ttft_median_ms),
        json!(row.p50_ms),
        json!(row.p95_ms),
        json!(row.p99_ms),
        json!(row.tpot_tokps),
        json!(row.context_length),
        json!(row.ttft_ms),
    ]
}
