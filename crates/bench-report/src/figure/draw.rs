//! What stands in the plot: shaded ranges, lines, bars, limits, intervals, markers and their labels.

use super::Hit;
use super::chart::{Band, Chart, Join, Mark, Point, Series};
use super::layout::{Plot, bars_have_labels, pitch};
use super::paint::{Label, Place, Shape, text_width};
use super::style::{
    BLACK, CAP, GREY, LINE, MARKER, NOTE, PAPER, THIN, bar, dashed, faint, line, marker, shade, text,
};
use plotters::style::RGBColor;
use plotters::style::text_anchor::HPos;

/// Upper left and lower right.
type Rect = (Place, Place);

pub(super) fn bands(shapes: &mut Vec<Shape>, plot: &Plot, bands: &[Band]) {
    for band in bands {
        let (from, to) = (plot.x_at(band.from), plot.x_at(band.to));
        if to > from {
            let points = vec![(from, plot.top), (to, plot.top), (to, plot.bottom), (from, plot.bottom)];
            shapes.push(Shape::Area { points, color: shade(band.shade) });
        }
    }
}

/// All lines, then bars, intervals and markers, so that no line hides a point.
pub(super) fn series(
    shapes: &mut Vec<Shape>,
    hits: &mut Vec<Hit>,
    plot: &Plot,
    chart: &Chart,
) -> Result<(), String> {
    for rule in &chart.rules {
        let y = plot.y_at(rule.y);
        dashed(shapes, &[(plot.left, y), (plot.right, y)], rule.style, LINE, rule.style.ink.color());
    }
    let placed: Vec<(&Series, Vec<Place>)> =
        chart.series.iter().enumerate().map(|(i, s)| (s, places(plot, chart, s, i))).collect();
    let mut taken = Vec::new();
    for (series, places) in &placed {
        joined(shapes, &mut taken, series, places);
    }
    let width = pitch(chart, plot.right - plot.left);
    for (series, places) in &placed {
        bars(shapes, plot, series, places, width);
    }
    for (series, places) in &placed {
        for (point, &place) in series.points.iter().zip(places) {
            mark(shapes, plot, (series, width), point, place);
            if !point.tip.is_empty() {
                let (tip, cell) = (point.tip.clone(), point.cell.clone());
                hits.push(Hit { x: place.0, y: place.1, tip, cell });
            }
        }
    }
    if bars_have_labels(chart) {
        bar_labels(shapes, plot, &placed, width)?;
    }
    labels(shapes, plot, &placed, taken)
}

/// Where the points of a series stand: bars in their slot, points of several series a little aside.
fn places(plot: &Plot, chart: &Chart, series: &Series, index: usize) -> Vec<Place> {
    let count = chart.series.len() as f64;
    let from_middle = |i: usize, n: f64| i as f64 - (n - 1.0) / 2.0;
    let aside = match series.mark {
        Mark::Bar { slot, slots } | Mark::Limit { slot, slots } => {
            from_middle(slot, slots as f64) * f64::from(pitch(chart, plot.right - plot.left))
        }
        Mark::Line { .. } if chart.aside => from_middle(index, count) * 30.0f64.min(120.0 / count),
        Mark::Line { .. } => 0.0,
    };
    series.points.iter().map(|p| (plot.x_at(p.x) + aside.round() as i32, plot.y_at(p.y))).collect()
}

/// The line of a series; steps are kept free of labels.
fn joined(shapes: &mut Vec<Shape>, taken: &mut Vec<Rect>, series: &Series, places: &[Place]) {
    let Mark::Line { join, .. } = series.mark else { return };
    let shown = series.points.iter().zip(places).filter(|(point, _)| point.valid && !point.faint);
    let mut through: Vec<Place> = shown.map(|(_, place)| *place).collect();
    through.dedup();
    match join {
        Join::None => return,
        Join::Straight => {}
        Join::Steps => {
            through = steps(&through);
            taken.extend(through.windows(2).map(|w| around(w[0], w[1], 8)));
        }
    }
    dashed(shapes, &through, series.style, LINE, series.style.ink.color());
}

/// Level to the next place, then upright.
fn steps(places: &[Place]) -> Vec<Place> {
    let mut through: Vec<Place> = Vec::with_capacity(places.len() * 2);
    for &place in places {
        if let Some(&last) = through.last() {
            through.push((place.0, last.1));
        }
        through.push(place);
    }
    through.dedup();
    through
}

fn around(a: Place, b: Place, by: i32) -> Rect {
    ((a.0.min(b.0) - by, a.1.min(b.1) - by), (a.0.max(b.0) + by, a.1.max(b.1) + by))
}

fn bars(shapes: &mut Vec<Shape>, plot: &Plot, series: &Series, places: &[Place], pitch: i32) {
    let foot = plot.y_at(0.0);
    for (point, &(x, y)) in series.points.iter().zip(places) {
        match series.mark {
            Mark::Bar { .. } => {
                let half = (pitch * 42 / 100).max(1);
                bar(shapes, ((x - half, y.min(foot)), (x + half, y.max(foot))), series.style, point.valid);
            }
            Mark::Limit { .. } => {
                let half = (pitch * 45 / 100).max(2);
                let color = series.style.ink.color();
                dashed(shapes, &[(x - half, y), (x + half, y)], series.style, LINE + 4, color);
            }
            Mark::Line { .. } => {}
        }
    }
}

fn mark(shapes: &mut Vec<Shape>, plot: &Plot, (series, pitch): (&Series, i32), point: &Point, place: Place) {
    let full = series.style.ink.color();
    let color = if point.faint { faint(full) } else { full };
    match series.mark {
        Mark::Line { join, markers } => {
            let gap = if markers { MARKER + 8.0 } else { 0.0 };
            // Level intervals lie on the steps, in whose colour nobody would see them.
            let ink = if join == Join::Steps { GREY } else { color };
            interval(shapes, plot, point, place, ink, (gap, CAP));
            if markers {
                marker(shapes, place, series.style.marker, color, point.valid);
            }
        }
        // Black on a bar of black ink would not be seen; a white rim is.
        Mark::Bar { .. } => {
            let mut lines = Vec::new();
            interval(&mut lines, plot, point, place, BLACK, (0.0, CAP.min(pitch / 3)));
            shapes.extend(lines.iter().filter_map(|shape| match shape {
                Shape::Line { points, width, .. } => Some(line(points.clone(), width + 6, PAPER)),
                _ => None,
            }));
            shapes.append(&mut lines);
        }
        Mark::Limit { .. } => {}
    }
}

/// A line with a cap at each end that n bounds, an arrow at one that it does not; nothing within `gap` of the
/// value, where it would only blur the outline of the marker.
fn interval(
    shapes: &mut Vec<Shape>,
    plot: &Plot,
    point: &Point,
    (x, y): Place,
    color: RGBColor,
    (gap, cap): (f64, i32),
) {
    // (end, direction in pixels, both limits) upright, then level.
    let upright = |end: Option<f64>, direction: i32| {
        end.map_or((y + direction * 80).clamp(plot.top, plot.bottom), |e| plot.y_at(e))
    };
    let level = |end: Option<f64>, direction: i32| {
        end.map_or((x + direction * 80).clamp(plot.left, plot.right), |e| plot.x_at(e))
    };
    let mut ends: Vec<(bool, i32, Place)> = Vec::new();
    if point.low.is_some() || point.high.is_some() {
        ends.push((point.low.is_some(), 1, (x, upright(point.low, 1))));
        ends.push((point.high.is_some(), -1, (x, upright(point.high, -1))));
    }
    if point.x_low.is_some() || point.x_high.is_some() {
        ends.push((point.x_low.is_some(), -1, (level(point.x_low, -1), y)));
        ends.push((point.x_high.is_some(), 1, (level(point.x_high, 1), y)));
    }
    for (known, direction, tip) in ends {
        let is_upright = tip.0 == x;
        if f64::from((tip.0 - x).abs() + (tip.1 - y).abs()) < gap && known {
            continue;
        }
        shapes.push(line(vec![(x, y), tip], THIN, color));
        let across = |back: i32, side: i32| {
            if is_upright { (tip.0 + side, tip.1 + back) } else { (tip.0 + back, tip.1 + side) }
        };
        let back = if known { 0 } else { -direction * cap };
        let mut end = vec![across(back, -cap), across(back, cap)];
        if !known {
            end.insert(1, tip);
        }
        shapes.push(line(end, THIN, color));
    }
}

/// Above whatever stands highest in the bar's slot: the bar, its interval, or a limit.
fn bar_labels(
    shapes: &mut Vec<Shape>,
    plot: &Plot,
    placed: &[(&Series, Vec<Place>)],
    pitch: i32,
) -> Result<(), String> {
    for (series, places) in placed.iter().filter(|(s, _)| matches!(s.mark, Mark::Bar { .. })) {
        for (point, &(x, y)) in series.points.iter().zip(places).filter(|(p, _)| !p.label.is_empty()) {
            let end = if point.low.is_some() && point.high.is_none() { y - 80 } else { y };
            let own = point.high.map_or(end, |high| plot.y_at(high));
            let limits = placed.iter().filter(|(s, _)| matches!(s.mark, Mark::Limit { .. }));
            let over = limits.flat_map(|(_, places)| places).filter(|p| (p.0 - x).abs() <= 2).map(|p| p.1);
            let top = over.min().unwrap_or(own).min(own);
            let width = text_width(&point.label, NOTE)?;
            let upright = width + 8 > pitch;
            let (at, align) =
                if upright { ((x, top - 26), HPos::Left) } else { ((x, top - 38), HPos::Center) };
            let text = point.label.clone();
            let (points, color) = (NOTE, BLACK);
            shapes.push(Shape::Text(Label { text, at, points, color, align, centered: true, upright }));
        }
    }
    Ok(())
}

/// Beside the markers, where nothing else stands; a label without room is left out, the tip has its words.
fn labels(
    shapes: &mut Vec<Shape>,
    plot: &Plot,
    placed: &[(&Series, Vec<Place>)],
    mut taken: Vec<Rect>,
) -> Result<(), String> {
    let lines = || placed.iter().filter(|(s, _)| matches!(s.mark, Mark::Line { markers: true, .. }));
    for (series, places) in lines() {
        for (point, &(x, y)) in series.points.iter().zip(places) {
            let by = MARKER as i32 + 4;
            taken.push(around((x, y), (x, y), by));
            let level = [point.x_low, point.x_high].into_iter().flatten().map(|e| (plot.x_at(e), y));
            let upright = [point.low, point.high].into_iter().flatten().map(|e| (x, plot.y_at(e)));
            taken.extend(level.chain(upright).map(|end| around((x, y), end, CAP)));
        }
    }
    for (series, places) in lines() {
        for (point, &(x, y)) in series.points.iter().zip(places).filter(|(p, _)| !p.label.is_empty()) {
            let (half, tall) = (text_width(&point.label, NOTE)? / 2, 26);
            let (dx, dy) = (half + MARKER as i32 + 16, tall + MARKER as i32 + 14);
            let around_it =
                [(0, -dy), (dx, 0), (-dx, 0), (0, dy), (dx, -dy), (dx, dy), (-dx, -dy), (-dx, dy)];
            let free = around_it.into_iter().map(|(a, b)| (x + a, y + b)).find(|&(cx, cy)| {
                let own = ((cx - half, cy - tall), (cx + half, cy + tall));
                let inside = own.0.0 > plot.left + 8
                    && own.1.0 < plot.right
                    && own.0.1 > plot.top
                    && own.1.1 < plot.bottom - 8;
                inside && !taken.iter().any(|t| overlap(own, *t))
            });
            if let Some((cx, cy)) = free {
                taken.push(((cx - half, cy - tall), (cx + half, cy + tall)));
                shapes.push(text(&point.label, (cx, cy), NOTE, GREY, HPos::Center, true));
            }
        }
    }
    Ok(())
}

fn overlap(a: Rect, b: Rect) -> bool {
    a.0.0 < b.1.0 && b.0.0 < a.1.0 && a.0.1 < b.1.1 && b.0.1 < a.1.1
}
