//! The clock that stamps are taken from; handed in, so that tests can script it.

use std::time::Instant;

/// A monotonic source of instants; cheap enough to call per read.
pub trait Clock: Send + Sync {
    /// Nanoseconds since the clock's own zero.
    fn now_ns(&self) -> u64;
}

/// The machine's monotonic clock, zero at creation.
#[derive(Debug, Clone)]
pub struct SystemClock {
    zero: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { zero: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.zero.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
