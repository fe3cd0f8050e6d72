//! Figures of a whole cell: concurrency, the steady window and what was done inside it.
//!
//! Rounds are windows of their own. Of each request its instants are kept, 64 bytes; the arrivals of its tokens
//! too, as long as a cell has few of them.

use crate::flight::Flight;
use crate::life::Life;
use crate::sample::{self, Setting};
use bench_core::load::{Arrival, Load};
use bench_core::metric::Metric;
use bench_core::plan::{Cell, Slo};
use bench_core::trace::SteadyWindow;
use bench_core::unit::Nanos;
use std::collections::BTreeMap;

/// Chunks of a cell whose arrivals are kept. With more, the tokens of a request that reaches over an end of the
/// window are taken as evenly spread from its first to its last; those of all others are counted as they are.
const EXACT_CHUNKS: usize = 1_000_000;

/// One request as the windows see it.
#[derive(Debug)]
struct Flown {
    repeat: u32,
    intended: Nanos,
    sent: Option<Nanos>,
    ended: Nanos,
    done: Option<Done>,
}

/// What a successful request brought.
#[derive(Debug)]
struct Done {
    first: Nanos,
    last: Nanos,
    /// As the target counted them.
    tokens: u32,
    /// It kept every limit.
    good: bool,
}

/// The requests of one round.
#[derive(Debug, Default)]
struct Round {
    flown: Vec<Flown>,
    /// Chunks of each request as they came; empty once they are too many.
    chunks: Vec<Box<[(Nanos, u32)]>>,
}

/// The requests of a cell, round by round.
#[derive(Debug)]
pub(crate) struct Windows<'a> {
    cell: &'a Cell,
    slo: Option<&'a Slo>,
    setting: Setting,
    rounds: Vec<Round>,
    /// Chunks of all requests so far.
    chunks: usize,
}

/// What a trial's window is.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// From the first moment with so many in flight to the last.
    Full(u32),
    /// From the moment at which as many are in flight as on average to the last intended start. With a ramp,
    /// whose average means nothing, from the first intended start.
    Schedule { settle: bool },
    /// All at once: nothing is steady, the whole run is the window.
    Whole,
}

impl Rule {
    fn of(cell: &Cell) -> Self {
        match &cell.load {
            Load::Batch => Self::Full(cell.batch),
            Load::Closed { concurrency } => Self::Full(*concurrency),
            // Held back to so many at a time, all at once is a closed loop.
            Load::Open { arrival: Arrival::Burst, max_concurrency: Some(most) } => Self::Full(*most),
            Load::Open { arrival: Arrival::Burst, .. } => Self::Whole,
            Load::Open { arrival, .. } => Self::Schedule { settle: !matches!(arrival, Arrival::Ramp { .. }) },
        }
    }
}

/// Requests intended and not ended, averaged over the second and over the last quarter of the schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Growth {
    pub(crate) early: f64,
    pub(crate) late: f64,
}

/// What the windows come to.
#[derive(Debug)]
pub(crate) struct Flights {
    /// `None` where a figure does not exist. Goodput and growth are there only where they have a meaning.
    pub(crate) figures: Vec<(Metric, Option<f64>)>,
    pub(crate) growth: Option<Growth>,
    pub(crate) peak: u32,
    /// Of the rounds that have one.
    pub(crate) steady: Vec<SteadyWindow>,
}

impl<'a> Windows<'a> {
    pub(crate) fn new(cell: &'a Cell, slo: Option<&'a Slo>, setting: Setting) -> Self {
        Self { cell, slo, setting, rounds: Vec::new(), chunks: 0 }
    }

    pub(crate) fn round(&mut self) {
        self.rounds.push(Round::default());
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        let of = |round: &Round| {
            let chunks = round.chunks.iter().map(|c| size_of_val(c) + size_of_val(&**c));
            round.flown.capacity() * size_of::<Flown>() + chunks.sum::<usize>()
        };
        self.rounds.iter().map(of).sum()
    }

    pub(crate) fn add(&mut self, life: &Life) {
        let t = &life.timeline;
        self.chunks += t.chunks.len();
        let many = self.chunks > EXACT_CHUNKS;
        if many {
            self.rounds.iter_mut().for_each(|r| r.chunks = Vec::new());
        }
        let Some(round) = self.rounds.last_mut() else { return };
        if !many {
            round.chunks.push(t.chunks.as_slice().into());
        }
        let of = |(first, last): (Nanos, Nanos)| Done {
            first,
            last,
            tokens: t.token_count().min(u64::from(u32::MAX)) as u32,
            good: self.slo.is_some_and(|slo| meets(slo, life, self.setting)),
        };
        round.flown.push(Flown {
            repeat: life.repeat,
            intended: t.intended,
            sent: life.sent,
            ended: life.ended,
            done: t.first_token().zip(t.last_token()).filter(|_| life.succeeded()).map(of),
        });
    }

    pub(crate) fn flights(&self) -> Flights {
        let (mut steady, mut whole) = (0, 0);
        let (mut windows, mut requests, mut good) = (Vec::new(), 0, 0);
        let (mut sum, mut busy, mut peak) = (0.0, 0.0, 0);
        for (trial, round) in self.rounds.iter().enumerate() {
            let flight = Flight::of(round.flown.iter().filter_map(|f| Some((f.sent?, f.ended))));
            peak = peak.max(flight.peak());
            whole += flight.whole().map_or(0, |(begin, end)| end.0 - begin.0);
            let load = flight.load();
            (sum, busy) = (sum + load.0, busy + load.1);
            let Some((begin, end)) = self.window(&round.flown, &flight) else { continue };
            steady += end.0 - begin.0;
            let mut output_tokens = 0.0;
            for (i, flown) in round.flown.iter().enumerate() {
                let Some(done) = &flown.done else { continue };
                output_tokens += done.tokens_within(round.chunks.get(i).map(|c| &**c), begin, end);
                let ended_inside = begin < flown.ended && flown.ended <= end;
                requests += u64::from(ended_inside);
                good += u64::from(ended_inside && done.good);
            }
            windows.push(SteadyWindow { trial: trial as u32, from: begin, to: end, output_tokens });
        }
        let tokens = windows.iter().map(|w| w.output_tokens).sum();
        let all = || self.rounds.iter().flat_map(|r| &r.flown);
        let (started, succeeded) = (all().count(), all().filter(|f| f.done.is_some()).count());
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
        if self.slo.is_some() {
            figures.push((Metric::Goodput, per_second(good as f64)));
        }
        let growth = self.growth();
        if let Some(growth) = growth {
            figures.push((Metric::InFlightGrowth, Some(growth.late / growth.early - 1.0)));
        }
        Flights { figures, growth, peak, steady: windows }
    }

    fn window(&self, round: &[Flown], flight: &Flight) -> Option<(Nanos, Nanos)> {
        match Rule::of(self.cell) {
            Rule::Full(full) if self.cell.load != Load::Batch && self.cell.requests_per_repeat > 1 => {
                conversations(round).full(full)
            }
            Rule::Full(full) => flight.full(full),
            Rule::Whole => flight.whole().filter(|(begin, end)| begin < end),
            Rule::Schedule { settle } => {
                let (first, last) = schedule(round)?;
                let level = if settle { flight.mean(first, last)? } else { 0.0 };
                Some((flight.reaches(level, first, last)?, last))
            }
        }
    }

    /// Of an open loop whose rate is the same throughout; `None` for others, and where the second quarter is
    /// empty.
    fn growth(&self) -> Option<Growth> {
        let Load::Open { arrival, .. } = &self.cell.load else { return None };
        if !matches!(arrival, Arrival::Constant { .. } | Arrival::Poisson { .. } | Arrival::Gamma { .. }) {
            return None;
        }
        let (mut early, mut late, mut time) = (0.0, 0.0, 0.0);
        for round in &self.rounds {
            let Some((first, last)) = schedule(&round.flown) else { continue };
            let waiting = Flight::of(round.flown.iter().map(|f| (f.intended, f.ended)));
            let quarter = Nanos((last.0 - first.0) / 4);
            let length = quarter.0 as f64;
            early += length * waiting.mean(first + quarter, first + quarter + quarter)?;
            late += length * waiting.mean(Nanos(last.0 - quarter.0), last)?;
            time += length;
        }
        (early > 0.0).then(|| Growth { early: early / time, late: late / time })
    }
}

/// First and last intended start; `None` where they are the same.
fn schedule(round: &[Flown]) -> Option<(Nanos, Nanos)> {
    let first = round.iter().map(|f| f.intended).min()?;
    let last = round.iter().map(|f| f.intended).max()?;
    (first < last).then_some((first, last))
}

/// Each conversation from its first turn sent to its last one ended: while its user thinks it is still one of
/// those that the loop holds.
fn conversations(round: &[Flown]) -> Flight {
    let mut spans = BTreeMap::<u32, (Nanos, Nanos)>::new();
    for (repeat, sent, ended) in round.iter().filter_map(|f| Some((f.repeat, f.sent?, f.ended))) {
        let span = spans.entry(repeat).or_insert((sent, ended));
        *span = (span.0.min(sent), span.1.max(ended));
    }
    Flight::of(spans.into_values())
}

/// Whether `life` keeps every limit that is set. A single token has no time per output token to exceed.
pub(crate) fn meets(slo: &Slo, life: &Life, setting: Setting) -> bool {
    let limits = [(Metric::Ttft, slo.ttft_ms), (Metric::Tpot, slo.tpot_ms), (Metric::E2el, slo.e2el_ms)];
    limits.iter().all(|(metric, limit)| match (sample::of_request(*metric, life, setting), limit) {
        (Some(value), Some(limit)) => value <= *limit,
        _ => true,
    })
}

impl Done {
    /// Output tokens in (begin, end]. Where the target counted other than was seen, its count is spread over the
    /// tokens that were seen.
    fn tokens_within(&self, chunks: Option<&[(Nanos, u32)]>, begin: Nanos, end: Nanos) -> f64 {
        let inside = |at: Nanos| begin < at && at <= end;
        let tokens = f64::from(self.tokens);
        if let Some(chunks) = chunks {
            let seen: u64 = chunks.iter().map(|c| u64::from(c.1)).sum();
            let within: u64 = chunks.iter().filter(|c| inside(c.0)).map(|c| u64::from(c.1)).sum();
            return within as f64 * tokens / seen as f64;
        }
        match (inside(self.first), inside(self.last)) {
            (true, true) => tokens,
            _ if self.last <= begin || self.first > end => 0.0,
            _ => {
                let overlap = self.last.min(end).0 - self.first.max(begin).0;
                tokens * overlap as f64 / (self.last.0 - self.first.0) as f64
            }
        }
    }
}
