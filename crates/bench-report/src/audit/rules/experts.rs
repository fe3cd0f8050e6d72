//! Mixtures of experts that moved as many bytes per token as a dense model of their size.
//!
//! Judged against the dense models of the same table, since they show what that machine and that program
//! draw from memory. Without one nothing is claimed: a slow program with four experts looks like a fast one
//! with all.

use super::of_each;
use crate::audit::book::short;
use crate::audit::book::{Book, ModelSizes, Row, Sheet};
use crate::audit::finding::{CellRef, Finding, Rule, Severity};
use crate::audit::text::short_number;
use std::collections::BTreeMap;

pub(super) static RULE: Rule = Rule {
    id: "all-experts-read",
    severity: Severity::Error,
    study_error: Some(1),
    title: "bytes per token imply that every expert was read",
};

/// With its own experts only, the mixture would draw less than this share of what the slowest dense model
/// drew,
const SPARSE_BELOW: f64 = 0.5;
/// while with every expert it would draw about as much as they did.
const DENSE_BAND: (f64, f64) = (0.75, 1.33);

pub(super) fn check(book: &Book<'_>) -> Option<Vec<Finding>> {
    of_each(book, |sheet| {
        let models = decoding(sheet);
        let dense = dense_bytes_s(&models)?;
        let sparse: Vec<_> = models.values().filter(|m| m.sizes.experts.is_some()).collect();
        let found = sparse.iter().find_map(|model| all_read(book, sheet, model, dense));
        (!sparse.is_empty()).then_some(found)
    })
}

/// How fast one model of a table gave its tokens.
struct Decoding<'a> {
    sizes: &'a ModelSizes,
    /// Rows that say so.
    rows: Vec<&'a Row>,
    /// Median over the rows.
    inter_token_ms: f64,
    /// Smallest and largest.
    ends_ms: (f64, f64),
}

impl Decoding<'_> {
    fn bytes_s(&self, bytes: u64) -> f64 {
        bytes as f64 / self.inter_token_ms * 1000.0
    }
}

fn decoding(sheet: &Sheet) -> BTreeMap<&str, Decoding<'_>> {
    let mut models: BTreeMap<&str, (Vec<&Row>, Vec<f64>)> = BTreeMap::new();
    for row in &sheet.rows {
        if let Some(ms) = sheet.inter_token_ms(row) {
            let (rows, times) = models.entry(&row.model).or_default();
            rows.push(row);
            times.push(ms);
        }
    }
    let known = models.into_iter().filter_map(|(model, (rows, mut times))| {
        times.sort_by(f64::total_cmp);
        let (first, last) = (*times.first()?, *times.last()?);
        let inter_token_ms = f64::midpoint(times[(times.len() - 1) / 2], times[times.len() / 2]);
        let sizes = sheet.sizes.get(model)?;
        Some((model, Decoding { sizes, rows, inter_token_ms, ends_ms: (first, last) }))
    });
    known.collect()
}

/// Smallest and largest that dense models drew from memory.
fn dense_bytes_s(models: &BTreeMap<&str, Decoding<'_>>) -> Option<(f64, f64)> {
    let dense =
        models.values().filter(|m| m.sizes.experts.is_none()).map(|m| m.bytes_s(m.sizes.weights_bytes));
    dense.fold(None, |ends, b| Some(ends.map_or((b, b), |(low, high): (f64, f64)| (low.min(b), high.max(b)))))
}

fn all_read(book: &Book<'_>, sheet: &Sheet, model: &Decoding<'_>, dense: (f64, f64)) -> Option<Finding> {
    let sizes = model.sizes;
    let (all, own) = (model.bytes_s(sizes.weights_bytes), model.bytes_s(sizes.active_bytes));
    if own >= SPARSE_BELOW * dense.0 || all < DENSE_BAND.0 * dense.0 || all > DENSE_BAND.1 * dense.1 {
        return None;
    }
    let (used, of) = sizes.experts?;
    let terabytes = |bytes_s: f64| short_number(bytes_s / 1e12);
    let gigabytes = |bytes: u64| short_number(bytes as f64 / 1e9);
    let mut sentence = format!(
        "{} gives a token in {} ms ({} to {} ms over all cells). Its {} GB of {} weights in that time are \
         {} TB/s, in line with the dense models beside it ({} to {} TB/s); the {used} of {of} experts \
         that a token uses are {} GB, {} TB/s, {} % of the slowest of them: every expert was read",
        short(&model.rows.first()?.model),
        short_number(model.inter_token_ms),
        short_number(model.ends_ms.0),
        short_number(model.ends_ms.1),
        gigabytes(sizes.weights_bytes),
        sizes.dtype,
        terabytes(all),
        terabytes(dense.0),
        terabytes(dense.1),
        gigabytes(sizes.active_bytes),
        terabytes(own),
        short_number(100.0 * own / dense.0),
    );
    if let Some(native) = sizes.native_active_bytes {
        sentence = format!("{sentence} ({} GB as published)", gigabytes(native));
    }
    let bandwidth = book.bandwidth_bytes_s(sheet);
    let limit = |bytes: u64| bandwidth.map(|b| b / bytes as f64);
    if let Some(bandwidth) = bandwidth {
        sentence = format!("{sentence}; limits are those of {} TB/s", short_number(bandwidth / 1e12));
    }
    let native = sizes.native_active_bytes;
    let column = sheet.map.quantiles.first()?.p50.as_deref()?;
    let cell = |row: &&Row| {
        sheet
            .cell(row, column)
            .with("inter_token", sheet.inter_token_ms(row), "ms")
            .with("bytes_per_tok", Some(sizes.active_bytes as f64 / 1e9), "GB")
            .with("limit_tok_s", limit(sizes.active_bytes), "tok/s")
            .with("limit_tok_s as published", native.and_then(limit), "tok/s")
    };
    let cells: Vec<CellRef> = model.rows.iter().map(cell).collect();
    sheet.finding(&RULE, cells, sentence)
}

/// Mixtures of experts with no dense model beside them.
pub(super) fn not_checkable(book: &Book<'_>) -> Vec<String> {
    let mut open = Vec::new();
    for sheet in &book.sheets {
        let models = decoding(sheet);
        let sparse = models.values().any(|m| m.sizes.experts.is_some());
        if sparse && dense_bytes_s(&models).is_none() {
            open.push(format!(
                "which experts were read in {}: needs a dense model of known sizes in the same table",
                sheet.table.file
            ));
        }
    }
    open
}
