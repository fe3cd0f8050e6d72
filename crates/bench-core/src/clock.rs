//! Time is a parameter: whoever stamps an event was handed a `Clock`.
//!
//! One monotonic clock serves a whole run; tests use a scripted one, so that every figure is exact.

use crate::unit::Nanos;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A monotonic source of instants; cheap enough to call per token.
pub trait Clock: Send + Sync {
    /// Nanoseconds since the clock's own zero.
    fn now(&self) -> Nanos;
}

/// The machine's monotonic clock, zero at creation.
#[derive(Debug, Clone)]
pub struct MonotonicClock {
    zero: Instant,
}

impl Default for MonotonicClock {
    fn default() -> Self {
        Self { zero: Instant::now() }
    }
}

impl MonotonicClock {
    /// A clock whose zero lies `age` before now: that of another process, whose instants it continues.
    pub fn with_age(age: std::time::Duration) -> Self {
        let now = Instant::now();
        Self { zero: now.checked_sub(age).unwrap_or(now) }
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Nanos {
        Nanos(u64::try_from(self.zero.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// A clock that stands still until it is advanced.
#[derive(Debug, Default)]
pub struct ScriptedClock {
    now: AtomicU64,
}

impl ScriptedClock {
    pub fn advance_to(&self, at: Nanos) {
        self.now.fetch_max(at.0, Ordering::SeqCst);
    }
}

impl Clock for ScriptedClock {
    fn now(&self) -> Nanos {
        Nanos(self.now.load(Ordering::SeqCst))
    }
}

/// Smallest step and cost of one reading, measured; goes into provenance.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ClockPrecision {
    pub smallest_step_ns: u64,
    pub reading_ns: f64,
}

/// Reads the clock `readings` times in a row.
pub fn measure_precision(clock: &dyn Clock, readings: u32) -> ClockPrecision {
    let first = clock.now();
    let (mut previous, mut smallest) = (first, u64::MAX);
    for _ in 0..readings {
        let now = clock.now();
        match now.since(previous) {
            Some(Nanos(step)) if step > 0 => smallest = smallest.min(step),
            _ => {}
        }
        previous = now;
    }
    let spent = previous.since(first).map_or(0, |n| n.0);
    ClockPrecision { smallest_step_ns: smallest, reading_ns: spent as f64 / f64::from(readings.max(1)) }
}
