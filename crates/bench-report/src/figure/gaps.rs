//! Token gaps over the time of a request, the first one or the one that stalled longest, with each model's median.
//!
//! Every gap is as wide as it is high: it is drawn from the chunk before it to the chunk that ends it.

use super::cells::Study;
use super::chart::{Chart, Join, Mark, Point, Rule, Scale, Series, Spread, Style};
use super::picked::{Picked, caption, has_tip, name, picked, style};
use crate::round::round;
use crate::table::one_line;
use bench_core::detail::{CellDetail, TokenTimeline};
use bench_core::metric::Metric;
use bench_core::sample::Stat;

/// Which request of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    First,
    LongestGap,
}

/// `None` where no such request has two chunks; the first one is left out where everywhere it is the other too.
pub(super) fn chart(study: &Study, which: Which) -> Option<Chart> {
    let picked = picked(study, |detail| shown(detail, which).is_some());
    let (mut series, mut rules, mut left_out) = (Vec::new(), Vec::new(), 0);
    for own in &picked {
        let Some(timeline) = shown(own.detail, which) else { continue };
        let model = name(own, &picked);
        left_out += timeline.left_out;
        rules.extend(median(own));
        let mark = Mark::Line { join: Join::Steps, markers: false };
        series.push(Series { label: Some(model), style: style(own, 0), mark, points: points(own, timeline) });
    }
    if series.is_empty() {
        return None;
    }
    let of = match which {
        Which::First => "the first measured request",
        Which::LongestGap => "the request with the longest gap",
    };
    let mut caption = caption(study, &picked, "the largest of each model");
    caption.push(of.to_owned());
    caption.push("each step is one gap, as wide as it is long".to_owned());
    if left_out > 0 {
        caption.push(format!("{left_out} further chunks are not shown"));
    }
    Some(Chart {
        title: format!("Gaps between tokens over time: {of} of each model"),
        x: Scale { title: "Time since sent (ms)".to_owned(), spread: Spread::Tight },
        y: Scale { title: "Gap between chunks (ms)".to_owned(), spread: Spread::Auto },
        rules,
        series,
        caption,
        ..Chart::default()
    })
}

/// The request, if it has a gap. A single one is first and longest, and is shown as the latter.
fn shown(detail: &CellDetail, which: Which) -> Option<&TokenTimeline> {
    let found = match (which, detail.timelines.as_slice()) {
        (Which::First, [first, _, ..]) => first,
        (Which::First, _) => return None,
        (Which::LongestGap, all) => all.last()?,
    };
    Some(found).filter(|t| t.chunks.len() > 1)
}

fn points(own: &Picked, timeline: &TokenTimeline) -> Vec<Point> {
    let gaps: Vec<(f64, f64, u32)> =
        timeline.chunks.windows(2).map(|pair| (pair[0].0, pair[1].0 - pair[0].0, pair[1].1)).collect();
    let longest = gaps.iter().map(|g| g.1).fold(0.0, f64::max);
    let point = |(index, &(from, gap, tokens)): (usize, &(f64, f64, u32))| {
        let mut point = Point::at(from, gap);
        if gap >= longest || has_tip(index, gaps.len()) {
            let text = |value| round(value, None, None).value;
            point.tip = format!(
                "{}\nrequest {}, slot {}\ngap of {} ms from {} ms on, before {tokens} {}",
                own.cell.tip(&[]),
                timeline.repeat,
                timeline.slot,
                text(gap),
                text(from),
                if tokens == 1 { "token" } else { "tokens" },
            );
            point.cell = own.cell.id.map(ToOwned::to_owned);
        }
        point
    };
    let mut points: Vec<Point> = gaps.iter().enumerate().map(point).collect();
    // The last gap is as wide as it is long too.
    points.extend(gaps.last().map(|&(from, gap, _)| Point::at(from + gap, gap)));
    points
}

/// Over all gaps of the cell.
fn median(own: &Picked) -> Option<Rule> {
    let y = own.cell.figure(Metric::Icl, "", Stat::Quantile(0.5)).value?;
    let model = one_line(own.cell.row.model);
    let label = format!("median of {model}: {} ms", round(y, None, None).value);
    Some(Rule { y, label, style: Style { dash: 1, ..style(own, 1) } })
}
