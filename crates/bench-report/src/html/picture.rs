//! A figure inside of the page: its SVG with ids of its own, without the caption that the page sets below it, in
//! colours that have a dark counterpart, and with places where a reader's pointer finds a value.

use super::raw::RawFiles;
use super::words::{base64, clean, turns, url_path};
use crate::figure::{Figure, Hit};
use crate::{RunInput, file_stem};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// A larger SVG is shown as its PNG: thousands of marks side by side cannot be pointed at anyway.
const MAX_SVG_BYTES: usize = 1 << 20;
/// A larger PNG is not shown at all, only named.
const MAX_PNG_BYTES: usize = 1 << 20;
/// Hits of one figure; of more every k-th is kept.
const MAX_HITS: usize = 600;
/// Radius of a hit: a share of the figure's width, smaller where there are many.
const RADIUS: f64 = 0.022;
const RADIUS_OF_MANY: f64 = 0.011;
const MANY: usize = 80;

/// A figure ready for the template.
#[derive(Debug, Serialize)]
pub(super) struct Picture {
    /// Unique in the page.
    pub id: String,
    pub name: String,
    pub title: String,
    pub caption: String,
    pub marks: usize,
    /// What is drawn, without its outer element; empty where a PNG stands in its place.
    pub drawn: String,
    pub view_box: String,
    pub png: String,
    /// Names the file of a figure that is too large for the page.
    pub file: String,
    pub hits: Vec<Spot>,
    pub radius: i32,
    pub raw: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Spot {
    pub x: i32,
    pub y: i32,
    pub tip: String,
    pub href: Option<String>,
}

/// What the pictures of a page share.
pub(super) struct Album {
    /// Colours that the drawings use.
    pub colors: BTreeSet<String>,
    /// Bytes that are left for further pictures.
    pub room: usize,
}

/// One figure of the run, as `id` in the page.
pub(super) fn picture(
    figure: &Figure,
    id: String,
    run: &RunInput,
    files: &RawFiles,
    album: &mut Album,
) -> Picture {
    let large = figure.svg.len() > MAX_SVG_BYTES.min(album.room);
    let named = large && figure.png.len() > MAX_PNG_BYTES.min(album.room);
    let size = if large { figure.png.len() } else { figure.svg.len() };
    album.room -= if named { 0 } else { size };
    let (body, height) = without_caption(inner(&figure.svg), &figure.caption, figure.height);
    if !large {
        album.colors.extend(colors_of(body));
    }
    let hits = figure.hits.as_slice();
    let step = hits.len().div_ceil(MAX_HITS).max(1);
    let share = if hits.len() > MANY { RADIUS_OF_MANY } else { RADIUS };
    Picture {
        name: figure.name.clone(),
        title: clean(&figure.title),
        caption: clean(&figure.caption),
        marks: figure.marks,
        drawn: if large { String::new() } else { own_ids(body, &id) },
        view_box: format!("0 0 {} {height}", figure.width),
        png: if large && !named { base64(&figure.png) } else { String::new() },
        file: if named {
            format!("{}_{}.svg", file_stem(&run.study_name), figure.name)
        } else {
            String::new()
        },
        hits: if large { Vec::new() } else { hits.iter().step_by(step).map(|h| spot(h, files)).collect() },
        radius: (share * f64::from(figure.width)).round() as i32,
        raw: url_path(&format!("raw/{}/", run.run_id)),
        id,
    }
}

fn spot(hit: &Hit, files: &RawFiles) -> Spot {
    let raw = hit.cell.as_ref().and_then(|id| files.of_id(id));
    let tip: Vec<String> = hit.tip.lines().map(clean).collect();
    Spot { x: hit.x, y: hit.y, tip: tip.join("\n"), href: raw.map(|r| r.href.clone()) }
}

/// What stands between `<svg ..>` and `</svg>`.
fn inner(svg: &str) -> &str {
    let start = svg.find("<svg").and_then(|at| Some(at + svg[at..].find('>')? + 1)).unwrap_or(0);
    let end = svg.rfind("</svg>").unwrap_or(svg.len()).max(start);
    svg[start..end].trim()
}

/// The drawing without the last lines of text that are parts of `caption`, and its new height.
fn without_caption<'a>(body: &'a str, caption: &str, height: u32) -> (&'a str, u32) {
    let (mut kept, mut height) = (body, height);
    while let Some(start) = kept.rfind("<text").filter(|_| kept.ends_with("</text>")) {
        let element = &kept[start..];
        let Some(open) = element.find('>') else { break };
        let text = unescaped(element[open + 1..element.len() - "</text>".len()].trim());
        let top = attribute(&element[..open], "y").zip(attribute(&element[..open], "font-size"));
        let Some((y, size)) = top.filter(|_| !text.is_empty() && caption.contains(&text)) else { break };
        kept = kept[..start].trim_end();
        height = height.min((y - size).max(1.0) as u32);
    }
    (kept, height)
}

fn unescaped(text: &str) -> String {
    let plain = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
    plain.replace("&apos;", "'").replace("&#39;", "'").replace("&amp;", "&")
}

fn attribute(tag: &str, name: &str) -> Option<f64> {
    let rest = &tag[tag.find(&format!(" {name}=\""))? + name.len() + 3..];
    rest[..rest.find('"')?].parse().ok()
}

/// Names and references with `id` before them; nothing turns the direction of text, or breaks a line in a label.
fn own_ids(body: &str, id: &str) -> String {
    let blank = |c: char| if matches!(c, '\u{2028}' | '\u{2029}') { ' ' } else { c };
    let mut text: String = body.chars().filter(|c| !turns(*c)).map(blank).collect();
    for start in [" id=\"", "url(#", "href=\"#"] {
        text = text.replace(start, &format!("{start}{id}-"));
    }
    text
}

/// `#0072B2` of every fill and stroke.
fn colors_of(body: &str) -> BTreeSet<String> {
    let mut colors = BTreeSet::new();
    for name in ["fill=\"#", "stroke=\"#"] {
        for (at, _) in body.match_indices(name) {
            let digits = body.get(at + name.len()..at + name.len() + 6);
            colors
                .extend(digits.filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit())).map(|d| format!("#{d}")));
        }
    }
    colors
}

/// Rules that give every colour of the figures its counterpart on a dark ground.
pub(super) fn color_rules(colors: &BTreeSet<String>) -> String {
    let mut css = String::new();
    for color in colors {
        let dark = dark(color);
        let _ = writeln!(
            css,
            ".plot [fill=\"{color}\"]{{fill:light-dark({color},{dark})}}\
             .plot [stroke=\"{color}\"]{{stroke:light-dark({color},{dark})}}"
        );
    }
    css
}

/// Ground and ink of figures on dark pages; `--card` and `--ink` of the style sheet.
const DARK_GROUND: [f64; 3] = [27.0, 30.0, 36.0];
const DARK_INK: [f64; 3] = [231.0, 233.0, 237.0];
/// Contrast that lines and marks keep with the ground, by WCAG's formula.
const LEAST_CONTRAST: f64 = 4.0;
/// Relative luminance above which a colour is the tint of an area, not a line.
const TINT: f64 = 0.62;

/// Greys between ink and ground keep their place between them; lines are made lighter until they stand out; tints
/// become shades.
fn dark(color: &str) -> String {
    let channel = |i: usize| f64::from(u8::from_str_radix(&color[i..i + 2], 16).unwrap_or(0));
    let rgb = [channel(1), channel(3), channel(5)];
    let (low, high) = rgb.iter().fold((255.0f64, 0.0f64), |(l, h), c| (l.min(*c), h.max(*c)));
    let mixed = |a: [f64; 3], b: [f64; 3], share: f64| std::array::from_fn(|i| a[i] + (b[i] - a[i]) * share);
    let out: [f64; 3] = if high - low < 24.0 {
        mixed(DARK_INK, DARK_GROUND, (high + low) / 510.0)
    } else if luminance(rgb) > TINT {
        // Only the colour is left of a tint, faintly.
        let pure = rgb.map(|c| (c - low) / (high - low) * 255.0);
        mixed(DARK_GROUND, pure, (high - low) / 255.0 * 0.45 + 0.08)
    } else {
        let steps = (0..=20).map(|step| mixed(rgb, [255.0; 3], f64::from(step) / 20.0));
        steps.into_iter().find(|c| contrast(*c, DARK_GROUND) >= LEAST_CONTRAST).unwrap_or(DARK_INK)
    };
    let [r, g, b] = out.map(|c| c.round().clamp(0.0, 255.0) as u8);
    format!("#{r:02x}{g:02x}{b:02x}")
}

fn luminance(rgb: [f64; 3]) -> f64 {
    let linear = rgb.map(|c| {
        let c = c / 255.0;
        if c <= 0.040_45 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
    });
    0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
}

fn contrast(a: [f64; 3], b: [f64; 3]) -> f64 {
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SVG: &str = "<?xml?><svg width=\"1in\" viewBox=\"0 0 200 100\">\n<rect id=\"a\" fill=\"#FFFFFF\"/>\
        <path fill=\"url(#a)\" stroke=\"#0072B2\"/>\n<text x=\"1\" y=\"70\" font-size=\"8\">\nx &lt;axis&gt;\n</text>\n\
        <text x=\"1\" y=\"80\" font-size=\"5\">\nRun a &amp; b\n</text>\n\
        <text x=\"1\" y=\"90\" font-size=\"5\">\nn = 20\n</text>\n</svg>\n";

    fn figure() -> Figure {
        Figure {
            name: "ttft".into(),
            title: "TTFT".into(),
            caption: "Run a & b \u{b7} n = 20".into(),
            width: 200,
            height: 100,
            svg: SVG.into(),
            png: vec![1, 2, 3],
            pdf: Vec::new(),
            hits: (0..3).map(|x| Hit { x, y: 5, tip: format!("a\u{202e}\n{x} ms"), cell: None }).collect(),
            marks: 3,
        }
    }

    fn drawn(figure: &Figure) -> (Picture, BTreeSet<String>) {
        let mut album = Album { colors: BTreeSet::new(), room: 100 << 20 };
        let run = RunInput { study_name: "a b".into(), ..RunInput::default() };
        let picture = picture(figure, "f1".into(), &run, &RawFiles::of(&run), &mut album);
        (picture, album.colors)
    }

    #[test]
    fn the_caption_leaves_the_drawing_and_ids_are_its_own() {
        let (picture, colors) = drawn(&figure());
        assert_eq!(picture.view_box, "0 0 200 75");
        assert!(picture.drawn.ends_with("x &lt;axis&gt;\n</text>"), "{}", picture.drawn);
        assert!(
            picture.drawn.contains("id=\"f1-a\"") && picture.drawn.contains("url(#f1-a)"),
            "{}",
            picture.drawn
        );
        assert_eq!(colors.into_iter().collect::<Vec<_>>(), ["#0072B2", "#FFFFFF"]);
        assert_eq!(picture.hits.len(), 3);
        assert_eq!(picture.hits[2].tip, "a\n2 ms");
    }

    #[test]
    fn what_is_too_large_is_thinned_or_shown_as_pixels() {
        let mut large = figure();
        large.hits = (0..5000).map(|x| Hit { x, y: 0, tip: String::new(), cell: None }).collect();
        assert_eq!(drawn(&large).0.hits.len(), 556);
        large.svg = SVG.replace("n = 20", &"n".repeat(MAX_SVG_BYTES));
        let (picture, colors) = drawn(&large);
        assert_eq!((picture.drawn.as_str(), picture.png.as_str()), ("", "AQID"));
        assert!(picture.hits.is_empty() && colors.is_empty() && picture.file.is_empty());
        large.png = vec![0; MAX_PNG_BYTES + 1];
        let (picture, _) = drawn(&large);
        assert_eq!((picture.png.as_str(), picture.file.as_str()), ("", "a-b_ttft.svg"));
    }

    #[test]
    fn every_line_stands_out_on_a_dark_ground() {
        for color in ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00", "#464646"]
        {
            let dark = dark(color);
            let rgb = std::array::from_fn(|i| {
                f64::from(u8::from_str_radix(&dark[1 + 2 * i..3 + 2 * i], 16).unwrap())
            });
            assert!(contrast(rgb, DARK_GROUND) >= LEAST_CONTRAST, "{color} becomes {dark}");
        }
        assert_eq!(dark("#FFFFFF"), "#1b1e24", "the ground of figures is the card's");
        assert_eq!(dark("#000000"), "#e7e9ed");
        let area = dark("#FFE8CC");
        assert!(area.as_str() < "#606060", "a tint stays behind what is drawn on it: {area}");
    }
}
