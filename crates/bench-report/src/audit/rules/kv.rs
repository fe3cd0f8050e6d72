//! A KV cache larger than keys and values can be.

use super::of_each;
use crate::audit::book::{Book, Row, Sheet};
use crate::audit::finding::{CellRef, Finding, Rule, Severity};
use crate::audit::text::short_number;

pub(super) static RULE: Rule = Rule {
    id: "kv-above-theory",
    severity: Severity::Error,
    study_error: Some(3),
    title: "a \"KV cache\" larger than its keys and values",
};

const MIB: f64 = 1_048_576.0;
/// What blocks of an allocator add to a cache: 10 %, and a block.
const ROUNDING: f64 = 1.1;
const BLOCK_BYTES: f64 = 16.0 * MIB;

pub(super) fn check(book: &Book<'_>) -> Option<Vec<Finding>> {
    of_each(book, |sheet| {
        let column = sheet.map.columns.kv.as_deref()?;
        let known = sheet.rows.iter().any(|row| theory(book, sheet, row).is_some());
        known.then(|| above(book, sheet, column))
    })
}

/// Bytes with and without the windows of all tokens of a row; none can need more.
fn theory(book: &Book<'_>, sheet: &Sheet, row: &Row) -> Option<(f64, f64)> {
    let tokens = u64::from(row.prompt_tokens?) + u64::from(row.output_tokens?);
    let kv = book.physics.kv_bytes(sheet.sizes(row)?, tokens);
    Some((kv.full as f64, kv.windowed as f64))
}

fn above(book: &Book<'_>, sheet: &Sheet, column: &str) -> Option<Finding> {
    let mut cells: Vec<CellRef> = Vec::new();
    let mut most: f64 = 0.0;
    for row in &sheet.rows {
        let Some((published, (full, windowed))) = sheet.value(row, column).zip(theory(book, sheet, row))
        else {
            continue;
        };
        let retained = sheet.map.columns.kv_retained.as_deref().and_then(|c| sheet.value(row, c));
        // What stayed allocated may be more than theory, by a workspace; but no cache was larger than that.
        let stayed_less = retained.is_none_or(|retained| published > 1.05 * retained);
        if published > ROUNDING * full + BLOCK_BYTES && stayed_less {
            most = most.max(published / full);
            let cell = sheet.cell(row, column);
            let windows = (windowed < full).then_some(windowed / MIB);
            cells.push(
                cell.with("kv_retained", retained.map(|bytes| bytes / MIB), "MiB")
                    .with("theory", Some(full / MIB), "MiB")
                    .with("theory, windows honoured", windows, "MiB"),
            );
        }
    }
    let mut sentence = format!(
        "{column} is up to {} times what keys and values of all tokens take (2 x layers x kv heads x head \
         dim x bytes x tokens)",
        short_number(most)
    );
    if let Some(formula) = peak_formula(sheet, column) {
        sentence = format!("{sentence}; it equals {formula} in every row: the peak of the activations");
    }
    if sheet.map.columns.kv_retained.is_some() {
        sentence.push_str("; kv_retained is what stayed allocated after generation");
    }
    sheet.finding(&RULE, cells, sentence)
}

/// The peak less what was allocated before or after the prompt came, if that is what the column holds.
fn peak_formula(sheet: &Sheet, column: &str) -> Option<String> {
    let peak = sheet.map.columns.peak.as_deref()?;
    let unit = sheet.map.factor(column);
    let befores = sheet.map.numeric();
    let before = befores.iter().find(|before| {
        before.as_str() != peak
            && sheet.rows.iter().all(|row| {
                let bytes = |c: &str| Some(sheet.interval(row, c)?.middle());
                let difference = || Some(bytes(peak)? - bytes(before)? - bytes(column)?);
                difference().is_some_and(|d| d.abs() * unit < 1024.0)
            })
    })?;
    Some(format!("{peak} - {before}"))
}
