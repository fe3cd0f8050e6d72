//! Records of equal columns as text: aligned, Markdown, CSV or JSON.
//!
//! People get four digits and no empty columns; programs get every digit and every column.

use bench_report::Format;
use serde_json::{Map, Value};
use std::fmt::Write as _;

/// Names and values in column order.
pub(super) type Record = Map<String, Value>;

/// Missing, or not finite, is null.
pub(super) fn number(value: Option<f64>) -> Value {
    value.and_then(serde_json::Number::from_f64).map_or(Value::Null, Value::Number)
}

/// The first record says what the columns are.
pub(super) fn render(format: Format, records: &[Record]) -> String {
    let columns: Vec<&str> = records.first().into_iter().flat_map(Map::keys).map(String::as_str).collect();
    match format {
        Format::Json => format!("{:#}\n", Value::Array(records.iter().cloned().map(Value::Object).collect())),
        Format::Csv => csv(&columns, records),
        Format::Md => markdown(&grid(&columns, records)),
        _ => plain(&grid(&columns, records)),
    }
}

fn csv(columns: &[&str], records: &[Record]) -> String {
    let mut text = columns.join(",") + "\n";
    for record in records {
        let fields: Vec<_> = columns.iter().map(|c| quoted(&exact(record.get(*c)))).collect();
        let _ = writeln!(text, "{}", fields.join(","));
    }
    text
}

fn exact(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.into()
    }
}

/// Header and rows as they are to be read.
fn grid(columns: &[&str], records: &[Record]) -> Vec<Vec<String>> {
    let shown = |column: &&&str| records.iter().any(|r| r.get(**column).is_some_and(|v| !v.is_null()));
    let columns: Vec<&str> = columns.iter().filter(shown).copied().collect();
    let mut rows = vec![columns.iter().map(|&c| c.to_owned()).collect()];
    rows.extend(records.iter().map(|r| columns.iter().map(|c| rounded(r.get(*c))).collect()));
    rows
}

fn rounded(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::Number(n)) if n.is_f64() => n.as_f64().map_or_else(String::new, four_digits),
        other => exact(other),
    }
}

/// Four significant digits; large and tiny ones as a power of ten.
fn four_digits(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude == 0.0 {
        return "0".to_owned();
    }
    if !(1e-3..1e6).contains(&magnitude) {
        return format!("{value:.3e}");
    }
    let before = magnitude.log10().floor() as i32;
    format!("{value:.*}", (3 - before).max(0) as usize)
}

fn markdown(grid: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (index, row) in grid.iter().enumerate() {
        let row: Vec<_> = row.iter().map(|field| field.replace('|', "\\|")).collect();
        let _ = writeln!(text, "| {} |", row.join(" | "));
        if index == 0 {
            let _ = writeln!(text, "|{}", " --- |".repeat(row.len()));
        }
    }
    text
}

/// The first column is text and stands left, the others right.
fn plain(grid: &[Vec<String>]) -> String {
    let columns = grid.first().map_or(0, Vec::len);
    let widths: Vec<_> =
        (0..columns).map(|c| grid.iter().map(|row| row[c].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in grid {
        let fields = row.iter().zip(&widths).enumerate().map(|(i, (field, &width))| match i {
            0 => format!("{field:<width$}"),
            _ => format!("{field:>width$}"),
        });
        let _ = writeln!(text, "{}", fields.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn records() -> Vec<Record> {
        let record = |value: Value| value.as_object().unwrap().clone();
        vec![
            record(json!({"model": "a,b", "n": 20, "rate": 123.456_789, "none": null, "bytes": 7.2e9})),
            record(json!({"model": "c", "n": 3, "rate": null, "none": null, "bytes": 0.012_345_6})),
        ]
    }

    #[test]
    fn each_format_says_the_same() {
        let check = |format, expected: &str| assert_eq!(render(format, &records()), expected);
        check(Format::Csv, "model,n,rate,none,bytes\n\"a,b\",20,123.456789,,7200000000.0\nc,3,,,0.0123456\n");
        check(
            Format::Table,
            "model   n   rate    bytes\na,b    20  123.5  7.200e9\nc       3      -  0.01235\n",
        );
        check(
            Format::Md,
            "| model | n | rate | bytes |\n| --- | --- | --- | --- |\n\
             | a,b | 20 | 123.5 | 7.200e9 |\n| c | 3 | - | 0.01235 |\n",
        );
        let json: Vec<Record> = serde_json::from_str(&render(Format::Json, &records())).unwrap();
        assert_eq!(json, records());
    }
}
