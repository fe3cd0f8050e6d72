//! A view as a table that can be sorted: figures rounded, each with its interval, its n and a link to raw.

use super::raw::{Raw, RawFiles};
use super::words::{clean, grouped, interval};
use crate::grid::{Grid, GridRow, footnote_sign};
use crate::order::by_cell;
use crate::round::Rounded;
use crate::view::{VIEWS, short_name};
use crate::wide::{self, Figure, WideRow};
use bench_core::metric::Metric;
use bench_core::row::Row;
use serde::Serialize;

/// Footnotes of one table, at most.
const MAX_REMARKS: usize = 40;

/// One figure as it stands in a table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Number {
    pub text: String,
    /// Unrounded, for sorting.
    pub sort: String,
    pub interval: String,
    /// `n = 20`, or what stands in its place.
    pub n: String,
    pub href: Option<String>,
    /// What it covers, where that differs from row to row.
    pub scope: String,
}

impl Number {
    pub(super) fn new(rounded: &Rounded, value: f64, n: u64, raw: Option<&Raw>) -> Self {
        Self {
            text: grouped(&rounded.value),
            sort: value.to_string(),
            interval: interval(rounded),
            n: if n == 0 {
                "from sizes alone".to_owned()
            } else {
                format!("n = {}", grouped(&n.to_string()))
            },
            href: raw.map(|r| r.href.clone()),
            scope: String::new(),
        }
    }
}

/// One table.
#[derive(Debug, Serialize)]
pub(super) struct Sheet {
    pub name: &'static str,
    pub title: &'static str,
    pub head: Vec<Head>,
    pub lines: Vec<Line>,
    pub remarks: Vec<RemarkLine>,
    /// Remarks beyond the bound.
    pub more_remarks: usize,
    pub definitions: Vec<String>,
    pub has_intervals: bool,
    pub has_raw: bool,
    /// Lines of the whole view, where not all are shown.
    pub cut_from: Option<usize>,
}

#[derive(Debug, Serialize)]
pub(super) struct Head {
    pub name: String,
    pub rest: String,
    /// What the column holds, in full.
    pub tip: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Line {
    pub model: String,
    pub invalid: bool,
    /// The sign of its footnote.
    pub sign: Option<String>,
    pub remark: String,
    pub keys: Vec<KeyEntry>,
    pub figures: Vec<Option<Number>>,
    pub files: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct KeyEntry {
    pub text: String,
    /// Whether it sorts as a number.
    pub number: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct RemarkLine {
    pub sign: String,
    pub head: &'static str,
    pub text: String,
}

/// The tables of a run that have a figure, latency always; at most `most` lines each.
pub(super) fn sheets(sorted: &[&Row], files: &RawFiles, most: usize) -> Vec<Sheet> {
    let views = VIEWS.iter().enumerate().filter_map(|(i, view)| {
        let cells = wide::cells(sorted, view);
        let grid = Grid::new(view, &cells);
        (i == 0 || !grid.is_empty()).then(|| sheet(&grid, &cells, sorted, files, most))
    });
    views.collect()
}

fn sheet(grid: &Grid, cells: &[WideRow], sorted: &[&Row], files: &RawFiles, most: usize) -> Sheet {
    let shown: Vec<usize> = grid
        .shown
        .iter()
        .filter_map(|shown| grid.view.shown.iter().position(|other| std::ptr::eq(*shown, other)))
        .collect();
    // Cells of a view by scope have a line for each scope; the raw files are those of the cell.
    let of_cell = sorted.chunk_by(|a, b| by_cell(a, b).is_eq());
    let raw = of_cell.flat_map(|rows| grid.view.scopes(rows).into_iter().map(|_| files.of_row(rows[0])));
    let lines: Vec<Line> = grid
        .rows
        .iter()
        .zip(cells)
        .zip(raw)
        .take(most)
        .map(|((row, cell), raw)| line(row, cell, &shown, raw, grid))
        .collect();
    let remark = |(index, remark): (usize, &crate::grid::Remark)| RemarkLine {
        sign: footnote_sign(index),
        head: remark.head,
        text: clean(remark.text),
    };
    Sheet {
        name: grid.view.name,
        title: grid.view.title,
        head: head(grid),
        remarks: grid.reasons.iter().enumerate().map(remark).take(MAX_REMARKS).collect(),
        more_remarks: grid.reasons.len().saturating_sub(MAX_REMARKS),
        definitions: definitions(grid),
        has_intervals: lines.iter().flat_map(|l| l.figures.iter().flatten()).any(|f| !f.interval.is_empty()),
        has_raw: lines.iter().any(|l| !l.files.is_empty()),
        lines,
        cut_from: (grid.rows.len() > most).then_some(grid.rows.len()),
    }
}

/// What the headings mean: `TTFT: Time to first token, token[0] - sent (ms).`
fn definitions(grid: &Grid) -> Vec<String> {
    let mut metrics: Vec<Metric> = grid.shown.iter().map(|s| s.metric).collect();
    metrics.dedup();
    let definition = |metric: &Metric| {
        let (def, name) = (metric.def(), short_name(*metric));
        let title = if name == def.title { String::new() } else { format!("{}, ", def.title) };
        format!("{name}: {title}{} ({}).", def.definition, def.unit)
    };
    metrics.iter().map(definition).collect()
}

fn head(grid: &Grid) -> Vec<Head> {
    let names = grid.head();
    let keys = names.len() - grid.shown.len();
    let tip = |index: usize| {
        let Some(shown) = index.checked_sub(keys).map(|i| grid.shown[i]) else { return String::new() };
        let (name, stat) = shown.heading();
        let (title, unit) = (shown.metric.def().title, shown.printed_unit());
        let scope = if name.to_lowercase().contains(&stat) { "" } else { stat.as_str() };
        let unit = if unit == "1" { String::new() } else { format!(" ({unit})") };
        format!("{title} {scope}").trim_end().to_owned() + &unit
    };
    let heads = names.into_iter().enumerate().map(|(i, (name, rest))| Head { name, rest, tip: tip(i) });
    heads.collect()
}

fn line(row: &GridRow, cell: &WideRow, shown: &[usize], raw: Option<&Raw>, grid: &Grid) -> Line {
    let number = |(rounded, index): (&Option<Rounded>, &usize)| {
        let figure: Figure = cell.figures[*index];
        Some(Number::new(rounded.as_ref()?, figure.value?, figure.n, raw))
    };
    let key = |text: &String| KeyEntry { number: text.parse::<f64>().is_ok(), text: text.clone() };
    let remark = row.reason.map(|r| grid.reasons[r]);
    Line {
        model: clean(row.model),
        invalid: !cell.is_valid(),
        sign: row.reason.map(footnote_sign),
        remark: remark.map_or_else(String::new, |r| clean(r.text)),
        keys: row.keys.iter().map(key).collect(),
        figures: row.figures.iter().zip(shown).map(number).collect(),
        files: raw.map_or_else(Vec::new, |r| r.files.clone()),
    }
}
