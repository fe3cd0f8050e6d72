//! Figures of a whole cell: concurrency, the steady window and what was done inside it.
//!
//! Closed loop: `batch` requests run together, so full concurrency is `batch`. Rounds are windows of their own.

use crate::life::Life;
use crate::sample;
use bench_core::metric::Metric;
use bench_core::plan::{Cell, Slo};
use bench_core::unit::Nanos;

/// How many requests were in flight when, within one round.
struct Flight {
    /// From this instant on: so many. Starts at the first request sent and ends with 0.
    steps: Vec<(Nanos, u32)>,
}

impl Flight {
    fn of(lives: &[Life]) -> Self {
        let flying = || lives.iter().filter_map(|l| Some((l.sent?, l.ended)));
        // At one instant ends come before starts: a request that follows another does not overlap it.
        let mut changes: Vec<_> =
            flying().flat_map(|(sent, ended)| [(sent, 1_i64), (ended.max(sent), -1)]).collect();
        changes.sort_unstable();
        let mut steps: Vec<(Nanos, u32)> = Vec::new();
        let mut now = 0;
        for (i, &(at, change)) in changes.iter().enumerate() {
            now += change;
            if changes.get(i + 1).is_none_or(|next| next.0 != at) {
                steps.push((at, now.max(0) as u32));
            }
        }
        Self { steps }
    }

    fn peak(&self) -> u32 {
        self.steps.iter().map(|s| s.1).max().unwrap_or(0)
    }

    /// From the first moment with `full` in flight to the last.
    fn steady(&self, full: u32) -> Option<(Nanos, Nanos)> {
        let begin = self.steps.iter().find(|s| s.1 >= full)?.0;
        let last = self.steps.iter().rposition(|s| s.1 >= full)?;
        let end = self.steps.get(last + 1)?.0;
        (end > begin).then_some((begin, end))
    }

    fn whole(&self) -> u64 {
        match (self.steps.first(), self.steps.last()) {
            (Some(first), Some(last)) => last.0.0 - first.0.0,
            _ => 0,
        }
    }

    /// Request-nanoseconds in flight, and nanoseconds in which any was.
    fn load(&self) -> (f64, f64) {
        self.steps.iter().zip(self.steps.iter().skip(1)).filter(|(a, _)| a.1 > 0).fold(
            (0.0, 0.0),
            |(sum, busy), (a, b)| {
                let time = (b.0.0 - a.0.0) as f64;
                (sum + time * f64::from(a.1), busy + time)
            },
        )
    }
}

/// Every figure of the cell; `None` where it does not exist. Goodput is there only where there are limits.
pub(crate) fn figures(cell: &Cell, slo: Option<&Slo>, trials: &[Vec<Life>]) -> Vec<(Metric, Option<f64>)> {
    let (mut steady, mut whole) = (0, 0);
    let (mut tokens, mut requests, mut good) = (0.0, 0, 0);
    let (mut sum, mut busy, mut peak) = (0.0, 0.0, 0);
    for lives in trials {
        let flight = Flight::of(lives);
        peak = peak.max(flight.peak());
        whole += flight.whole();
        let load = flight.load();
        (sum, busy) = (sum + load.0, busy + load.1);
        if let Some((begin, end)) = flight.steady(cell.batch) {
            steady += end.0 - begin.0;
            for life in lives.iter().filter(|l| l.succeeded()) {
                tokens += tokens_within(life, begin, end);
                let ended_inside = begin < life.ended && life.ended <= end;
                requests += u64::from(ended_inside);
                good += u64::from(ended_inside && slo.is_some_and(|slo| meets(slo, life)));
            }
        }
    }
    let started = trials.iter().flatten().count();
    let succeeded = trials.iter().flatten().filter(|l| l.succeeded()).count();
    let per_second = |count: f64| (steady > 0).then(|| count * 1e9 / steady as f64);
    let mut figures = vec![
        (Metric::SystemTokenRate, per_second(tokens)),
        (Metric::SystemRequestRate, per_second(requests as f64)),
        (Metric::SteadyWindow, (steady > 0).then(|| Nanos(steady).as_ms())),
        (Metric::SteadyWindowShare, (whole > 0).then(|| steady as f64 / whole as f64)),
        (Metric::PeakConcurrency, (started > 0).then(|| f64::from(peak))),
        (Metric::MeanConcurrency, (busy > 0.0).then(|| sum / busy)),
        (Metric::SuccessRate, (started > 0).then(|| succeeded as f64 / started as f64)),
    ];
    if slo.is_some() {
        figures.push((Metric::Goodput, per_second(good as f64)));
    }
    figures
}

/// Whether `life` keeps every limit that is set. A single token has no time per output token to exceed.
fn meets(slo: &Slo, life: &Life) -> bool {
    let limits = [(Metric::Ttft, slo.ttft_ms), (Metric::Tpot, slo.tpot_ms), (Metric::E2el, slo.e2el_ms)];
    limits.iter().all(|(metric, limit)| match (sample::of_request(*metric, life, ""), limit) {
        (Some(value), Some(limit)) => value <= *limit,
        _ => true,
    })
}

/// Output tokens of `life` in (begin, end]. Where the target counted other than was seen, its count is spread
/// over the tokens that were seen.
fn tokens_within(life: &Life, begin: Nanos, end: Nanos) -> f64 {
    let inside = |at: Nanos| begin < at && at <= end;
    let seen: u64 = life.timeline.chunks.iter().filter(|c| inside(c.0)).map(|c| u64::from(c.1)).sum();
    seen as f64 * life.timeline.token_count() as f64 / life.seen_tokens() as f64
}
