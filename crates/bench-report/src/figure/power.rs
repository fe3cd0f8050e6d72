//! Power over the time of one trial: a line per device, prefill and decode shaded, idle power beside it.
//!
//! A reading that failed is a break in the line: nothing is drawn where nothing is known.

use super::cells::Study;
use super::chart::{Band, Chart, Ink, Join, Key, Mark, Point, Rule, Sample, Scale, Series, Spread, Style};
use super::picked::{Picked, caption, has_tip, name, picked};
use crate::round::round;
use crate::table::one_line;
use bench_core::detail::{PhaseKind, PowerTimeline};

/// Devices in one figure.
const MOST_DEVICES: usize = 6;

/// Shades of the phases.
const PREFILL: usize = 0;
const DECODE: usize = 1;
/// Share of the time of the requests that is shown before and after them; warm-up is not what was asked for.
const AROUND: f64 = 0.05;

/// The time that is shown; instants in it count from the first request.
#[derive(Debug, Clone, Copy)]
struct Window {
    origin: Option<f64>,
    from: f64,
    to: f64,
}

impl Window {
    /// Around the requests, as far as there are samples; everything where no request has phases.
    fn of(devices: &[&PowerTimeline]) -> Self {
        let sampled =
            || devices.iter().flat_map(|d| [d.samples.first(), d.samples.last()]).flatten().map(|s| s.0);
        let (begin, end) =
            (sampled().fold(f64::INFINITY, f64::min), sampled().fold(f64::NEG_INFINITY, f64::max));
        let phases = || devices.iter().flat_map(|d| &d.phases).filter(|p| p.from_s < end && p.to_s > begin);
        let Some(first) = phases().map(|p| p.from_s).reduce(f64::min) else {
            return Self { origin: None, from: begin, to: end };
        };
        let last = phases().map(|p| p.to_s).fold(first, f64::max);
        let room = AROUND * (last - first);
        Self { origin: Some(first), from: begin.max(first - room), to: end.min(last + room) }
    }

    fn title(self) -> &'static str {
        if self.origin.is_some() { "Time since the first request was sent (s)" } else { "Time (s)" }
    }

    fn x(self, at: f64) -> f64 {
        at - self.origin.unwrap_or(0.0)
    }

    fn samples(self, device: &PowerTimeline) -> Vec<(f64, Option<f64>)> {
        let inside = device.samples.iter().filter(|s| (self.from..=self.to).contains(&s.0));
        inside.map(|s| (self.x(s.0), s.1)).collect()
    }
}

/// The cell with the largest context of the first model that has power; `None` where none has.
pub(super) fn chart(study: &Study) -> Option<Chart> {
    let told = |p: &PowerTimeline| p.samples.iter().any(|s| s.1.is_some());
    let picked = picked(study, |detail| detail.power.iter().any(told));
    let picked = picked.get(..1)?;
    let own = picked.first()?;
    let devices: Vec<&PowerTimeline> = own.detail.power.iter().filter(|p| told(p)).collect();
    let window = Window::of(&devices);
    let (mut series, mut rules) = (Vec::new(), Vec::new());
    for (index, device) in devices.iter().take(MOST_DEVICES).enumerate() {
        let label = format!("{} ({})", one_line(&device.device), device.scope);
        let style = Style { ink: Ink::Color(index), dash: 0, marker: index };
        rules.extend(device.idle_w.map(|y| {
            let which = if devices.len() > 1 { format!("idle, {}", device.scope) } else { "idle".to_owned() };
            Rule {
                y,
                label: format!("{which}: {} W", round(y, None, None).value),
                style: Style { dash: 1, ..style },
            }
        }));
        series.extend(lines(own, device, window, &label, style));
    }
    let mut caption = caption(study, picked, "the largest of the first model with power");
    caption.insert(0, name(own, picked));
    caption.extend(remarks(&devices, window));
    let bands = bands(devices.first()?, window);
    let has = |shade| bands.iter().any(|b| b.shade == shade);
    let key = |&(shade, label): &(usize, &str)| Key {
        label: label.to_owned(),
        style: Style { ink: Ink::Grey, dash: 0, marker: 0 },
        sample: Sample::Band(shade),
    };
    let keys = [(PREFILL, "prefill"), (DECODE, "decode")].iter().filter(|k| has(k.0)).map(key).collect();
    Some(Chart {
        title: "Power over the time of one trial, prefill and decode of its requests shaded".to_owned(),
        x: Scale { title: window.title().to_owned(), spread: Spread::Tight },
        y: Scale { title: "Power (W)".to_owned(), spread: Spread::Zero },
        bands,
        rules,
        series,
        keys,
        caption,
        ..Chart::default()
    })
}

/// The stretches of samples that follow each other without a failed one.
fn lines(own: &Picked, device: &PowerTimeline, window: Window, label: &str, style: Style) -> Vec<Series> {
    let shown = window.samples(device);
    let len = shown.len();
    let mut lines = Vec::new();
    let samples: Vec<_> = shown.iter().enumerate().collect();
    for stretch in samples.split(|(_, sample)| sample.1.is_none()).filter(|s| !s.is_empty()) {
        let point = |&(index, &(at, watts)): &(usize, &(f64, Option<f64>))| {
            let mut point = Point::at(at, watts?);
            if has_tip(index, len) {
                let text = round(point.y, None, None).value;
                point.tip = format!("{}\n{}: {text} W at {at:.3} s", own.cell.tip(&[]), device.scope);
                point.cell = own.cell.id.map(ToOwned::to_owned);
            }
            Some(point)
        };
        let points: Vec<Point> = stretch.iter().filter_map(point).collect();
        // A reading between two that failed has no line to stand on.
        let alone = points.len() == 1;
        let mark = Mark::Line { join: if alone { Join::None } else { Join::Straight }, markers: alone };
        lines.push(Series { label: None, style, mark, points });
    }
    // The longest stretch stands for the device in the legend, so that its sample is a line where there is one.
    if let Some(longest) = lines.iter_mut().max_by_key(|l| l.points.len()) {
        longest.label = Some(label.to_owned());
    }
    lines
}

/// Prefill over decode, each joined where requests overlap.
fn bands(device: &PowerTimeline, window: Window) -> Vec<Band> {
    let mut bands: Vec<Band> = Vec::new();
    for (kind, shade) in [(PhaseKind::Decode, DECODE), (PhaseKind::Prefill, PREFILL)] {
        let mut joined: Vec<Band> = Vec::new();
        for phase in device.phases.iter().filter(|p| p.kind == kind) {
            let (from, to) = (phase.from_s.max(window.from), phase.to_s.min(window.to));
            let (from, to) = (window.x(from), window.x(to));
            match joined.last_mut() {
                _ if to <= from => {}
                Some(last) if from <= last.to => last.to = last.to.max(to),
                _ => joined.push(Band { from, to, shade, label: String::new() }),
            }
        }
        bands.append(&mut joined);
    }
    bands
}

fn remarks(devices: &[&PowerTimeline], window: Window) -> Vec<String> {
    let shown = || devices.iter().take(MOST_DEVICES);
    let samples: Vec<_> = shown().flat_map(|d| window.samples(d)).collect();
    let (n, failed) = (samples.len(), samples.iter().filter(|s| s.1.is_none()).count());
    let left_out: u64 = shown().map(|d| d.left_out).sum();
    let mut parts = vec!["first trial with power".to_owned(), format!("n = {n} samples")];
    if failed > 0 {
        parts.push(format!("{failed} failed: breaks in the line"));
    }
    if left_out > 0 {
        parts.push(format!("{left_out} later samples are not shown"));
    }
    if devices.len() > MOST_DEVICES {
        parts.push(format!("{} of {} devices", MOST_DEVICES, devices.len()));
    }
    parts
}
