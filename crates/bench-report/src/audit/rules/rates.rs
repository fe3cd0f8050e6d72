//! Decode rates that have prefill in them.
//!
//! Seen where a rate is output tokens over the whole request, where it shares its time with a rate that
//! counts the prompt, or where it repeats such a rate of another table. The corrected rate is (output
//! tokens - 1) over the time after the first token.

use crate::audit::book::{Book, Row, Sheet, short};
use crate::audit::finding::{CellRef, Finding, Rule, Severity};
use crate::audit::map::{Claim, Counts, Rate, listed};
use crate::audit::text::short_number;
use std::collections::BTreeMap;

pub(super) static RULE: Rule = Rule {
    id: "prefill-in-rate",
    severity: Severity::Error,
    study_error: Some(2),
    title: "a decode rate with prefill in it",
};

/// A rate of medians is not the median of rates: they differ by less than this.
const SAME: f64 = 1e-3;
/// Share of the rows that must show it.
const MOST: f64 = 0.8;

fn near(a: f64, b: f64) -> bool {
    (a / b - 1.0).abs() <= SAME
}

pub(super) fn check(book: &Book<'_>) -> Option<Vec<Finding>> {
    let mut seen = None;
    for (sheet, rate) in claims(book) {
        let ways: [(Way, &str); 3] = [
            (over_request, "is output tokens / p50 of whole requests"),
            (shared_time, "has the same time under it as the rate that counts the prompt's tokens too"),
            (repeated, "repeats a rate of another table that is output tokens / whole requests"),
        ];
        let findings: &mut Vec<Finding> = seen.get_or_insert_default();
        findings.extend(ways.iter().find_map(|(way, says)| by(book, sheet, rate, *way, says)));
    }
    seen
}

/// Rates that claim to be of decode and that something can be held against.
fn claims<'a>(book: &'a Book<'_>) -> impl Iterator<Item = (&'a Sheet, &'a Rate)> {
    let each = |sheet: &'a Sheet| sheet.map.rates.iter().map(move |rate| (sheet, rate));
    // A column that only repeats another one is told once.
    let repeats = |sheet: &Sheet, rate: &Rate| {
        let other = |formula: &str| sheet.map.rates.iter().any(|r| r.column == formula);
        sheet.map.derived.iter().any(|d| d.column == rate.column && other(&d.formula))
    };
    let claiming = book.sheets.iter().flat_map(each).filter(|(_, rate)| rate.claims == Claim::Decode);
    claiming.filter(move |(sheet, rate)| !repeats(sheet, rate))
}

/// `None`: cannot be told. Otherwise whether prefill is in the rate, and the rate without it.
type Way = fn(&Book<'_>, &Sheet, &Rate, &Row) -> Option<(bool, Option<f64>)>;

fn by(book: &Book<'_>, sheet: &Sheet, rate: &Rate, way: Way, says: &str) -> Option<Finding> {
    let told: Vec<_> =
        sheet.rows.iter().filter_map(|row| Some((row, way(book, sheet, rate, row)?))).collect();
    let with: Vec<_> = told.iter().filter(|(_, (prefill, _))| *prefill).collect();
    if with.is_empty() || (with.len() as f64) < MOST * told.len() as f64 {
        return None;
    }
    let means = means(&with);
    let cell = |(row, (_, corrected)): &&(&Row, (bool, Option<f64>))| {
        let mean = means.get(&(row.model.as_str(), row.prompt_tokens)).filter(|rates| rates.len() > 1);
        sheet.cell(row, &rate.column).with("decode_tok_s", *corrected, "tok/s").with(
            "mean over output lengths",
            mean.map(|rates| mean_of(rates)),
            "tok/s",
        )
    };
    let cells: Vec<CellRef> = with.iter().map(cell).collect();
    let off = |cell: &CellRef| Some(cell.published? / cell.corrected.first()?.value - 1.0);
    let low = cells.iter().filter_map(off).fold(0.0, f64::min);
    let mut sentence = format!("{} {says}, prefill included", rate.column);
    if low < 0.0 {
        let below = short_number(-100.0 * low);
        sentence = format!("{sentence}: up to {below} % below the rate of the tokens after the first");
    }
    sheet.finding(&RULE, cells, format!("{sentence}{}", at_longest(&means, &sheet.rows)))
}

type Means<'a> = BTreeMap<(&'a str, Option<u32>), Vec<f64>>;

/// Corrected rates of each model and prompt, one of each output length.
fn means<'a>(with: &[&(&'a Row, (bool, Option<f64>))]) -> Means<'a> {
    let mut means = Means::new();
    for (row, (_, corrected)) in with {
        means.entry((&row.model, row.prompt_tokens)).or_default().extend(*corrected);
    }
    means.retain(|_, rates| !rates.is_empty());
    means
}

fn mean_of(rates: &[f64]) -> f64 {
    rates.iter().sum::<f64>() / rates.len() as f64
}

/// What decode is at the longest prompt, where prefill weighs most.
fn at_longest(means: &Means<'_>, rows: &[Row]) -> String {
    let Some(longest) = means.keys().filter_map(|(_, prompt)| *prompt).max() else { return String::new() };
    let mut there: Vec<_> = means.iter().filter(|((_, prompt), _)| *prompt == Some(longest)).collect();
    there.sort_by_key(|((model, _), _)| rows.iter().position(|row| row.model == *model));
    let rate = |((model, _), rates): (&(&str, _), &Vec<f64>)| {
        format!("{} {}", short(model), short_number(mean_of(rates)))
    };
    let rates: Vec<String> = there.into_iter().map(rate).collect();
    format!(
        ". Without it, (output tokens - 1) / (time - TTFT), mean over the output lengths at {longest} \
         prompt tokens: {} tok/s",
        listed(&rates)
    )
}

fn over_request(_: &Book<'_>, sheet: &Sheet, rate: &Rate, row: &Row) -> Option<(bool, Option<f64>)> {
    let (value, e2el_ms) = (sheet.value(row, &rate.column)?, sheet.e2el_p50_ms(row)?);
    let request = f64::from(row.output_tokens?) / e2el_ms * 1000.0;
    let decode = sheet.inter_token_ms(row).map(|ms| 1000.0 / ms);
    // A prompt so short that both rates are one tells nothing.
    if decode.is_some_and(|decode| near(decode, request)) {
        return None;
    }
    Some((near(value, request), decode))
}

fn shared_time(_: &Book<'_>, sheet: &Sheet, rate: &Rate, row: &Row) -> Option<(bool, Option<f64>)> {
    let all = sheet.map.rates.iter().find(|r| r.counts == Counts::All)?;
    let (value, all) = (sheet.value(row, &rate.column)?, sheet.value(row, &all.column)?);
    let (prompt, output) = (f64::from(row.prompt_tokens?), f64::from(row.output_tokens?));
    let prefill = near(all / value, (prompt + output) / output);
    let decode_ms = sheet.ttft_ms(row).map(|ttft| output / value * 1000.0 - ttft);
    let decode = decode_ms.filter(|ms| *ms > 0.0).map(|ms| (output - 1.0) / ms * 1000.0);
    Some((prefill, decode))
}

fn repeated(book: &Book<'_>, sheet: &Sheet, rate: &Rate, row: &Row) -> Option<(bool, Option<f64>)> {
    let value = sheet.value(row, &rate.column)?;
    let others = book.sheets.iter().filter(|other| !std::ptr::eq(*other, sheet));
    for other in others {
        for (other_rate, twin) in
            other.map.rates.iter().flat_map(|r| other.rows.iter().map(move |row| (r, row)))
        {
            let same_cell = twin.model == row.model && twin.prompt_tokens == row.prompt_tokens;
            let same = same_cell && other.value(twin, &other_rate.column) == Some(value);
            let told = if same { over_request(book, other, other_rate, twin) } else { None };
            if told.is_some() {
                return told;
            }
        }
    }
    None
}

/// Rates without the times that would tell what they are.
pub(super) fn not_checkable(book: &Book<'_>) -> Vec<String> {
    let ways: [Way; 3] = [over_request, shared_time, repeated];
    let untold = |(sheet, rate): &(&Sheet, &Rate)| {
        !sheet.rows.iter().any(|row| ways.iter().any(|way| way(book, sheet, rate, row).is_some()))
    };
    let say = |(sheet, rate): (&Sheet, &Rate)| {
        format!(
            "whether {} of {} has prefill in it: needs times of requests, here or in a table beside it",
            rate.column, sheet.table.file
        )
    };
    claims(book).filter(untold).map(say).collect()
}
