//! Columns against the columns that they are computed from, and rows against each other.

use super::of_each;
use crate::audit::book::{Book, Row, Sheet};
use crate::audit::finding::{CellRef, Finding, Rule, Severity};
use crate::audit::formula::{Formula, Interval};
use crate::audit::map::Derived;
use crate::audit::text::short_number;
use std::collections::BTreeMap;

pub(super) static DERIVED: Rule = Rule {
    id: "arithmetic",
    severity: Severity::Error,
    study_error: None,
    title: "a derived column that its parts do not give",
};
pub(super) static DUPLICATE: Rule = Rule {
    id: "duplicate-cell",
    severity: Severity::Warning,
    study_error: None,
    title: "one cell in several rows",
};
pub(super) static PARAMETERS: Rule = Rule {
    id: "parameters-off",
    severity: Severity::Note,
    study_error: None,
    title: "parameters that the model does not have",
};

/// A rounded count is not off.
const OFF_ABOVE: f64 = 0.01;

pub(super) fn derived(book: &Book<'_>) -> Option<Vec<Finding>> {
    let mut seen: Option<Vec<Finding>> = None;
    for sheet in &book.sheets {
        for derived in &sheet.map.derived {
            seen.get_or_insert_default().extend(unequal(sheet, derived));
        }
    }
    seen
}

fn unequal(sheet: &Sheet, derived: &Derived) -> Option<Finding> {
    let formula = Formula::parse(&derived.formula).ok()?;
    let mut cells: Vec<CellRef> = Vec::new();
    let mut largest: f64 = 0.0;
    for row in &sheet.rows {
        let computed = formula.value(&|column| sheet.interval(row, column));
        let Some((printed, computed)) = sheet.interval(row, &derived.column).zip(computed) else { continue };
        // Sums of numbers near each other lose digits that a double once had.
        let slack = derived.tolerance.max(1e-9) * computed.middle().abs().max(printed.middle().abs());
        let widened = Interval { low: computed.low - slack, high: computed.high + slack };
        if !widened.meets(printed) {
            largest = largest.max((printed.middle() / computed.middle() - 1.0).abs());
            let cell = sheet.cell(row, &derived.column);
            let unit = cell.unit;
            cells.push(cell.with("by its parts", Some(computed.middle()), unit));
        }
    }
    let off = if largest.is_finite() {
        format!(", by up to {} %", short_number(100.0 * largest))
    } else {
        String::new()
    };
    let sentence = format!("{} is not {}{off}", derived.column, derived.formula);
    sheet.finding(&DERIVED, cells, sentence)
}

pub(super) fn duplicates(book: &Book<'_>) -> Option<Vec<Finding>> {
    of_each(book, |sheet| {
        let column = sheet.map.columns.model.as_deref()?;
        let mut first = BTreeMap::new();
        let mut cells = Vec::new();
        for row in &sheet.rows {
            let (model, prompt, output) = row.cell();
            let line = *first.entry((model, prompt, output, row.key.as_slice())).or_insert(row.line);
            if line != row.line {
                cells.push(sheet.cell(row, column));
            }
        }
        let sentence = "model, lengths and settings of these rows stand in an earlier row too".to_owned();
        Some(sheet.finding(&DUPLICATE, cells, sentence))
    })
}

pub(super) fn parameters(book: &Book<'_>) -> Option<Vec<Finding>> {
    of_each(book, |sheet| {
        let c = &sheet.map.columns;
        let total = c.params_total.as_deref();
        let active = c.params_active.as_deref();
        (total.is_some() || active.is_some()).then(|| {
            let cells = sheet.rows.iter().flat_map(|row| off(sheet, row, total, active)).collect();
            let sentence = "parameters are rounded off what the configs of the models give; active ones \
                            are all but the input embedding, and of the experts those that a token uses";
            sheet.finding(&PARAMETERS, cells, sentence.to_owned())
        })
    })
}

fn off(sheet: &Sheet, row: &Row, total: Option<&str>, active: Option<&str>) -> Vec<CellRef> {
    let Some(sizes) = sheet.sizes(row) else { return Vec::new() };
    let exact = [(total, sizes.parameters), (active, sizes.active_parameters)];
    let cell = |(column, exact): (Option<&str>, u64)| {
        let published = sheet.value(row, column?)?;
        let wrong = (published / exact as f64 - 1.0).abs() > OFF_ABOVE;
        let factor = sheet.map.factor(column?);
        wrong.then(|| {
            sheet.cell(row, column.unwrap_or_default()).with(
                "exact",
                Some(exact as f64 / factor),
                sheet.map.unit(column.unwrap_or_default()),
            )
        })
    };
    exact.into_iter().filter_map(cell).collect()
}
