//! Empirical distributions: the share of samples up to a value as steps, a line per model.
//!
//! Quantiles are marked where n supports them, and nowhere else; the steps themselves claim nothing beyond the
//! samples.

use super::cells::{Study, Told};
use super::chart::{Chart, Join, Key, Mark, Point, Sample, Scale, Series, Spread};
use super::picked::{Picked, caption, has_tip, name, picked, style};
use crate::round::round;
use crate::view::short_name;
use bench_core::detail::{CellDetail, Distribution};
use bench_core::metric::Metric;
use bench_core::sample::Stat;

/// Quantiles that are marked.
const MARKED: [f64; 3] = [0.5, 0.95, 0.99];

/// `None` where no cell has samples of `metric`.
pub(super) fn chart(study: &Study, metric: Metric) -> Option<Chart> {
    let picked = picked(study, |detail| distribution(detail, metric).is_some());
    let (mut lines, mut marks, mut keys, mut ns) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for own in &picked {
        let Some(distribution) = distribution(own.detail, metric) else { continue };
        let style = style(own, 0);
        let points = steps(own, distribution);
        lines.push(Series { label: None, style, mark: line(Join::Steps, false), points });
        let points = quantiles(own, metric);
        let sample = if points.is_empty() { Sample::Line } else { Sample::LineAndMarker };
        keys.push(Key { label: name(own, &picked), style, sample });
        if !points.is_empty() {
            marks.push(Series { label: None, style, mark: line(Join::None, true), points });
        }
        ns.push(format!("n = {}", distribution.n));
    }
    if lines.is_empty() {
        return None;
    }
    let mut caption = caption(study, &picked, "the largest of each model");
    ns.dedup();
    caption.push(if ns.len() == 1 {
        ns.remove(0)
    } else {
        format!("{} in the legend's order", ns.join(", "))
    });
    if !marks.is_empty() {
        caption.push("markers: p50, p95, p99 where n supports them".to_owned());
    }
    lines.extend(marks);
    if lines.iter().flat_map(|s| &s.points).any(|p| !p.valid) {
        caption.push("hollow: INVALID".to_owned());
    }
    Some(Chart {
        title: format!("{}: share of samples up to each value", metric.def().title),
        x: Scale { title: metric.axis(), spread: Spread::Tight },
        y: Scale { title: "Share of samples".to_owned(), spread: Spread::Fixed(0.0, 1.0) },
        series: lines,
        keys,
        caption,
        ..Chart::default()
    })
}

fn line(join: Join, markers: bool) -> Mark {
    Mark::Line { join, markers }
}

fn distribution(detail: &CellDetail, metric: Metric) -> Option<&Distribution> {
    detail.distributions.iter().find(|d| d.metric == metric && !d.steps.is_empty())
}

/// From 0 at the least value upwards.
fn steps(own: &Picked, distribution: &Distribution) -> Vec<Point> {
    let foot = distribution.steps.first().map(|&(value, _)| Point::at(value, 0.0));
    let unit = distribution.metric.def().unit;
    let len = distribution.steps.len();
    let step = |(index, &(value, share)): (usize, &(f64, f64))| {
        let text = round(value, None, None).value;
        let told = format!(
            "{} {text} {unit} or less: {:.2} % of the samples",
            short_name(distribution.metric),
            share * 100.0
        );
        let tip = if has_tip(index, len) { own.cell.tip(&[]) + "\n" + &told } else { String::new() };
        Point { tip, cell: own.cell.id.map(ToOwned::to_owned), ..Point::at(value, share) }
    };
    foot.into_iter().chain(distribution.steps.iter().enumerate().map(step)).collect()
}

/// Where rows have a quantile it is supported; the same number as in every table.
fn quantiles(own: &Picked, metric: Metric) -> Vec<Point> {
    let point = |p: f64| {
        let figure = own.cell.figure(metric, "", Stat::Quantile(p));
        let name = format!("{}, {}", short_name(metric), Stat::Quantile(p).key());
        let tip = own.cell.tip(&[Told { name: &name, figure, unit: metric.def().unit }]);
        let valid = own.cell.row.is_valid();
        Some(Point { valid, tip, cell: own.cell.id.map(ToOwned::to_owned), ..Point::at(figure.value?, p) })
    };
    MARKED.into_iter().filter_map(point).collect()
}
