//! A scene of shapes in SVG and PNG through plotters, with the font that is built in.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::sync::OnceLock;

/// Pixels per inch: what printers ask of line drawings.
pub(super) const DPI: u32 = 600;
/// Every pixel of the PNG is the mean of this many squared, so that slanted lines are smooth.
const OVERSAMPLING: u32 = 2;
/// The name under which the built-in font is registered is also what a viewer of the SVG looks for.
const FAMILY: &str = "DejaVu Sans, Verdana, sans-serif";
pub(super) static FONT: &[u8] = include_bytes!("../../assets/DejaVuSans-subset.ttf");

pub(super) type Place = (i32, i32);

/// What can be drawn, in pixels from the upper left.
pub(super) enum Shape {
    Line { points: Vec<Place>, width: u32, color: RGBColor },
    Area { points: Vec<Place>, color: RGBColor },
    Text(Label),
}

/// One line of text.
pub(super) struct Label {
    pub text: String,
    pub at: Place,
    pub points: f64,
    pub color: RGBColor,
    pub align: HPos,
    /// Whether `at` is the middle of the capitals or their upper edge.
    pub centered: bool,
    /// Read from bottom to top.
    pub upright: bool,
}

impl Label {
    /// From its place down to the baseline, in em.
    fn drop(&self) -> f64 {
        if self.centered { CAPITAL / 2.0 } else { CAPITAL }
    }
}

/// A picture.
pub(super) struct Scene {
    pub width: u32,
    pub height: u32,
    pub shapes: Vec<Shape>,
}

/// Makes the font known, once per process.
pub(super) fn register_font() -> Result<(), String> {
    static DONE: OnceLock<bool> = OnceLock::new();
    let done = DONE.get_or_init(|| plotters::style::register_font(FAMILY, FontStyle::Normal, FONT).is_ok());
    if *done { Ok(()) } else { Err("the built-in font cannot be read".to_owned()) }
}

/// What plotters calls a font's size, against its em: the two backends differ.
#[derive(Clone, Copy)]
struct FontMetric {
    size_per_em: f64,
    /// From the baseline down to where a text with `VPos::Bottom` has its place, per em.
    below_baseline: f64,
    /// Whether a wide line is drawn piece by piece: the bitmap backend's own corners shoot far beyond a sharp turn.
    pieces: bool,
}

/// The backend divides by 1.24, and lifts by half an ex, which in this font is 0.547 em.
const SVG: FontMetric = FontMetric { size_per_em: 1.24, below_baseline: 0.547 / 2.0, pieces: false };
/// The glyphs fill ascent and descent, 0.928 and 0.236 em; the baseline lies (1 / 1.24 - 1 / 2) of that
/// above.
const BITMAP: FontMetric =
    FontMetric { size_per_em: 1.164, below_baseline: 1.164 * (1.0 / 1.24 - 0.5), pieces: true };
/// Height of a capital letter or digit, per em.
const CAPITAL: f64 = 0.729;

/// Pixels of an em for a font size in points.
fn em(points: f64) -> f64 {
    points / 72.0 * f64::from(DPI)
}

/// Width of a line of text in pixels.
pub(super) fn text_width(text: &str, points: f64) -> Result<i32, String> {
    let font = (FAMILY, em(points) * BITMAP.size_per_em).into_font();
    Ok(font.box_size(text).map_err(|e| e.to_string())?.0 as i32)
}

/// The scene as SVG with its size on paper.
pub(super) fn svg(scene: &Scene) -> Result<String, String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (scene.width, scene.height)).into_drawing_area();
        paint(&area, scene, 1, SVG).map_err(|e| e.to_string())?;
    }
    let inches = |pixels: u32| f64::from(pixels) / f64::from(DPI);
    let pixels = format!("width=\"{}\" height=\"{}\"", scene.width, scene.height);
    let paper = format!("width=\"{:.3}in\" height=\"{:.3}in\"", inches(scene.width), inches(scene.height));
    Ok(text.replacen(&pixels, &paper, 1))
}

/// The scene as PNG, marked with its resolution.
pub(super) fn png(scene: &Scene) -> Result<Vec<u8>, String> {
    let (width, height) = (scene.width * OVERSAMPLING, scene.height * OVERSAMPLING);
    let mut pixels = vec![255u8; (width * height * 3) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        paint(&area, scene, OVERSAMPLING as i32, BITMAP).map_err(|e| e.to_string())?;
    }
    encode(&shrink(&pixels, scene), scene).map_err(|e| e.to_string())
}

/// Mean of each block of `OVERSAMPLING` squared pixels.
fn shrink(pixels: &[u8], scene: &Scene) -> Vec<u8> {
    let (n, row) = (OVERSAMPLING as usize, (scene.width * OVERSAMPLING * 3) as usize);
    let mut small = Vec::with_capacity(pixels.len() / (n * n));
    for y in 0..scene.height as usize {
        for x in 0..scene.width as usize {
            for channel in 0..3 {
                let block = (0..n * n).map(|i| (y * n + i / n) * row + (x * n + i % n) * 3 + channel);
                let sum: usize = block.map(|at| usize::from(pixels[at])).sum();
                small.push((sum / (n * n)) as u8);
            }
        }
    }
    small
}

fn encode(pixels: &[u8], scene: &Scene) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, scene.width, scene.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Default);
    let per_meter = (f64::from(DPI) / 0.0254).round() as u32;
    encoder.set_pixel_dims(Some(png::PixelDimensions {
        xppu: per_meter,
        yppu: per_meter,
        unit: png::Unit::Meter,
    }));
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}

/// The lines between points, longer by half of `width` where another follows: full corners, and no sharp ones.
fn pieces(points: &[Place], width: u32) -> Vec<Vec<Place>> {
    let last = points.len().saturating_sub(2);
    let piece = |(index, pair): (usize, &[Place])| {
        let (from, to) = (pair[0], pair[1]);
        let (dx, dy) = (f64::from(to.0 - from.0), f64::from(to.1 - from.1));
        let by = f64::from(width) / 2.0 / dx.hypot(dy).max(1.0);
        let along = |share: f64| ((dx * share).round() as i32, (dy * share).round() as i32);
        let (before, after) =
            (along(if index > 0 { by } else { 0.0 }), along(if index < last { by } else { 0.0 }));
        vec![(from.0 - before.0, from.1 - before.1), (to.0 + after.0, to.1 + after.1)]
    };
    points.windows(2).enumerate().map(piece).collect()
}

fn paint<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    scene: &Scene,
    scale: i32,
    metric: FontMetric,
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let place = |p: &Place| (p.0 * scale, p.1 * scale);
    area.fill(&WHITE)?;
    for shape in &scene.shapes {
        match shape {
            Shape::Line { points, width, color } => {
                let style = color.stroke_width(width * scale as u32);
                let points: Vec<Place> = points.iter().map(place).collect();
                for piece in if metric.pieces { pieces(&points, width * scale as u32) } else { vec![points] }
                {
                    area.draw(&PathElement::new(piece, style))?;
                }
            }
            Shape::Area { points, color } => {
                area.draw(&Polygon::new(points.iter().map(place).collect::<Vec<_>>(), color.filled()))?;
            }
            Shape::Text(text) => {
                let turn = if text.upright { FontTransform::Rotate270 } else { FontTransform::None };
                let size = em(text.points) * f64::from(scale);
                let font = (FAMILY, size * metric.size_per_em).into_font().transform(turn);
                let style = font.color(&text.color).pos(Pos::new(text.align, VPos::Bottom));
                let down = (size * (text.drop() + metric.below_baseline)).round() as i32;
                let (x, y) = place(&text.at);
                let at = if text.upright { (x + down, y) } else { (x, y + down) };
                area.draw(&Text::new(text.text.as_str(), at, style))?;
            }
        }
    }
    area.present()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corners_are_full_and_never_longer_than_half_the_width() {
        let steps = [(0, 0), (100, 0), (100, 50), (101, 0)];
        let expected = [vec![(0, 0), (104, 0)], vec![(100, -4), (100, 54)], vec![(100, 54), (101, 0)]];
        assert_eq!(pieces(&steps, 8), expected);
        assert_eq!(pieces(&[(1, 2), (3, 4)], 8), [vec![(1, 2), (3, 4)]]);
    }
}
