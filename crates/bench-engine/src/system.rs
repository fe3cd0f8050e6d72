//! What the machine still has: memory that a process may take, free space of a disk, kernels and threads for its CPU.
//!
//! Read from the kernel each time; nothing is cached or estimated.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bench_kernels::pool::{Pool, PoolOptions};
use bench_kernels::{Exec, Variant};

use crate::Error;

mod bandwidth;
pub mod gpu;
pub mod kernels;

pub use bandwidth::bandwidth;
pub use bench_kernels::bandwidth::HostBandwidth;

/// Bytes of memory that this process may still take: what the kernel counts as available, bounded by the limits
/// of the control groups (versions 1 and 2) that it is in. `None` where the system does not tell.
pub fn available_memory() -> Option<u64> {
    available_below(Path::new("/"))
}

/// [`available_memory`] of the system whose /proc and /sys lie below `root`.
fn available_below(root: &Path) -> Option<u64> {
    let machine = read(root, "proc/meminfo").and_then(|text| meminfo(&text, "MemAvailable"));
    machine.into_iter().chain(group_rooms(root)).min()
}

/// Room below each memory limit, from this process's control group up to the root of the hierarchy.
fn group_rooms(root: &Path) -> Vec<u64> {
    let mut rooms = Vec::new();
    for line in read(root, "proc/self/cgroup").unwrap_or_default().lines() {
        // `hierarchy:controllers:path`; version 2 has one hierarchy and names no controllers.
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (mount, files) = match controllers {
            "" => ("sys/fs/cgroup", ["memory.max", "memory.current", "inactive_file"]),
            names if names.split(',').any(|name| name == "memory") => (
                "sys/fs/cgroup/memory",
                ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"],
            ),
            _ => continue,
        };
        // Inside a container the path of the host may not exist: then its ancestor, the mount, is the group.
        let groups = Path::new(path.trim_start_matches('/')).ancestors();
        rooms.extend(groups.filter_map(|group| room(&root.join(mount).join(group), files)));
    }
    rooms
}

fn room(group: &Path, [limit, used, inactive]: [&str; 3]) -> Option<u64> {
    let (limit, used) = (number(&read(group, limit)?)?, number(&read(group, used)?)?);
    // Pages of files that nobody uses are given up before the limit bites.
    let stat = read(group, "memory.stat").unwrap_or_default();
    let reclaimable = stat.lines().find_map(|l| number(l.strip_prefix(inactive)?.strip_prefix(' ')?));
    Some(limit.saturating_sub(used.saturating_sub(reclaimable.unwrap_or(0))))
}

fn read(root: &Path, path: &str) -> Option<String> {
    fs::read_to_string(root.join(path)).ok()
}

/// `MemAvailable:   23689764 kB` in bytes.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    number(line.trim().strip_suffix("kB")?)?.checked_mul(1024)
}

/// Pages of this process that are in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    pub now_bytes: u64,
    /// Most at once since the process began.
    pub peak_bytes: u64,
}

/// What of this process is in memory, files that it mapped included; `None` where the system does not tell.
pub fn resident_memory() -> Option<Resident> {
    let status = read(Path::new("/"), "proc/self/status")?;
    Some(Resident { now_bytes: meminfo(&status, "VmRSS")?, peak_bytes: meminfo(&status, "VmHWM")? })
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

/// Instruction set of the kernels: the fastest that this CPU has, or the one that `OSSBENCH_CPU` names.
pub fn kernel_variant() -> &'static str {
    bench_kernels::Variant::active().name()
}

/// Whether this CPU runs what `OSSBENCH_CPU` names; the kernels themselves would silently take the fastest.
///
/// # Errors
/// [`Error::InvalidModel`] with the names that it does run.
pub fn check_kernel_variant() -> Result<(), Error> {
    let wrong = |e: bench_kernels::Error| Error::InvalidModel {
        what: "environment variable OSSBENCH_CPU".to_owned(),
        problem: e.to_string(),
    };
    bench_kernels::Variant::requested().map(|_| ()).map_err(wrong)
}

/// This process ends when the one that started it does, however that ends. Where the system cannot promise it,
/// nothing happens.
pub fn end_with_parent() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
}

/// The kernels' instruction set, with threads of its own: `threads` of them (`None`: one for each core that this
/// process may use), each on a core of its own if `pin`.
///
/// # Errors
/// [`Error::InvalidModel`] for no threads, or more than the system starts.
pub fn exec(threads: Option<usize>, pin: bool) -> Result<Exec, Error> {
    if threads.is_none() && !pin {
        return Ok(Exec::shared());
    }
    let wrong = |problem: String| Error::InvalidModel { what: "threads".to_owned(), problem };
    if threads == Some(0) {
        return Err(wrong("0 asked for: expected at least 1".to_owned()));
    }
    let pool = Pool::new(PoolOptions { threads, pin }).map_err(|e| wrong(e.to_string()))?;
    Ok(Exec::new(Variant::active(), Arc::new(pool)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_as_many_as_asked() {
        assert_eq!(exec(Some(1), false).unwrap().threads(), 1);
        assert_eq!(exec(Some(3), false).unwrap().threads(), 3);
        assert_eq!(exec(None, false).unwrap().threads(), Exec::shared().threads());
        let error = exec(Some(0), false).unwrap_err().to_string();
        assert_eq!(error, "threads: 0 asked for: expected at least 1");
    }

    #[test]
    fn the_kernel_counts_in_kib() {
        let text = "MemTotal:       24689764 kB\nMemAvailable:   1000 kB\n";
        assert_eq!(meminfo(text, "MemAvailable"), Some(1_024_000));
        assert_eq!(meminfo(text, "MemFree"), None);
        assert_eq!(number("max\n"), None);
    }

    fn check_available(files: &[(&str, &str)], expected: Option<u64>) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        assert_eq!(available_below(dir.path()), expected, "{files:?}");
    }

    #[test]
    fn memory_is_the_least_of_machine_and_groups() {
        let machine = ("proc/meminfo", "MemTotal: 2000 kB\nMemAvailable: 1000 kB\n");
        check_available(&[], None);
        check_available(&[machine], Some(1_024_000));
        let group = ("proc/self/cgroup", "0::/a/b\n");
        let current = ("sys/fs/cgroup/a/memory.current", "300000\n");
        check_available(&[machine, group, current, ("sys/fs/cgroup/a/memory.max", "max\n")], Some(1_024_000));
        let max = ("sys/fs/cgroup/a/memory.max", "500000\n");
        check_available(&[machine, group, current, max], Some(200_000));
        let stat = ("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 100000\n");
        check_available(&[machine, group, current, max, stat], Some(300_000));
        let group = ("proc/self/cgroup", "3:cpu,cpuacct:/x\n4:memory:/docker/1\n");
        let limit = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "700000");
        let usage = ("sys/fs/cgroup/memory/memory.usage_in_bytes", "600000");
        check_available(&[machine, group, limit, usage], Some(100_000));
    }

    #[test]
    fn what_is_in_memory_grows_with_what_is_touched() {
        if let Some(before) = resident_memory() {
            // Other tests of this process give memory back meanwhile, though by far not half of this.
            let touched = std::hint::black_box(vec![1_u8; 256 << 20]);
            let during = resident_memory().unwrap();
            assert!(during.now_bytes + (128 << 20) >= before.now_bytes + touched.len() as u64);
            assert!(during.peak_bytes >= during.now_bytes);
        }
    }

    #[test]
    fn a_folder_that_does_not_exist_has_the_space_of_its_parent() {
        assert!(free_disk(Path::new("/no/such/folder")).is_some_and(|bytes| bytes > 0));
    }
}
