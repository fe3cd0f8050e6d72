//! When to read: at whole multiples of the period after the beginning, whatever happened before.
//!
//! A late wake-up shifts nothing, and instants that have passed are left out, not made up for in a bunch.
//! Time and sleep are handed in, so that every instant can be tested.

use bench_core::unit::Nanos;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The instants of one trial, from its beginning on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pace {
    begin: Nanos,
    hz: f64,
    /// Number of the last instant that was given out; the beginning is 0.
    last: u64,
    skipped: u64,
}

impl Pace {
    pub(super) fn new(begin: Nanos, hz: f64) -> Self {
        Self { begin, hz, last: 0, skipped: 0 }
    }

    /// From the beginning anew for each, so that no rounding adds up.
    fn instant(&self, k: u64) -> Nanos {
        Nanos(self.begin.0.saturating_add((k as f64 * 1e9 / self.hz).round() as u64))
    }

    /// The first instant after `now` and after the last one.
    pub(super) fn next(&mut self, now: Nanos) -> Nanos {
        let due = self.last + 1;
        let elapsed = now.since(self.begin).unwrap_or_default().as_secs();
        let mut k = due.max((elapsed * self.hz).floor() as u64);
        while self.instant(k) <= now {
            k += 1;
        }
        self.skipped += k - due;
        self.last = k;
        self.instant(k)
    }

    /// Instants that had passed before they could be used.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Instants so far, used or not.
    pub(super) fn planned(&self) -> u64 {
        self.last
    }
}

/// Time to sleep in; not the run's clock, which may stand still.
pub(super) trait Timer: Send + Sync {
    fn now(&self) -> Nanos;

    /// Returns at `deadline`, or soon after `stop` was set and the thread unparked.
    fn sleep_until(&self, deadline: Nanos, stop: &AtomicBool);
}

/// The machine's monotonic time.
#[derive(Debug, Clone)]
pub(super) struct SystemTimer(Instant);

impl Default for SystemTimer {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Timer for SystemTimer {
    fn now(&self) -> Nanos {
        Nanos(u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn sleep_until(&self, deadline: Nanos, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            match deadline.since(self.now()) {
                Some(Nanos(left)) if left > 0 => std::thread::park_timeout(Duration::from_nanos(left)),
                _ => return,
            }
        }
    }
}

/// Calls `read` at every instant of `pace` until `stop` is set.
pub(super) fn poll(timer: &dyn Timer, pace: &mut Pace, stop: &AtomicBool, mut read: impl FnMut()) {
    loop {
        let deadline = pace.next(timer.now());
        timer.sleep_until(deadline, stop);
        if stop.load(Ordering::Acquire) {
            return;
        }
        read();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::sync::Mutex;

    /// Each sleep ends late by what is scripted; stops after the last.
    struct Late {
        now: Mutex<Nanos>,
        late: Mutex<std::vec::IntoIter<u64>>,
    }

    impl Timer for Late {
        fn now(&self) -> Nanos {
            *self.now.lock().unwrap()
        }

        fn sleep_until(&self, deadline: Nanos, stop: &AtomicBool) {
            match self.late.lock().unwrap().next() {
                Some(late) => *self.now.lock().unwrap() = deadline + Nanos(late),
                None => stop.store(true, Ordering::Release),
            }
        }
    }

    /// Milliseconds after the beginning at which readings began, and how many instants were left out.
    fn readings(hz: f64, late_ms: &[u64], reading_ms: u64) -> (Vec<f64>, u64) {
        let begin = Nanos::from_millis(5_000);
        let late: Vec<u64> = late_ms.iter().map(|ms| ms * 1_000_000).collect();
        let timer = Late { now: Mutex::new(begin), late: Mutex::new(late.into_iter()) };
        let (stop, mut pace) = (AtomicBool::new(false), Pace::new(begin, hz));
        let read = RefCell::new(Vec::new());
        poll(&timer, &mut pace, &stop, || {
            let mut now = timer.now.lock().unwrap();
            read.borrow_mut().push(now.since(begin).unwrap().as_ms());
            *now = *now + Nanos::from_millis(reading_ms);
        });
        // The instant at which it was stopped is planned and neither read nor left out.
        assert_eq!(pace.planned(), read.borrow().len() as u64 + pace.skipped() + 1);
        (read.into_inner(), pace.skipped())
    }

    #[test]
    fn instants_are_multiples_of_the_period() {
        assert_eq!(readings(10.0, &[0; 4], 0), (vec![100.0, 200.0, 300.0, 400.0], 0));
        assert_eq!(readings(10.0, &[0; 3], 30), (vec![100.0, 200.0, 300.0], 0));
    }

    #[test]
    fn a_late_wake_up_shifts_nothing() {
        assert_eq!(readings(10.0, &[0, 99, 0, 7, 0], 0), (vec![100.0, 299.0, 300.0, 407.0, 500.0], 0));
    }

    #[test]
    fn instants_that_have_passed_are_left_out() {
        // Woken at 460 instead of 200: 300 and 400 are gone, 500 is next.
        assert_eq!(readings(10.0, &[0, 260, 0], 0), (vec![100.0, 460.0, 500.0], 2));
        // A reading of 250 ms: 100..350, 400..650, 700..950; 1000 would be next.
        assert_eq!(readings(10.0, &[0, 0, 0], 250), (vec![100.0, 400.0, 700.0], 6));
        // Woken exactly at the instant after: it counts as passed.
        assert_eq!(readings(10.0, &[100, 0], 0), (vec![200.0, 300.0], 1));
    }

    #[test]
    fn a_period_that_is_no_whole_number_does_not_drift() {
        let mut pace = Pace::new(Nanos(0), 3.0);
        let mut now = Nanos(0);
        for _ in 0..3_000_000 {
            now = pace.next(now);
        }
        assert_eq!((now, pace.skipped()), (Nanos(1_000_000_000_000_000), 0));
    }
}
