//! Reads the memory of this process: the program's own allocator by its counters, resident pages by the kernel.
//!
//! Linux only, by files; elsewhere there are no such files and every reading is `None`. It decides nothing about
//! when to read.

use bench_core::memory::{Heap, ProcessMemory};
use bench_core::probe::MemoryProbe;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Makes the kernel begin the peak anew: proc(5), `clear_refs`, since Linux 4.0.
const RESET_PEAK: &[u8] = b"5";

/// Counters of the program's allocator, which lives with the binary.
#[derive(Debug, Clone, Copy)]
pub struct HeapCounters {
    /// Bytes allocated now.
    pub live_bytes: fn() -> u64,
    /// Most bytes allocated at once since `reset_peak`.
    pub peak_bytes: fn() -> u64,
    /// The peak begins anew at what is allocated now.
    pub reset_peak: fn(),
}

/// The probe of this process.
///
/// Pages are read from `status`: 20 to 50 microseconds at any size, where `smaps_rollup` walks the page tables and
/// took 10 ms per resident GiB on the same machine, and tells nothing more that is asked for here.
#[derive(Debug)]
pub struct SystemProbe {
    heap: Option<HeapCounters>,
    process: PathBuf,
    was_reset: AtomicBool,
    /// Most resident bytes of any reading since the reset: the kernel's own mark lags behind by some hundred KiB.
    seen_bytes: AtomicU64,
}

impl SystemProbe {
    /// `heap` is `None` for a program without a counting allocator.
    pub fn new(heap: Option<HeapCounters>) -> Self {
        Self::at(heap, "/proc/self")
    }

    /// Reads the process's files below `process`.
    pub fn at(heap: Option<HeapCounters>, process: impl Into<PathBuf>) -> Self {
        let (was_reset, seen_bytes) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { heap, process: process.into(), was_reset, seen_bytes }
    }
}

impl MemoryProbe for SystemProbe {
    fn heap(&self) -> Option<Heap> {
        let counters = self.heap?;
        let live_bytes = (counters.live_bytes)();
        // Threads may allocate between the two readings.
        Some(Heap { live_bytes, peak_bytes: (counters.peak_bytes)().max(live_bytes) })
    }

    fn reset_heap_peak(&self) {
        if let Some(counters) = self.heap {
            (counters.reset_peak)();
        }
    }

    fn process(&self) -> Option<ProcessMemory> {
        // The name of a program need not be UTF-8.
        let status = std::fs::read(self.process.join("status")).ok()?;
        let mut memory = parse_status(&String::from_utf8_lossy(&status))?;
        memory.peak_since_start = !self.was_reset.load(Ordering::Relaxed);
        let seen_bytes = self.seen_bytes.fetch_max(memory.rss_bytes(), Ordering::Relaxed);
        memory.rss_peak_bytes = memory.rss_peak_bytes.max(memory.rss_bytes()).max(seen_bytes);
        Some(memory)
    }

    fn reset_process_peak(&self) {
        let file = OpenOptions::new().write(true).open(self.process.join("clear_refs"));
        let written = file.and_then(|mut file| file.write_all(RESET_PEAK));
        self.was_reset.store(written.is_ok(), Ordering::Relaxed);
        self.seen_bytes.store(0, Ordering::Relaxed);
    }
}

/// `None` unless every figure is there: a part of them would be taken for the whole.
fn parse_status(text: &str) -> Option<ProcessMemory> {
    let bytes = |key: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        let (kib, unit) = value.trim().split_once(' ')?;
        kib.parse::<u64>().ok()?.checked_mul(1024).filter(|_| unit.trim() == "kB")
    };
    let memory = ProcessMemory {
        rss_anon_bytes: bytes("RssAnon")?,
        rss_file_bytes: bytes("RssFile")?,
        rss_shmem_bytes: bytes("RssShmem")?,
        rss_peak_bytes: bytes("VmHWM")?,
        peak_since_start: false,
    };
    let parts = [memory.rss_anon_bytes, memory.rss_file_bytes, memory.rss_shmem_bytes];
    parts.into_iter().try_fold(0_u64, u64::checked_add).map(|_| memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const STATUS: &str = "Name:\tossbench\nVmPeak:\t  900000 kB\nVmHWM:\t    5000 kB\nVmRSS:\t    3300 kB\n\
        RssAnon:\t    2000 kB\nRssFile:\t    1200 kB\nRssShmem:\t     100 kB\nThreads:\t4\n";

    fn read(status: &[u8]) -> Option<ProcessMemory> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("status"), status).unwrap();
        SystemProbe::at(None, folder.path()).process()
    }

    #[test]
    fn pages_are_told_apart() {
        let memory = read(STATUS.as_bytes()).unwrap();
        let expected = ProcessMemory {
            rss_anon_bytes: 2_000 * 1024,
            rss_file_bytes: 1_200 * 1024,
            rss_shmem_bytes: 100 * 1024,
            rss_peak_bytes: 5_000 * 1024,
            peak_since_start: true,
        };
        assert_eq!(memory, expected);
        assert_eq!(memory.rss_bytes(), 3_300 * 1024);
        // A mark that lags behind what is there.
        let late = STATUS.replace("5000 kB", "3000 kB");
        assert_eq!(read(late.as_bytes()).unwrap().rss_peak_bytes, 3_300 * 1024);
        // A name that is no text.
        let named = [b"Name:\t\xff\xfe\n", STATUS.as_bytes()].concat();
        assert_eq!(read(&named), Some(expected));
    }

    #[test]
    fn what_is_not_whole_is_missing() {
        for end in [0, 30, 60, STATUS.find("RssShmem").unwrap() + 12] {
            assert_eq!(read(&STATUS.as_bytes()[..end]), None, "{end}");
        }
        for (from, to) in [
            ("RssFile", "RssFiles"),
            ("1200 kB", "1200 pages"),
            ("1200 kB", "1200"),
            ("1200 kB", "-1 kB"),
            ("1200 kB", "99999999999999999999 kB"),
            ("1200 kB", "18446744073709551615 kB"),
        ] {
            assert_eq!(read(STATUS.replace(from, to).as_bytes()), None, "{to}");
        }
        assert_eq!(read(&[0xff; 100]), None);
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(SystemProbe::at(None, empty.path()).process(), None);
    }

    #[test]
    fn a_peak_that_cannot_begin_anew_says_so() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("status"), STATUS).unwrap();
        let probe = SystemProbe::at(None, folder.path());
        probe.reset_process_peak();
        assert!(probe.process().unwrap().peak_since_start);
        assert!(!folder.path().join("clear_refs").exists(), "nothing is made where nothing was");
        fs::write(folder.path().join("clear_refs"), "").unwrap();
        probe.reset_process_peak();
        assert!(!probe.process().unwrap().peak_since_start);
        assert_eq!(fs::read(folder.path().join("clear_refs")).unwrap(), b"5");
    }

    #[test]
    fn the_heap_is_that_of_the_programs_counters() {
        static PEAK: AtomicBool = AtomicBool::new(false);
        let counters = HeapCounters {
            live_bytes: || 70,
            peak_bytes: || if PEAK.load(Ordering::Relaxed) { 60 } else { 90 },
            reset_peak: || PEAK.store(true, Ordering::Relaxed),
        };
        let probe = SystemProbe::new(Some(counters));
        assert_eq!(probe.heap(), Some(Heap { live_bytes: 70, peak_bytes: 90 }));
        probe.reset_heap_peak();
        assert_eq!(probe.heap(), Some(Heap { live_bytes: 70, peak_bytes: 70 }));
        assert_eq!(SystemProbe::new(None).heap(), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_is_resident_and_its_peak_follows() {
        const BYTES: usize = 64 << 20;
        let probe = SystemProbe::new(None);
        probe.reset_process_peak();
        let before = probe.process().unwrap();
        assert!(before.rss_anon_bytes > 0 && before.rss_file_bytes > 0, "{before:?}");
        assert!(before.rss_peak_bytes >= before.rss_bytes(), "{before:?}");
        let page = std::hint::black_box(vec![1_u8; BYTES]);
        let held = probe.process().unwrap();
        // Other tests run beside this one: half is left to them.
        assert!(held.rss_anon_bytes >= before.rss_anon_bytes + BYTES as u64 / 2, "{before:?} {held:?}");
        drop(page);
        let after = probe.process().unwrap();
        assert!(after.rss_peak_bytes >= held.rss_bytes(), "{held:?} {after:?}");
        if !after.peak_since_start {
            probe.reset_process_peak();
            assert!(probe.process().unwrap().rss_peak_bytes < held.rss_peak_bytes, "{held:?}");
        }
    }
}
