//! Memory over prompt length: what the cache holds against theory, and the peak against the weights.

use super::cells::{Cell, Study, Told, n_text, scaled};
use super::chart::{Chart, Ink, Join, Key, Mark, Rule, Sample, Scale, Series, Spread, Style};
use super::grid::{point, remarks};
use crate::round::round;
use crate::table::one_line;
use crate::wide::Figure;
use bench_core::metric::Metric;
use bench_core::sample::Stat;

const MEDIAN: Stat = Stat::Quantile(0.5);
/// Dashes of theory; measured values are markers without a line.
const THEORY: usize = 1;
const WITHOUT_WINDOWS: usize = 2;

/// A unit in which the largest of some numbers of bytes has up to four digits before its point.
#[derive(Clone, Copy)]
struct Unit {
    name: &'static str,
    factor: f64,
}

impl Unit {
    fn of(most_bytes: f64) -> Self {
        let names = ["B", "KiB", "MiB", "GiB", "TiB"];
        let power = (0..4).find(|&p| most_bytes < 2048.0 * 1024f64.powi(p)).unwrap_or(4);
        Self { name: names[power as usize], factor: 1024f64.powi(-power) }
    }

    fn told<'a>(&self, name: &'a str, figure: Figure) -> Told<'a> {
        Told { name, figure: scaled(figure, self.factor), unit: self.name }
    }
}

/// What the cache retains, with theory and what an engine that ignores windows would need.
pub(super) fn kv(study: &Study) -> Chart {
    let measured = |c: &Cell| c.figure(Metric::KvRetained, "", MEDIAN);
    let theory = |c: &Cell| c.figure(Metric::KvTheory, "", Stat::Value);
    let full = |c: &Cell| c.figure(Metric::KvFull, "", Stat::Value);
    let shown: Vec<Vec<&Cell>> =
        study.lines().into_iter().filter(|line| line.iter().any(|c| measured(c).value.is_some())).collect();
    let values = shown.iter().flatten().flat_map(|c| [measured(c).value, full(c).value]).flatten();
    let unit = Unit::of(values.fold(0.0, f64::max));
    let mut chart = Chart {
        title: format!("KV cache retained after generation over {}, against theory", study.over.words()),
        x: Scale { title: study.over.title(), spread: Spread::Grid },
        y: Scale { title: format!("KV cache ({}), median", unit.name), spread: Spread::Auto },
        ..Chart::default()
    };
    let told = |c: &Cell| {
        let parts =
            [("measured, median", measured(c)), ("theory", theory(c)), ("theory without windows", full(c))];
        parts.into_iter().filter(|p| p.1.value.is_some()).map(|p| unit.told(p.0, p.1)).collect::<Vec<_>>()
    };
    for line in &shown {
        let of = |figure: &dyn Fn(&Cell) -> Figure| {
            line.iter()
                .filter_map(|c| point(c, c.x, scaled(figure(c), unit.factor), &told(c)))
                .collect::<Vec<_>>()
        };
        let ink = Ink::Color(line[0].model);
        let marker = chart.series.iter().filter(|s| s.label.is_some()).count();
        let markers = Mark::Line { join: Join::None, markers: true };
        let label = Some(study.label(line[0]));
        chart.series.push(Series {
            label,
            style: Style { ink, dash: 0, marker },
            mark: markers,
            points: of(&measured),
        });
        let same = line.iter().all(|c| theory(c).value == full(c).value);
        for (figure, dash) in [(&theory as &dyn Fn(&Cell) -> Figure, THEORY), (&full, WITHOUT_WINDOWS)] {
            let points = of(figure);
            if points.is_empty() || (same && dash == WITHOUT_WINDOWS) {
                continue;
            }
            let mark = Mark::Line { join: Join::Straight, markers: false };
            chart.series.push(Series { label: None, style: Style { ink, dash, marker: 0 }, mark, points });
        }
    }
    chart.keys = keys(&chart, &[(THEORY, "theory"), (WITHOUT_WINDOWS, "theory without windows")]);
    chart.caption = study.caption();
    chart.caption.extend(n_text(shown.iter().flatten().map(|c| measured(c).n), "point"));
    chart.caption.extend(slopes(study));
    let remarks = remarks(&chart);
    chart.caption.extend(remarks);
    chart
}

/// Entries for the dashes that were drawn.
fn keys(chart: &Chart, dashes: &[(usize, &str)]) -> Vec<Key> {
    let drawn = |dash| chart.series.iter().any(|s| s.label.is_none() && s.style.dash == dash);
    let shown = dashes.iter().filter(|d| drawn(d.0));
    let style = |dash| Style { ink: Ink::Grey, dash, marker: 0 };
    shown
        .map(|&(dash, label)| Key { label: label.to_owned(), style: style(dash), sample: Sample::Line })
        .collect()
}

/// `gpt-oss-nano: 4096 B per token`, of each model's first cell that has it.
fn slopes(study: &Study) -> Vec<String> {
    let mut parts = Vec::new();
    for (model, name) in study.models.iter().enumerate() {
        let own = study.cells.iter().filter(|c| c.model == model);
        let figure = own.map(|c| c.figure(Metric::KvPerToken, "", Stat::Value)).find(|f| f.value.is_some());
        let Some((figure, value)) = figure.and_then(|f| Some((f, f.value?))) else { continue };
        let rounded = round(value, figure.low, figure.high);
        // An exact line has an interval without width, which says nothing.
        let interval = match rounded.interval {
            Some((Some(low), Some(high))) if low != high => format!(" [{low}, {high}]"),
            _ => String::new(),
        };
        parts.push(format!("slope of {}: {}{interval} B per token", one_line(name), rounded.value));
    }
    parts
}

/// Scopes of a peak, the nearest to the device first.
static SCOPES: [(&str, &str); 5] = [
    ("gpu_process", "GPU memory of the process"),
    ("gpu_device", "GPU memory of the device"),
    (ON_GPU, "allocated on the GPU by the engine"),
    ("process", "memory of the process (RSS)"),
    ("allocator", "allocated by the engine"),
];
/// There is one where the model was on a GPU: what the process takes on the host is then not the model's.
const ON_GPU: &str = "gpu_allocator";

/// Those to be shown of the scopes for which there is a figure: the host allocator's only where there is no other.
fn scopes(has: impl Fn(&str) -> bool) -> Vec<&'static (&'static str, &'static str)> {
    let of = |range: std::ops::Range<usize>| SCOPES[range].iter().filter(|s| has(s.0)).collect::<Vec<_>>();
    let near = if has(ON_GPU) { of(0..3) } else { of(0..4) };
    if near.is_empty() { of(4..5) } else { near }
}

/// The peak of each scope that there is, above the weights.
pub(super) fn peak(study: &Study) -> Chart {
    let figure = |c: &Cell, scope: &str| c.figure(Metric::PeakBytes, scope, Stat::Max);
    let has = |scope: &str| study.cells.iter().any(|c| figure(c, scope).value.is_some());
    let scopes = scopes(has);
    let all = scopes.iter().flat_map(|s| study.cells.iter().filter_map(move |c| figure(c, s.0).value));
    let unit = Unit::of(all.fold(0.0, f64::max));
    let mut chart = Chart {
        title: format!("Peak memory over {}, above the weights", study.over.words()),
        x: Scale { title: study.over.title(), spread: Spread::Grid },
        y: Scale { title: format!("Peak memory ({})", unit.name), spread: Spread::Auto },
        ..Chart::default()
    };
    let mut ns = Vec::new();
    for (dash, scope) in scopes.iter().enumerate() {
        for (marker, line) in study.lines().into_iter().enumerate() {
            let told = |c: &Cell| {
                let weights = c.figure(Metric::WeightsBytes, "", Stat::Value);
                let mut told = vec![unit.told(scope.1, figure(c, scope.0))];
                told.extend(weights.value.map(|_| unit.told("weights", weights)));
                told
            };
            let points = line.iter().filter_map(|c| {
                let point = point(c, c.x, scaled(figure(c, scope.0), unit.factor), &told(c));
                ns.extend(point.as_ref().map(|_| figure(c, scope.0).n));
                point
            });
            let points: Vec<_> = points.collect();
            if points.is_empty() {
                continue;
            }
            let label = Some(study.label(line[0])).filter(|_| dash == 0);
            let style = Style { ink: Ink::Color(line[0].model), dash, marker };
            chart.series.push(Series {
                label,
                style,
                mark: Mark::Line { join: Join::Straight, markers: true },
                points,
            });
        }
    }
    chart.rules = weights(study, &chart, unit, scopes.len());
    chart.caption = study.caption();
    match scopes.as_slice() {
        [one] => chart.caption.push(one.1.to_owned()),
        several => chart.keys = several.iter().enumerate().map(|(dash, s)| key(dash, s.1)).collect(),
    }
    chart.caption.push("largest of all readings".to_owned());
    chart.caption.extend(n_text(ns.into_iter(), "point"));
    let remarks = remarks(&chart);
    chart.caption.extend(remarks);
    chart
}

fn key(dash: usize, label: &str) -> Key {
    let style = Style { ink: Ink::Grey, dash, marker: 0 };
    Key { label: label.to_owned(), style, sample: Sample::Line }
}

/// A line for the weights of each model that is drawn, with the number in its name.
fn weights(study: &Study, chart: &Chart, unit: Unit, dash: usize) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (model, name) in study.models.iter().enumerate() {
        let ink = Ink::Color(model);
        let mut own = study.cells.iter().filter(|c| c.model == model);
        let value = own.find_map(|c| c.figure(Metric::WeightsBytes, "", Stat::Value).value);
        if let Some(value) = value.filter(|_| chart.series.iter().any(|s| s.style.ink == ink)) {
            let y = value * unit.factor;
            let label =
                format!("weights of {}, {} {}", one_line(name), round(y, None, None).value, unit.name);
            rules.push(Rule { y, label, style: Style { ink, dash: dash.max(THEORY), marker: 0 } });
        }
    }
    rules
}
