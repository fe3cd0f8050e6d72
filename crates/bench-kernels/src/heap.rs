//! The heap's own count of its bytes: how many are allocated, and the most that were at once.
//!
//! A program that declares [`CountingAllocator`] as its global allocator has every allocation counted, and with them
//! the pages of [`crate::host::AlignedBytes`]. Mapped files and what the system allocator keeps back are not.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A counter with its cache line for itself: the peak is read far more often than it is written.
#[repr(align(128))]
struct Counter(AtomicU64);

static LIVE: Counter = Counter(AtomicU64::new(0));
static PEAK: Counter = Counter(AtomicU64::new(0));
static ALLOCATIONS: Counter = Counter(AtomicU64::new(0));
static INSTALLED: AtomicBool = AtomicBool::new(false);

/// Bytes allocated now.
pub fn live_bytes() -> u64 {
    LIVE.0.load(Ordering::SeqCst)
}

/// Most bytes that were allocated at once since the program began or [`reset_peak`].
pub fn peak_bytes() -> u64 {
    PEAK.0.load(Ordering::SeqCst)
}

/// The peak begins anew at what is allocated now.
pub fn reset_peak() {
    // Emptied before the count is read: an allocation that this count does not have finds the emptied peak.
    PEAK.0.swap(0, Ordering::SeqCst);
    PEAK.0.fetch_max(live_bytes(), Ordering::SeqCst);
}

/// How often memory was asked for since the program began, growth in place included.
pub fn allocations() -> u64 {
    ALLOCATIONS.0.load(Ordering::Relaxed)
}

/// Whether this program's allocations are counted: without [`CountingAllocator`] the figures mean nothing.
pub fn installed() -> bool {
    INSTALLED.load(Ordering::Relaxed)
}

/// Hands free memory back to the system, so that what is in memory is what is allocated. Takes milliseconds; for
/// after a load that left much behind. Does nothing where the system's allocator is not glibc's.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: glibc documents malloc_trim as safe to call from any thread at any time.
        unsafe { malloc_trim(0) };
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
// SAFETY: the declaration is that of malloc.h: int malloc_trim(size_t pad).
unsafe extern "C" {
    fn malloc_trim(pad: usize) -> i32;
}

/// Counts `bytes` more; the order with `reset_peak` is sequential, which is free where read-modify-writes are
/// barriers anyway.
pub(crate) fn add(bytes: usize) {
    let bytes = bytes as u64;
    let live = LIVE.0.fetch_add(bytes, Ordering::SeqCst).wrapping_add(bytes);
    if live > PEAK.0.load(Ordering::SeqCst) {
        PEAK.0.fetch_max(live, Ordering::SeqCst);
    }
}

/// Counts `bytes` less.
pub(crate) fn sub(bytes: usize) {
    LIVE.0.fetch_sub(bytes as u64, Ordering::Relaxed);
}

/// The system's allocator, counted. Bytes are those that were asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct CountingAllocator;

impl CountingAllocator {
    fn added(size: usize) {
        if !INSTALLED.load(Ordering::Relaxed) {
            INSTALLED.store(true, Ordering::Relaxed);
        }
        ALLOCATIONS.0.fetch_add(1, Ordering::Relaxed);
        add(size);
    }
}

// SAFETY: every call goes to the system's allocator with the arguments as they came; counting allocates nothing and
// cannot panic.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `GlobalAlloc`, which is that of `System`.
        let data = unsafe { System.alloc(layout) };
        if !data.is_null() {
            Self::added(layout.size());
        }
        data
    }

    /// Asks the system for zeroed memory: pages that nobody writes then stay out of memory.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        let data = unsafe { System.alloc_zeroed(layout) };
        if !data.is_null() {
            Self::added(layout.size());
        }
        data
    }

    unsafe fn realloc(&self, data: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as in `alloc`; `data` came from `System` with this layout.
        let moved = unsafe { System.realloc(data, layout, new_size) };
        if !moved.is_null() {
            ALLOCATIONS.0.fetch_add(1, Ordering::Relaxed);
            match new_size.checked_sub(layout.size()) {
                Some(more) => add(more),
                None => sub(layout.size() - new_size),
            }
        }
        moved
    }

    unsafe fn dealloc(&self, data: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe { System.dealloc(data, layout) };
        sub(layout.size());
    }
}
