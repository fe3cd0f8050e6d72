//! What the counters of a GPU's memory around one batch come to: the same figures as of the heap, and peaks by what
//! the memory is for.
//!
//! Nothing is asked of a device here.

use crate::analysis::{LESS_THAN_BEFORE, MOMENT_NOT_REACHED};
use crate::estimate::Reading;
use bench_core::memory::{DeviceHeap, GpuTrace, Heap};
use bench_core::metric::Metric;

type Figure = (Metric, Option<&'static str>, Reading);
/// One of the counters.
type Part = fn(&DeviceHeap) -> Heap;

const PARTS: [(&str, Part); 5] = [
    ("gpu_allocator", |heap| heap.total),
    ("gpu_weights", |heap| heap.weights),
    ("gpu_kv_cache", |heap| heap.kv_cache),
    ("gpu_activations", |heap| heap.activations),
    ("gpu_workspace", |heap| heap.workspace),
];

/// The figures of one batch.
pub(crate) fn of_batch(trace: &GpuTrace) -> impl Iterator<Item = Figure> + '_ {
    let figures = [
        (Metric::KvRetained, retained(trace)),
        (Metric::ActivationPeak, largest(trace, |heap| heap.activations.peak_bytes)),
        (Metric::PrefillPeak, of_moment(trace.first_token.as_ref())),
        // Without a reading at the first token the later peak is that of both.
        (Metric::DecodePeak, of_moment(trace.first_token.and(trace.held).as_ref())),
    ];
    let peaks = PARTS.into_iter().map(move |(scope, of)| {
        (Metric::PeakBytes, Some(scope), largest(trace, move |heap| of(heap).peak_bytes))
    });
    figures.into_iter().map(|(metric, reading)| (metric, None, reading)).chain(peaks)
}

/// The cache alone: what else is held is kept from batch to batch.
fn retained(trace: &GpuTrace) -> Reading {
    let held = trace.held.ok_or(MOMENT_NOT_REACHED)?.kv_cache.live_bytes;
    let bytes = held.checked_sub(trace.before.kv_cache.live_bytes).ok_or(LESS_THAN_BEFORE)?;
    Ok(bytes as f64)
}

fn of_moment(heap: Option<&DeviceHeap>) -> Reading {
    heap.map(|heap| heap.total.peak_bytes as f64).ok_or(MOMENT_NOT_REACHED)
}

/// Over prefill and decode; of a batch that failed before its end there is no peak.
fn largest(trace: &GpuTrace, of: impl Fn(&DeviceHeap) -> u64) -> Reading {
    let held = trace.held.as_ref().ok_or(MOMENT_NOT_REACHED)?;
    let all = trace.first_token.iter().chain([held]).map(of);
    Ok(all.max().unwrap_or(0) as f64)
}
