//! What every meter that is polled looks like to the sampler.
//!
//! A source reads and says why it could not; it neither waits nor keeps what it read.

use bench_core::clock::Clock;
use bench_core::power::{PowerDevice, PowerSample};

/// What a source has to know of the trial that begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Context {
    /// Wall-clock time at the run clock's zero.
    pub(super) zero_unix_us: u64,
    /// The process whose memory is asked for.
    pub(super) process: u32,
}

/// Devices of one kind.
pub(super) trait Source: Send {
    fn devices(&self) -> &[PowerDevice];

    fn begin(&mut self, context: Context);

    /// Reads device `index` of `devices` now. A failure is a sample with `error` and without the value.
    fn read(&mut self, index: usize, clock: &dyn Clock) -> PowerSample;
}

/// Failed readings of one sample, told in one line: values that failed for one reason stand together.
#[derive(Default)]
pub(super) struct Failures(Vec<(String, Vec<&'static str>)>);

impl Failures {
    pub(super) fn add(&mut self, what: &'static str, reason: String) {
        match self.0.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, values)) => values.push(what),
            None => self.0.push((reason, vec![what])),
        }
    }

    pub(super) fn line(&self) -> Option<String> {
        let told: Vec<String> =
            self.0.iter().map(|(reason, values)| format!("{}: {reason}", values.join(", "))).collect();
        (!told.is_empty()).then(|| told.join("; "))
    }
}
