//! The one look of all figures: sizes, colours, dashes, markers and hatching.
//!
//! Sizes are those of a column of a two-column paper.

use super::chart::{Ink, Style};
use super::paint::{DPI, Label, Place, Shape};
use plotters::style::RGBColor;
use plotters::style::text_anchor::HPos;

/// Width of a column of a two-column paper: 3.3 inches.
pub(super) const WIDTH: i32 = 33 * DPI as i32 / 10;
pub(super) const PLOT_HEIGHT: i32 = 1120;
pub(super) const MARGIN: i32 = 30;
/// Font sizes in points.
pub(super) const TITLE: f64 = 8.0;
pub(super) const TICK: f64 = 7.0;
pub(super) const LEGEND: f64 = 7.0;
pub(super) const NOTE: f64 = 6.0;
pub(super) const CAPTION: f64 = 5.5;
/// Line height of each, in pixels.
pub(super) const LEGEND_LINE: i32 = 92;
pub(super) const CAPTION_LINE: i32 = 62;
pub(super) const TITLE_LINE: i32 = 96;
pub(super) const TICK_LINE: i32 = 88;
pub(super) const TICK_LENGTH: i32 = 16;
pub(super) const SAMPLE_WIDTH: i32 = 180;

pub(super) const BLACK: RGBColor = RGBColor(0, 0, 0);
pub(super) const FAINT: RGBColor = RGBColor(222, 222, 222);
pub(super) const GREY: RGBColor = RGBColor(70, 70, 70);
pub(super) const PAPER: RGBColor = RGBColor(255, 255, 255);
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
/// Behind everything; the first two differ in brightness, which survives print without colour.
const SHADES: [RGBColor; 4] =
    [RGBColor(205, 222, 236), RGBColor(250, 240, 220), RGBColor(228, 228, 228), RGBColor(222, 240, 228)];
/// Lengths of ink and gap in pixels; the first is a full line.
const DASHES: [&[f64]; 5] = [&[], &[56.0, 28.0], &[12.0, 24.0], &[56.0, 22.0, 12.0, 22.0], &[100.0, 30.0]];
pub(super) const LINE: u32 = 8;
pub(super) const THIN: u32 = 5;
pub(super) const CAP: i32 = 18;
pub(super) const MARKER: f64 = 23.0;

impl Ink {
    pub(super) fn color(self) -> RGBColor {
        match self {
            Self::Color(index) => COLORS[index % COLORS.len()],
            Self::Black => BLACK,
            Self::Grey => RGBColor(120, 120, 120),
        }
    }
}

pub(super) fn shade(index: usize) -> RGBColor {
    SHADES[index % SHADES.len()]
}

/// Two thirds of the way to white.
pub(super) fn faint(RGBColor(r, g, b): RGBColor) -> RGBColor {
    let lighter = |c: u8| 255 - (255 - c) / 3;
    RGBColor(lighter(r), lighter(g), lighter(b))
}

pub(super) fn line(points: Vec<Place>, width: u32, color: RGBColor) -> Shape {
    Shape::Line { points, width, color }
}

pub(super) fn text(
    text: &str,
    at: Place,
    points: f64,
    color: RGBColor,
    align: HPos,
    centered: bool,
) -> Shape {
    Shape::Text(Label { text: text.to_owned(), at, points, color, align, centered, upright: false })
}

/// Eight outlines that differ in print without colour; hollow ones are for INVALID cells. A white
/// rim keeps neighbours apart.
pub(super) fn marker(shapes: &mut Vec<Shape>, at: Place, kind: usize, color: RGBColor, filled: bool) {
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

/// A polyline in the style's dashes.
pub(super) fn dashed(shapes: &mut Vec<Shape>, points: &[Place], style: Style, width: u32, color: RGBColor) {
    let pattern = DASHES[style.dash % DASHES.len()];
    if points.len() < 2 {
        return;
    }
    if pattern.is_empty() {
        shapes.push(line(points.to_vec(), width, color));
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
                shapes.push(line(vec![at(done), at(done + step)], width, color));
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

/// A filled rectangle hatched in white, so that neighbours differ without colour; hollow for INVALID.
pub(super) fn bar(shapes: &mut Vec<Shape>, (a, b): (Place, Place), style: Style, filled: bool) {
    let color = style.ink.color();
    let corners = |inset: i32| {
        vec![
            (a.0 + inset, a.1 + inset),
            (b.0 - inset, a.1 + inset),
            (b.0 - inset, b.1 - inset),
            (a.0 + inset, b.1 - inset),
        ]
    };
    shapes.push(Shape::Area { points: corners(0), color });
    if !filled {
        if b.0 - a.0 > 16 && b.1 - a.1 > 16 {
            shapes.push(Shape::Area { points: corners(7), color: PAPER });
        }
        return;
    }
    let (slants, level): (&[i32], bool) = match style.marker % 6 {
        0 => (&[], false),
        1 => (&[1], false),
        2 => (&[-1], false),
        3 => (&[], true),
        4 => (&[1, -1], false),
        _ => (&[1], true),
    };
    for slant in slants {
        hatch(shapes, (a, b), *slant);
    }
    if level {
        let ys = (a.1..b.1).rev().step_by(40).skip(1);
        shapes.extend(ys.map(|y| line(vec![(a.0, y), (b.0, y)], 6, PAPER)));
    }
}

/// Lines at 45 degrees from the bar's foot, cut off at its edges.
fn hatch(shapes: &mut Vec<Shape>, (a, b): (Place, Place), slant: i32) {
    let (width, height) = (b.0 - a.0, b.1 - a.1);
    for start in (0..width + height).step_by(48).skip(1) {
        // x + y = start, in pixels from the left and from the foot.
        let (from, to) = ((start - height).max(0), start.min(width));
        let place = |x: i32| (if slant > 0 { a.0 + x } else { b.0 - x }, b.1 - (start - x));
        if to > from {
            shapes.push(line(vec![place(from), place(to)], 6, PAPER));
        }
    }
}
