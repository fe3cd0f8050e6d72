//! The wide latency table: one row per cell, a view of the long rows.
//!
//! Which statistics it shows stands in `FIGURES` alone; column names, headings and captions follow from it.

use crate::load::LoadText;
use crate::order::by_cell;
use bench_core::metric::{Metric, MetricDef};
use bench_core::row::Row;
use bench_core::sample::Stat;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// One statistic that the wide table shows.
#[derive(Debug)]
pub(crate) struct Shown {
    pub metric: Metric,
    pub stat: Stat,
    /// Its interval is shown too.
    pub interval: bool,
    /// It stands in tables for reading (terminal, Markdown, LaTeX), not only in CSV and JSON.
    pub printed: bool,
}

const fn shown(metric: Metric, stat: Stat, interval: bool, printed: bool) -> Shown {
    Shown { metric, stat, interval, printed }
}

/// The statistics, in column order.
pub(crate) const FIGURES: [Shown; 11] = [
    shown(Metric::Ttft, Stat::Quantile(0.5), true, true),
    shown(Metric::Ttft, Stat::Quantile(0.95), false, true),
    shown(Metric::Ttft, Stat::Quantile(0.99), false, true),
    shown(Metric::Tpot, Stat::Mean, true, true),
    shown(Metric::Tpot, Stat::Quantile(0.5), true, false),
    shown(Metric::Itl, Stat::Quantile(0.99), false, true),
    shown(Metric::DecodeRate, Stat::Quantile(0.5), true, true),
    shown(Metric::E2el, Stat::Quantile(0.5), false, true),
    shown(Metric::E2el, Stat::Quantile(0.95), false, true),
    shown(Metric::E2el, Stat::Quantile(0.99), false, true),
    shown(Metric::SystemTokenRate, Stat::Value, false, true),
];

impl Shown {
    /// `ttft_p50_ms`: the statistic between the metric's name and its unit.
    fn column(&self, end: &str) -> String {
        let (name, unit) = split_unit(self.metric.def());
        let stat = match self.stat {
            Stat::Value => String::new(),
            stat => format!("_{}", stat.key()),
        };
        format!("{name}{stat}{end}{unit}")
    }

    /// Two lines for the head of a table: `TTFT` and `p50`, `System token` and `rate`.
    pub(crate) fn heading(&self) -> (String, String) {
        let name = short_name(self.metric);
        match (self.stat, name.rsplit_once(' ')) {
            (Stat::Value, Some((first, last))) => (first.to_owned(), last.to_owned()),
            (Stat::Value, None) => (name, String::new()),
            (stat, _) => (name, stat.key()),
        }
    }
}

/// `ttft_ms` in `ttft` and `_ms`.
fn split_unit(def: &MetricDef) -> (&str, &str) {
    let suffix = match def.unit {
        "ms" => "_ms",
        "tok/s" => "_tok_s",
        "req/s" => "_req_s",
        "B" => "_bytes",
        _ => "",
    };
    def.key.split_at(def.key.len() - suffix.len())
}

/// Times have abbreviations, which are their keys; rates are called by their titles.
pub(crate) fn short_name(metric: Metric) -> String {
    let def = metric.def();
    if def.unit == "ms" { split_unit(def).0.to_uppercase() } else { def.title.to_owned() }
}

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
    /// Requests that gave a TTFT.
    pub n: Option<u64>,
    pub success_rate: Option<f64>,
    pub token_source: &'a str,
    pub verdict: &'a str,
    pub verdict_reason: &'a str,
    pub client_verdict: &'a str,
    /// In the order of `FIGURES`.
    pub figures: [Figure; FIGURES.len()],
}

impl WideRow<'_> {
    pub(crate) fn is_valid(&self) -> bool {
        self.verdict == "VALID"
    }

    pub(crate) fn figure(&self, metric: Metric, stat: Stat) -> Figure {
        let index = FIGURES.iter().position(|f| f.metric == metric && f.stat == stat);
        index.map_or_else(Figure::default, |i| self.figures[i])
    }
}

/// Cells of rows that `order::sorted` has put in order.
pub(crate) fn cells<'a>(sorted: &[&'a Row]) -> Vec<WideRow<'a>> {
    let keys = FIGURES.map(|f| (f.metric.def().key, f.stat.key()));
    sorted.chunk_by(|a, b| by_cell(a, b).is_eq()).map(|rows| cell(rows, &keys)).collect()
}

fn cell<'a>(rows: &[&'a Row], keys: &[(&str, String); FIGURES.len()]) -> WideRow<'a> {
    // A cell is as good as its worst row.
    let first = rows.iter().find(|r| r.verdict != "VALID").unwrap_or(&rows[0]);
    let mut figures = [Figure::default(); FIGURES.len()];
    let mut n = None;
    for row in rows {
        if row.metric == Metric::Ttft.def().key {
            n = n.max(Some(row.n));
        }
        if let Some(i) = keys.iter().position(|(metric, stat)| row.metric == *metric && row.stat == *stat) {
            let finite = |v: Option<f64>| v.filter(|v| v.is_finite());
            figures[i] = Figure {
                value: finite(row.value),
                low: finite(row.ci_low),
                high: finite(row.ci_high),
                n: row.n,
            };
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
        n,
        success_rate: first.success_rate,
        token_source: first.token_source,
        verdict: first.verdict,
        verdict_reason: &first.verdict_reason,
        client_verdict: &first.client_verdict,
        figures,
    }
}

/// Column names, unit last.
pub(crate) fn columns() -> Vec<String> {
    let cell =
        ["run_id", "target", "model", "prompt_tokens", "output_tokens", "batch", "load", "concurrency"];
    let quality =
        ["request_rate", "n", "success_rate", "token_source", "verdict", "verdict_reason", "client_verdict"];
    let mut names: Vec<String> = cell.iter().chain(&quality).map(ToString::to_string).collect();
    for figure in &FIGURES {
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
    for (figure, shown) in row.figures.iter().zip(&FIGURES) {
        values.push(json!(figure.value));
        if shown.interval {
            values.extend([json!(figure.low), json!(figure.high)]);
        }
    }
    values
}

/// The table as CSV.
pub(crate) fn csv(rows: &[WideRow]) -> String {
    let mut text = csv_line(columns().into_iter().map(Value::String));
    for row in rows {
        text.push_str(&csv_line(values(row)));
    }
    text
}

/// The row as a JSON object, its keys in the order of the columns.
pub(crate) fn object(row: &WideRow) -> Map<String, Value> {
    columns().into_iter().zip(values(row)).collect()
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
