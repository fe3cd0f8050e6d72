//! The cells of a run as figures want them: all figures of each, what they are spread over, which belong
//! together, what they are called, and what a reader who points at one is told.

use crate::RunInput;
use crate::cell::cell_id;
use crate::load::LoadText;
use crate::order::by_cell;
use crate::round::round;
use crate::table::one_line;
use crate::wide::{Figure, WideRow};
use bench_core::metric::Metric;
use bench_core::row::Row;
use bench_core::sample::Stat;
use std::fmt::Write as _;

/// One cell with all of its rows.
pub(super) struct Cell<'a> {
    pub row: &'a WideRow<'a>,
    pub id: Option<&'a str>,
    rows: &'a [&'a Row],
    /// Index of the model and of the variant among those of the run: colour and dashes.
    pub model: usize,
    pub variant: usize,
    /// Place on the axis of prompt lengths or loads.
    pub x: f64,
}

impl Cell<'_> {
    /// One statistic; all `None` where the cell does not have it.
    pub(super) fn figure(&self, metric: Metric, scope: &str, stat: Stat) -> Figure {
        let (key, stat) = (metric.def().key, stat.key());
        let found = self.rows.iter().find(|r| r.metric == key && r.stat == stat && r.scope == scope);
        let finite = |v: Option<f64>| v.filter(|v| v.is_finite());
        found.map_or_else(Figure::default, |r| Figure {
            value: finite(r.value),
            low: finite(r.ci_low),
            high: finite(r.ci_high),
            n: r.n,
        })
    }

    /// The scopes for which the cell has a value of the metric, in order of name.
    pub(super) fn scopes(&self, metric: Metric) -> Vec<&str> {
        let own = self.rows.iter().filter(|r| r.metric == metric.def().key && r.value.is_some());
        let mut scopes: Vec<&str> = own.map(|r| r.scope.as_str()).collect();
        scopes.sort_unstable();
        scopes.dedup();
        scopes
    }

    /// Model, sizes, load; the lines of a tip before the value.
    fn head(&self) -> String {
        let row = self.row;
        let (model, prompt, output) = (one_line(row.model), row.prompt_tokens, row.output_tokens);
        format!("{model}\n{prompt} prompt, {output} output tokens\n{}", row.load)
    }

    fn verdict(&self) -> String {
        match (self.row.verdict, one_line(self.row.verdict_reason)) {
            (verdict, reason) if reason.is_empty() => verdict.to_owned(),
            (verdict, reason) => format!("{verdict}: {reason}"),
        }
    }

    /// What a pointer shows, one fact a line: the cell, each value with its interval, the first one's n, the
    /// verdict.
    pub(super) fn tip(&self, values: &[Told]) -> String {
        let mut tip = self.head();
        for value in values {
            let _ = write!(tip, "\n{}", value.text());
        }
        if let Some(n) = values.first().map(|v| v.figure.n).filter(|n| *n > 0) {
            let _ = write!(tip, "\nn = {n}");
        }
        let _ = write!(tip, "\n{}", self.verdict());
        tip
    }
}

/// A figure with its name and unit, for a tip.
pub(super) struct Told<'a> {
    pub name: &'a str,
    pub figure: Figure,
    pub unit: &'a str,
}

impl Told<'_> {
    /// `TTFT, median: 35.9 ms` and its interval on the next line.
    fn text(&self) -> String {
        let Some(value) = self.figure.value else { return format!("{}: missing", self.name) };
        let rounded = round(value, self.figure.low, self.figure.high);
        let unit =
            if self.unit == "1" || self.unit.is_empty() { String::new() } else { format!(" {}", self.unit) };
        let mut text = format!("{}: {}{unit}", self.name, rounded.value);
        match rounded.interval {
            Some((Some(low), Some(high))) => {
                let _ = write!(text, "\n95 % interval: {low} to {high}{unit}");
            }
            Some((Some(low), None)) => {
                let _ = write!(text, "\n95 % interval: from {low}{unit}, n cannot bound the upper end");
            }
            Some((None, Some(high))) => {
                let _ = write!(text, "\n95 % interval: up to {high}{unit}, n cannot bound the lower end");
            }
            _ => {}
        }
        text
    }
}

/// The same figure in another unit.
pub(super) fn scaled(figure: Figure, factor: f64) -> Figure {
    let by = |v: Option<f64>| v.map(|v| v * factor);
    Figure { value: by(figure.value), low: by(figure.low), high: by(figure.high), n: figure.n }
}

/// What the cells of a run are spread over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    PromptTokens,
    /// Levels of a closed loop.
    Concurrency,
    /// Levels of an open one.
    Rate,
}

impl Over {
    /// Prompt length, unless there is one of them and several levels of one kind of load.
    fn of(cells: &[WideRow]) -> Self {
        let one = |same: fn(&WideRow, &WideRow) -> bool| cells.iter().all(|c| same(c, &cells[0]));
        let levels = !one(|a, b| a.load.level() == b.load.level());
        let leveled = cells.iter().all(|c| c.load.level().is_some());
        if !levels || !leveled || !one(|a, b| a.prompt_tokens == b.prompt_tokens) {
            return Self::PromptTokens;
        }
        match (one(|a, b| (a.load.kind == "closed") == (b.load.kind == "closed")), cells[0].load.kind) {
            (true, "closed") => Self::Concurrency,
            (true, _) => Self::Rate,
            (false, _) => Self::PromptTokens,
        }
    }

    /// Of the axis.
    pub(super) fn title(self) -> String {
        match self {
            Self::PromptTokens => Metric::PromptTokens.axis(),
            Self::Concurrency => "Requests in flight".to_owned(),
            Self::Rate => "Request rate (req/s)".to_owned(),
        }
    }

    /// Within a sentence.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::PromptTokens => "prompt length",
            Self::Concurrency => "requests in flight",
            Self::Rate => "request rate",
        }
    }

    fn x(self, cell: &WideRow) -> f64 {
        match self {
            Self::PromptTokens => f64::from(cell.prompt_tokens),
            Self::Concurrency | Self::Rate => cell.load.level().unwrap_or_default(),
        }
    }

    fn variant(self, cell: &WideRow) -> Variant {
        let load = match self {
            Self::PromptTokens => cell.load.to_string(),
            Self::Concurrency => String::new(),
            Self::Rate => LoadText { rate: None, ..cell.load }.to_string(),
        };
        let level = if self == Self::PromptTokens { cell.load.level().unwrap_or_default() } else { 0.0 };
        Variant { output: cell.output_tokens, batch: cell.batch, level, load }
    }
}

/// What tells lines of one model apart.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Variant {
    output: u32,
    batch: u32,
    /// Orders loads of one kind.
    level: f64,
    load: String,
}

impl Variant {
    fn order(&self, other: &Self) -> std::cmp::Ordering {
        (self.output, self.batch)
            .cmp(&(other.output, other.batch))
            .then(self.level.total_cmp(&other.level))
            .then_with(|| self.load.cmp(&other.load))
    }
}

/// A run's cells.
pub(super) struct Study<'a> {
    pub run: &'a RunInput,
    pub cells: Vec<Cell<'a>>,
    pub over: Over,
    /// In order of name.
    pub models: Vec<&'a str>,
    pub variants: Vec<Variant>,
}

impl<'a> Study<'a> {
    /// `sorted` are the run's rows in order, `cells` the same in the view of latency.
    pub(super) fn new(run: &'a RunInput, sorted: &'a [&'a Row], cells: &'a [WideRow<'a>]) -> Self {
        let over = Over::of(cells);
        let mut models: Vec<&str> = cells.iter().map(|c| c.model).collect();
        models.sort_unstable();
        models.dedup();
        let mut variants: Vec<Variant> = cells.iter().map(|c| over.variant(c)).collect();
        variants.sort_by(Variant::order);
        variants.dedup();
        let of_cell = sorted.chunk_by(|a, b| by_cell(a, b).is_eq());
        let cells = cells.iter().zip(of_cell).map(|(row, rows)| {
            let variant = over.variant(row);
            Cell {
                row,
                id: cell_id(run, row),
                rows,
                model: models.binary_search(&row.model).unwrap_or_default(),
                variant: variants.iter().position(|v| *v == variant).unwrap_or_default(),
                x: over.x(row),
            }
        });
        Self { run, cells: cells.collect(), over, models: models.clone(), variants }
    }

    /// Cells of one model and variant, in ascending x; empty ones are left out.
    pub(super) fn lines(&self) -> Vec<Vec<&Cell<'a>>> {
        let mut lines = Vec::new();
        for model in 0..self.models.len() {
            for variant in 0..self.variants.len() {
                let own = self.cells.iter().filter(|c| c.model == model && c.variant == variant);
                let mut line: Vec<_> = own.collect();
                line.sort_by(|a, b| a.x.total_cmp(&b.x));
                if !line.is_empty() {
                    lines.push(line);
                }
            }
        }
        lines
    }

    /// The model, and of output length and load what differs within the run.
    pub(super) fn label(&self, cell: &Cell) -> String {
        let variant = self.variant_label(cell);
        let model = one_line(cell.row.model);
        if variant.is_empty() { model } else { format!("{model}, {variant}") }
    }

    /// Of output length and load what differs within the run.
    pub(super) fn variant_label(&self, cell: &Cell) -> String {
        let Some(variant) = self.variants.get(cell.variant) else { return String::new() };
        let mut parts = Vec::new();
        if self.variants.iter().any(|v| v.output != variant.output) {
            parts.push(format!("{} out", variant.output));
        }
        if self.variants.iter().any(|v| v.load != variant.load) {
            parts.push(variant.load.clone());
        }
        parts.join(", ")
    }

    /// Groups of bars: a name for each place on the axis and variant, with the index of each cell's.
    pub(super) fn groups(&self, cells: &[&Cell<'a>]) -> (Vec<String>, Vec<usize>) {
        let key = |c: &Cell| (c.x, c.variant);
        let mut keys: Vec<_> = cells.iter().map(|c| (key(c), *c)).collect();
        keys.sort_by(|a, b| a.0.0.total_cmp(&b.0.0).then(a.0.1.cmp(&b.0.1)));
        keys.dedup_by(|a, b| a.0 == b.0);
        let name = |c: &Cell| {
            let variant = self.variant_label(c);
            if variant.is_empty() { c.x.to_string() } else { format!("{}, {variant}", c.x) }
        };
        let at = |c: &Cell| keys.iter().position(|k| k.0 == key(c)).unwrap_or_default();
        (keys.iter().map(|k| name(k.1)).collect(), cells.iter().map(|c| at(c)).collect())
    }

    /// Run, machine, and the sizes and load that all cells share.
    pub(super) fn caption(&self) -> Vec<String> {
        let mut parts = vec![format!("Run {}", one_line(&self.run.run_id)), one_line(&self.run.machine)];
        if let Some(first) = self.cells.first().filter(|_| self.over != Over::PromptTokens) {
            parts.push(format!("{} prompt tokens", first.row.prompt_tokens));
        }
        if let Some(first) = self.variants.first() {
            if self.variants.iter().all(|v| v.output == first.output) {
                parts.push(format!("{} output tokens", first.output));
            }
            if self.variants.iter().all(|v| v.load == first.load) && !first.load.is_empty() {
                parts.push(first.load.clone());
            }
        }
        parts
    }
}

/// `n = 20 per point`, or the range of them; nothing where no figure has samples.
pub(super) fn n_text(ns: impl Iterator<Item = u64>, per: &str) -> Option<String> {
    let (least, most) = ns.filter(|n| *n > 0).fold((u64::MAX, 0), |(l, m), n| (l.min(n), m.max(n)));
    match (least, most) {
        (u64::MAX, _) => None,
        (least, most) if least == most => Some(format!("n = {least} per {per}")),
        (least, most) => Some(format!("n = {least}\u{2013}{most} per {per}")),
    }
}
