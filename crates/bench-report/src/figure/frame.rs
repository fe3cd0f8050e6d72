//! What stands around the plot: legend, axes with ticks and titles, caption. Text is cut or broken, never
//! covered.

use super::chart::{Chart, Key, Sample, Spread};
use super::layout::Plot;
use super::paint::{Label, Shape, text_width};
use super::style::{
    BLACK, CAPTION, CAPTION_LINE, FAINT, GREY, LEGEND, LEGEND_LINE, LINE, MARGIN, SAMPLE_WIDTH, THIN, TICK,
    TICK_LENGTH, TICK_LINE, TITLE, WIDTH, bar, dashed, line, marker, shade, text,
};
use plotters::style::text_anchor::HPos;

/// Between the margins.
const ROOM: i32 = WIDTH - 2 * MARGIN;
/// Of an entry of the legend: its sample and the blanks around its text.
const ENTRY: i32 = SAMPLE_WIDTH + 60;
/// Smallest letters of the legend; a longer name loses its middle.
const SMALLEST_LEGEND: f64 = 5.5;

/// Pixels below which a name that was cut would say nothing; then some names stand whole and others not at
/// all.
const READABLE: i32 = 220;

/// The entries in as many columns as there is room for; returns where they end.
pub(super) fn legend(shapes: &mut Vec<Shape>, keys: &[Key]) -> Result<i32, String> {
    let widths = keys.iter().map(|k| text_width(&k.label, LEGEND)).collect::<Result<Vec<_>, _>>()?;
    let most = keys.len().clamp(1, 4);
    let fitting =
        (2..=most).rev().map(|count| columns(&widths, count)).find(|c| c.iter().sum::<i32>() <= ROOM);
    let columns = fitting.unwrap_or_else(|| vec![ROOM]);
    let lines = keys.len().div_ceil(columns.len()).max(1);
    // What is left over goes between the columns.
    let gap = (ROOM - columns.iter().sum::<i32>()).max(0) / columns.len() as i32;
    for (index, key) in keys.iter().enumerate() {
        let (column, line) = (index / lines, index as i32 % lines as i32);
        let x = MARGIN + columns[..column].iter().map(|width| width + gap).sum::<i32>();
        let y = MARGIN + line * LEGEND_LINE + LEGEND_LINE / 2;
        sample(shapes, key, x, y);
        let room = columns[column] + gap - ENTRY;
        let shrunk = f64::from(room) / f64::from(widths[index].max(1));
        let size = (LEGEND * shrunk.min(1.0)).max(SMALLEST_LEGEND);
        let at = (x + SAMPLE_WIDTH + 30, y);
        let label = shortened(&key.label, size, room)?;
        shapes.push(text(&label, at, size, BLACK, HPos::Left, true));
    }
    Ok(MARGIN + if keys.is_empty() { 0 } else { lines as i32 * LEGEND_LINE })
}

/// Widths of so many columns of entries, filled one after the other.
fn columns(widths: &[i32], count: usize) -> Vec<i32> {
    let lines = widths.len().div_ceil(count);
    widths.chunks(lines).map(|column| ENTRY + column.iter().copied().max().unwrap_or(0)).collect()
}

fn sample(shapes: &mut Vec<Shape>, key: &Key, x: i32, y: i32) {
    let color = key.style.ink.color();
    let middle = (x + SAMPLE_WIDTH / 2, y);
    if matches!(key.sample, Sample::Line | Sample::LineAndMarker) {
        dashed(shapes, &[(x, y), (x + SAMPLE_WIDTH, y)], key.style, LINE, color);
    }
    let (from, to) = ((x + 30, y - 28), (x + SAMPLE_WIDTH - 30, y + 28));
    match key.sample {
        Sample::LineAndMarker | Sample::Marker => marker(shapes, middle, key.style.marker, color, true),
        Sample::Bar => bar(shapes, (from, to), key.style, true),
        Sample::Limit => dashed(shapes, &[(from.0, y), (to.0, y)], key.style, LINE + 4, color),
        Sample::Band(index) => {
            let points = vec![from, (to.0, from.1), to, (from.0, to.1)];
            shapes.push(Shape::Area { points, color: shade(index) });
        }
        Sample::Line => {}
    }
}

/// The text without as much of its middle as does not fit: the ends tell names apart.
fn shortened(label: &str, points: f64, room: i32) -> Result<String, String> {
    let chars: Vec<char> = label.chars().collect();
    // Widths only grow with the number of letters, so that halving finds the most that fits.
    let cut = |kept: usize| {
        let (head, tail) = (kept.div_ceil(2), kept / 2);
        let start: String = chars[..head].iter().collect();
        let end: String = chars[chars.len() - tail..].iter().collect();
        format!("{start}...{end}")
    };
    if text_width(label, points)? <= room {
        return Ok(label.to_owned());
    }
    let (mut fits, mut too_long) = (0, chars.len());
    while fits + 1 < too_long {
        let middle = usize::midpoint(fits, too_long);
        if text_width(&cut(middle), points)? <= room { fits = middle } else { too_long = middle }
    }
    Ok(cut(fits))
}

pub(super) fn axes(shapes: &mut Vec<Shape>, plot: &Plot, chart: &Chart) -> Result<(), String> {
    for (value, label) in &plot.y.ticks {
        let y = plot.y_at(*value);
        shapes.push(line(vec![(plot.left, y), (plot.right, y)], 3, FAINT));
        shapes.push(line(vec![(plot.left - TICK_LENGTH, y), (plot.left, y)], THIN, BLACK));
        let at = (plot.left - TICK_LENGTH - 14, y);
        shapes.push(text(label, at, TICK, BLACK, HPos::Right, true));
    }
    x_ticks(shapes, plot, matches!(chart.x.spread, Spread::Names(_)))?;
    shapes.push(line(
        vec![(plot.left, plot.top), (plot.left, plot.bottom), (plot.right, plot.bottom)],
        THIN,
        BLACK,
    ));
    let at = (i32::midpoint(plot.left, plot.right), plot.bottom + TICK_LENGTH + TICK_LINE + 14);
    let points = fitting(&chart.x.title, plot.right - plot.left)?;
    shapes.push(text(&chart.x.title, at, points, BLACK, HPos::Center, false));
    let at = (MARGIN, i32::midpoint(plot.top, plot.bottom));
    let points = fitting(&chart.y.title, plot.bottom - plot.top)?;
    let (text, color, align) = (chart.y.title.clone(), BLACK, HPos::Center);
    shapes.push(Shape::Text(Label { text, at, points, color, align, centered: false, upright: true }));
    Ok(())
}

/// Size of an axis' title that fits into so many pixels.
fn fitting(title: &str, room: i32) -> Result<f64, String> {
    Ok(TITLE * (f64::from(room) / f64::from(text_width(title, TITLE)?.max(1))).min(1.0))
}

/// Where values lie close together, only those labels stand that have room; names become smaller first.
fn x_ticks(shapes: &mut Vec<Shape>, plot: &Plot, names: bool) -> Result<(), String> {
    let widths = plot.x.ticks.iter().map(|t| text_width(&t.1, TICK)).collect::<Result<Vec<_>, _>>()?;
    let room = (plot.right - plot.left) / plot.x.ticks.len().max(1) as i32 - 30;
    let shrunk = f64::from(room) / f64::from(widths.into_iter().max().unwrap_or(0).max(1));
    let size = if names { (TICK * shrunk.min(1.0)).max(CAPTION) } else { TICK };
    let mut free_from = i32::MIN;
    for (value, label) in &plot.x.ticks {
        let label = if names && room > READABLE { shortened(label, size, room)? } else { label.clone() };
        let (x, half) = (plot.x_at(*value), text_width(&label, size)? / 2);
        if !names {
            shapes.push(line(vec![(x, plot.bottom), (x, plot.bottom + TICK_LENGTH)], THIN, BLACK));
        }
        // The last label of a continuous axis would stand out of the picture.
        let middle = x.min(WIDTH - 8 - half);
        if middle - half >= free_from {
            let at = (middle, plot.bottom + TICK_LENGTH + 14);
            shapes.push(text(&label, at, size, BLACK, HPos::Center, false));
            free_from = middle + half + if names { 16 } else { 40 };
        }
    }
    Ok(())
}

/// The parts in as few lines as they need; returns where they end.
pub(super) fn caption(shapes: &mut Vec<Shape>, parts: &[String], top: i32) -> Result<i32, String> {
    let room = ROOM;
    let mut lines: Vec<String> = Vec::new();
    for part in parts.iter().filter(|p| !p.is_empty()) {
        let joined = lines.last().map(|l| format!("{l} \u{b7} {part}"));
        match (joined, lines.last_mut()) {
            (Some(joined), Some(last)) if text_width(&joined, CAPTION)? <= room => *last = joined,
            _ => lines.extend(broken(part, room)?),
        }
    }
    for (index, part) in lines.iter().enumerate() {
        let at = (MARGIN, top + index as i32 * CAPTION_LINE + 20);
        shapes.push(text(part, at, CAPTION, GREY, HPos::Left, false));
    }
    Ok(top + 20 + lines.len() as i32 * CAPTION_LINE)
}

/// One part in lines that fit: broken at blanks, and a word that is too long within.
fn broken(part: &str, room: i32) -> Result<Vec<String>, String> {
    let mut lines = vec![String::new()];
    for word in part.split_inclusive(' ') {
        let joined = lines.last().map_or_else(String::new, |l| format!("{l}{word}"));
        let fits = text_width(joined.trim_end(), CAPTION)? <= room;
        match lines.last_mut() {
            Some(last) if fits => *last = joined,
            _ => {
                lines.push(String::new());
                for c in word.chars() {
                    let joined = lines.last().map_or_else(String::new, |l| format!("{l}{c}"));
                    let fits = text_width(&joined, CAPTION)? <= room;
                    match lines.last_mut() {
                        Some(last) if fits => *last = joined,
                        _ => lines.push(c.to_string()),
                    }
                }
            }
        }
    }
    lines.retain(|l| !l.trim().is_empty());
    Ok(lines)
}
