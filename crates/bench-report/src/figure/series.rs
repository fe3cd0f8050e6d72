//! From cells to lines: which points belong together, what they are called, what the caption must say.

use crate::RunInput;
use crate::table::one_line;
use crate::wide::{WideRow, short_name};
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

/// One line: the cells of one model, output length and batch.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    pub label: String,
    /// Index of the model and of the (output length, batch) among those of the figure: colour and dashes.
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

pub(super) fn chart(metric: Metric, stat: Stat, run: &RunInput, cells: &[WideRow]) -> Chart {
    let mut models: Vec<&str> = cells.iter().map(|c| c.model).collect();
    models.sort_unstable();
    models.dedup();
    let mut variants: Vec<(u32, u32)> = cells.iter().map(|c| (c.output_tokens, c.batch)).collect();
    variants.sort_unstable();
    variants.dedup();
    let mut series = Vec::new();
    for (model, &name) in models.iter().enumerate() {
        for (variant, &key) in variants.iter().enumerate() {
            let own = |c: &&WideRow| c.model == name && (c.output_tokens, c.batch) == key;
            let points: Vec<_> = cells.iter().filter(own).filter_map(|c| point(c, metric, stat)).collect();
            if !points.is_empty() {
                series.push(Series { label: label(name, key, &variants), model, variant, points });
            }
        }
    }
    Chart {
        x_title: Metric::PromptTokens.axis(),
        y_title: format!("{}, {}", metric.axis(), stat_name(stat)),
        caption: caption(metric, stat, run, cells, &variants, &series),
        series,
    }
}

fn stat_name(stat: Stat) -> String {
    if stat == Stat::Quantile(0.5) { "median".to_owned() } else { stat.key() }
}

fn point(cell: &WideRow, metric: Metric, stat: Stat) -> Option<Point> {
    let figure = cell.figure(metric, stat);
    let (low, high) = (figure.low, figure.high);
    Some(Point { x: f64::from(cell.prompt_tokens), y: figure.value?, low, high, valid: cell.is_valid() })
}

/// The model, and of output length and batch what differs within the figure.
fn label(model: &str, (output, batch): (u32, u32), variants: &[(u32, u32)]) -> String {
    let mut label = one_line(model);
    if variants.iter().any(|v| v.0 != variants[0].0) {
        let _ = write!(label, ", {output} out");
    }
    if variants.iter().any(|v| v.1 != variants[0].1) {
        let _ = write!(label, ", batch {batch}");
    }
    label
}

fn caption(
    metric: Metric,
    stat: Stat,
    run: &RunInput,
    cells: &[WideRow],
    variants: &[(u32, u32)],
    series: &[Series],
) -> Vec<String> {
    let mut parts = vec![format!("Run {}", one_line(&run.run_id)), one_line(&run.machine)];
    if let Some(&(output, batch)) = variants.first() {
        if variants.iter().all(|v| v.0 == output) {
            parts.push(format!("{output} output tokens"));
        }
        if variants.iter().all(|v| v.1 == batch) {
            parts.push(format!("batch {batch}"));
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
