//! How many requests were in flight when, within one round.
//!
//! Starts and ends are sorted apart and merged as they are walked, so that a million requests take 16 MB.

use bench_core::unit::Nanos;

/// Spans of time, each from a start to its end.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    starts: Vec<u64>,
    ends: Vec<u64>,
}

impl Flight {
    /// An end before its start counts as at its start.
    pub(crate) fn of(spans: impl Iterator<Item = (Nanos, Nanos)>) -> Self {
        let mut flight = Self::default();
        for (start, end) in spans {
            flight.starts.push(start.0);
            flight.ends.push(end.max(start).0);
        }
        flight.starts.sort_unstable();
        flight.ends.sort_unstable();
        flight
    }

    /// From each instant on: so many. Starts at the first start and ends with 0. At one instant ends come
    /// before starts: a request that follows another does not overlap it.
    fn steps(&self) -> impl Iterator<Item = (u64, u32)> {
        let (mut started, mut ended) = (0, 0);
        std::iter::from_fn(move || {
            let next = [self.starts.get(started), self.ends.get(ended)].into_iter().flatten().min();
            let at = *next?;
            started += self.starts[started..].iter().take_while(|s| **s == at).count();
            ended += self.ends[ended..].iter().take_while(|e| **e == at).count();
            Some((at, (started - ended) as u32))
        })
    }

    /// Each step with its end.
    fn stretches(&self) -> impl Iterator<Item = ((u64, u32), u64)> {
        self.steps().zip(self.steps().skip(1)).map(|(step, next)| (step, next.0))
    }

    pub(crate) fn peak(&self) -> u32 {
        self.steps().map(|s| s.1).max().unwrap_or(0)
    }

    /// From the first moment with `full` in flight to the last.
    pub(crate) fn full(&self, full: u32) -> Option<(Nanos, Nanos)> {
        let mut found = None;
        for ((at, _), next) in self.stretches().filter(|s| s.0.1 >= full) {
            found = Some((found.map_or(at, |(begin, _)| begin), next));
        }
        found.filter(|(begin, end)| end > begin).map(|(begin, end)| (Nanos(begin), Nanos(end)))
    }

    /// The first moment in `begin..end` with at least `level` in flight.
    pub(crate) fn reaches(&self, level: f64, begin: Nanos, end: Nanos) -> Option<Nanos> {
        let within = self.stretches().map(|((at, flying), next)| (at.max(begin.0), next.min(end.0), flying));
        let mut reached = within.filter(|(from, to, flying)| from < to && f64::from(*flying) >= level);
        reached.next().map(|(from, ..)| Nanos(from))
    }

    /// From the first start to the last end.
    pub(crate) fn whole(&self) -> Option<(Nanos, Nanos)> {
        Some((Nanos(*self.starts.first()?), Nanos(*self.ends.last()?)))
    }

    /// Request-nanoseconds in flight, and nanoseconds in which any was.
    pub(crate) fn load(&self) -> (f64, f64) {
        self.stretches().filter(|s| s.0.1 > 0).fold((0.0, 0.0), |(sum, busy), ((at, flying), next)| {
            let time = (next - at) as f64;
            (sum + time * f64::from(flying), busy + time)
        })
    }

    /// Number in flight, averaged over `begin..end`; `None` where that is no time.
    pub(crate) fn mean(&self, begin: Nanos, end: Nanos) -> Option<f64> {
        let length = end.since(begin).filter(|l| l.0 > 0)?.0 as f64;
        let sum: f64 = self
            .stretches()
            .map(|((at, flying), next)| {
                next.min(end.0).saturating_sub(at.max(begin.0)) as f64 * f64::from(flying)
            })
            .sum();
        Some(sum / length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flight(spans: &[(u64, u64)]) -> Flight {
        Flight::of(spans.iter().map(|&(a, b)| (Nanos(a), Nanos(b))))
    }

    #[test]
    fn what_follows_does_not_overlap() {
        let f = flight(&[(0, 10), (10, 20), (5, 15), (30, 30)]);
        assert_eq!(f.steps().collect::<Vec<_>>(), [(0, 1), (5, 2), (10, 2), (15, 1), (20, 0), (30, 0)]);
        assert_eq!((f.peak(), f.full(2), f.full(3)), (2, Some((Nanos(5), Nanos(15))), None));
        assert_eq!((f.whole(), f.load()), (Some((Nanos(0), Nanos(30))), (30.0, 20.0)));
        assert_eq!(f.mean(Nanos(0), Nanos(20)), Some(1.5));
        assert_eq!(f.mean(Nanos(18), Nanos(22)), Some(0.5));
        assert_eq!(f.mean(Nanos(3), Nanos(3)), None);
        assert_eq!(f.reaches(1.5, Nanos(0), Nanos(20)), Some(Nanos(5)));
        assert_eq!(f.reaches(1.5, Nanos(7), Nanos(20)), Some(Nanos(7)));
        assert_eq!(f.reaches(1.5, Nanos(16), Nanos(40)), None);
        assert_eq!(flight(&[]).whole(), None);
    }
}
