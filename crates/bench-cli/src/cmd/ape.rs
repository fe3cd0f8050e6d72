//! `ossbench ape`: efficiency per active parameter of stored runs, and of the study that this project
//! follows.

mod records;
mod study;

use crate::args::ApeArgs;
use crate::{CliError, Io};
use bench_core::row::Row;
use bench_report::Format;
use records::{Record, number, render};
use serde_json::Value;
use std::path::Path;

pub(crate) fn run(args: &ApeArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    let text = match &args.study {
        Some(folder) => study::text(folder, args.bandwidth_gb_s, args.output)?,
        None => stored(&args.results, args.output)?,
    };
    Ok(write!(io.out, "{text}")?)
}

/// The efficiency rows of all stored runs.
fn stored(results: &Path, format: Format) -> Result<String, CliError> {
    let path = results.join("unified.csv");
    if !path.exists() {
        let path = path.display();
        return Err(CliError::Usage(format!(
            "{path} is not there: `ossbench analyze` makes it from stored runs, or name another folder by --results"
        )));
    }
    let mut rows = bench_report::unified::read(&path)?;
    rows.retain(|row| bench_ape::METRICS.iter().any(|m| m.def().key == row.metric));
    if rows.is_empty() {
        return Err(CliError::Failed(format!(
            "{}: no rows of efficiency; they need runs of models whose sizes are known, and `ossbench analyze`",
            path.display()
        )));
    }
    let records = if matches!(format, Format::Csv | Format::Json) { long(&rows) } else { wide(&rows) };
    Ok(render(format, &records))
}

/// A record of each row.
fn long(rows: &[Row]) -> Vec<Record> {
    let record = |row: &Row| {
        let mut record = Record::new();
        record.insert("run_id".to_owned(), row.run_id.clone().into());
        key(&mut record, row);
        for (name, text) in [("metric", row.metric), ("scope", &row.scope), ("unit", row.unit)] {
            record.insert(name.to_owned(), text.into());
        }
        for (name, value) in [("value", row.value), ("ci_low", row.ci_low), ("ci_high", row.ci_high)] {
            record.insert(name.to_owned(), number(value));
        }
        record.insert("n".to_owned(), row.n.into());
        record.insert("missing_reason".to_owned(), row.missing_reason.clone().into());
        record.insert("verdict".to_owned(), row.verdict.into());
        record.insert("verdict_reason".to_owned(), row.verdict_reason.clone().into());
        record
    };
    rows.iter().map(record).collect()
}

/// A record of each cell, a column of each metric and scope that any of them has.
fn wide(rows: &[Row]) -> Vec<Record> {
    let several_runs = rows.iter().any(|row| row.run_id != rows[0].run_id);
    // What must be known to read a figure, as that all experts were computed.
    let remarks = rows.iter().any(|row| !row.verdict_reason.is_empty());
    let column = |row: &Row| match row.scope.as_str() {
        "" => row.metric.to_owned(),
        scope => format!("{} {scope}", row.metric),
    };
    let keys = bench_ape::METRICS.iter().map(|m| m.def().key);
    let mut columns: Vec<String> =
        keys.flat_map(|key| rows.iter().filter(move |row| row.metric == key)).map(column).collect();
    let mut seen = std::collections::BTreeSet::new();
    columns.retain(|column| seen.insert(column.clone()));

    let mut cells: Vec<(Record, Record)> = Vec::new();
    for row in rows {
        let mut own = Record::new();
        if several_runs {
            own.insert("run_id".to_owned(), row.run_id.clone().into());
        }
        key(&mut own, row);
        if remarks {
            own.insert("remark".to_owned(), row.verdict_reason.clone().into());
        }
        // Rows stand sorted by cell.
        if cells.last().is_none_or(|(last, _)| *last != own) {
            let empty = columns.iter().map(|c| (c.clone(), Value::Null)).collect();
            cells.push((own, empty));
        }
        if let Some((_, figures)) = cells.last_mut() {
            figures.insert(column(row), number(row.value));
        }
    }
    cells.into_iter().map(|(key, figures)| key.into_iter().chain(figures).collect()).collect()
}

/// What names a cell.
fn key(record: &mut Record, row: &Row) {
    record.insert("model".to_owned(), row.model.clone().into());
    record.insert("prompt_tokens".to_owned(), row.prompt_tokens.into());
    record.insert("output_tokens".to_owned(), row.output_tokens.into());
    record.insert("batch".to_owned(), row.batch.into());
    record.insert("load".to_owned(), row.load.clone().into());
    record.insert("concurrency".to_owned(), row.concurrency.into());
    record.insert("request_rate".to_owned(), number(row.request_rate));
}
