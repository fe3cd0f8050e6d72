//! Quantiles: what n can support, and the mark of a maximum under two names.

use super::of_each;
use crate::audit::book::{Book, Row, Sheet};
use crate::audit::finding::{CellRef, Finding, Rule, Severity};
use crate::audit::map::Quantiles;

pub(super) static EQUAL: Rule = Rule {
    id: "p95-is-p99",
    severity: Severity::Error,
    study_error: Some(4),
    title: "p95 equals p99: both are the maximum",
};
pub(super) static SUPPORT: Rule = Rule {
    id: "quantile-without-support",
    severity: Severity::Error,
    study_error: Some(4),
    title: "a quantile that n cannot support",
};
pub(super) static ORDER: Rule = Rule {
    id: "quantiles-out-of-order",
    severity: Severity::Error,
    study_error: None,
    title: "a higher quantile below a lower one",
};

/// Two measured times agree in this many digits only if they are one measurement.
const DIGITS: usize = 6;

pub(super) fn equal(book: &Book<'_>) -> Option<Vec<Finding>> {
    of_each(book, |sheet| {
        let sets = sheet.map.quantiles.iter().filter_map(|q| Some((q.p95.as_deref()?, q.p99.as_deref()?, q)));
        let sets: Vec<_> = sets.collect();
        (!sets.is_empty()).then(|| sets.into_iter().find_map(|(p95, p99, q)| equal_in(sheet, p95, p99, q)))
    })
}

fn equal_in(sheet: &Sheet, p95: &str, p99: &str, quantiles: &Quantiles) -> Option<Finding> {
    let p50 = quantiles.p50.as_deref();
    let both = |row: &Row| Some((sheet.value(row, p95)?, sheet.value(row, p99)?));
    // A scripted or constant time has equal quantiles of any n.
    let spread = |row: &&Row| {
        let middle = p50.and_then(|column| sheet.value(row, column));
        both(row).is_some_and(|(a, b)| middle.is_none_or(|m| a > m || b > m))
    };
    let rows: Vec<&Row> = sheet.rows.iter().filter(spread).collect();
    let same: Vec<&Row> = rows.iter().copied().filter(|row| both(row).is_some_and(|(a, b)| a == b)).collect();
    let exact = same.iter().filter(|row| row.digits(p95) >= DIGITS).count();
    // Coarse numbers may agree by rounding, but not in every row of a table.
    if same.is_empty() || (exact == 0 && (same.len() < rows.len() || rows.len() < 3)) {
        return None;
    }
    let n = same.iter().filter_map(|row| row.n).min();
    let why = match n {
        Some(n) => format!("with n = {n} both are the maximum"),
        None => "so n is 20 or less, and both are the maximum (at index ceil(q (n - 1)))".to_owned(),
    };
    let sentence =
        format!("{p95} equals {p99} in {} of {} rows: {why}; p99 needs 100 requests", same.len(), rows.len());
    let cells = same.iter().map(|row| sheet.cell(row, p99)).collect();
    sheet.finding(&EQUAL, cells, sentence)
}

pub(super) fn support(book: &Book<'_>) -> Option<Vec<Finding>> {
    of_each(book, |sheet| {
        let known = sheet.rows.iter().any(|row| row.n.is_some()) && !sheet.map.quantiles.is_empty();
        known.then(|| unsupported(sheet))
    })
}

fn unsupported(sheet: &Sheet) -> Option<Finding> {
    let mut cells: Vec<CellRef> = Vec::new();
    let mut least = u64::MAX;
    let mut names: Vec<String> = Vec::new();
    for row in &sheet.rows {
        let Some(n) = row.n else { continue };
        for quantiles in &sheet.map.quantiles {
            for (q, name, column) in quantiles.each() {
                let needed = (1.0 / (1.0 - q)).round() as u64;
                if n < needed && q > 0.5 && sheet.value(row, column).is_some() {
                    cells.push(sheet.cell(row, column));
                    least = least.min(n);
                    let name = format!("{name} needs {needed}");
                    if !names.contains(&name) {
                        names.push(name);
                    }
                }
            }
        }
    }
    let sentence =
        format!("{}, here n is {least} at least; such a quantile is the maximum", names.join(", "));
    let most = sheet.rows.iter().filter_map(|row| row.n).max().unwrap_or(least);
    let sentence = if most == least { sentence.replace(" at least", "") } else { sentence };
    sheet.finding(&SUPPORT, cells, sentence)
}

pub(super) fn order(book: &Book<'_>) -> Option<Vec<Finding>> {
    of_each(book, |sheet| (!sheet.map.quantiles.is_empty()).then(|| disordered(sheet)))
}

fn disordered(sheet: &Sheet) -> Option<Finding> {
    let mut cells = Vec::new();
    for row in &sheet.rows {
        for quantiles in &sheet.map.quantiles {
            let columns: Vec<&str> = quantiles.each().map(|(_, _, column)| column).collect();
            let values: Vec<_> = columns.iter().filter_map(|c| Some((*c, sheet.value(row, c)?))).collect();
            cells.extend(values.windows(2).filter(|w| w[1].1 < w[0].1).map(|w| sheet.cell(row, w[1].0)));
        }
    }
    sheet.finding(&ORDER, cells, "a quantile is below one of a smaller share".to_owned())
}
