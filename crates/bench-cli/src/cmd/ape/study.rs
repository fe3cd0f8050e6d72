//! The study's efficiency table computed again, ours from the same measurements, and what sizes alone allow.

use super::records::{Record, number, render};
use crate::CliError;
use bench_ape::ALL_EXPERTS;
use bench_ape::study::{self, Figures, Files, Ours, StudyRow};
use bench_core::metric::Metric;
use bench_core::plan::Dtypes;
use bench_core::shape::ModelFacts;
use bench_core::spec::{ActivationDtype, ExpertDtype};
use bench_report::Format;
use std::path::Path;

/// Every published model whose config is at hand, those first that the study measured.
const PRESETS: [&str; 5] = ["gpt-oss-20b", "qwen3-32b", "yi-34b", "gpt-oss-120b", "llama-3.1-70b"];
/// The study's headline cell.
const PROMPT_TOKENS: u32 = 2048;
const OUTPUT_TOKENS: u32 = 64;

/// Columns of which each table for people is made.
const KEY: [&str; 3] = ["model", "precision", "context_tokens"];
const OURS: [&str; 7] =
    ["active_parameters", "decode_tok_s", "ape_decode", "ape_ttft", "tok_per_j", "ape_energy", "ape_memory"];
const MOVED: [&str; 6] = [
    "bytes_per_tok",
    "moved_gb_s",
    "roofline_ratio",
    "bytes_per_tok_all_experts",
    "moved_gb_s_all_experts",
    "roofline_ratio_all_experts",
];
const LIMITS: [&str; 6] = [
    "active_parameters",
    "flops_per_tok",
    "bytes_per_tok",
    "limit_tok_s",
    "bytes_per_tok_all_experts",
    "limit_tok_s_all_experts",
];

pub(super) fn text(folder: &Path, bandwidth_gb_s: Option<f64>, format: Format) -> Result<String, CliError> {
    let bandwidth_bytes_s = bandwidth_gb_s.map_or(study::BANDWIDTH_BYTES_S, |gb| gb * 1e9);
    if !(bandwidth_bytes_s.is_finite() && bandwidth_bytes_s > 0.0) {
        let given = bandwidth_bytes_s / 1e9;
        return Err(CliError::Usage(format!("--bandwidth-gb-s {given}: expected a number above 0")));
    }
    let rows = read(folder)?;
    let mut measured = Vec::with_capacity(rows.len());
    for row in &rows {
        // The study ran every model in bf16, its experts dequantized.
        let facts = facts(&row.model, ExpertDtype::Bf16)?;
        measured.push(record(row, &facts, &row.ours(&facts, bandwidth_bytes_s)));
    }
    let limits = limits(bandwidth_bytes_s)?;
    if matches!(format, Format::Csv | Format::Json) {
        return Ok(render(format, &[measured, limits].concat()));
    }
    let difference = rows.iter().map(StudyRow::largest_difference).fold(0.0, f64::max);
    let only = |records: &[Record], names: &[&str]| render(format, &picked(records, names));
    let theirs: Vec<String> = Figures::COLUMNS.iter().map(|c| format!("study_{c}")).collect();
    let theirs: Vec<&str> = ["model", "context_tokens", "study_active_b"]
        .into_iter()
        .chain(theirs.iter().map(String::as_str))
        .collect();
    let head = if format == Format::Md { "## " } else { "" };
    Ok(format!(
        "{head}The study's table by its formulas; largest difference to what it printed {difference:.0e}\n\n{}\n\
         {head}The same measurements by our definitions: exact active parameters, decode without prefill\n\n{}\n\
         {head}What a token must move, and with every expert read; bandwidth {:.0} GB/s\n\n{}\n\
         {head}Limits of one sequence at {PROMPT_TOKENS} + {OUTPUT_TOKENS} tokens and {:.0} GB/s\n\n{}",
        only(&measured, &theirs),
        only(&measured, &[&KEY[..], &OURS].concat()),
        bandwidth_bytes_s / 1e9,
        only(&measured, &[&KEY[..], &["decode_tok_s"], &MOVED].concat()),
        bandwidth_bytes_s / 1e9,
        only(&limits, &[&KEY[..], &LIMITS].concat()),
    ))
}

/// The records with these columns only.
fn picked(records: &[Record], columns: &[&str]) -> Vec<Record> {
    let pick = |record: &Record| {
        let own = columns.iter().filter_map(|c| Some(((*c).to_owned(), record.get(*c)?.clone())));
        own.collect()
    };
    records.iter().map(pick).collect()
}

fn read(folder: &Path) -> Result<Vec<StudyRow>, CliError> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path)
            .map_err(|e| CliError::Usage(format!("cannot read {} of the study: {e}", path.display())))
    };
    let (latency, energy) = (read(study::LATENCY)?, read(study::ENERGY)?);
    let (memory, ape) = (read(study::MEMORY)?, read(study::APE)?);
    let files = Files { latency: &latency, energy: &energy, memory: &memory, ape: &ape };
    study::read(&files).map_err(|e| CliError::Failed(format!("{}: {e}", folder.display())))
}

fn limits(bandwidth_bytes_s: f64) -> Result<Vec<Record>, CliError> {
    let mut records = Vec::new();
    for preset in PRESETS {
        let bf16 = facts(preset, ExpertDtype::Bf16)?;
        let native = facts(preset, ExpertDtype::Native)?;
        let ways = [Some(&bf16), (native.expert_dtype == "mxfp4").then_some(&native)];
        for facts in ways.into_iter().flatten() {
            let limits = study::limits(facts, PROMPT_TOKENS, OUTPUT_TOKENS, bandwidth_bytes_s);
            records.push(columns(preset, facts, (PROMPT_TOKENS, OUTPUT_TOKENS), None, &limits));
        }
    }
    Ok(records)
}

fn facts(preset: &str, experts: ExpertDtype) -> Result<ModelFacts, CliError> {
    let config = bench_engine::preset::config(preset)?;
    let dtypes = Dtypes { activation: ActivationDtype::Bf16, expert: experts, ..Dtypes::default() };
    let options = bench_runner::shape::load_options(dtypes, None);
    Ok(bench_runner::shape::facts(&config, &options))
}

fn record(row: &StudyRow, facts: &ModelFacts, ours: &Ours) -> Record {
    columns(&row.model, facts, (row.context_tokens, row.output_tokens), Some(row), ours)
}

/// The same columns for every record; those of a measurement are null where there is none.
fn columns(
    model: &str,
    facts: &ModelFacts,
    (context_tokens, output_tokens): (u32, u32),
    row: Option<&StudyRow>,
    ours: &Ours,
) -> Record {
    let mut record = Record::new();
    let precision = if facts.expert_dtype == "mxfp4" { "mxfp4" } else { "bf16" };
    record.insert("model".to_owned(), model.into());
    record.insert("precision".to_owned(), precision.into());
    record.insert("context_tokens".to_owned(), context_tokens.into());
    record.insert("output_tokens".to_owned(), output_tokens.into());
    let mut add = |name: &str, value: Option<f64>| record.insert(name.to_owned(), number(value));
    add("study_active_b", row.map(|r| r.active_parameters_b));
    for (index, name) in Figures::COLUMNS.iter().enumerate() {
        add(&format!("study_{name}"), row.map(|r| r.again.values()[index]));
    }
    add("study_largest_difference", row.map(StudyRow::largest_difference));
    add("active_parameters", ours.any(Metric::ActiveParameters));
    add("decode_tok_s", row.map(StudyRow::decode_tok_s));
    add("ape_decode", ours.any(Metric::ApeDecode));
    add("ape_ttft", ours.any(Metric::ApeTtft));
    add("tok_per_j", row.map(StudyRow::decode_tok_per_j));
    add("ape_energy", ours.any(Metric::ApeEnergy));
    add("ape_memory", ours.any(Metric::ApeMemory));
    add("flops_per_tok", ours.any(Metric::FlopsPerToken));
    for (suffix, scope) in [("", None), ("_all_experts", Some(ALL_EXPERTS))] {
        add(&format!("bytes_per_tok{suffix}"), ours.value(Metric::BytesPerToken, scope));
        add(&format!("limit_tok_s{suffix}"), ours.value(Metric::RooflineLimit, scope));
        add(&format!("roofline_ratio{suffix}"), ours.value(Metric::RooflineRatio, scope));
        add(&format!("moved_gb_s{suffix}"), ours.moved_bytes_s(scope).map(|b| b / 1e9));
    }
    record
}
