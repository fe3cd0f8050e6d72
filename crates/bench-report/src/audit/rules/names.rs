//! Names that say another thing than the column holds.

use super::of_each;
use crate::audit::book::{Book, Row, Sheet};
use crate::audit::finding::{CellRef, Finding, Rule, Severity};

pub(super) static RATE_AS_TIME: Rule = Rule {
    id: "rate-named-as-time",
    severity: Severity::Warning,
    study_error: Some(2),
    title: "tokens per second under the name of a time",
};
pub(super) static UNIT: Rule = Rule {
    id: "unit-misnamed",
    severity: Severity::Note,
    study_error: None,
    title: "a unit that the numbers do not have",
};

/// What times are called.
const TIMES: [&str; 7] = ["tpot", "itl", "ttft", "latency", "time_per", "time per", "inter_token"];

pub(super) fn rates_named_as_times(book: &Book<'_>) -> Option<Vec<Finding>> {
    of_each(book, |sheet| {
        let rates = &sheet.map.rates;
        let named = |column: &str| TIMES.iter().any(|time| column.to_lowercase().contains(time));
        let found =
            rates.iter().find(|rate| named(&rate.column)).and_then(|rate| as_time(sheet, &rate.column));
        (!rates.is_empty()).then_some(found)
    })
}

fn as_time(sheet: &Sheet, column: &str) -> Option<Finding> {
    let of_row = |row: &Row| {
        sheet.value(row, column)?;
        Some(sheet.cell(row, column).with("tpot", sheet.inter_token_ms(row), "ms"))
    };
    let cells: Vec<CellRef> = sheet.rows.iter().filter_map(of_row).collect();
    let sentence = format!(
        "{column} is in tokens per second, and higher is better; time per output token is in ms, \
         (p50 - TTFT) / (output tokens - 1)"
    );
    sheet.finding(&RATE_AS_TIME, cells, sentence)
}

pub(super) fn units(book: &Book<'_>) -> Option<Vec<Finding>> {
    let memory = of_each(book, |sheet| {
        let c = &sheet.map.columns;
        let columns: Vec<&str> =
            [&c.allocated_before, &c.peak].into_iter().flatten().map(String::as_str).collect();
        (!columns.is_empty()).then(|| decimal(sheet, &columns))
    });
    let energy = of_each(book, |sheet| {
        let column = sheet.map.columns.tok_per_j.as_deref()?;
        Some(per_watt(sheet, column))
    });
    [memory, energy].into_iter().flatten().reduce(|a, b| [a, b].concat())
}

/// Bytes that as MB or GB would not hold the model's weights, and as MiB or GiB do.
fn decimal(sheet: &Sheet, columns: &[&str]) -> Option<Finding> {
    let mut cells: Vec<CellRef> = Vec::new();
    let mut unit = "MiB";
    for (row, column) in sheet.rows.iter().flat_map(|row| columns.iter().map(move |c| (row, *c))) {
        let name = column.to_lowercase();
        let named = if name.contains("_mb") || name.contains("(mb)") {
            (1e6, 1_048_576.0, "MiB")
        } else if name.contains("_gb") || name.contains("(gb)") {
            (1e9, 1_073_741_824.0, "GiB")
        } else {
            continue;
        };
        let cell = sheet.cell(row, column);
        let (Some(printed), Some(sizes)) = (cell.published, sheet.sizes(row)) else { continue };
        let weights = sizes.weights_bytes as f64;
        // Allocators round up, and a loaded model may leave out a few bytes that the count holds.
        if printed * named.0 < 0.99 * weights && printed * named.1 >= 0.99 * weights {
            unit = named.2;
            cells.push(cell.with(
                "weights alone",
                Some(weights / named.0),
                if unit == "MiB" { "MB" } else { "GB" },
            ));
        }
    }
    let sentence =
        format!("taken as powers of ten, these bytes are fewer than the model's weights: they are {unit}");
    sheet.finding(&UNIT, cells, sentence)
}

/// Tokens per second over watts are tokens per joule.
fn per_watt(sheet: &Sheet, column: &str) -> Option<Finding> {
    if !column.to_lowercase().contains("per_watt") {
        return None;
    }
    let joules = sheet.map.columns.j_per_1k_tok.as_deref();
    let of_row = |row: &Row| {
        let (published, per_1k) = (sheet.value(row, column)?, sheet.value(row, joules?)?);
        let per_joule = 1000.0 / per_1k;
        (published / per_joule - 1.0).abs().lt(&0.01).then(|| sheet.cell(row, column))
    };
    let cells: Vec<CellRef> = sheet.rows.iter().filter_map(of_row).collect();
    let sentence = format!("{column} is 1000 / joules per 1k tokens: tokens per joule, not per watt");
    sheet.finding(&UNIT, cells, sentence)
}
