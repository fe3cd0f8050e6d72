//! Cells of one name whose numbers come from runs with other inputs.

use crate::audit::book::{Book, Sheet};
use crate::audit::finding::{CellRef, Finding, Rule, Severity};
use crate::audit::text::short_number;

pub(super) static RULE: Rule = Rule {
    id: "other-inputs",
    severity: Severity::Error,
    study_error: Some(5),
    title: "one cell, two runs with other inputs",
};

/// Medians of the same requests on the same machine agree better than this.
const APART: f64 = 0.15;
const APART_MS: f64 = 2.0;

pub(super) fn check(book: &Book<'_>) -> Option<Vec<Finding>> {
    let mut seen: Option<Vec<Finding>> = None;
    for (index, sheet) in book.sheets.iter().enumerate() {
        for earlier in &book.sheets[..index] {
            let (shared, found) = pair(earlier, sheet);
            if shared > 0 {
                seen.get_or_insert_default().extend(found);
            }
        }
    }
    seen
}

/// How many cells with a TTFT the tables share, and those that differ.
fn pair(one: &Sheet, other: &Sheet) -> (usize, Option<Finding>) {
    let Some(column) = other.map.columns.ttft.as_deref() else { return (0, None) };
    let mut shared = 0;
    let mut cells: Vec<CellRef> = Vec::new();
    let mut worst: Option<(f64, f64)> = None;
    for row in &other.rows {
        // Without its lengths a row is no cell that another table could have.
        if row.prompt_tokens.is_none() || row.output_tokens.is_none() {
            continue;
        }
        let twins = one.rows.iter().filter(|twin| twin.cell() == row.cell());
        let times = twins.filter_map(|twin| Some((one.ttft_ms(twin)?, other.ttft_ms(row)?)));
        let Some((first, second)) = times.min_by(|a, b| gap(*a).total_cmp(&gap(*b))) else { continue };
        shared += 1;
        if gap((first, second)) > APART && (first - second).abs() > APART_MS {
            cells.push(other.cell(row, column).with("TTFT beside", Some(first), "ms"));
            if worst.is_none_or(|worst| gap(worst) < gap((first, second))) {
                worst = Some((first, second));
            }
        }
    }
    let (first, second) = worst.unwrap_or_default();
    let sentence = format!(
        "TTFT of the same model and lengths differs from {} in {} of {shared} cells, by up to {} against \
         {} ms: the runs had other inputs or another state, and figures of one do not belong to the other",
        one.table.file,
        cells.len(),
        short_number(second),
        short_number(first),
    );
    (shared, other.finding(&RULE, cells, sentence))
}

fn gap((a, b): (f64, f64)) -> f64 {
    a.max(b) / a.min(b).max(f64::MIN_POSITIVE) - 1.0
}
