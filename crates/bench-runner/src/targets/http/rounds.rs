//! How long a worker's event loop was busy at a stretch: bytes that arrive meanwhile are stamped late.
//!
//! One round is from waking to waiting again. Only counts are kept, in steps of a quarter octave.

use bench_core::clock::Clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::runtime::Builder;

/// Steps per doubling.
const STEPS: usize = 4;
/// 2^48 ns are three days.
const BUCKETS: usize = 48 * STEPS;

/// The rounds of one event loop.
pub(super) struct Rounds {
    clock: Arc<dyn Clock>,
    woke: AtomicU64,
    longest: AtomicU64,
    counts: [AtomicU64; BUCKETS],
}

impl Rounds {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let woke = AtomicU64::new(clock.now().0);
        Self { clock, woke, longest: AtomicU64::new(0), counts: [const { AtomicU64::new(0) }; BUCKETS] }
    }

    /// Has the runtime that `builder` makes report when it waits and wakes.
    pub(super) fn watch(self: &Arc<Self>, builder: &mut Builder) {
        let (waits, wakes) = (self.clone(), self.clone());
        builder.on_thread_park(move || waits.waits()).on_thread_unpark(move || wakes.wakes());
    }

    /// Forgets what was before the measured window.
    pub(super) fn reset(&self) {
        self.longest.store(0, Relaxed);
        self.counts.iter().for_each(|c| c.store(0, Relaxed));
        self.wakes();
    }

    fn wakes(&self) {
        self.woke.store(self.clock.now().0, Relaxed);
    }

    fn waits(&self) {
        self.took(self.clock.now().0.saturating_sub(self.woke.load(Relaxed)));
    }

    fn took(&self, ns: u64) {
        self.longest.fetch_max(ns, Relaxed);
        self.counts[bucket(ns)].fetch_add(1, Relaxed);
    }

    /// The longest round and, to a quarter octave upwards, the 99th percentile, in nanoseconds.
    pub(super) fn longest_and_p99(&self) -> (u64, u64) {
        let longest = self.longest.load(Relaxed);
        let counts: Vec<u64> = self.counts.iter().map(|c| c.load(Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        let mut up_to = 0;
        for (index, count) in counts.iter().enumerate() {
            up_to += count;
            if total > 0 && up_to * 100 >= total * 99 {
                return (longest, upper_end(index).min(longest));
            }
        }
        (longest, 0)
    }
}

fn bucket(ns: u64) -> usize {
    ((ns.max(1) as f64).log2() * STEPS as f64).floor().clamp(0.0, (BUCKETS - 1) as f64) as usize
}

fn upper_end(bucket: usize) -> u64 {
    ((bucket + 1) as f64 / STEPS as f64).exp2().ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use bench_core::clock::ScriptedClock;
    use bench_core::unit::Nanos;

    #[test]
    fn rounds_are_counted_from_waking_to_waiting() {
        let clock = Arc::new(ScriptedClock::default());
        let rounds = Rounds::new(clock.clone());
        let mut now = 0;
        for (busy, idle) in std::iter::repeat_n((1_000, 50_000), 99).chain([(7_000_000, 10)]) {
            now += busy;
            clock.advance_to(Nanos(now));
            rounds.waits();
            now += idle;
            clock.advance_to(Nanos(now));
            rounds.wakes();
        }
        let (longest, p99) = rounds.longest_and_p99();
        assert_eq!(longest, 7_000_000);
        assert!((1_000..1_200).contains(&p99), "{p99}");
        rounds.reset();
        assert_eq!(rounds.longest_and_p99(), (0, 0));
    }
}
