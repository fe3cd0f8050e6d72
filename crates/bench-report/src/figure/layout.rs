//! Where everything stands: legend above the plot, axes around it, caption below; nothing covers data.
//!
//! Sizes are those of a column of a two-column paper.

use super::axis::Axis;
use super::paint::{DPI, Label, Place, Scene, Shape, text_width};
use super::series::{Chart, Point, Series};
use plotters::style::RGBColor;
use plotters::style::text_anchor::HPos;

/// Width of a column of a two-column paper: 3.3 inches.
const WIDTH: i32 = 33 * DPI as i32 / 10;
const PLOT_HEIGHT: i32 = 1120;
const MARGIN: i32 = 30;
/// Font sizes in points.
const TITLE: f64 = 8.0;
const TICK: f64 = 7.0;
const LEGEND: f64 = 7.0;
const CAPTION: f64 = 5.5;
const SMALLEST: f64 = 4.0;
/// Line height of each, in pixels.
const LEGEND_LINE: i32 = 92;
const CAPTION_LINE: i32 = 62;
const TITLE_LINE: i32 = 96;
const TICK_LINE: i32 = 88;
const TICK_LENGTH: i32 = 16;
const SAMPLE_WIDTH: i32 = 224;

const INK: RGBColor = RGBColor(0, 0, 0);
const FAINT: RGBColor = RGBColor(222, 222, 222);
const GREY: RGBColor = RGBColor(70, 70, 70);
const PAPER: RGBColor = RGBColor(255, 255, 255);
/// Okabe and Ito (2008), <https://jfly.uni-koeln.de/color/>: told apart by the colour-blind. Yellow is left
/// out, it is too faint on white.
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(0, 0, 0),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];
/// Lengths of ink and gap in pixels; the first is a full line.
const DASHES: [&[f64]; 5] = [&[], &[56.0, 28.0], &[12.0, 24.0], &[56.0, 22.0, 12.0, 22.0], &[100.0, 30.0]];
const LINE: u32 = 8;
const BAR: u32 = 5;
const CAP: i32 = 18;
const MARKER: f64 = 23.0;

/// The rectangle between the axes.
struct Plot<'a> {
    left: i32,
    top: i32,
    right: i32,
    bottom: i32,
    x: &'a Axis,
    y: &'a Axis,
}

impl Plot<'_> {
    fn x_at(&self, x: f64) -> i32 {
        self.left + (self.x.share(x) * f64::from(self.right - self.left)).round() as i32
    }

    fn y_at(&self, y: f64) -> i32 {
        self.bottom - (self.y.share(y) * f64::from(self.bottom - self.top)).round() as i32
    }
}

pub(super) fn scene(chart: &Chart) -> Result<Scene, String> {
    let points = || chart.series.iter().flat_map(|s| &s.points);
    let ys: Vec<f64> = points().map(|p| p.y).collect();
    // An arrow for an end that is not known needs room too.
    let most = ys.iter().copied().fold(0.0, f64::max);
    let ends: Vec<f64> = points()
        .flat_map(|p| [p.low, p.high.or_else(|| p.low.map(|_| p.y + most * 0.09))])
        .flatten()
        .filter(|end| end.is_finite())
        .collect();
    let mut y = Axis::for_values(&ys, &ends);
    let mut x = Axis::for_grid(&points().map(|p| p.x).collect::<Vec<_>>());
    if chart.series.is_empty() {
        x.ticks.clear();
        y.ticks.clear();
    }
    let mut shapes = Vec::new();
    let top = legend(&mut shapes, chart)? + MARGIN;
    let labels = y.ticks.iter().map(|t| text_width(&t.1, TICK)).collect::<Result<Vec<_>, _>>()?;
    let left = MARGIN + TITLE_LINE + labels.into_iter().max().unwrap_or(0) + TICK_LENGTH + 20;
    let plot = Plot { left, top, right: WIDTH - 2 * MARGIN, bottom: top + PLOT_HEIGHT, x: &x, y: &y };
    axes(&mut shapes, &plot, chart)?;
    draw_series(&mut shapes, &plot, &chart.series);
    if chart.series.is_empty() {
        let middle = (i32::midpoint(plot.left, plot.right), i32::midpoint(plot.top, plot.bottom));
        shapes.push(text("no valid data", middle, TITLE, GREY, HPos::Center, true));
    }
    let below = plot.bottom + TICK_LENGTH + TICK_LINE + TITLE_LINE;
    let height = caption(&mut shapes, &chart.caption, below)? + MARGIN;
    Ok(Scene { width: WIDTH as u32, height: height as u32, shapes })
}

/// One entry per series in one or two columns; returns where it ends.
fn legend(shapes: &mut Vec<Shape>, chart: &Chart) -> Result<i32, String> {
    let widths = chart.series.iter().map(|s| text_width(&s.label, LEGEND)).collect::<Result<Vec<_>, _>>()?;
    let widest = widths.into_iter().max().unwrap_or(0);
    let room = |columns: i32| (WIDTH - 2 * MARGIN) / columns - SAMPLE_WIDTH - 60;
    let columns = if chart.series.len() > 1 && widest <= room(2) { 2 } else { 1 };
    let shrunk = f64::from(room(columns)) / f64::from(widest.max(1));
    let size = (LEGEND * shrunk.min(1.0)).max(SMALLEST);
    let lines = (chart.series.len() as i32 + columns - 1) / columns;
    for (index, series) in chart.series.iter().enumerate() {
        let (column, line) = (index as i32 / lines.max(1), index as i32 % lines.max(1));
        let x = MARGIN + column * (WIDTH - 2 * MARGIN) / columns;
        let y = MARGIN + line * LEGEND_LINE + LEGEND_LINE / 2;
        let color = COLORS[series.model % COLORS.len()];
        dashed(shapes, &[(x, y), (x + SAMPLE_WIDTH, y)], series.variant, color);
        marker(shapes, (x + SAMPLE_WIDTH / 2, y), index, color, true);
        let at = (x + SAMPLE_WIDTH + 30, y);
        shapes.push(text(&series.label, at, size, INK, HPos::Left, true));
    }
    Ok(MARGIN + lines * LEGEND_LINE)
}

fn axes(shapes: &mut Vec<Shape>, plot: &Plot, chart: &Chart) -> Result<(), String> {
    for (value, label) in &plot.y.ticks {
        let y = plot.y_at(*value);
        shapes.push(line(vec![(plot.left, y), (plot.right, y)], 3, FAINT));
        shapes.push(line(vec![(plot.left - TICK_LENGTH, y), (plot.left, y)], BAR, INK));
        let at = (plot.left - TICK_LENGTH - 14, y);
        shapes.push(text(label, at, TICK, INK, HPos::Right, true));
    }
    let mut free_from = i32::MIN;
    for (value, label) in &plot.x.ticks {
        let (x, half) = (plot.x_at(*value), text_width(label, TICK)? / 2);
        shapes.push(line(vec![(x, plot.bottom), (x, plot.bottom + TICK_LENGTH)], BAR, INK));
        // Where prompt lengths lie close together, only those labels stand that have room.
        if x - half >= free_from {
            let at = (x, plot.bottom + TICK_LENGTH + 14);
            shapes.push(text(label, at, TICK, INK, HPos::Center, false));
            free_from = x + half + 40;
        }
    }
    shapes.push(line(
        vec![(plot.left, plot.top), (plot.left, plot.bottom), (plot.right, plot.bottom)],
        BAR,
        INK,
    ));
    let at = (i32::midpoint(plot.left, plot.right), plot.bottom + TICK_LENGTH + TICK_LINE + 14);
    shapes.push(text(&chart.x_title, at, TITLE, INK, HPos::Center, false));
    let middle = i32::midpoint(plot.top, plot.bottom);
    let room = f64::from(plot.bottom - plot.top);
    let points = TITLE * (room / f64::from(text_width(&chart.y_title, TITLE)?.max(1))).min(1.0);
    let (text, at) = (chart.y_title.clone(), (MARGIN, middle));
    let (color, align) = (INK, HPos::Center);
    shapes.push(Shape::Text(Label { text, at, points, color, align, centered: false, upright: true }));
    Ok(())
}

/// Where the points of a series stand: a little aside, so that the bars of several series at one x
/// can be told apart.
fn places(plot: &Plot, series: &Series, index: usize, count: usize) -> Vec<Place> {
    let spread = 30.0f64.min(120.0 / count as f64);
    let aside = ((index as f64 - (count - 1) as f64 / 2.0) * spread).round() as i32;
    series.points.iter().map(|p| (plot.x_at(p.x) + aside, plot.y_at(p.y))).collect()
}

/// All lines, then bars and markers, so that no line hides a point. A line leaves out what is INVALID.
fn draw_series(shapes: &mut Vec<Shape>, plot: &Plot, all: &[Series]) {
    let color = |series: &Series| COLORS[series.model % COLORS.len()];
    let placed: Vec<_> =
        all.iter().enumerate().map(|(i, series)| (series, places(plot, series, i, all.len()))).collect();
    for (series, places) in &placed {
        let valid = series.points.iter().zip(places).filter(|(point, _)| point.valid);
        let through: Vec<Place> = valid.map(|(_, place)| *place).collect();
        dashed(shapes, &through, series.variant, color(series));
    }
    for (index, (series, places)) in placed.iter().enumerate() {
        for (point, &place) in series.points.iter().zip(places) {
            interval(shapes, plot, point, place, color(series));
            marker(shapes, place, index, color(series), point.valid);
        }
    }
}

/// A bar with a cap at each end that n bounds, an arrow at one that it does not.
fn interval(shapes: &mut Vec<Shape>, plot: &Plot, point: &Point, (x, y): Place, color: RGBColor) {
    if point.low.is_none() && point.high.is_none() {
        return;
    }
    for (end, direction) in [(point.low, 1), (point.high, -1)] {
        if let Some(end) = end {
            let tip = plot.y_at(end);
            // Behind the marker it would only blur its outline.
            if f64::from((tip - y).abs()) < MARKER {
                continue;
            }
            shapes.push(line(vec![(x, y), (x, tip)], BAR, color));
            shapes.push(line(vec![(x - CAP, tip), (x + CAP, tip)], BAR, color));
        } else {
            let tip = (y + direction * 80).clamp(plot.top, plot.bottom);
            shapes.push(line(vec![(x, y), (x, tip)], BAR, color));
            let wings = tip - direction * CAP;
            shapes.push(line(vec![(x - CAP, wings), (x, tip), (x + CAP, wings)], BAR, color));
        }
    }
}

/// Eight outlines that differ in print without colour; hollow ones are for INVALID cells. A white
/// rim keeps neighbours apart.
fn marker(shapes: &mut Vec<Shape>, at: Place, kind: usize, color: RGBColor, filled: bool) {
    shapes.push(Shape::Area { points: outline(at, kind, MARKER + 6.0), color: PAPER });
    shapes.push(Shape::Area { points: outline(at, kind, MARKER), color });
    if !filled {
        shapes.push(Shape::Area { points: outline(at, kind, MARKER - 10.0), color: PAPER });
    }
}

fn outline((x, y): Place, kind: usize, radius: f64) -> Vec<Place> {
    // Corners, angle of the first, width and radius against those of the circle, so that areas look alike.
    let (corners, turn, flat, size) = match kind % 8 {
        0 => (32, 0.0, 1.0, 0.95),
        1 => (4, 45.0, 1.0, 1.25),
        2 => (3, -90.0, 1.0, 1.35),
        3 => (4, 0.0, 1.0, 1.3),
        4 => (3, 90.0, 1.0, 1.35),
        5 => (5, -90.0, 1.0, 1.1),
        6 => (4, 0.0, 0.55, 1.5),
        _ => (4, 45.0, 0.45, 1.5),
    };
    (0..corners)
        .map(|i| {
            let angle = (turn + 360.0 * f64::from(i) / f64::from(corners)).to_radians();
            let (dx, dy) = (angle.cos() * radius * size * flat, angle.sin() * radius * size);
            (x + dx.round() as i32, y + dy.round() as i32)
        })
        .collect()
}

/// A polyline in the dashes of `kind`.
fn dashed(shapes: &mut Vec<Shape>, points: &[Place], kind: usize, color: RGBColor) {
    let pattern = DASHES[kind % DASHES.len()];
    if points.len() < 2 {
        return;
    }
    if pattern.is_empty() {
        shapes.push(line(points.to_vec(), LINE, color));
        return;
    }
    let (mut part, mut left) = (0, pattern[0]);
    for pair in points.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let (dx, dy) = (f64::from(to.0 - from.0), f64::from(to.1 - from.1));
        let length = dx.hypot(dy);
        let at = |t: f64| {
            let share = t / length;
            (from.0 + (dx * share).round() as i32, from.1 + (dy * share).round() as i32)
        };
        let mut done = 0.0;
        while done < length {
            let step = left.min(length - done);
            if part % 2 == 0 {
                shapes.push(line(vec![at(done), at(done + step)], LINE, color));
            }
            done += step;
            left -= step;
            if left <= 0.0 {
                part = (part + 1) % pattern.len();
                left = pattern[part];
            }
        }
    }
}

/// The parts in as few lines as they need; returns where they end.
fn caption(shapes: &mut Vec<Shape>, parts: &[String], top: i32) -> Result<i32, String> {
    let room = WIDTH - 2 * MARGIN;
    let mut lines: Vec<String> = Vec::new();
    for part in parts.iter().filter(|p| !p.is_empty()) {
        let joined = lines.last().map(|l| format!("{l} \u{b7} {part}"));
        match (joined, lines.last_mut()) {
            (Some(joined), Some(last)) if text_width(&joined, CAPTION)? <= room => *last = joined,
            _ => lines.push(part.clone()),
        }
    }
    for (index, part) in lines.iter().enumerate() {
        let shrunk = f64::from(room) / f64::from(text_width(part, CAPTION)?.max(1));
        let size = (CAPTION * shrunk.min(1.0)).max(SMALLEST);
        let at = (MARGIN, top + index as i32 * CAPTION_LINE + 20);
        shapes.push(text(part, at, size, GREY, HPos::Left, false));
    }
    Ok(top + 20 + lines.len() as i32 * CAPTION_LINE)
}

fn line(points: Vec<Place>, width: u32, color: RGBColor) -> Shape {
    Shape::Line { points, width, color }
}

fn text(text: &str, at: Place, points: f64, color: RGBColor, align: HPos, centered: bool) -> Shape {
    Shape::Text(Label { text: text.to_owned(), at, points, color, align, centered, upright: false })
}
