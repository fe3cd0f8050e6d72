//! Wakes the workers when a scheduled request is due, from a thread of its own.
//!
//! The runtime's timers count whole milliseconds; a thread that sleeps until the instant itself is off by some
//! tens of microseconds. Instants are absolute, so that a late one does not delay the next.

use bench_core::clock::Clock;
use bench_core::target::StopFlag;
use bench_core::unit::Nanos;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// The longest sleep: how long a wish to stop may go unheard.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);

/// When the requests are due, and which worker each belongs to.
pub(super) struct Pacer {
    pub(super) clock: Arc<dyn Clock>,
    /// Instants on the clock, ascending: request `i` belongs to worker `i % workers.len()`.
    pub(super) due: Vec<Nanos>,
    /// Each gets the instant of each of its requests, in order.
    pub(super) workers: Vec<UnboundedSender<Nanos>>,
}

impl Pacer {
    /// Sends every instant when it has come; ends early when `stop` is set or a worker is gone.
    pub(super) fn run(self, stop: &StopFlag) {
        sharpen();
        for (index, due) in self.due.iter().enumerate() {
            while let Some(left) = due.since(self.clock.now()).filter(|left| left.0 > 0) {
                if stop.is_set() {
                    return;
                }
                thread::sleep(Duration::from_nanos(left.0).min(LONGEST_SLEEP));
            }
            let worker = &self.workers[index % self.workers.len()];
            if stop.is_set() || worker.send(*due).is_err() {
                return;
            }
        }
    }
}

/// Linux lets a sleep end up to 50 µs late unless it is told otherwise; where it cannot be told, the lag is
/// measured like any other.
fn sharpen() {
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
}

#[cfg(test)]
mod tests {
    use super::*;
    use bench_core::clock::ScriptedClock;
    use tokio::sync::mpsc::unbounded_channel;

    #[test]
    fn instants_are_dealt_to_the_workers_in_turn_and_in_order() {
        let clock = Arc::new(ScriptedClock::default());
        clock.advance_to(Nanos(100));
        let (a, mut first) = unbounded_channel();
        let (b, mut second) = unbounded_channel();
        let due = (1..=5).map(Nanos).collect();
        Pacer { clock, due, workers: vec![a, b] }.run(&StopFlag::new());
        let all = |receiver: &mut tokio::sync::mpsc::UnboundedReceiver<Nanos>| {
            std::iter::from_fn(|| receiver.try_recv().ok()).map(|n| n.0).collect::<Vec<_>>()
        };
        assert_eq!((all(&mut first), all(&mut second)), (vec![1, 3, 5], vec![2, 4]));
    }

    #[test]
    fn a_stop_ends_the_wait_for_an_instant_that_is_far_away() {
        let clock = Arc::new(ScriptedClock::default());
        let stop = StopFlag::new();
        stop.stop();
        let (sender, mut receiver) = unbounded_channel();
        Pacer { clock, due: vec![Nanos(u64::MAX)], workers: vec![sender] }.run(&stop);
        assert!(receiver.try_recv().is_err());
    }
}
