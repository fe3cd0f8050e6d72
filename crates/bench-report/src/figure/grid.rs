//! The plain figures: one statistic of a metric over prompt length or load, a line per model, output length
//! and load.

use super::cells::{Cell, Study, Told, n_text};
use super::chart::{Chart, Ink, Join, Mark, Point, Scale, Series, Spread, Style};
use crate::view::short_name;
use crate::wide::Figure;
use bench_core::metric::Metric;
use bench_core::sample::Stat;

/// One statistic of `metric` in every cell.
pub(super) fn chart(study: &Study, metric: Metric, stat: Stat) -> Chart {
    let name = format!("{}, {}", short_name(metric), stat_name(stat));
    let mut series = Vec::new();
    let mut ns = Vec::new();
    for line in study.lines() {
        let mut points = Vec::new();
        for &cell in &line {
            let figure = cell.figure(metric, "", stat);
            let told = Told { name: &name, figure, unit: metric.def().unit };
            if let Some(point) = point(cell, cell.x, figure, &[told]) {
                ns.push(figure.n);
                points.push(point);
            }
        }
        if !points.is_empty() {
            let label = Some(study.label(line[0]));
            let ink = Ink::Color(line[0].model);
            let style = Style { ink, dash: line[0].variant, marker: series.len() };
            let mark = Mark::Line { join: Join::Straight, markers: true };
            series.push(Series { label, style, mark, points });
        }
    }
    let mut caption = study.caption();
    caption.extend(n_text(ns.into_iter(), "point"));
    let mut chart = Chart {
        title: format!(
            "{} over {}, {} of each cell with its 95 % interval",
            metric.def().title,
            study.over.words(),
            stat_name(stat)
        ),
        x: Scale { title: study.over.title(), spread: Spread::Grid },
        y: Scale { title: format!("{}, {}", metric.axis(), stat_name(stat)), spread: Spread::Auto },
        series,
        aside: true,
        ..Chart::default()
    };
    caption.extend(remarks(&chart));
    let (all, shown) = (study.cells.len(), chart.points().count());
    if shown > 0 && shown < all {
        caption.push(format!("{} of {all} cells without {}", all - shown, short_name(metric)));
    }
    chart.caption = caption;
    chart
}

pub(super) fn stat_name(stat: Stat) -> String {
    if stat == Stat::Quantile(0.5) { "median".to_owned() } else { stat.key() }
}

/// The figure as a point of its cell; `None` where it is missing.
pub(super) fn point(cell: &Cell, x: f64, figure: Figure, told: &[Told]) -> Option<Point> {
    Some(Point {
        low: figure.low,
        high: figure.high,
        valid: cell.row.is_valid(),
        tip: cell.tip(told),
        cell: cell.id.map(ToOwned::to_owned),
        ..Point::at(x, figure.value?)
    })
}

/// What a caption must say of how points are drawn.
pub(super) fn remarks(chart: &Chart) -> Vec<String> {
    // An interval without width is not seen.
    let has = |p: &Point| {
        let wide = |ends: [Option<f64>; 2], value| ends.into_iter().flatten().any(|end| end != value);
        wide([p.low, p.high], p.y) || wide([p.x_low, p.x_high], p.x)
    };
    let open = |p: &Point| p.low.is_some() != p.high.is_some() || p.x_low.is_some() != p.x_high.is_some();
    let is_bar = chart.series.iter().any(|s| matches!(s.mark, Mark::Bar { .. }));
    let mut parts = Vec::new();
    if chart.points().any(has) {
        parts.push(if is_bar { "whiskers: 95 % intervals" } else { "bars: 95 % intervals" });
    }
    if chart.points().any(open) {
        parts.push("arrows: n cannot bound this end");
    }
    if chart.points().any(|p| !p.valid) {
        parts.push("hollow: INVALID");
    }
    parts.into_iter().map(ToOwned::to_owned).collect()
}
