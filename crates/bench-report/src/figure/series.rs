//! From cells to lines: which points belong together, what they are called, what the caption must say.

use crate::RunInput;
use crate::load::LoadText;
use crate::table::one_line;
use crate::view::short_name;
use crate::wide::WideRow;
use bench_core::metric::Metric;
use bench_core::sample::Stat;
use std::fmt::Write as _;

/// One cell in a figure.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Point {
    pub x: f64,
    pub y: f64,
    pub low: Option<f64>,
    pub high: Option<f64>,
    /// INVALID cells are drawn hollow and no line goes through them.
    pub valid: bool,
}

/// One line: the cells of one model, and of one variant.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    pub label: String,
    /// Index of the model and of the variant among those of the figure: colour and dashes.
    pub model: usize,
    pub variant: usize,
    /// In ascending x.
    pub points: Vec<Point>,
}

/// A figure before it has a place on paper.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chart {
    pub x_title: String,
    pub y_title: String,
    pub series: Vec<Series>,
    /// What a reader must know, in parts that belong together.
    pub caption: Vec<String>,
}

/// What the cells of a figure are spread over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
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

    fn title(self) -> String {
        match self {
            Self::PromptTokens => Metric::PromptTokens.axis(),
            Self::Concurrency => "Requests in flight".to_owned(),
            Self::Rate => "Request rate (req/s)".to_owned(),
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
struct Variant {
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

pub(super) fn chart(metric: Metric, stat: Stat, run: &RunInput, cells: &[WideRow]) -> Chart {
    let over = Over::of(cells);
    let mut models: Vec<&str> = cells.iter().map(|c| c.model).collect();
    models.sort_unstable();
    models.dedup();
    let mut variants: Vec<Variant> = cells.iter().map(|c| over.variant(c)).collect();
    variants.sort_by(Variant::order);
    variants.dedup();
    let mut series = Vec::new();
    for (model, &name) in models.iter().enumerate() {
        for (variant, key) in variants.iter().enumerate() {
            let own = |c: &&WideRow| c.model == name && over.variant(c) == *key;
            let points = cells.iter().filter(own).filter_map(|c| point(c, over, metric, stat));
            let mut points: Vec<_> = points.collect();
            points.sort_by(|a, b| a.x.total_cmp(&b.x));
            if !points.is_empty() {
                series.push(Series { label: label(name, key, &variants), model, variant, points });
            }
        }
    }
    Chart {
        x_title: over.title(),
        y_title: format!("{}, {}", metric.axis(), stat_name(stat)),
        caption: caption(metric, stat, run, cells, &variants, &series),
        series,
    }
}

fn stat_name(stat: Stat) -> String {
    if stat == Stat::Quantile(0.5) { "median".to_owned() } else { stat.key() }
}

fn point(cell: &WideRow, over: Over, metric: Metric, stat: Stat) -> Option<Point> {
    let figure = cell.figure(metric, stat);
    let (low, high) = (figure.low, figure.high);
    Some(Point { x: over.x(cell), y: figure.value?, low, high, valid: cell.is_valid() })
}

/// The model, and of output length and load what differs within the figure.
fn label(model: &str, variant: &Variant, variants: &[Variant]) -> String {
    let mut label = one_line(model);
    if variants.iter().any(|v| v.output != variant.output) {
        let _ = write!(label, ", {} out", variant.output);
    }
    if variants.iter().any(|v| v.load != variant.load) {
        let _ = write!(label, ", {}", variant.load);
    }
    label
}

fn caption(
    metric: Metric,
    stat: Stat,
    run: &RunInput,
    cells: &[WideRow],
    variants: &[Variant],
    series: &[Series],
) -> Vec<String> {
    let mut parts = vec![format!("Run {}", one_line(&run.run_id)), one_line(&run.machine)];
    if let Some(first) = cells.first().filter(|_| Over::of(cells) != Over::PromptTokens) {
        parts.push(format!("{} prompt tokens", first.prompt_tokens));
    }
    if let Some(first) = variants.first() {
        if variants.iter().all(|v| v.output == first.output) {
            parts.push(format!("{} output tokens", first.output));
        }
        if variants.iter().all(|v| v.load == first.load) && !first.load.is_empty() {
            parts.push(first.load.clone());
        }
    }
    let figures = cells.iter().map(|c| c.figure(metric, stat)).filter(|f| f.value.is_some());
    let (least, most) = figures.fold((u64::MAX, 0), |(least, most), f| (least.min(f.n), most.max(f.n)));
    match (least, most) {
        (u64::MAX, _) => {}
        (least, most) if least == most => parts.push(format!("n = {least} per point")),
        (least, most) => parts.push(format!("n = {least}\u{2013}{most} per point")),
    }
    let points = || series.iter().flat_map(|s| &s.points);
    if points().any(|p| p.low.is_some() || p.high.is_some()) {
        parts.push("bars: 95 % intervals".to_owned());
    }
    if points().any(|p| p.low.is_some() != p.high.is_some()) {
        parts.push("arrows: n cannot bound this end".to_owned());
    }
    if points().any(|p| !p.valid) {
        parts.push("hollow: INVALID".to_owned());
    }
    let missing = cells.len() - points().count();
    if missing > 0 && !series.is_empty() {
        parts.push(format!("{missing} of {} cells without {}", cells.len(), short_name(metric)));
    }
    parts
}
