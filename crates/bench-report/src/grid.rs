//! The wide table as it is to be read: columns chosen, figures rounded, reasons gathered as footnotes.
//!
//! Terminal, Markdown and LaTeX differ only in how they set it.

use crate::round::{Rounded, round};
use crate::view::{LATENCY, Shown, View};
use crate::wide::WideRow;
use bench_core::metric::Metric;

/// A table of figures, before it is set in any format.
pub(crate) struct Grid<'a> {
    pub view: &'static View,
    /// The key columns behind the model's.
    keys: Vec<&'static Key>,
    /// The statistics that have a value in some row; the others would be empty columns.
    pub shown: Vec<&'static Shown>,
    pub rows: Vec<GridRow<'a>>,
    /// Why cells are INVALID, and what must be known of others, each once, in order of appearance.
    pub reasons: Vec<Remark<'a>>,
}

/// A footnote.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Remark<'a> {
    /// `INVALID`, or `Note` on a cell that is valid.
    pub head: &'static str,
    pub text: &'a str,
}

/// One cell of the study.
pub(crate) struct GridRow<'a> {
    pub model: &'a str,
    /// In the order of the key columns.
    pub keys: Vec<String>,
    /// In the order of `Grid::shown`.
    pub figures: Vec<Option<Rounded>>,
    /// Index into `Grid::reasons`.
    pub reason: Option<usize>,
}

/// A column that says which cell a row is, and how it went.
struct Key {
    name: &'static str,
    unit: &'static str,
    text: fn(&WideRow) -> String,
    /// Whether a table of these cells has the column.
    shown: fn(&[WideRow]) -> bool,
}

const KEYS: [Key; 7] = [
    Key { name: "Prompt", unit: "tok", text: |c| c.prompt_tokens.to_string(), shown: |_| true },
    Key { name: "Output", unit: "tok", text: |c| c.output_tokens.to_string(), shown: |_| true },
    Key {
        name: "Batch",
        unit: "",
        text: |c| c.batch.to_string(),
        // With a server it is always 1.
        shown: |cells| cells.is_empty() || cells.iter().any(|c| c.load.is_batch()),
    },
    Key {
        name: "Load",
        unit: "",
        text: |c| c.load.to_string(),
        shown: |cells| cells.iter().any(|c| !c.load.is_batch()),
    },
    Key {
        name: "Scope",
        unit: "",
        text: |c| c.scope.to_owned(),
        shown: |cells| cells.iter().any(|c| !c.scope.is_empty()),
    },
    Key { name: "n", unit: "", text: |c| c.n.map_or_else(String::new, |n| n.to_string()), shown: |_| true },
    Key {
        name: "Success",
        unit: "%",
        text: |c| c.success_rate.map_or_else(String::new, percent),
        // Said once, where the requests are counted.
        shown: |cells| cells.iter().all(|c| c.view.name == LATENCY.name),
    },
];

impl<'a> Grid<'a> {
    pub(crate) fn new(view: &'static View, cells: &[WideRow<'a>]) -> Self {
        let kept: Vec<usize> = (0..view.shown.len())
            .filter(|&i| view.shown[i].printed && cells.iter().any(|c| c.figures[i].value.is_some()))
            .collect();
        let keys: Vec<&Key> = KEYS.iter().filter(|k| (k.shown)(cells)).collect();
        let mut reasons = Vec::new();
        let rows = cells.iter().map(|cell| grid_row(cell, &keys, &kept, &mut reasons)).collect();
        Self { view, keys, shown: kept.iter().map(|&i| &view.shown[i]).collect(), rows, reasons }
    }

    /// Whether there is nothing to show.
    pub(crate) fn is_empty(&self) -> bool {
        self.shown.is_empty()
    }

    /// Two lines per column behind the model's: name, then statistic and unit.
    pub(crate) fn head(&self) -> Vec<(String, String)> {
        let in_brackets = |unit: &str| if unit.is_empty() { String::new() } else { format!("({unit})") };
        let keys = self.keys.iter().map(|k| (k.name.to_owned(), in_brackets(k.unit)));
        let figures = self.shown.iter().map(|shown| {
            let (name, stat) = shown.heading();
            (
                name,
                format!(
                    "{stat} {}",
                    in_brackets(Some(shown.printed_unit()).filter(|u| *u != "1").unwrap_or_default())
                )
                .trim()
                .to_owned(),
            )
        });
        keys.chain(figures).collect()
    }

    /// The metrics of the columns, each once.
    pub(crate) fn metrics(&self) -> Vec<Metric> {
        let mut metrics: Vec<_> = self.shown.iter().map(|s| s.metric).collect();
        metrics.dedup();
        metrics
    }
}

fn grid_row<'a>(
    cell: &WideRow<'a>,
    keys: &[&Key],
    kept: &[usize],
    reasons: &mut Vec<Remark<'a>>,
) -> GridRow<'a> {
    let figures = kept.iter().map(|&i| {
        let (figure, shown) = (cell.figures[i], &cell.view.shown[i]);
        let printed = |value: f64| shown.printed_value(value);
        let mut rounded = round(printed(figure.value?), figure.low.map(printed), figure.high.map(printed));
        if !shown.interval {
            rounded.interval = None;
        }
        Some(rounded)
    });
    let remark = match (cell.is_valid(), cell.verdict_reason) {
        (true, "") => None,
        (true, text) => Some(Remark { head: "Note", text }),
        (false, "") => Some(Remark { head: "INVALID", text: "no reason given" }),
        (false, text) => Some(Remark { head: "INVALID", text }),
    };
    let reason = remark.map(|remark| {
        reasons.iter().position(|r| *r == remark).unwrap_or_else(|| {
            reasons.push(remark);
            reasons.len() - 1
        })
    });
    GridRow {
        model: cell.model,
        keys: keys.iter().map(|k| (k.text)(cell)).collect(),
        figures: figures.collect(),
        reason,
    }
}

/// One decimal where it is needed; never 100 unless all succeeded.
fn percent(rate: f64) -> String {
    if rate >= 1.0 { "100".to_owned() } else { format!("{:.1}", (rate * 1000.0).floor() / 10.0) }
}

/// `a` … `z`, `aa`, `ab` …: the sign of a footnote.
pub(crate) fn footnote_sign(index: usize) -> String {
    let letter = char::from(b'a' + (index % 26) as u8);
    if index < 26 { letter.to_string() } else { format!("{}{letter}", footnote_sign(index / 26 - 1)) }
}
