//! Baselines of power, and what was not subtracted.

use super::of_each;
use crate::audit::book::{Book, Row, Sheet};
use crate::audit::finding::{CellRef, Finding, Rule, Severity};
use crate::audit::text::short_number;
use std::collections::BTreeMap;

pub(super) static DRIFT: Rule = Rule {
    id: "baseline-drifts",
    severity: Severity::Error,
    study_error: Some(6),
    title: "a baseline power that was read hot",
};
pub(super) static GROSS: Rule = Rule {
    id: "energy-is-gross",
    severity: Severity::Warning,
    study_error: Some(6),
    title: "joules with the idle power in them",
};

/// Power of an idle device differs less between its cells.
const DRIFT_ABOVE: f64 = 1.25;
const SAME: f64 = 1e-3;

/// Lowest baseline of each device.
fn lowest<'a>(sheet: &'a Sheet, column: &str) -> BTreeMap<Option<&'a str>, f64> {
    let mut lowest = BTreeMap::new();
    for row in &sheet.rows {
        if let Some(watts) = sheet.value(row, column).filter(|w| *w > 0.0) {
            let low = lowest.entry(row.device.as_deref()).or_insert(watts);
            *low = low.min(watts);
        }
    }
    lowest
}

pub(super) fn drift(book: &Book<'_>) -> Option<Vec<Finding>> {
    of_each(book, |sheet| {
        let column = sheet.map.columns.power_baseline.as_deref()?;
        Some(drifting(sheet, column))
    })
}

fn drifting(sheet: &Sheet, column: &str) -> Option<Finding> {
    let lowest = lowest(sheet, column);
    let hot = |row: &&Row| {
        let low = lowest.get(&row.device.as_deref());
        sheet.value(row, column).zip(low).is_some_and(|(watts, low)| watts > DRIFT_ABOVE * low)
    };
    let hot: Vec<&Row> = sheet.rows.iter().filter(hot).collect();
    let idle = |row: &Row| lowest.get(&row.device.as_deref()).copied();
    let cells: Vec<CellRef> =
        hot.iter().map(|row| sheet.cell(row, column).with("idle power at most", idle(row), "W")).collect();
    let watts = |rows: &[&Row]| -> (f64, f64) {
        let values = rows.iter().filter_map(|row| sheet.value(row, column));
        values.fold((f64::INFINITY, 0.0), |(low, high), w| (low.min(w), high.max(w)))
    };
    let (low, high) = watts(&hot);
    let cold: Vec<&Row> = sheet.rows.iter().filter(|r| hot.iter().all(|h| h.line != r.line)).collect();
    let (cold_low, cold_high) = watts(&cold);
    let mut sentence = format!(
        "{column} is {} to {} W in {} rows and {} to {} W in the other {}: an idle device has one power, \
         the others were read while it was hot or at work",
        short_number(cold_low),
        short_number(cold_high),
        cold.len(),
        short_number(low),
        short_number(high),
        hot.len(),
    );
    let average = sheet.map.columns.power_avg.as_deref();
    let share = hot.iter().filter_map(|row| Some(sheet.value(row, column)? / sheet.value(row, average?)?));
    let share = share.fold(0.0, f64::max);
    if share > 0.8 {
        sentence = format!("{sentence} (up to {} % of the power under load)", short_number(100.0 * share));
    }
    sheet.finding(&DRIFT, cells, sentence)
}

pub(super) fn gross(book: &Book<'_>) -> Option<Vec<Finding>> {
    of_each(book, |sheet| {
        let c = &sheet.map.columns;
        let columns = (c.power_baseline.as_deref()?, c.power_avg.as_deref()?, c.j_per_1k_tok.as_deref()?);
        Some(gross_in(sheet, columns))
    })
}

fn gross_in(sheet: &Sheet, (baseline, average, per_1k): (&str, &str, &str)) -> Option<Finding> {
    let lowest = lowest(sheet, baseline);
    let rates: Vec<&str> = sheet.map.rates.iter().map(|rate| rate.column.as_str()).collect();
    let mut used = "";
    let mut cells = Vec::new();
    for row in &sheet.rows {
        let Some((watts, joules)) = sheet.value(row, average).zip(sheet.value(row, per_1k)) else { continue };
        let is_gross = |rate: f64| (joules / (1000.0 * watts / rate) - 1.0).abs() <= SAME;
        let rate = rates.iter().find_map(|c| Some((*c, sheet.value(row, c).filter(|r| is_gross(*r))?)));
        let (column, rate) = rate?;
        used = column;
        let idle = lowest.get(&row.device.as_deref()).filter(|idle| **idle < watts);
        let net = idle.map(|idle| 1000.0 * (watts - idle) / rate);
        cells.push(sheet.cell(row, per_1k).with("net of idle at least", net, "J"));
    }
    let sentence = format!(
        "{per_1k} is {average} / {used} in every row: nothing idle is subtracted although {baseline} \
         stands beside it, and no integral over the samples is in it"
    );
    sheet.finding(&GROSS, cells, sentence)
}
