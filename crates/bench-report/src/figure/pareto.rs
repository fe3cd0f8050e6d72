//! Throughput against latency over the levels of a load: what rate can be had at which latency.

use super::cells::{Cell, Study, Told, n_text};
use super::chart::{Chart, Ink, Join, Mark, Point, Scale, Series, Spread, Style};
use super::grid::remarks;
use crate::load::LoadText;
use crate::table::one_line;
use crate::wide::Figure;
use bench_core::metric::Metric;
use bench_core::sample::Stat;
use std::fmt::Write as _;

/// The system's token rate over the time per token that one user sees; steps through what nothing else of
/// the same model beats in both. Empty unless some model has two levels.
pub(super) fn chart(study: &Study) -> Chart {
    let mut chart = Chart {
        title: "System token rate against time per output token over the levels of the load".to_owned(),
        x: Scale { title: format!("{}, median", Metric::Tpot.axis()), spread: Spread::Tight },
        y: Scale { title: Metric::SystemTokenRate.axis(), spread: Spread::Auto },
        ..Chart::default()
    };
    let mut ns = Vec::new();
    for (key, cells) in frontiers(study) {
        let mut points: Vec<Point> = cells.iter().filter_map(|c| point(study, c)).collect();
        if points.len() < 2 {
            continue;
        }
        ns.extend(cells.iter().map(|c| latency(c).n));
        points.sort_by(|a, b| a.x.total_cmp(&b.x).then(a.y.total_cmp(&b.y)));
        let faint: Vec<bool> = points.iter().map(|p| points.iter().any(|q| beats(q, p))).collect();
        for (point, faint) in points.iter_mut().zip(faint) {
            point.faint = faint;
            if faint {
                point.tip.push_str("\ndominated: another level is faster and serves more");
            }
        }
        let (ink, marker) = (Ink::Color(key.0), chart.series.len());
        let dash = chart.series.iter().filter(|s| s.style.ink == ink).count();
        let mark = Mark::Line { join: Join::Steps, markers: true };
        let label = Some(label(study, key));
        chart.series.push(Series { label, style: Style { ink, dash, marker }, mark, points });
    }
    chart.caption = caption(study, &chart);
    chart.caption.extend(n_text(ns.into_iter(), "point"));
    let remarks = remarks(&chart);
    chart.caption.extend(remarks);
    chart
}

/// Model, prompt and output tokens: what one frontier has in common.
type Same = (usize, u32, u32);

fn frontiers<'s, 'a>(study: &'s Study<'a>) -> Vec<(Same, Vec<&'s Cell<'a>>)> {
    let same = |c: &Cell| (c.model, c.row.prompt_tokens, c.row.output_tokens);
    let mut keys: Vec<Same> = study.cells.iter().map(same).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter().map(|key| (key, study.cells.iter().filter(|c| same(c) == key).collect())).collect()
}

fn label(study: &Study, (model, prompt, output): Same) -> String {
    let mut label = one_line(study.models[model]);
    if study.cells.iter().any(|c| c.row.prompt_tokens != prompt) {
        let _ = write!(label, ", {prompt} in");
    }
    if study.cells.iter().any(|c| c.row.output_tokens != output) {
        let _ = write!(label, ", {output} out");
    }
    label
}

fn latency(cell: &Cell) -> Figure {
    cell.figure(Metric::Tpot, "", Stat::Quantile(0.5))
}

fn point(study: &Study, cell: &Cell) -> Option<Point> {
    let (rate, time) = (cell.figure(Metric::SystemTokenRate, "", Stat::Value), latency(cell));
    let unit = |m: Metric| m.def().unit;
    let told = [
        Told { name: "time per output token, median", figure: time, unit: unit(Metric::Tpot) },
        Told { name: "system token rate", figure: rate, unit: unit(Metric::SystemTokenRate) },
    ];
    Some(Point {
        low: rate.low,
        high: rate.high,
        x_low: time.low,
        x_high: time.high,
        valid: cell.row.is_valid(),
        label: level(study, &cell.row.load),
        tip: cell.tip(&told),
        cell: cell.id.map(ToOwned::to_owned),
        ..Point::at(time.value?, rate.value?)
    })
}

/// Whether `a` is as good in both and better in one; INVALID values beat nothing and are beaten by nothing.
fn beats(a: &Point, b: &Point) -> bool {
    a.valid && b.valid && a.x <= b.x && a.y >= b.y && (a.x < b.x || a.y > b.y)
}

/// What the levels of all cells are called, if they are of one kind.
fn kind(study: &Study) -> Option<&'static str> {
    let name = |load: &LoadText| match load.kind {
        "batch" => Some("batch size"),
        "closed" => Some("requests in flight"),
        _ => load.rate.map(|_| "requests per second"),
    };
    let first = name(&study.cells.first()?.row.load)?;
    study.cells.iter().all(|c| name(&c.row.load) == Some(first)).then_some(first)
}

fn level(study: &Study, load: &LoadText) -> String {
    let number = match load.kind {
        "batch" => Some(f64::from(load.batch)),
        _ => load.level(),
    };
    match (kind(study), number) {
        (Some(_), Some(number)) => number.to_string(),
        _ => load.to_string(),
    }
}

/// Run and machine, sizes that are the same everywhere, and how to read the figure.
fn caption(study: &Study, chart: &Chart) -> Vec<String> {
    let mut parts = vec![format!("Run {}", one_line(&study.run.run_id)), one_line(&study.run.machine)];
    if let Some(first) = study.cells.first().map(|c| c.row) {
        if study.cells.iter().all(|c| c.row.prompt_tokens == first.prompt_tokens) {
            parts.push(format!("{} prompt tokens", first.prompt_tokens));
        }
        if study.cells.iter().all(|c| c.row.output_tokens == first.output_tokens) {
            parts.push(format!("{} output tokens", first.output_tokens));
        }
    }
    parts.extend(kind(study).map(|kind| format!("numbers: {kind}")));
    parts.push("line: the best rate at a latency or below".to_owned());
    if chart.points().any(|p| p.faint) {
        parts.push("pale: another level is better in both".to_owned());
    }
    parts
}
