//! The token timelines that pictures show: one request as an example, and the one that stalled longest.
//!
//! Taken as requests come; no more than two are held, whatever the cell's size. No figure is computed from them.

use crate::life::Life;
use bench_core::detail::{MAX_POINTS, TokenTimeline};
use bench_core::unit::Nanos;

/// Timelines of one cell.
#[derive(Debug, Default)]
pub(crate) struct Timelines {
    /// Trials begun so far.
    trial: u32,
    /// With the trial and the instant at which it was sent, by which it is the first.
    first: Option<((u32, Nanos), TokenTimeline)>,
    /// With its longest gap.
    longest: Option<(Nanos, TokenTimeline)>,
}

impl Timelines {
    pub(crate) fn round(&mut self) {
        self.trial += 1;
    }

    /// Takes in a request; one that failed is no example.
    pub(crate) fn add(&mut self, slot: u32, life: &Life) {
        if !life.succeeded() {
            return;
        }
        let order = (self.trial, life.timeline.sent);
        if self.first.as_ref().is_none_or(|(other, _)| order < *other) {
            self.first = Some((order, timeline(slot, life, 0)));
        }
        let Some((gap, chunk)) = longest_gap(&life.timeline.chunks) else { return };
        if self.longest.as_ref().is_none_or(|(other, _)| gap > *other) {
            self.longest = Some((gap, timeline(slot, life, chunk)));
        }
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        let held = [self.first.as_ref().map(|f| &f.1), self.longest.as_ref().map(|l| &l.1)];
        held.into_iter().flatten().map(|t| t.chunks.capacity() * size_of::<(f64, u32)>()).sum()
    }

    /// The first, and the one with the longest gap where that is another.
    pub(crate) fn finish(self) -> Vec<TokenTimeline> {
        let first = self.first.map(|f| f.1);
        let longest = self.longest.map(|l| l.1);
        let same = |a: &TokenTimeline, b: &TokenTimeline| (a.repeat, a.slot) == (b.repeat, b.slot);
        // Of a request that is both the stretch with its gap is shown.
        let first = first.filter(|f| !longest.iter().any(|l| same(f, l)));
        first.into_iter().chain(longest).collect()
    }
}

/// The longest time between two chunks, the earliest of equal ones, and the place of the chunk that ends it.
fn longest_gap(chunks: &[(Nanos, u32)]) -> Option<(Nanos, usize)> {
    let gaps = chunks.windows(2).map(|pair| Nanos(pair[1].0.0 - pair[0].0.0));
    gaps.zip(1..).max_by_key(|(gap, at)| (*gap, std::cmp::Reverse(*at)))
}

/// At most `MAX_POINTS` chunks, those around the chunk `shown` among them.
fn timeline(slot: u32, life: &Life, shown: usize) -> TokenTimeline {
    let all = &life.timeline.chunks;
    let kept = all.len().min(MAX_POINTS);
    let from = shown.saturating_sub(MAX_POINTS / 2).min(all.len() - kept);
    let since_sent = |at: Nanos| at.since(life.timeline.sent).unwrap_or_default().as_ms();
    TokenTimeline {
        repeat: life.repeat,
        slot,
        chunks: all[from..from + kept].iter().map(|&(at, tokens)| (since_sent(at), tokens)).collect(),
        left_out: (all.len() - kept) as u64,
    }
}
