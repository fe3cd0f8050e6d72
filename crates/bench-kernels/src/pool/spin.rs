//! Waiting without sleeping, for a bounded time that follows how busy the machine is.
//!
//! A wake-up costs tens of microseconds in a virtual machine, so that short gaps between jobs are worth spinning. On
//! a core that others want, spinning takes from them, and from the thread that is waited for.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

/// Gaps between the jobs of one token are shorter than this, and so is most of what is left of a job when the first
/// thread finds nothing to claim.
const LONGEST: Duration = Duration::from_micros(60);
/// Where others want the core.
const SHORTEST: Duration = Duration::from_micros(2);
/// Two looks at the clock are less than 10 µs apart, unless this thread was not running.
const INTERRUPTED: Duration = Duration::from_micros(100);
/// Looks at what is waited for between two at the clock.
const LOOKS: usize = 32;

/// How long to spin.
#[derive(Debug)]
pub(super) struct Spin {
    limit: Duration,
}

impl Default for Spin {
    fn default() -> Self {
        Self { limit: LONGEST }
    }
}

impl Spin {
    /// Spins until `ready`; whether it became so in time. After an interruption the next times are short, and grow
    /// by a quarter each.
    pub(super) fn until(&mut self, ready: impl Fn() -> bool) -> bool {
        if ready() {
            return true;
        }
        let start = Instant::now();
        let mut last = start;
        loop {
            for _ in 0..LOOKS {
                spin_loop();
                if ready() {
                    self.limit = (self.limit * 5 / 4).min(LONGEST);
                    return true;
                }
            }
            let now = Instant::now();
            if now - last > INTERRUPTED {
                self.limit = SHORTEST;
                return false;
            }
            if now - start > self.limit {
                self.limit = (self.limit * 5 / 4).min(LONGEST);
                return false;
            }
            last = now;
        }
    }
}
