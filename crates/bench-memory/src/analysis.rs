//! One cell, taken in reading by reading: what is known from the model, what was measured per batch and per trial.
//!
//! A reading that is not there is missing with a code of its reason, never 0. Slopes over several cells are
//! `slope`'s matter.

use crate::device;
use crate::estimate::{Reading, Samples, of_cell};
use crate::server::Held;
use crate::slope::Point;
use crate::theory::{kv_full_bytes, kv_theory_bytes, tokens_fed};
use bench_core::client::Scrape;
use bench_core::memory::{Heap, MemoryTrace, ProcessMemory};
use bench_core::metric::Metric;
use bench_core::plan::{Cell, Plan, derive_seed};
use bench_core::power::{PowerSample, PowerScope, PowerTrace};
use bench_core::row::StudyMemory;
use bench_core::sample::Estimate;
use bench_core::shape::ModelFacts;
use bench_core::stats::Distribution;
use std::collections::BTreeMap;

/// Nobody counts the allocations of this program.
const HEAP_NOT_COUNTED: &str = "heap_not_counted";
/// The batch ended before the moment of the reading, or its target does not tell that moment.
pub(crate) const MOMENT_NOT_REACHED: &str = "moment_not_reached";
/// Less was allocated with the cache held than before the prefill: something else was freed meanwhile.
pub(crate) const LESS_THAN_BEFORE: &str = "less_than_before";
const PROCESS_NOT_READABLE: &str = "process_not_readable";
/// The process ran other trials before, and its peak may be theirs.
const SHARED_PROCESS: &str = "shared_process";
/// The kernel does not let the peak begin anew: it may be that of loading the model.
const PEAK_NOT_RESET: &str = "peak_not_reset";
/// The device told no memory during the trial.
const NOT_READ: &str = "not_read";

/// Takes in the trials of one cell.
pub struct Analysis<'a> {
    plan: &'a Plan,
    cell: &'a Cell,
    facts: Option<&'a ModelFacts>,
    trial: u32,
    /// By metric and scope.
    samples: BTreeMap<(Metric, Option<String>), Samples>,
    /// Bytes before, with the cache held, and at the peak of each batch that has all three; where the model was.
    heaps: Vec<[u64; 3]>,
    /// All memory of the GPU, where the model was on one.
    device_bytes: Option<u64>,
    /// Any trace came from a target that tells the moments of a batch.
    moments: bool,
    peak: TrialPeak,
    held: Held,
}

/// The process's peak over the batches of the present trial.
#[derive(Default)]
struct TrialPeak {
    batches: u32,
    /// Each batch ran in a process of this trial alone.
    own_process: bool,
    first: Option<ProcessMemory>,
    last: Option<ProcessMemory>,
    /// Of a GPU, since the trial began and before its first batch.
    on_gpu: Option<[Option<u64>; 2]>,
}

/// A memory figure of a device's sample.
type MemoryOf = fn(&PowerSample) -> Option<u64>;

/// What a cell's memory comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct CellMemory {
    /// In the order of the metrics.
    pub estimates: Vec<Estimate>,
    /// The readings that the study's memory table is computed from.
    pub study: Option<StudyMemory>,
    pub(crate) point: Point,
}

impl<'a> Analysis<'a> {
    /// `facts` are those of the cell's model, where they are known.
    pub fn new(plan: &'a Plan, cell: &'a Cell, facts: Option<&'a ModelFacts>) -> Self {
        Self {
            plan,
            cell,
            facts,
            trial: 0,
            samples: BTreeMap::new(),
            heaps: Vec::new(),
            device_bytes: None,
            moments: false,
            peak: TrialPeak::default(),
            held: Held::default(),
        }
    }

    /// Begins the next trial of the cell.
    pub fn trial(&mut self) {
        self.end_trial();
        self.trial += 1;
    }

    /// Takes in the readings around a measured batch of the present trial.
    pub fn memory(&mut self, trace: &MemoryTrace) {
        self.moments |= trace.first_token.is_some() || trace.held.is_some();
        // Of a model on a GPU the heap says only what the program itself takes.
        let (before, first_token, held) = match trace.device.as_deref() {
            Some(on_gpu) => {
                self.device_bytes = Some(on_gpu.device_bytes);
                let [first_token, held] = [on_gpu.first_token, on_gpu.held].map(|heap| heap.map(|h| h.total));
                (Some(on_gpu.before.total), first_token, held)
            }
            None => (trace.before, trace.first_token, trace.held),
        };
        self.heaps.extend(before.zip(held).map(|(before, held)| {
            let peak = first_token.map_or(held.peak_bytes, |first| first.peak_bytes.max(held.peak_bytes));
            [before.live_bytes, held.live_bytes, peak]
        }));
        let of_host = of_heap(trace);
        if let Some(on_gpu) = trace.device.as_deref() {
            self.peak.on_gpu = Some([on_gpu.trial_peak_bytes, on_gpu.loading_peak_bytes]);
            for (metric, scope, reading) in device::of_batch(on_gpu) {
                self.push(metric, scope, trace.repeat, reading);
            }
            let [.., (metric, scope, reading)] = of_host;
            self.push(metric, scope, trace.repeat, reading);
        } else {
            for (metric, scope, reading) in of_host {
                self.push(metric, scope, trace.repeat, reading);
            }
        }
        let pages = |of: fn(&ProcessMemory) -> u64| {
            trace.process_after.as_ref().map(|p| of(p) as f64).ok_or(PROCESS_NOT_READABLE)
        };
        self.push(Metric::RssAnon, None, trace.repeat, pages(|p| p.rss_anon_bytes));
        self.push(Metric::RssFile, None, trace.repeat, pages(|p| p.rss_file_bytes));
        if self.peak.batches == 0 {
            self.peak.first = trace.process_before;
            self.peak.own_process = true;
        }
        self.peak.own_process &= trace.own_process;
        self.peak.batches += 1;
        self.peak.last = trace.process_after.or(self.peak.last);
    }

    /// Takes in what the devices told during the present trial: their memory, if they are GPUs.
    pub fn power(&mut self, trace: &PowerTrace) {
        let gpus: Vec<_> = trace.devices.iter().filter(|d| d.device.scope == PowerScope::GpuBoard).collect();
        if gpus.is_empty() {
            return;
        }
        let readings: [(&str, MemoryOf); 2] =
            [("gpu_process", |s| s.process_memory_bytes), ("gpu_device", |s| s.memory_used_bytes)];
        for (scope, of) in readings {
            let peaks: Vec<Option<u64>> =
                gpus.iter().map(|d| d.samples.iter().filter_map(of).max()).collect();
            // A process need not use every GPU; a device that tells nothing leaves its share unknown.
            let all = if scope == "gpu_process" {
                peaks.iter().any(Option::is_some).then(|| peaks.iter().flatten().sum())
            } else {
                peaks.iter().copied().sum::<Option<u64>>()
            };
            let reading = |peak: Option<u64>| peak.map(|bytes| bytes as f64).ok_or(NOT_READ);
            self.push(Metric::PeakBytes, Some(scope), self.trial, reading(all));
            if gpus.len() > 1 {
                for (gpu, peak) in gpus.iter().zip(peaks) {
                    let scope = format!("{scope}.{}", gpu.device.index);
                    self.push(Metric::PeakBytes, Some(&scope), self.trial, reading(peak));
                }
            }
        }
    }

    /// Takes in a reading of the server's metrics.
    pub fn scrape(&mut self, scrape: &Scrape) {
        self.held.add(scrape);
    }

    /// All estimates of the cell but those over several cells: hand those to `slopes`.
    pub fn finish(mut self) -> CellMemory {
        self.end_trial();
        let retained = self.samples.get(&(Metric::KvRetained, None)).and_then(Samples::mean);
        let mut estimates = self.known();
        estimates.extend(self.held.bytes(self.facts).map(|bytes| of_cell(Metric::KvLogical, bytes)));
        // A target that neither tells the moments of a batch nor has a model holds no cache to speak of.
        let heap = self.moments || self.facts.is_some();
        let measured = heap && self.samples.contains_key(&(Metric::KvRetained, None));
        for ((metric, scope), samples) in std::mem::take(&mut self.samples) {
            if heap || !(is_of_heap(metric) || scope.as_deref() == Some("allocator")) {
                let scope = scope.as_deref();
                let of = format!("{}.{}", metric.def().key, scope.unwrap_or_default());
                let seed = derive_seed(self.plan.seed, &format!("bootstrap.{}.{of}", self.cell.id));
                estimates.extend(samples.estimates(metric, scope, seed));
            }
        }
        estimates.sort_by_key(|e| e.metric);
        let point = Point::new(self.cell, self.facts, retained, measured);
        CellMemory { estimates, study: medians(&self.heaps, self.device_bytes), point }
    }

    fn push(&mut self, metric: Metric, scope: Option<&str>, group: u32, reading: Reading) {
        self.samples.entry((metric, scope.map(str::to_owned))).or_default().push(group, reading);
    }

    /// The process's peak is one figure of a trial: it is that of the batches before, too.
    fn end_trial(&mut self) {
        let TrialPeak { batches, own_process, first, last, on_gpu } = std::mem::take(&mut self.peak);
        if batches == 0 {
            return;
        }
        for (scope, bytes) in ["gpu_trial", "gpu_loading"].into_iter().zip(on_gpu.into_iter().flatten()) {
            let reading = bytes.map(|bytes| bytes as f64);
            // Loading is another trial's where the process is shared.
            self.push(Metric::PeakBytes, Some(scope), self.trial, reading.ok_or(SHARED_PROCESS));
        }
        let reading = match last {
            _ if !own_process => Err(SHARED_PROCESS),
            None => Err(PROCESS_NOT_READABLE),
            // A peak that grew during the batches is theirs in any case.
            Some(p) if p.peak_since_start && first.is_none_or(|f| f.rss_peak_bytes >= p.rss_peak_bytes) => {
                Err(PEAK_NOT_RESET)
            }
            Some(p) => Ok(p.rss_peak_bytes as f64),
        };
        self.push(Metric::PeakBytes, Some("process"), self.trial, reading);
    }

    fn known(&self) -> Vec<Estimate> {
        let Some(facts) = self.facts else { return Vec::new() };
        let tokens = tokens_fed(self.cell.prompt_tokens, self.cell.output_tokens);
        let batch = u64::from(self.cell.batch);
        let figures = [
            (Metric::WeightsBytes, facts.weights_bytes),
            (Metric::KvTheory, batch * kv_theory_bytes(&facts.shape, tokens)),
            (Metric::KvFull, batch * kv_full_bytes(&facts.shape, tokens)),
        ];
        figures.map(|(metric, bytes)| of_cell(metric, Ok(bytes as f64))).into()
    }
}

/// The study printed one reading of each; over several batches it is their median.
fn medians(heaps: &[[u64; 3]], device_bytes: Option<u64>) -> Option<StudyMemory> {
    let of = |which: usize| {
        let values = heaps.iter().map(|heap| heap[which] as f64).collect();
        Distribution::new(values).ok()?.quantile(0.5)
    };
    let device_bytes = device_bytes.map(|bytes| bytes as f64);
    Some(StudyMemory { before_bytes: of(0)?, held_bytes: of(1)?, peak_bytes: of(2)?, device_bytes })
}

fn is_of_heap(metric: Metric) -> bool {
    use Metric::{ActivationPeak, DecodePeak, KvRetained, PrefillPeak};
    [KvRetained, ActivationPeak, PrefillPeak, DecodePeak].contains(&metric)
}

/// What the heap's readings around one batch come to; the last is all that is said of it for a model on a GPU.
fn of_heap(trace: &MemoryTrace) -> [(Metric, Option<&'static str>, Reading); 5] {
    let MemoryTrace { before, first_token, held, .. } = trace;
    let missing = if before.is_none() { HEAP_NOT_COUNTED } else { MOMENT_NOT_REACHED };
    let peak = |heap: &Heap| heap.peak_bytes as f64;
    let prefill = first_token.as_ref().map(peak).ok_or(missing);
    // Without a reading at the first token the later peak is that of both.
    let decode = first_token.and(*held).as_ref().map(peak).ok_or(missing);
    let whole = held.as_ref().map(|held| prefill.unwrap_or(0.0).max(peak(held))).ok_or(missing);
    let retained = before.zip(*held).ok_or(missing).and_then(|(before, held)| {
        let bytes = held.live_bytes.checked_sub(before.live_bytes).ok_or(LESS_THAN_BEFORE)?;
        Ok(bytes as f64)
    });
    let activation = before.zip(*held).ok_or(missing).and_then(|(before, _)| {
        let rest = whole? - (before.live_bytes as f64 + retained?);
        Ok(rest)
    });
    [
        (Metric::KvRetained, None, retained),
        (Metric::ActivationPeak, None, activation),
        (Metric::PrefillPeak, None, prefill),
        (Metric::DecodePeak, None, decode),
        (Metric::PeakBytes, Some("allocator"), whole),
    ]
}
