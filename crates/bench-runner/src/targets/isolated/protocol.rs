//! What a run and the process of a trial say to each other: one JSON object per line.
//!
//! Both sides are the same build, so there is no version to agree on; a line that is not understood is an
//! error.

use bench_core::clock::{Clock, MonotonicClock};
use bench_core::memory::MemoryTrace;
use bench_core::plan::Plan;
use bench_core::shape::{ExpertUse, ModelFacts};
use bench_core::trace::RequestTrace;
use rustix::time::{ClockId, clock_gettime};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, Read};
use std::time::Duration;

/// A request of a million tokens takes a tenth of it.
const LONGEST_LINE: u64 = 256 << 20;

/// To the process of a trial.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToEngine {
    Start(Box<Start>),
    /// Run the trial with this index of the plan.
    Trial(u32),
    /// The answer to each message of a trial: whether more is wanted.
    Taken(bool),
    /// End at the next token.
    Stop,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) plan: Plan,
    /// Label of the model to load.
    pub(super) model: String,
    /// Where on the system's monotonic clock the run's clock has its zero.
    pub(super) clock_zero_ns: u64,
}

/// From the process of a trial.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FromEngine {
    /// The fraction of the model that is loaded.
    Loading(f64),
    /// How the model came into memory, and what should be known of that: before `Ready`, if there is something.
    Loaded {
        how: Option<String>,
        notes: Vec<String>,
    },
    Ready(Option<Box<ModelFacts>>),
    /// The model cannot be run, and why.
    Failed(String),
    Warmup(RequestTrace),
    Request(RequestTrace),
    Memory(MemoryTrace),
    Experts(ExpertUse),
    /// The trial has ended; why it could not begin, if it could not.
    Ended(Option<String>),
    /// Nothing more can run here, and why: instead of `Ready` or `Ended`.
    Lost(String),
}

/// The system's monotonic clock at the zero of `clock`.
pub(super) fn clock_zero_ns(clock: &dyn Clock) -> u64 {
    let age = clock.now().0;
    monotonic_ns().saturating_sub(age)
}

/// A clock with its zero where another process has it.
pub(super) fn continued(clock_zero_ns: u64) -> MonotonicClock {
    MonotonicClock::with_age(Duration::from_nanos(monotonic_ns().saturating_sub(clock_zero_ns)))
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// `message` as a line.
pub(super) fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(message)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The next line with its end, `None` after the last.
pub(super) fn read_line(from: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let read = from.take(LONGEST_LINE).read_until(b'\n', &mut bytes)?;
    Ok((read > 0).then_some(bytes))
}

/// What a line says, else what stood there instead.
pub(super) fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    serde_json::from_slice(line).map_err(|error| {
        let shown: String = String::from_utf8_lossy(line).trim_end().chars().take(80).collect();
        format!("wrote {shown:?}, which is no message ({error})")
    })
}
