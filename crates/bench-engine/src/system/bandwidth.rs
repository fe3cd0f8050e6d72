//! Memory bandwidth of this machine: the sizes to measure at, from its caches and its free memory.
//!
//! The measuring itself is a kernel. Host memory only: a device's memory is measured by who drives the
//! device.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bench_kernels::bandwidth::{HostBandwidth, measure};

use crate::Error;

/// Arrays are at least this large.
const SMALLEST: u64 = 256 << 20;
/// And so many times the last-level caches, of which nearly nothing can then be left from the pass before.
const TIMES_CACHE: u64 = 4;
/// Odd, so that the median is a repeat.
const REPEATS: usize = 11;

/// Reads and copies host memory with `threads` threads (`None`: all cores) on arrays far larger than the
/// caches. Takes about a second.
///
/// # Errors
/// Less than twice the caches is available, or `threads` is 0 or cannot be started.
pub fn bandwidth(threads: Option<usize>) -> Result<HostBandwidth, Error> {
    let invalid = |problem| Error::InvalidModel { what: "memory bandwidth".to_owned(), problem };
    let caches = cache_bytes(Path::new("/"));
    let bytes = array_bytes(caches, super::available_memory()).map_err(invalid)?;
    let threads = threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    measure(threads, bytes as usize, REPEATS).map_err(|e| invalid(e.to_string()))
}

/// Of one of two arrays. They take half of what is available at most.
pub(super) fn array_bytes(caches: Option<u64>, available: Option<u64>) -> Result<u64, String> {
    let caches = caches.unwrap_or_default();
    let wanted = SMALLEST.max(caches.saturating_mul(TIMES_CACHE));
    let bytes = wanted.min(available.unwrap_or(u64::MAX) / 4);
    if bytes < caches.saturating_mul(2).max(SMALLEST / 16) {
        return Err(format!(
            "{} MiB of memory are available and caches have {} MiB: arrays of {} MiB would measure the caches; free \
             some memory, or give the bandwidth",
            available.unwrap_or_default() >> 20,
            caches >> 20,
            bytes >> 20
        ));
    }
    Ok(bytes)
}

/// Bytes of all last-level caches of the machine whose /sys lies below `root`; `None` where it does not tell.
pub(super) fn cache_bytes(root: &Path) -> Option<u64> {
    let mut caches: BTreeMap<(u64, String), u64> = BTreeMap::new();
    for cpu in fs::read_dir(root.join("sys/devices/system/cpu")).ok()?.flatten() {
        let Ok(indices) = fs::read_dir(cpu.path().join("cache")) else { continue };
        for index in indices.flatten() {
            let read = |name| super::read(&index.path(), name);
            let (level, size) = (read("level").and_then(|t| super::number(&t)), read("size"));
            let (Some(level), Some(size)) = (level, size.and_then(|t| size_bytes(&t))) else { continue };
            // Processors that share a cache name the same list; each cache counts once.
            let shared = read("shared_cpu_list").unwrap_or_else(|| index.path().display().to_string());
            caches.insert((level, shared), size);
        }
    }
    let last = caches.keys().map(|(level, _)| *level).max()?;
    Some(caches.iter().filter(|((level, _), _)| *level == last).map(|(_, size)| size).sum())
}

/// `32768K` in bytes.
fn size_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, shift) = match text.chars().last()? {
        'K' => (&text[..text.len() - 1], 10),
        'M' => (&text[..text.len() - 1], 20),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_that_are_shared_count_once_and_only_the_last_level_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(cache_bytes(dir.path()), None);
        let write = |cpu: u32, index: u32, level: u32, size: &str, shared: &str| {
            let folder = dir.path().join(format!("sys/devices/system/cpu/cpu{cpu}/cache/index{index}"));
            fs::create_dir_all(&folder).unwrap();
            for (name, text) in [
                ("level", level.to_string()),
                ("size", size.to_owned()),
                ("shared_cpu_list", shared.to_owned()),
            ] {
                fs::write(folder.join(name), text + "\n").unwrap();
            }
        };
        for cpu in 0..4 {
            write(cpu, 2, 2, "1024K", &cpu.to_string());
            write(cpu, 3, 3, "32768K", if cpu < 2 { "0-1" } else { "2-3" });
        }
        assert_eq!(cache_bytes(dir.path()), Some(2 * 32768 * 1024));
        assert_eq!(size_bytes("2M\n"), Some(2 << 20));
    }

    #[test]
    fn arrays_are_far_beyond_the_caches_and_within_memory() {
        let mib = |n: u64| n << 20;
        assert_eq!(array_bytes(None, None), Ok(mib(256)));
        assert_eq!(array_bytes(Some(mib(32)), Some(mib(20_000))), Ok(mib(256)));
        assert_eq!(array_bytes(Some(mib(384)), Some(mib(20_000))), Ok(mib(1536)));
        assert_eq!(array_bytes(Some(mib(32)), Some(mib(400))), Ok(mib(100)));
        let error = array_bytes(Some(mib(32)), Some(mib(200))).unwrap_err();
        assert!(error.contains("200 MiB") && error.contains("32 MiB"), "{error}");
        assert!(array_bytes(None, Some(mib(40))).is_err());
    }
}
