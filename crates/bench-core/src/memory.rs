//! Readings of memory around one repeat, as they were taken; what they mean is computed elsewhere.
//!
//! The heap is counted by the program's own allocator and costs nanoseconds to read, so it is read inside a
//! repeat; the process is asked of the kernel, which takes longer, so only before and after.

use serde::{Deserialize, Serialize};

/// The program's own allocations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

/// Readings around one repeat; `None` where nobody counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
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
}
