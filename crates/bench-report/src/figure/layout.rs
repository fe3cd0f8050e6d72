//! Where everything stands: legend above the plot, axes around it, caption below; nothing covers data.
//!
//! `frame` writes what stands around the plot, `draw` what stands in it; here is what both share.

use super::Hit;
use super::axis::Axis;
use super::chart::{Chart, Mark, Point, Series, Spread};
use super::paint::{Scene, text_width};
use super::style::{
    GREY, MARGIN, NOTE, PLOT_HEIGHT, TICK, TICK_LENGTH, TICK_LINE, TITLE, TITLE_LINE, WIDTH, text,
};
use super::{draw, frame};
use plotters::style::text_anchor::HPos;

/// The rectangle between the axes.
pub(super) struct Plot {
    pub left: i32,
    pub top: i32,
    pub right: i32,
    pub bottom: i32,
    pub x: Axis,
    pub y: Axis,
}

impl Plot {
    pub(super) fn x_at(&self, x: f64) -> i32 {
        self.left + (self.x.share(x) * f64::from(self.right - self.left)).round() as i32
    }

    pub(super) fn y_at(&self, y: f64) -> i32 {
        self.bottom - (self.y.share(y) * f64::from(self.bottom - self.top)).round() as i32
    }
}

/// The picture, and where its values are.
pub(super) fn scene(chart: &Chart) -> Result<(Scene, Vec<Hit>), String> {
    let (mut shapes, mut hits) = (Vec::new(), Vec::new());
    let (x, y) = axes(chart)?;
    let top = frame::legend(&mut shapes, &chart.legend())? + MARGIN;
    let labels = y.ticks.iter().map(|t| text_width(&t.1, TICK)).collect::<Result<Vec<_>, _>>()?;
    let left = MARGIN + TITLE_LINE + labels.into_iter().max().unwrap_or(0) + TICK_LENGTH + 20;
    let plot = Plot { left, top, right: WIDTH - 2 * MARGIN, bottom: top + PLOT_HEIGHT, x, y };
    draw::bands(&mut shapes, &plot, &chart.bands);
    frame::axes(&mut shapes, &plot, chart)?;
    if chart.points().next().is_none() {
        let middle = (i32::midpoint(plot.left, plot.right), i32::midpoint(plot.top, plot.bottom));
        shapes.push(text("no valid data", middle, TITLE, GREY, HPos::Center, true));
    } else {
        draw::series(&mut shapes, &mut hits, &plot, chart)?;
    }
    let below = plot.bottom + TICK_LENGTH + TICK_LINE + TITLE_LINE;
    let height = frame::caption(&mut shapes, &chart.caption, below)? + MARGIN;
    Ok((Scene { width: WIDTH as u32, height: height as u32, shapes }, hits))
}

/// Both axes, with room for every interval, line and label.
fn axes(chart: &Chart) -> Result<(Axis, Axis), String> {
    let ys: Vec<f64> = chart.points().map(|p| p.y).collect();
    // An arrow for an end that is not known needs room too.
    let most = ys.iter().copied().fold(0.0, f64::max);
    let arrow = |p: &Point| p.high.or_else(|| p.low.map(|_| p.y + most * 0.09));
    let mut ends: Vec<f64> = chart.points().flat_map(|p| [p.low, arrow(p)]).flatten().collect();
    ends.extend(chart.rules.iter().map(|r| r.y));
    ends.retain(|end| end.is_finite());
    if let Some(room) = label_room(chart)? {
        let top = ends.iter().copied().fold(most, f64::max);
        ends.push(top / (1.0 - f64::from(room.min(PLOT_HEIGHT / 2)) / f64::from(PLOT_HEIGHT)));
    }
    let xs: Vec<f64> = chart.points().map(|p| p.x).collect();
    let mut x_ends: Vec<f64> = chart.points().flat_map(|p| [p.x_low, p.x_high]).flatten().collect();
    x_ends.extend(chart.bands.iter().flat_map(|b| [b.from, b.to]));
    x_ends.retain(|end| end.is_finite());
    let mut axes = (Axis::new(&chart.x.spread, &xs, &x_ends), Axis::new(&chart.y.spread, &ys, &ends));
    if ys.is_empty() {
        axes.0.ticks.clear();
        axes.1.ticks.clear();
    }
    Ok(axes)
}

/// Pixels that the labels above bars need.
fn label_room(chart: &Chart) -> Result<Option<i32>, String> {
    let is_bar = |s: &&Series| matches!(s.mark, Mark::Bar { .. });
    let labels = chart.series.iter().filter(is_bar).flat_map(|s| &s.points).map(|p| &p.label);
    let mut widest = None;
    for label in labels.filter(|l| !l.is_empty()) {
        widest = widest.max(Some(text_width(label, NOTE)?));
    }
    let pitch = pitch(chart, NARROWEST);
    Ok(widest.filter(|_| bars_have_labels(chart)).map(|w| if w + 8 <= pitch { 70 } else { w + 30 }))
}

/// A plot is about this wide, or wider.
const NARROWEST: i32 = WIDTH - 400;

/// Whether the bars of a chart are far enough apart for labels, upright if need be.
pub(super) fn bars_have_labels(chart: &Chart) -> bool {
    pitch(chart, NARROWEST) >= 44
}

/// From bar to bar in pixels, in a plot of this width.
pub(super) fn pitch(chart: &Chart, width: i32) -> i32 {
    let groups = match &chart.x.spread {
        Spread::Names(names) => names.len().max(1) as i32,
        _ => 1,
    };
    let slots = chart.series.iter().map(|s| match s.mark {
        Mark::Bar { slots, .. } | Mark::Limit { slots, .. } => slots.max(1) as i32,
        Mark::Line { .. } => 1,
    });
    (width * 82 / 100 / groups / slots.max().unwrap_or(1)).clamp(2, 230)
}
