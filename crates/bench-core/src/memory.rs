//! Readings of memory around one repeat, as they were taken; what they mean is computed elsewhere.
//!
//! The heap is counted by the program's own allocator and costs nanoseconds to read, so it is read inside a
//! repeat; the process is asked of the kernel, which takes longer, so only before and after. A model on a GPU is not
//! in the heap: what it takes there is counted by the engine, at the same moments.

use serde::{Deserialize, Serialize};

/// The program's own allocations, or those of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Heap {
    /// Bytes allocated now.
    pub live_bytes: u64,
    /// Most bytes allocated at once since the previous reading.
    pub peak_bytes: u64,
}

/// Pages of this process that are in memory, by what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProcessMemory {
    /// Heap, stacks, tables: what belongs to the process alone.
    pub rss_anon_bytes: u64,
    /// Pages of files, mapped weights among them: the kernel may drop and read them again.
    pub rss_file_bytes: u64,
    pub rss_shmem_bytes: u64,
    /// Most pages that were in memory at once, since the peak was reset or the process began.
    pub rss_peak_bytes: u64,
    /// The peak could not be reset: it is that since the process began, and loading the model is in it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub peak_since_start: bool,
}

impl ProcessMemory {
    pub fn rss_bytes(&self) -> u64 {
        self.rss_anon_bytes + self.rss_file_bytes + self.rss_shmem_bytes
    }
}

/// A GPU's memory by the counters of the engine's own allocator, told apart by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeviceHeap {
    pub weights: Heap,
    /// Pages that sequences hold.
    pub kv_cache: Heap,
    /// What forward passes work in; kept from one batch to the next.
    pub activations: Heap,
    /// Tables and other small things.
    pub workspace: Heap,
    /// Of all; its peak is that of one moment, so that it need not be the sum of the others.
    pub total: Heap,
}

/// What a GPU told of one repeat: its memory at the moments of `MemoryTrace`, and times on its own clock.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct GpuTrace {
    /// All memory that the device has.
    pub device_bytes: u64,
    pub before: DeviceHeap,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token: Option<DeviceHeap>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<DeviceHeap>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<DeviceHeap>,
    /// Most bytes held at once since the trial began, warm-up included and loading not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial_peak_bytes: Option<u64>,
    /// Most bytes held at once before the trial's first batch, in a process that began with the trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loading_peak_bytes: Option<u64>,
    /// From the batch's begin to its first tokens, by marks in the device's queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_prefill_ms: Option<f64>,
    /// From there to its last token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_decode_ms: Option<f64>,
}

/// Readings around one repeat; `None` where nobody counts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MemoryTrace {
    pub repeat: u32,
    /// The process began with this trial: what it holds, and the most that it held, belong to this cell alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_process: bool,
    /// Before the prefill: weights, prompts, what the program itself needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Heap>,
    /// After the first token; its peak is that of the prefill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token: Option<Heap>,
    /// After the last token, the cache still held; its peak is that of the decode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Heap>,
    /// After the cache was dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<Heap>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process_before: Option<ProcessMemory>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process_after: Option<ProcessMemory>,
    /// Of a model on a GPU: the heap then says nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Box<GpuTrace>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_gpu_told_is_left_out_where_there_is_none_and_read_where_it_is() {
        let host = MemoryTrace { repeat: 2, ..MemoryTrace::default() };
        assert_eq!(serde_json::to_string(&host).unwrap(), "{\"repeat\":2}");
        let mut trace = GpuTrace { device_bytes: 7, ..GpuTrace::default() };
        (trace.before.kv_cache.live_bytes, trace.device_decode_ms) = (5, Some(1.5));
        let on_gpu = MemoryTrace { device: Some(Box::new(trace)), ..host };
        let text = serde_json::to_string(&on_gpu).unwrap();
        assert!(text.contains("\"device_decode_ms\":1.5") && !text.contains("prefill"), "{text}");
        assert_eq!(serde_json::from_str::<MemoryTrace>(&text).unwrap(), on_gpu);
    }
}
