//! What is measured: an engine, a server, a script, nothing.
//!
//! The thing measured does not know that it is measured: a target takes requests and hands over events
//! through a recorder that stamps them.

use crate::client::{Calibration, ClientHealth, Scrape, ServerFacts};
use crate::clock::Clock;
use crate::event::{Event, EventKind};
use crate::memory::{DeviceHeap, GpuTrace, MemoryTrace};
use crate::plan::{Cell, ModelPlan, Trial};
use crate::probe::{DeviceProbe, MemoryProbe};
use crate::shape::{ExpertUse, ModelFacts, Touched};
use crate::trace::RequestTrace;
use crate::unit::Nanos;
use std::sync::atomic::{AtomicBool, Ordering};

/// One request, ready to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub repeat: u32,
    pub slot: u32,
    pub prompt: Vec<u32>,
    pub output_tokens: u32,
    /// Seed of the sampler for this request.
    pub seed: u64,
}

/// Stamps and keeps the events of the requests of one batch.
pub struct Recorder<'a> {
    clock: &'a dyn Clock,
    events: Vec<Vec<Event>>,
    kv_allocated_bytes: Vec<Option<u64>>,
    probe: Option<&'a dyn MemoryProbe>,
    memory: MemoryTrace,
    device: Option<Box<dyn DeviceProbe>>,
    experts: Option<ExpertUse>,
}

impl<'a> Recorder<'a> {
    /// A recorder for `batch` requests, with room for `tokens` events each so that recording does not allocate.
    pub fn new(clock: &'a dyn Clock, batch: usize, tokens: usize) -> Self {
        let events = (0..batch).map(|_| Vec::with_capacity(tokens + 8)).collect();
        Self {
            clock,
            events,
            kv_allocated_bytes: vec![None; batch],
            probe: None,
            memory: MemoryTrace::default(),
            device: None,
            experts: None,
        }
    }

    /// Reads memory too, beginning with what is there before the batch.
    #[must_use]
    pub fn watching(mut self, probe: Option<&'a dyn MemoryProbe>, repeat: u32) -> Self {
        self.probe = probe;
        self.memory.repeat = repeat;
        if let Some(probe) = probe {
            self.memory.process_before = probe.process();
            probe.reset_heap_peak();
            self.memory.before = probe.heap();
        }
        self
    }

    /// The model runs on a GPU: reads that too, if memory is watched, beginning with what is there before the batch.
    /// Called when the requests are stamped as sent.
    pub fn watch_device(&mut self, mut device: Box<dyn DeviceProbe>) {
        if self.probe.is_none() {
            return;
        }
        device.mark();
        let (device_bytes, before) = (device.device_bytes(), device.heap());
        device.reset_peaks();
        self.memory.device = Some(Box::new(GpuTrace { device_bytes, before, ..GpuTrace::default() }));
        self.device = Some(device);
    }

    /// Marks the device's queue.
    fn mark(&mut self) {
        if let Some(device) = &mut self.device {
            device.mark();
        }
    }

    /// Reads the device's memory and hands it, with what is known of this repeat, to `keep`.
    fn read_device(&mut self, keep: impl FnOnce(&mut GpuTrace, DeviceHeap)) {
        if let (Some(device), Some(trace)) = (&self.device, &mut self.memory.device) {
            keep(trace, device.heap());
            device.reset_peaks();
        }
    }

    /// The target has stamped the first token of every request.
    pub fn prefilled(&mut self) {
        self.mark();
        self.read_device(|trace, heap| trace.first_token = Some(heap));
        if let Some(probe) = self.probe {
            self.memory.first_token = probe.heap();
            probe.reset_heap_peak();
        }
    }

    /// The target has stamped the last token.
    pub fn decoded(&mut self) {
        self.mark();
    }

    /// The target has stamped the last token and still holds its cache.
    pub fn held(&mut self) {
        self.read_device(|trace, heap| trace.held = Some(heap));
        if let Some(probe) = self.probe {
            self.memory.held = probe.heap();
            probe.reset_heap_peak();
        }
    }

    /// Experts that the batch touched.
    pub fn experts(&mut self, prefill: Touched, decode: Touched) {
        self.experts = Some(ExpertUse { repeat: self.memory.repeat, prefill, decode });
    }

    /// Reads what is left when the target has returned, and hands over the readings of the machine; memory is
    /// `None` if nobody watched it.
    pub fn machine(&mut self) -> (Option<MemoryTrace>, Option<ExpertUse>) {
        self.read_device(|trace, heap| trace.released = Some(heap));
        if let (Some(mut device), Some(trace)) = (self.device.take(), &mut self.memory.device) {
            // A batch that failed has no third mark.
            if let [prefill_ms, decode_ms] = device.times_ms()[..] {
                (trace.device_prefill_ms, trace.device_decode_ms) = (Some(prefill_ms), Some(decode_ms));
            }
        }
        if let Some(probe) = self.probe {
            self.memory.released = probe.heap();
            self.memory.process_after = probe.process();
        }
        (self.probe.map(|_| std::mem::take(&mut self.memory)), self.experts)
    }

    pub fn now(&self) -> Nanos {
        self.clock.now()
    }

    /// Stamps `kind` for request `slot` with the present instant.
    pub fn record(&mut self, slot: usize, kind: EventKind) {
        let at = self.clock.now();
        self.record_at(slot, at, kind);
    }

    /// Records `kind` with a stamp taken earlier: one read that carries several events has one stamp.
    pub fn record_at(&mut self, slot: usize, at: Nanos, kind: EventKind) {
        if let Some(events) = self.events.get_mut(slot) {
            events.push(Event { at, kind });
        }
    }

    pub fn kv_allocated(&mut self, slot: usize, bytes: u64) {
        if let Some(entry) = self.kv_allocated_bytes.get_mut(slot) {
            *entry = Some(bytes);
        }
    }

    /// Per request: its events, and the KV bytes that were reported.
    pub fn into_parts(self) -> Vec<(Vec<Event>, Option<u64>)> {
        self.events.into_iter().zip(self.kv_allocated_bytes).collect()
    }
}

/// Set by Ctrl-C; targets look at it between tokens.
#[derive(Debug, Default)]
pub struct StopFlag(AtomicBool);

impl StopFlag {
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    pub fn stop(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Why a target could not be made ready; a failing request is an event, not an error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TargetError(pub String);

/// Something that answers requests.
pub trait Target {
    /// The text of the `target` column.
    fn key(&self) -> &'static str;

    /// Makes `model` ready; called before its first cell, never inside a measured window. `progress` is told
    /// the fraction that is done. What waits for somebody else gives up when `stop` is set. The sizes are `None` where there is no model behind the target.
    fn prepare(
        &mut self,
        model: &ModelPlan,
        progress: &mut dyn FnMut(f64),
        stop: &StopFlag,
    ) -> Result<Option<ModelFacts>, TargetError>;

    /// The prompt of request `index` of `cell`, exactly `cell.prompt_tokens` long; warm-up prompts are disjoint
    /// from measured ones.
    fn prompt(&mut self, cell: &Cell, index: u64, warmup: bool) -> Result<Vec<u32>, TargetError>;

    /// Runs the requests of one batch to their ends. Records `Sent`, tokens, counts and how each ended;
    /// `Intended` is recorded by the caller.
    fn run(&mut self, requests: &[Request], recorder: &mut Recorder<'_>, stop: &StopFlag);

    /// Whether `run_trial` is to be called for every cell, instead of `prompt` and `run` for batches.
    fn takes_trials(&self) -> bool {
        false
    }

    /// Whether `prepare` is to be called before every trial, not only before another model's.
    fn fresh_for_each_trial(&self) -> bool {
        false
    }

    /// Why nothing more can run in this process, while another might go on: a device that was lost.
    fn lost(&self) -> Option<String> {
        None
    }

    /// The process in which the model runs, where it is not this one.
    fn process(&self) -> Option<u32> {
        None
    }

    /// How the model that was prepared last came into memory, where one start may differ from the next; `None` if it
    /// was there already.
    fn how_loaded(&mut self) -> Option<String> {
        None
    }

    /// What the reader of the results should know and no request tells, since this was last asked.
    fn notes(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// Runs a whole trial, for a target that takes them: warm-up, then the measured requests as the cell's
    /// load wants them. A failing request is handed over like any other.
    ///
    /// # Errors
    /// The trial cannot begin: prompts that cannot be made, a schedule that cannot be read.
    fn run_trial(
        &mut self,
        _trial: &Trial,
        cell: &Cell,
        _sink: &mut dyn TrialSink,
        _stop: &StopFlag,
    ) -> Result<(), TargetError> {
        Err(TargetError(format!("cell {}: target {} takes batches only", cell.id, self.key())))
    }

    /// What was found out about the server of the model that was prepared last; `None` in-process.
    fn server(&self) -> Option<ServerFacts> {
        None
    }

    /// What the load generator adds to the times of `cell`; `None` where there is none between. Called before
    /// the first trial of a cell, after `prepare`.
    fn calibrate(&mut self, _cell: &Cell, _stop: &StopFlag) -> Result<Option<Calibration>, TargetError> {
        Ok(None)
    }
}

/// Takes what a trial brings, as it comes.
pub trait TrialSink {
    /// A request that has ended. `false`: the results cannot be stored, the trial is to end.
    fn request(&mut self, trace: RequestTrace, warmup: bool) -> bool;
    /// A file that belongs to the trial and is stored beside it, such as the schedule that was made beforehand.
    /// `false`: it cannot be stored.
    fn file(&mut self, name: &str, bytes: &[u8]) -> bool;
    /// How the load generator fared, once, at the end.
    fn client(&mut self, health: ClientHealth);
    fn scrape(&mut self, scrape: Scrape);
    /// Memory around one measured repeat.
    fn memory(&mut self, memory: MemoryTrace);
    /// Experts that one measured repeat touched.
    fn experts(&mut self, experts: ExpertUse);
    /// Requests in flight now, for those who watch; no more often than ten times a second.
    fn in_flight(&mut self, requests: u32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MonotonicClock;
    use crate::memory::{Heap, ProcessMemory};
    use std::cell::Cell as Count;

    /// Each reading is one byte more than the last; times are 10 ms each.
    #[derive(Default)]
    struct Gpu {
        readings: Count<u64>,
        marks: usize,
    }

    impl DeviceProbe for Gpu {
        fn device_bytes(&self) -> u64 {
            99
        }
        fn heap(&self) -> DeviceHeap {
            let n = self.readings.replace(self.readings.get() + 1);
            DeviceHeap { total: Heap { live_bytes: n, peak_bytes: n }, ..DeviceHeap::default() }
        }
        fn reset_peaks(&self) {}
        fn mark(&mut self) {
            self.marks += 1;
        }
        fn times_ms(&mut self) -> Vec<f64> {
            vec![10.0; self.marks.saturating_sub(1)]
        }
    }

    struct Host;

    impl MemoryProbe for Host {
        fn heap(&self) -> Option<Heap> {
            None
        }
        fn reset_heap_peak(&self) {}
        fn process(&self) -> Option<ProcessMemory> {
            None
        }
        fn reset_process_peak(&self) {}
    }

    /// A batch that goes as far as `decoded` says.
    fn batch(probe: Option<&dyn MemoryProbe>, decoded: bool) -> Option<GpuTrace> {
        let clock = MonotonicClock::default();
        let mut recorder = Recorder::new(&clock, 1, 1).watching(probe, 3);
        recorder.watch_device(Box::<Gpu>::default());
        recorder.prefilled();
        if decoded {
            recorder.decoded();
            recorder.held();
        }
        recorder.machine().0.and_then(|memory| memory.device).map(|device| *device)
    }

    #[test]
    fn a_device_is_read_at_the_moments_of_a_batch_and_marked_at_its_edges() {
        let live = |heap: Option<DeviceHeap>| heap.map(|heap| heap.total.live_bytes);
        let whole = batch(Some(&Host), true).unwrap();
        let moments = [Some(whole.before), whole.first_token, whole.held, whole.released];
        assert_eq!(moments.map(live), [Some(0), Some(1), Some(2), Some(3)]);
        assert_eq!((whole.device_bytes, whole.device_prefill_ms), (99, Some(10.0)));
        assert_eq!(whole.device_decode_ms, Some(10.0));
        // A batch that failed in its decode: no times, and no cache that was held.
        let cut = batch(Some(&Host), false).unwrap();
        assert_eq!([cut.first_token, cut.held, cut.released].map(live), [Some(1), None, Some(2)]);
        assert_eq!((cut.device_prefill_ms, cut.device_decode_ms), (None, None));
        assert_eq!(batch(None, true), None, "nobody watches");
    }
}
