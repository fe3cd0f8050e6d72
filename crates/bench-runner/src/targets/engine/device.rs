//! The engine's meter of a GPU in the words of a recorder.
//!
//! A meter that fails ends no batch: the batch itself meets the same device, and says so.

use bench_core::memory::{DeviceHeap, Heap};
use bench_core::probe::DeviceProbe;
use bench_engine::place::{Counter, DeviceMeter};

/// Of one batch.
pub(super) struct Meter {
    meter: DeviceMeter,
    /// A mark could not be made: the times would be those of other phases.
    broken: bool,
}

impl Meter {
    pub(super) fn new(meter: DeviceMeter) -> Self {
        Self { meter, broken: false }
    }
}

fn heap(counter: Counter) -> Heap {
    Heap { live_bytes: counter.live_bytes, peak_bytes: counter.peak_bytes }
}

impl DeviceProbe for Meter {
    fn device_bytes(&self) -> u64 {
        self.meter.device_bytes()
    }

    fn heap(&self) -> DeviceHeap {
        let usage = self.meter.usage();
        DeviceHeap {
            weights: heap(usage.weights),
            kv_cache: heap(usage.kv_cache),
            activations: heap(usage.activations),
            workspace: heap(usage.workspace),
            total: heap(usage.total),
        }
    }

    fn reset_peaks(&self) {
        self.meter.reset_peaks();
    }

    fn mark(&mut self) {
        self.broken |= self.meter.mark().is_err();
    }

    fn times_ms(&mut self) -> Vec<f64> {
        let times = self.meter.times_ms();
        if self.broken { Vec::new() } else { times.unwrap_or_default() }
    }
}
