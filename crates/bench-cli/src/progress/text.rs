//! A snapshot in words: pure functions, shared by lines, bar and screen.

use super::state::{Level, Phase, Quantiles, Snapshot};
use std::time::Duration;

/// What the run is doing, without figures.
pub(super) fn phase(s: &Snapshot) -> String {
    let stopping = if s.stopping { "stopping: " } else { "" };
    match &s.phase {
        Phase::Starting => format!("{stopping}starting"),
        Phase::Loading { model, fraction } => format!("{stopping}loading {model} {:.0} %", fraction * 100.0),
        Phase::Calibrating { cell } => format!("{stopping}calibrating the client at the load of {cell}"),
        Phase::Running => {
            let cell = s.cell.as_deref().unwrap_or("-");
            format!("{stopping}trial {}/{} {cell}", s.trial, s.trials)
        }
    }
}

/// Every figure in one line: `412/1000 requests, 64 in flight, TTFT p50 12.3 p95 20.1 p99 - ms, ..`.
pub(super) fn figures(s: &Snapshot) -> String {
    let mut parts = vec![format!("{}/{} requests", s.requests_done, s.requests_total)];
    parts.extend(s.in_flight.map(|n| format!("{n} in flight")));
    parts.extend(quantiles("TTFT", &s.ttft));
    parts.extend(quantiles("TPOT", &s.tpot));
    parts.extend(s.output_tok_s.map(|rate| format!("{} output tok/s", short(rate))));
    if !s.errors.is_empty() {
        parts.push(format!("failed: {}", errors(s)));
    }
    parts.extend(s.left.map(|left| format!("{} left", span(left))));
    parts.join(", ")
}

/// A line for where there is no terminal.
pub(super) fn line(s: &Snapshot) -> String {
    match s.phase {
        Phase::Running => format!("{}: {}", phase(s), figures(s)),
        _ => format!("{} after {}", phase(s), span(s.elapsed)),
    }
}

/// Failures by kind, the most frequent first; `none` if there are none.
pub(super) fn errors(s: &Snapshot) -> String {
    let mut kinds = s.errors.clone();
    kinds.sort_by_key(|&(kind, n)| (std::cmp::Reverse(n), kind));
    let kinds: Vec<_> = kinds.iter().map(|(kind, n)| format!("{n} {}", kind.key())).collect();
    if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") }
}

/// What is printed of a note.
pub(super) fn said(level: Level, text: &str) -> String {
    match level {
        Level::Warning => format!("warning: {text}"),
        Level::Info | Level::Failure => text.to_owned(),
    }
}

/// The quantiles that n supports; `None` if it supports none.
fn quantiles(name: &str, q: &Quantiles) -> Option<String> {
    q.values_ms.iter().any(Option::is_some).then(|| {
        let [p50, p95, p99] = q.values_ms.map(or_dash);
        format!("{name} p50 {p50} p95 {p95} p99 {p99} ms")
    })
}

pub(super) fn or_dash(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), short)
}

/// Three significant digits, and all of them before the point.
pub(super) fn short(value: f64) -> String {
    // Bounds are where rounding would give one digit more.
    let decimals = match value.abs() {
        x if x >= 99.95 => 0,
        x if x >= 9.995 => 1,
        x if x >= 0.9995 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

/// A duration for people: `12 s`, `3 min 20 s`, `1 h 05 min`.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::{busy, fresh};
    use super::*;

    #[test]
    fn a_line_holds_every_figure() {
        assert_eq!(
            line(&busy()),
            "trial 2/3 m_p8_n4_c64: 142/300 requests, 64 in flight, TTFT p50 68.6 p95 117 p99 - ms, \
             TPOT p50 10.0 p95 10.0 p99 - ms, 234 output tok/s, failed: 3 timeout, 1 status, 11 s left"
        );
    }

    #[test]
    fn a_line_has_no_figure_that_is_not_known() {
        let mut s = fresh();
        assert_eq!(line(&s), "starting after 0 s");
        s.phase = Phase::Loading { model: "m".to_owned(), fraction: 0.456 };
        s.elapsed = Duration::from_secs(61);
        assert_eq!(line(&s), "loading m 46 % after 1 min 01 s");
        s.phase = Phase::Calibrating { cell: "c1".to_owned() };
        s.stopping = true;
        assert_eq!(line(&s), "stopping: calibrating the client at the load of c1 after 1 min 01 s");
        s.phase = Phase::Running;
        s.cell = Some("c1".to_owned());
        assert_eq!(line(&s), "stopping: trial 0/0 c1: 0/0 requests");
    }

    #[test]
    fn numbers_have_three_digits() {
        for (value, text) in [
            (0.0, "0.000"),
            (0.01234, "0.012"),
            (0.9996, "1.00"),
            (1.234, "1.23"),
            (9.996, "10.0"),
            (99.96, "100"),
            (12_345.6, "12346"),
        ] {
            assert_eq!(short(value), text);
        }
        for (seconds, text) in [(0, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (3_900, "1 h 05 min")] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }
}
