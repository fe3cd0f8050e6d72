//! Figures of bars: energy per output token by scope, and decode rate per active parameter under the
//! roofline.

use super::cells::{Cell, Study, Told, n_text, scaled};
use super::chart::{Chart, Ink, Key, Mark, Point, Sample, Scale, Series, Spread, Style};
use super::grid::{point, remarks};
use super::layout::bars_have_labels;
use crate::round::round;
use crate::wide::Figure;
use bench_core::metric::Metric;
use bench_core::sample::Stat;

/// From this many watt-hours on they are the unit, below it joules.
const LEAST_WH: f64 = 0.1;
const J_PER_WH: f64 = 3600.0;

/// The value as it stands above its bar, with as many digits as its interval allows.
fn printed(figure: Figure) -> String {
    figure.value.map_or_else(String::new, |value| round(value, figure.low, figure.high).value)
}

/// The chart of `cells` in groups, without series.
fn empty(study: &Study, names: Vec<String>, title: String, y_title: String) -> Chart {
    let x = Scale { title: study.over.title(), spread: Spread::Names(names) };
    Chart { title, x, y: Scale { title: y_title, spread: Spread::Zero }, ..Chart::default() }
}

/// Energy per 1,000 output tokens of each model and scope.
pub(super) fn energy(study: &Study) -> Chart {
    let metric = Metric::WhPer1kTokens;
    let mut scopes: Vec<&str> = study.cells.iter().flat_map(|c| c.scopes(metric)).collect();
    scopes.sort_unstable();
    scopes.dedup();
    // The sum of all boards says it already.
    let all = scopes.clone();
    scopes.retain(|s| s.split_once('.').is_none_or(|(whole, _)| !all.contains(&whole)));
    let figure = |c: &Cell, scope: &str| c.figure(metric, scope, Stat::Mean);
    let has = |c: &&Cell| scopes.iter().any(|s| figure(c, s).value.is_some());
    let cells: Vec<&Cell> = study.cells.iter().filter(has).collect();
    let values = cells.iter().flat_map(|c| scopes.iter().filter_map(|s| figure(c, s).value));
    let (unit, factor) = if values.fold(0.0, f64::max) < LEAST_WH { ("J", J_PER_WH) } else { ("Wh", 1.0) };
    let (names, group) = study.groups(&cells);
    let title = "Energy per 1,000 output tokens, mean with its 95 % interval".to_owned();
    let mut chart = empty(study, names, title, format!("Energy per 1,000 output tokens ({unit})"));
    for (model, name) in study.models.iter().enumerate() {
        for scope in &scopes {
            let told = |c: &Cell| {
                let e2e = c.figure(Metric::WhPer1kTokensE2e, scope, Stat::Mean);
                let part = |name, figure| Told { name, figure: scaled(figure, factor), unit };
                let mut told = vec![part("energy per 1,000 output tokens", figure(c, scope))];
                told.extend(e2e.value.map(|_| part("prefill included", e2e)));
                told
            };
            let points = cells.iter().zip(&group).filter(|(c, _)| c.model == model).filter_map(|(c, &at)| {
                let figure = scaled(figure(c, scope), factor);
                let point = point(c, at as f64, figure, &told(c))?;
                let tip = format!("{}\n{}", point.tip, words(scope));
                Some(Point { label: printed(figure), tip, ..point })
            });
            let points: Vec<Point> = points.collect();
            if points.is_empty() {
                continue;
            }
            let name = crate::table::one_line(name);
            let label = if scopes.len() > 1 { format!("{name}, {}", words(scope)) } else { name };
            let (slot, ink) = (chart.series.len(), Ink::Color(model));
            // Scopes of one model differ by hatching alone.
            let style = Style { ink, dash: 0, marker: slot };
            let mark = Mark::Bar { slot, slots: 0 };
            chart.series.push(Series { label: Some(label), style, mark, points });
        }
    }
    count_slots(&mut chart);
    chart.caption = study.caption();
    if let [scope] = scopes[..] {
        chart.caption.push(words(scope));
    }
    chart.caption.push("without prefill".to_owned());
    let ns = cells.iter().flat_map(|c| scopes.iter().map(|s| figure(c, s))).filter(|f| f.value.is_some());
    chart.caption.extend(n_text(ns.map(|f| f.n), "bar"));
    let remarks = remarks(&chart);
    chart.caption.extend(remarks);
    chart
}

/// `GPU board 0` for `gpu_board.0`.
fn words(scope: &str) -> String {
    let words: Vec<String> = scope
        .split(['_', '.'])
        .map(|w| if matches!(w, "gpu" | "cpu" | "dram") { w.to_uppercase() } else { w.to_owned() })
        .collect();
    words.join(" ")
}

fn count_slots(chart: &mut Chart) {
    let count = 1 + chart.series.iter().fold(0, |most, s| match s.mark {
        Mark::Bar { slot, .. } | Mark::Limit { slot, .. } => most.max(slot),
        Mark::Line { .. } => most,
    });
    for series in &mut chart.series {
        match &mut series.mark {
            Mark::Bar { slots, .. } | Mark::Limit { slots, .. } => *slots = count,
            Mark::Line { .. } => {}
        }
    }
}

/// Scopes of the roofline: the bytes that were moved, and those if every expert were read.
const LIMITS: [(&str, usize, &str); 2] =
    [("", 0, "roofline limit"), ("all_experts", 2, "limit if all experts are read")];

/// Decode rate per active parameter, with the roofline limit of the same cell above each bar and the ratio
/// printed.
pub(super) fn ape(study: &Study) -> Chart {
    let ape = |c: &Cell| c.figure(Metric::ApeDecode, "", Stat::Value);
    let ratio = |c: &Cell, scope: &str| c.figure(Metric::RooflineRatio, scope, Stat::Value);
    let cells: Vec<&Cell> = study.cells.iter().filter(|c| ape(c).value.is_some()).collect();
    let (names, group) = study.groups(&cells);
    let title = "Decode rate per active parameter, with the roofline limit of each cell".to_owned();
    let unit = Metric::ApeDecode.def().unit;
    let mut chart = empty(study, names, title, Metric::ApeDecode.axis());
    let drawn: Vec<usize> = (0..study.models.len()).filter(|&m| cells.iter().any(|c| c.model == m)).collect();
    for (slot, &model) in drawn.iter().enumerate() {
        let own = || cells.iter().zip(&group).filter(|(c, _)| c.model == model);
        let told = |c: &Cell| {
            let mut told =
                vec![Told { name: "decode rate per 10^9 active parameters", figure: ape(c), unit }];
            for (scope, _, name) in LIMITS {
                told.extend(limit(ape(c), ratio(c, scope)).map(|figure| Told { name, figure, unit }));
            }
            let of_limit = Told { name: "share of the roofline limit", figure: ratio(c, ""), unit: "1" };
            told.extend(Some(of_limit).filter(|t| t.figure.value.is_some()));
            told
        };
        let bar = |(c, &at): (&&Cell, &usize)| {
            let point = point(c, at as f64, ape(c), &told(c))?;
            Some(Point { label: printed(ratio(c, "")), ..point })
        };
        let style = Style { ink: Ink::Color(model), dash: 0, marker: slot };
        let label = Some(crate::table::one_line(study.models[model]));
        let mark = Mark::Bar { slot, slots: drawn.len() };
        chart.series.push(Series { label, style, mark, points: own().filter_map(bar).collect() });
        for (scope, dash, _) in LIMITS {
            let tick =
                |(c, &at): (&&Cell, &usize)| point(c, at as f64, limit(ape(c), ratio(c, scope))?, &told(c));
            let points: Vec<Point> = own().filter_map(tick).collect();
            if !points.is_empty() {
                let style = Style { ink: Ink::Black, dash, marker: 0 };
                let mark = Mark::Limit { slot, slots: drawn.len() };
                chart.series.push(Series { label: None, style, mark, points });
            }
        }
    }
    for (_, dash, name) in LIMITS {
        let style = Style { ink: Ink::Black, dash, marker: 0 };
        if chart.series.iter().any(|s| s.label.is_none() && s.style.dash == dash) {
            chart.keys.push(Key { label: name.to_owned(), style, sample: Sample::Limit });
        }
    }
    chart.caption = study.caption();
    if bars_have_labels(&chart) && chart.points().any(|p| !p.label.is_empty()) {
        chart.caption.push("number: share of the roofline limit".to_owned());
    }
    chart.caption.extend(n_text(cells.iter().map(|c| ape(c).n), "bar"));
    let remarks = remarks(&chart);
    chart.caption.extend(remarks);
    chart
}

/// The limit in the unit of the bar: of one request, since all of a batch share the roofline.
fn limit(ape: Figure, ratio: Figure) -> Option<Figure> {
    let value = ape.value? / ratio.value.filter(|r| *r > 0.0)?;
    Some(Figure { value: Some(value).filter(|v| v.is_finite()), ..Figure::default() })
}
