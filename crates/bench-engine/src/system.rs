//! What the machine still has: memory that a process may take, and free space of a disk.
//!
//! Read from the kernel each time; nothing is cached or estimated.

use std::fs;
use std::path::Path;

/// Bytes of memory that this process may still take: what the kernel counts as available, bounded by the limit
/// of the control group (versions 1 and 2). `None` where the system does not tell.
pub fn available_memory() -> Option<u64> {
    let read = |path: &str| fs::read_to_string(path).ok();
    let machine = meminfo(&read("/proc/meminfo")?, "MemAvailable");
    let group = [
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ]
    .iter()
    .find_map(|(limit, used)| {
        let (limit, used) = (number(&read(limit)?)?, number(&read(used)?)?);
        Some(limit.saturating_sub(used))
    });
    [machine, group].into_iter().flatten().min()
}

/// `MemAvailable:   23689764 kB` in bytes.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    number(line.trim().strip_suffix("kB")?)?.checked_mul(1024)
}

/// A number alone on its line; `max` is none.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Bytes that an unprivileged user can still write at `path`, or at its nearest folder that exists.
pub fn free_disk(path: &Path) -> Option<u64> {
    let folder = std::path::absolute(path).ok()?;
    let existing = folder.ancestors().find(|p| p.exists())?;
    let stat = rustix::fs::statvfs(existing).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

/// Name of the kernels that were picked for this CPU.
pub fn kernel_variant() -> &'static str {
    bench_kernels::Variant::active().name()
}

/// Bounds the compute threads of this process. Only the first call has an effect, and only before anything ran.
pub fn limit_threads(threads: usize) {
    // A pool that exists already keeps its size; the caller asked for a bound, not for a failure.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_counts_in_kib() {
        let text = "MemTotal:       24689764 kB\nMemAvailable:   1000 kB\n";
        assert_eq!(meminfo(text, "MemAvailable"), Some(1_024_000));
        assert_eq!(meminfo(text, "MemFree"), None);
        assert_eq!(number("max\n"), None);
    }

    #[test]
    fn a_folder_that_does_not_exist_has_the_space_of_its_parent() {
        assert!(free_disk(Path::new("/no/such/folder")).is_some_and(|bytes| bytes > 0));
    }
}
