//! What watches the machine beside a trial.
//!
//! Probes are handed to the run; the target does not know of them, but for the moments within a repeat at which it lets
//! the recorder read. A GPU is known to its target alone, which hands the recorder a probe of it.

use crate::clock::Clock;
use crate::memory::{DeviceHeap, Heap, ProcessMemory};
use crate::power::{PowerDevice, PowerTrace};
use crate::target::StopFlag;
use std::sync::Arc;
use std::time::Duration;

/// Reads the memory of this process.
pub trait MemoryProbe: Sync {
    /// Bytes allocated, and the most since the peak was reset; `None` where nobody counts. Takes nanoseconds.
    fn heap(&self) -> Option<Heap>;

    /// The heap's peak begins anew at what is allocated now.
    fn reset_heap_peak(&self);

    /// What the kernel says; `None` where it does not. Takes microseconds to milliseconds.
    fn process(&self) -> Option<ProcessMemory>;

    /// The process's peak begins anew at what is in memory now, where the system lets us.
    fn reset_process_peak(&self);
}

/// Reads the counters of a GPU, and marks its queue. Nothing but `times_ms` waits for the GPU.
pub trait DeviceProbe {
    /// All memory that the device has.
    fn device_bytes(&self) -> u64;

    /// What this process holds, and the most since the peaks were reset. Takes nanoseconds.
    fn heap(&self) -> DeviceHeap;

    /// Peaks begin anew at what is held now.
    fn reset_peaks(&self);

    /// Puts a mark behind the work that was queued so far. Takes microseconds.
    fn mark(&mut self);

    /// Milliseconds from each mark to the next, on the device's clock; waits for the last. Empty where a mark could
    /// not be made or read.
    fn times_ms(&mut self) -> Vec<f64>;
}

/// When and for whom a power probe begins.
#[derive(Clone)]
pub struct Watch {
    /// The clock of the run: samples are stamped with it.
    pub clock: Arc<dyn Clock>,
    /// Wall-clock time at the clock's zero, for traces of meters that know no other time.
    pub zero_unix_ms: u64,
    /// The process whose memory on the device is asked for; `None`: this one.
    pub process: Option<u32>,
}

/// How long to wait for cool devices before a trial.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cooling {
    /// No longer than this.
    pub longest: Duration,
    /// Until no device is more than this many degrees warmer than it was when idle.
    pub above_idle_c: f64,
}

/// Samples power on a thread of its own.
pub trait PowerProbe {
    /// What is watched.
    fn devices(&self) -> Vec<PowerDevice>;

    /// Takes a first sample and goes on sampling until `end`.
    fn begin(&mut self, watch: &Watch);

    /// Takes a last sample and hands over what was read since `begin`.
    fn end(&mut self) -> PowerTrace;

    /// Watches for `duration`, or until `stop` is set; remembers the temperatures as those of the idle machine.
    fn idle(&mut self, watch: &Watch, duration: Duration, stop: &StopFlag) -> PowerTrace;

    /// Temperatures of the idle machine from a trace that an earlier process stored.
    fn remember_idle(&mut self, idle: &PowerTrace);

    /// Waits as `cooling` says, or until `stop` is set; how long it took, and whether all were cool at the end.
    fn cool(&mut self, cooling: &Cooling, stop: &StopFlag) -> (Duration, bool);
}

/// The probes of a run; each may be missing.
#[derive(Default)]
pub struct Probes<'a> {
    pub memory: Option<&'a dyn MemoryProbe>,
    pub power: Option<&'a mut dyn PowerProbe>,
}
