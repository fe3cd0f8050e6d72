//! The wide tables: one row per cell (and scope, for energy), views of the long rows.
//!
//! Which statistics each shows stands in `view` alone; column names, headings and captions follow from it.

use crate::load::LoadText;
use crate::order::by_cell;
use crate::view::View;
use bench_core::row::Row;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// One statistic of one cell.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Figure {
    pub value: Option<f64>,
    pub low: Option<f64>,
    pub high: Option<f64>,
    pub n: u64,
}

/// One cell; borrows its words from the rows.
#[derive(Debug, Clone)]
pub(crate) struct WideRow<'a> {
    pub run_id: &'a str,
    pub target: &'a str,
    pub model: &'a str,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
    pub batch: u32,
    pub load: LoadText<'a>,
    /// What the figures cover, in a view that has a row for each scope; else empty.
    pub scope: &'a str,
    /// Samples of the view's first metric: in the latency view, requests that gave a TTFT.
    pub n: Option<u64>,
    pub success_rate: Option<f64>,
    pub token_source: &'a str,
    pub verdict: &'a str,
    pub verdict_reason: &'a str,
    pub client_verdict: &'a str,
    pub view: &'static View,
    /// In the order of the view's statistics.
    pub figures: Vec<Figure>,
}

impl WideRow<'_> {
    pub(crate) fn is_valid(&self) -> bool {
        self.verdict == "VALID"
    }
}

/// Cells of rows that `order::sorted` has put in order, with the figures of `view`.
pub(crate) fn cells<'a>(sorted: &[&'a Row], view: &'static View) -> Vec<WideRow<'a>> {
    let of_cell = sorted.chunk_by(|a, b| by_cell(a, b).is_eq());
    of_cell.flat_map(|rows| view.scopes(rows).into_iter().map(|scope| cell(rows, scope, view))).collect()
}

fn cell<'a>(rows: &[&'a Row], scope: &'a str, view: &'static View) -> WideRow<'a> {
    // A cell is as good as its worst row.
    let first = rows.iter().find(|r| r.verdict != "VALID").unwrap_or(&rows[0]);
    let mut figures = vec![Figure::default(); view.shown.len()];
    let mut n = None;
    for row in rows {
        if row.metric == view.shown[0].metric.def().key && view.shown[0].covers(row, scope) {
            n = n.max(Some(row.n));
        }
        for (shown, figure) in view.shown.iter().zip(&mut figures) {
            let same = row.metric == shown.metric.def().key && row.stat == shown.stat.key();
            if same && shown.covers(row, scope) && figure.n == 0 {
                let finite = |v: Option<f64>| v.filter(|v| v.is_finite());
                *figure = Figure {
                    value: finite(row.value),
                    low: finite(row.ci_low),
                    high: finite(row.ci_high),
                    n: row.n,
                };
            }
        }
    }
    WideRow {
        run_id: &first.run_id,
        target: &first.target,
        model: &first.model,
        prompt_tokens: first.prompt_tokens,
        output_tokens: first.output_tokens,
        batch: first.batch,
        load: LoadText::of(first),
        scope,
        n,
        success_rate: first.success_rate,
        token_source: first.token_source,
        verdict: first.verdict,
        verdict_reason: &first.verdict_reason,
        client_verdict: &first.client_verdict,
        view,
        figures,
    }
}

/// Column names, unit last.
pub(crate) fn columns(view: &View) -> Vec<String> {
    let cell =
        ["run_id", "target", "model", "prompt_tokens", "output_tokens", "batch", "load", "concurrency"];
    let quality =
        ["request_rate", "n", "success_rate", "token_source", "verdict", "verdict_reason", "client_verdict"];
    let mut names: Vec<String> = cell.iter().chain(&quality).map(ToString::to_string).collect();
    if view.by_scope {
        names.push("scope".to_owned());
    }
    names.extend(figure_columns(view));
    names
}

fn figure_columns(view: &View) -> Vec<String> {
    let mut names = Vec::new();
    for figure in view.shown {
        names.push(figure.column(""));
        if figure.interval {
            names.extend([figure.column("_ci_low"), figure.column("_ci_high")]);
        }
    }
    names
}

/// The values of `columns`; a missing one is `null`.
pub(crate) fn values(row: &WideRow) -> Vec<Value> {
    let text = |text: &str| json!((!text.is_empty()).then_some(text));
    let mut values = vec![
        json!(row.run_id),
        json!(row.target),
        json!(row.model),
        json!(row.prompt_tokens),
        json!(row.output_tokens),
        json!(row.batch),
        json!(row.load.kind),
        json!(row.load.concurrency),
        json!(row.load.rate),
        json!(row.n),
        json!(row.success_rate),
        text(row.token_source),
        json!(row.verdict),
        text(row.verdict_reason),
        text(row.client_verdict),
    ];
    if row.view.by_scope {
        values.push(json!(row.scope));
    }
    values.extend(figure_values(row));
    values
}

fn figure_values(row: &WideRow) -> Vec<Value> {
    let mut values = Vec::new();
    for (figure, shown) in row.figures.iter().zip(row.view.shown) {
        values.push(json!(figure.value));
        if shown.interval {
            values.extend([json!(figure.low), json!(figure.high)]);
        }
    }
    values
}

/// The table as CSV.
pub(crate) fn csv(view: &View, rows: &[WideRow]) -> String {
    let mut text = csv_line(columns(view).into_iter().map(Value::String));
    for row in rows {
        text.push_str(&csv_line(values(row)));
    }
    text
}

/// The row as a JSON object, its keys in the order of the columns.
pub(crate) fn object(row: &WideRow) -> Map<String, Value> {
    columns(row.view).into_iter().zip(values(row)).collect()
}

/// The figures alone, for a view that stands inside of the cell's object.
pub(crate) fn figures_object(row: &WideRow) -> Map<String, Value> {
    figure_columns(row.view).into_iter().zip(figure_values(row)).collect()
}

/// One line of a CSV by RFC 4180: empty for `null`, quotes only where they are needed, numbers in the
/// shortest form that reads back to the same bits.
pub(crate) fn csv_line(fields: impl IntoIterator<Item = Value>) -> String {
    let mut line = String::new();
    for (i, field) in fields.into_iter().enumerate() {
        if i > 0 {
            line.push(',');
        }
        match field {
            Value::Null => {}
            Value::String(text) if text.contains(['"', ',', '\n', '\r']) => {
                let _ = write!(line, "\"{}\"", text.replace('"', "\"\""));
            }
            Value::String(text) => line.push_str(&text),
            other => {
                let _ = write!(line, "{other}");
            }
        }
    }
    line.push('\n');
    line
}
