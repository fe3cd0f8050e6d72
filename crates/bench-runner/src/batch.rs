//! One trial of batches, one after another: prompts first, then the measured window, then the next batch.
//!
//! Nothing stands between the stamps but the target; each batch is handed over when it has ended.

use bench_core::clock::Clock;
use bench_core::event::EventKind;
use bench_core::memory::{GpuTrace, MemoryTrace};
use bench_core::plan::{Cell, Plan, Trial, derive_seed, short_hash};
use bench_core::probe::MemoryProbe;
use bench_core::target::{Recorder, Request, StopFlag, Target, TargetError, TrialSink};
use bench_core::trace::RequestTrace;

/// What a trial of batches needs.
pub struct Batches<'a> {
    pub plan: &'a Plan,
    pub trial: &'a Trial,
    pub cell: &'a Cell,
    pub target: &'a mut dyn Target,
    /// The clock that the target stamps with.
    pub clock: &'a dyn Clock,
    pub memory: Option<&'a dyn MemoryProbe>,
    /// Whether this process began with the trial.
    pub own_process: bool,
    pub stop: &'a StopFlag,
}

/// Requests that run together, made ready before the measured window.
struct Batch {
    warmup: bool,
    repeat: u32,
    requests: Vec<Request>,
    prompt_hashes: Vec<String>,
}

/// What a GPU held at most, over the batches of one trial.
#[derive(Default)]
struct DevicePeaks {
    /// Before the first batch: while the model was loaded, if this process began with the trial.
    loading_bytes: Option<u64>,
    /// Since the first batch began.
    trial_bytes: Option<u64>,
}

impl DevicePeaks {
    /// Takes in a batch, and tells it what is known of the trial.
    fn take(&mut self, device: &mut GpuTrace, own_process: bool) {
        let before = device.before.total;
        let first = self.trial_bytes.is_none();
        if first && own_process {
            self.loading_bytes = Some(before.peak_bytes);
        }
        // Between two batches something may be held as well.
        let since = if first { before.live_bytes } else { before.peak_bytes };
        let moments = [device.first_token, device.held, device.released];
        let peaks = moments.iter().flatten().map(|heap| heap.total.peak_bytes);
        self.trial_bytes = self.trial_bytes.into_iter().chain([since]).chain(peaks).max();
        (device.loading_peak_bytes, device.trial_peak_bytes) = (self.loading_bytes, self.trial_bytes);
    }
}

impl Batches<'_> {
    /// Warm-up, then the measured batches, until `stop` is set or the sink takes no more.
    ///
    /// # Errors
    /// A prompt that cannot be made; then nothing has run.
    pub fn run(mut self, sink: &mut dyn TrialSink) -> Result<(), TargetError> {
        let batches = self.prepare()?;
        if let Some(memory) = self.memory {
            memory.reset_process_peak();
        }
        let mut peaks = DevicePeaks::default();
        for batch in batches {
            // A device that is lost answers nothing more: what did not run is left for another process.
            if self.stop.is_set() || !self.batch(&batch, &mut peaks, sink) || self.target.lost().is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Warm-up batches, then measured ones, with their prompts.
    fn prepare(&mut self) -> Result<Vec<Batch>, TargetError> {
        let (plan, trial) = (self.plan, self.trial);
        let warmup = (0..plan.warmup).map(|w| (true, w, u64::from(trial.round * plan.warmup + w)));
        let measured =
            (trial.first_repeat..trial.first_repeat + trial.repeats).map(|r| (false, r, u64::from(r)));
        warmup.chain(measured).map(|(warmup, repeat, number)| self.one(warmup, repeat, number)).collect()
    }

    fn one(&mut self, warmup: bool, repeat: u32, number: u64) -> Result<Batch, TargetError> {
        let (plan, cell) = (self.plan, self.cell);
        let mut batch = Batch { warmup, repeat, requests: Vec::new(), prompt_hashes: Vec::new() };
        for slot in 0..cell.batch {
            let index = number * u64::from(cell.batch) + u64::from(slot);
            let prompt = self.target.prompt(cell, index, warmup)?;
            let bytes: Vec<u8> = prompt.iter().flat_map(|id| id.to_le_bytes()).collect();
            batch.prompt_hashes.push(short_hash(&bytes));
            let seed = derive_seed(plan.seed, &format!("sampler/{}/{warmup}/{index}", cell.id));
            batch.requests.push(Request { repeat, slot, prompt, output_tokens: cell.output_tokens, seed });
        }
        Ok(batch)
    }

    /// The measured window, then what it brought; `false` when the sink takes no more.
    fn batch(&mut self, batch: &Batch, peaks: &mut DevicePeaks, sink: &mut dyn TrialSink) -> bool {
        let recorder = Recorder::new(self.clock, batch.requests.len(), self.cell.output_tokens as usize);
        let mut recorder = recorder.watching(self.memory, batch.repeat);
        let intended = recorder.now();
        for slot in 0..batch.requests.len() {
            recorder.record_at(slot, intended, EventKind::Intended);
        }
        self.target.run(&batch.requests, &mut recorder, self.stop);
        let (mut memory, experts) = recorder.machine();
        if let Some(device) = memory.as_mut().and_then(|memory| memory.device.as_deref_mut()) {
            peaks.take(device, self.own_process);
        }
        let of_requests = batch.requests.iter().zip(&batch.prompt_hashes);
        let mut wanted = true;
        for ((request, prompt_hash), (events, kv_allocated_bytes)) in of_requests.zip(recorder.into_parts()) {
            let trace = RequestTrace {
                repeat: request.repeat,
                slot: request.slot,
                prompt_hash: prompt_hash.clone(),
                asked: None,
                server: None,
                kv_allocated_bytes,
                events,
            };
            wanted &= sink.request(trace, batch.warmup);
        }
        if !batch.warmup {
            if let Some(memory) = memory {
                sink.memory(MemoryTrace { own_process: self.own_process, ..memory });
            }
            if let Some(experts) = experts {
                sink.experts(experts);
            }
        }
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bench_core::memory::{DeviceHeap, Heap};

    fn heap(live_bytes: u64, peak_bytes: u64) -> DeviceHeap {
        DeviceHeap { total: Heap { live_bytes, peak_bytes }, ..DeviceHeap::default() }
    }

    fn batch(before: DeviceHeap, peak: u64) -> GpuTrace {
        let moment = |peak| Some(heap(100, peak));
        GpuTrace {
            before,
            first_token: moment(peak),
            held: moment(peak - 1),
            released: moment(peak - 2),
            ..GpuTrace::default()
        }
    }

    #[test]
    fn a_trials_peak_grows_over_its_batches_and_leaves_loading_out() {
        for (own_process, loading) in [(true, Some(900)), (false, None)] {
            let mut peaks = DevicePeaks::default();
            let mut of = |mut trace: GpuTrace| {
                peaks.take(&mut trace, own_process);
                (trace.loading_peak_bytes, trace.trial_peak_bytes)
            };
            assert_eq!(of(batch(heap(100, 900), 300)), (loading, Some(300)));
            assert_eq!(of(batch(heap(100, 350), 200)), (loading, Some(350)), "held between two batches");
            assert_eq!(of(batch(heap(100, 100), 500)), (loading, Some(500)));
            // A batch that failed in its prefill.
            assert_eq!(of(GpuTrace { before: heap(100, 120), ..GpuTrace::default() }), (loading, Some(500)));
        }
    }
}
