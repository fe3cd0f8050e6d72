//! Times to the first token against the times of whole requests and against each other.

use super::of_each;
use crate::audit::book::{Book, Row, Sheet};
use crate::audit::finding::{CellRef, Finding, Rule, Severity};

pub(super) static OFF_SLOPE: Rule = Rule {
    id: "ttft-off-slope",
    severity: Severity::Warning,
    study_error: None,
    title: "a TTFT that whole requests of several lengths do not have",
};
pub(super) static COLD: Rule = Rule {
    id: "cold-first-cell",
    severity: Severity::Warning,
    study_error: Some(4),
    title: "the first cell of a table is slower than a longer prompt",
};

/// Of a TTFT, and of a time between tokens: what medians of few runs may be apart.
const OFF_SHARE: f64 = 0.25;
const OFF_TOKENS: f64 = 2.0;
const COLD_ABOVE: f64 = 1.5;

/// Whole requests of two lengths give the time of a token, and what is left of the shorter one is its TTFT.
pub(super) fn off_slope(book: &Book<'_>) -> Option<Vec<Finding>> {
    of_each(book, |sheet| {
        let column = sheet.map.columns.ttft.as_deref()?;
        let pairs: Vec<_> = sheet.rows.iter().filter_map(|row| Some((row, left_over(sheet, row)?))).collect();
        let cell = |(row, (ttft, token)): &(&Row, (f64, f64))| {
            let published = sheet.value(row, column)?;
            let off = (published - ttft).abs() > OFF_SHARE * published.max(*ttft) + OFF_TOKENS * token;
            off.then(|| sheet.cell(row, column).with("left over", Some(*ttft), "ms"))
        };
        let cells: Vec<CellRef> = pairs.iter().filter_map(cell).collect();
        let sentence = "TTFT is not what is left of p50 after (output tokens - 1) times of a token: it \
                        was measured in another way, or with other prompts";
        (!pairs.is_empty()).then(|| sheet.finding(&OFF_SLOPE, cells, sentence.to_owned()))
    })
}

/// TTFT and time of a token that this row and the one with the most tokens beside it give.
fn left_over(sheet: &Sheet, row: &Row) -> Option<(f64, f64)> {
    let alike = |other: &&Row| {
        other.model == row.model && other.prompt_tokens == row.prompt_tokens && other.key == row.key
    };
    let longest = sheet.rows.iter().filter(alike).max_by_key(|other| other.output_tokens)?;
    let (few, many) = (f64::from(row.output_tokens?), f64::from(longest.output_tokens?));
    if many < 2.0 * few {
        return None;
    }
    let short_ms = sheet.e2el_p50_ms(row)?;
    let token_ms = (sheet.e2el_p50_ms(longest)? - short_ms) / (many - few);
    Some((short_ms - (few - 1.0) * token_ms, token_ms)).filter(|_| token_ms > 0.0)
}

/// A longer prompt cannot have its first token much sooner.
pub(super) fn cold(book: &Book<'_>) -> Option<Vec<Finding>> {
    of_each(book, |sheet| {
        let column = sheet.map.columns.ttft.as_deref()?;
        let first = sheet.rows.first()?;
        let ttft = sheet.ttft_ms(first)?;
        let longer = |row: &&Row| {
            row.model == first.model && row.prompt_tokens > first.prompt_tokens && row.key == first.key
        };
        let sooner =
            sheet.rows.iter().filter(longer).filter_map(|row| sheet.ttft_ms(row)).reduce(f64::min)?;
        let cold = ttft > COLD_ABOVE * sooner;
        let cell = cold.then(|| sheet.cell(first, column).with("of a longer prompt", Some(sooner), "ms"));
        let sentence = "the first row's TTFT is above that of a longer prompt: it was measured cold";
        Some(sheet.finding(&COLD, cell.into_iter().collect(), sentence.to_owned()))
    })
}
