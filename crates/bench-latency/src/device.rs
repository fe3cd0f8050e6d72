//! Host stamps of a batch held against marks in the queue of the GPU that ran it.
//!
//! The stamps remain the measurement: what a caller waits for is what the host sees. Where both differ, the host was held
//! up between the device and the stamp, or a clock is off, and the reader is told.

use crate::life::Life;
use bench_core::memory::GpuTrace;
use bench_core::unit::Nanos;
use bench_core::verdict::Reason;

/// Times that differ by no more than this agree: the host's threads come back from a wait within it.
const LIMIT_MS: f64 = 1.0;
/// Or by no more than this share of the host's.
const LIMIT_SHARE: f64 = 0.02;

/// The instants of one batch.
#[derive(Debug, Clone, Copy)]
struct Batch {
    repeat: u32,
    /// Of the first request.
    sent: Nanos,
    /// Of the last request.
    first_token: Nanos,
    last_token: Nanos,
    failed: bool,
}

/// The phase in which host and device differ most.
#[derive(Debug, Clone, Copy)]
struct Difference {
    phase: &'static str,
    host_ms: f64,
    device_ms: f64,
}

impl Difference {
    fn ms(self) -> f64 {
        (self.host_ms - self.device_ms).abs()
    }

    fn is_much(self) -> bool {
        self.ms() > LIMIT_MS.max(LIMIT_SHARE * self.host_ms)
    }
}

/// Holds the batches of a cell against the device, one after another.
#[derive(Debug, Default)]
pub(crate) struct DeviceClock {
    /// The requests of one repeat come together, and before what the device tells of it.
    batch: Option<Batch>,
    batches: u32,
    off: u32,
    worst: Option<Difference>,
}

impl DeviceClock {
    pub(crate) fn add(&mut self, life: &Life) {
        let (repeat, t) = (life.repeat, &life.timeline);
        let (first, last) = (t.first_token().unwrap_or(t.sent), t.last_token().unwrap_or(t.sent));
        let new =
            Batch { repeat, sent: t.sent, first_token: first, last_token: last, failed: !life.succeeded() };
        self.batch = Some(match self.batch.filter(|b| b.repeat == repeat) {
            None => new,
            Some(b) => Batch {
                repeat,
                sent: b.sent.min(new.sent),
                first_token: b.first_token.max(new.first_token),
                last_token: b.last_token.max(new.last_token),
                failed: b.failed || new.failed,
            },
        });
    }

    /// Holds the batch of `repeat` against what the device told of it.
    pub(crate) fn check(&mut self, repeat: u32, device: &GpuTrace) {
        let batch = self.batch.filter(|b| b.repeat == repeat && !b.failed);
        let (Some(batch), Some(prefill), Some(decode)) =
            (batch, device.device_prefill_ms, device.device_decode_ms)
        else {
            return;
        };
        let between = |from: Nanos, to: Nanos| to.as_ms() - from.as_ms();
        let phases = [
            ("prefill", between(batch.sent, batch.first_token), prefill),
            ("decode", between(batch.first_token, batch.last_token), decode),
        ];
        let differences = phases.map(|(phase, host_ms, device_ms)| Difference { phase, host_ms, device_ms });
        let much = differences.into_iter().filter(|d| d.is_much());
        self.batches += 1;
        if let Some(worst) = much.max_by(|a, b| a.ms().total_cmp(&b.ms())) {
            self.off += 1;
            self.worst = self.worst.filter(|w| w.ms() >= worst.ms()).or(Some(worst));
        }
    }

    /// What a reader should know, where they differ.
    pub(crate) fn reason(&self) -> Option<Reason> {
        self.worst.map(|Difference { phase, host_ms, device_ms }| Reason::DeviceClock {
            off: self.off,
            batches: self.batches,
            phase: phase.to_owned(),
            host_ms,
            device_ms,
        })
    }
}
