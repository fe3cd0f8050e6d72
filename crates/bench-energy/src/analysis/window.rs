//! Which stretches of time a cell's joules are summed over, from its requests or from its steady windows.
//!
//! It sees no power: how long a window must be is told to it.

use super::code::{Code, Value};
use super::counter::too_short;
use bench_core::trace::{RequestTrace, SteadyWindow, Timeline};
use bench_core::unit::Nanos;
use std::collections::BTreeMap;

/// What is kept of the requests of one repeat that run together.
#[derive(Debug, Clone)]
pub(crate) struct Repeat {
    /// The first request sent.
    sent: Nanos,
    /// When the last of the requests had its first token: the end of the prefill.
    prefilled: Option<Nanos>,
    last: Option<Nanos>,
    tokens: u64,
    requests: u64,
    failed: bool,
}

/// Repeats of one trial by number.
pub(crate) type Repeats = BTreeMap<u32, Repeat>;

/// Takes in one request of a batch.
pub(crate) fn add(repeats: &mut Repeats, request: &RequestTrace, timeline: &Timeline) {
    let one = Repeat {
        sent: timeline.sent,
        prefilled: timeline.first_token(),
        last: timeline.last_token(),
        tokens: timeline.token_count(),
        requests: 1,
        failed: !timeline.succeeded(),
    };
    let Some(all) = repeats.get_mut(&request.repeat) else {
        repeats.insert(request.repeat, one);
        return;
    };
    all.sent = all.sent.min(one.sent);
    all.prefilled = all.prefilled.max(one.prefilled);
    all.last = all.last.max(one.last);
    all.tokens += one.tokens;
    all.requests += 1;
    all.failed |= one.failed;
}

impl Repeat {
    /// Sent, prefilled, last token in seconds; `None` if it failed.
    fn instants(&self) -> Option<(f64, f64, f64)> {
        let whole = self.prefilled.zip(self.last).filter(|_| !self.failed);
        whole.map(|(prefilled, last)| (self.sent.as_secs(), prefilled.as_secs(), last.as_secs()))
    }
}

/// One stretch of time that gives one sample of each metric.
#[derive(Debug, Clone, Default)]
pub(crate) struct Window {
    /// What a sample is grouped by: a repeat, or a trial.
    pub(crate) group: u32,
    /// Place of the trial among those of the cell.
    pub(crate) trial: usize,
    /// Why it is no window; nothing below is then known.
    pub(crate) fault: Option<Code>,
    pub(crate) from: f64,
    pub(crate) to: f64,
    /// Output tokens of the window, and those of them that the decode made.
    pub(crate) tokens: f64,
    pub(crate) decoded: f64,
    /// Sent, prefilled, last token of each repeat; `None` where requests overlap.
    pub(crate) repeats: Option<Vec<(f64, f64, f64)>>,
}

/// One window per repeat; or one per trial if the shortest repeat has fewer than 10 of `period`.
pub(crate) fn of_batches(trials: &[&Repeats], period: Option<f64>) -> Vec<Window> {
    let lengths = trials.iter().flat_map(|t| t.values()).filter_map(Repeat::instants).map(|i| i.2 - i.0);
    let shortest = lengths.reduce(f64::min);
    let joined = shortest.zip(period).is_some_and(|(length, period)| too_short(length, period));
    let mut windows = Vec::new();
    for (trial, repeats) in trials.iter().enumerate().filter(|(_, r)| !r.is_empty()) {
        if joined {
            windows.push(over(trial as u32, trial, &repeats.values().collect::<Vec<_>>()));
        } else {
            windows.extend(repeats.iter().map(|(&repeat, r)| over(repeat, trial, &[r])));
        }
    }
    windows
}

fn over(group: u32, trial: usize, repeats: &[&Repeat]) -> Window {
    let instants: Option<Vec<_>> = repeats.iter().map(|r| r.instants()).collect();
    let Some(instants) = instants else {
        return Window { group, trial, fault: Some(Code::RequestFailed), ..Window::default() };
    };
    let tokens: u64 = repeats.iter().map(|r| r.tokens).sum();
    let firsts: u64 = repeats.iter().map(|r| r.requests).sum();
    Window {
        group,
        trial,
        fault: None,
        from: instants.iter().map(|i| i.0).fold(f64::INFINITY, f64::min),
        to: instants.iter().map(|i| i.2).fold(0.0, f64::max),
        tokens: tokens as f64,
        decoded: tokens.saturating_sub(firsts) as f64,
        repeats: Some(instants),
    }
}

/// One window per trial that was steady for a time.
pub(crate) fn of_steady(steady: &[SteadyWindow]) -> Vec<Window> {
    let of = |window: &SteadyWindow| Window {
        group: window.trial,
        trial: window.trial as usize,
        fault: None,
        from: window.from.as_secs(),
        to: window.to.as_secs(),
        tokens: window.output_tokens,
        decoded: window.output_tokens,
        repeats: None,
    };
    steady.iter().map(of).collect()
}

/// Joules per token.
pub(crate) fn per_token(joules: Value, tokens: f64) -> Value {
    if tokens > 0.0 { joules.map(|j| j / tokens) } else { joules.and(Err(Code::NoTokens)) }
}
