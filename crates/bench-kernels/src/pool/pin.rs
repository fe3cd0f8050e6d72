//! Binding threads to cores, where the system can.

use crate::error::{Error, Result};

/// The core on which the calling thread is at this moment, where the system says so.
// Each build has only one of the two answers.
#[allow(clippy::unnecessary_wraps)]
pub(super) fn core() -> Option<usize> {
    #[cfg(all(target_os = "linux", not(miri)))]
    return Some(rustix::thread::sched_getcpu());
    #[cfg(any(not(target_os = "linux"), miri))]
    return None;
}

/// The calling thread is bound to one core; dropping this gives it back the cores that it had.
///
/// It must be dropped on the thread that made it, hence it cannot be sent.
#[derive(Debug)]
pub struct Pinned {
    #[cfg(target_os = "linux")]
    before: rustix::thread::CpuSet,
    not_send: std::marker::PhantomData<*const ()>,
}

#[cfg(target_os = "linux")]
impl Pinned {
    /// The n-th of the cores that this thread may use, around again when there are fewer.
    pub(super) fn to(n: usize) -> Result<Self> {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        let refuse =
            || Error::Invalid { what: "core to pin", value: n, expected: "one that the system lets us use" };
        let before = sched_getaffinity(None).map_err(|_| refuse())?;
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| before.is_set(core)).collect();
        let core = *cores.get(n % cores.len().max(1)).ok_or_else(refuse)?;
        let mut one = CpuSet::new();
        one.set(core);
        sched_setaffinity(None, &one).map_err(|_| refuse())?;
        Ok(Self { before, not_send: std::marker::PhantomData })
    }
}

#[cfg(target_os = "linux")]
impl Drop for Pinned {
    fn drop(&mut self) {
        // The same cores were allowed before; if they no longer are, staying bound is all that is left.
        let _ = rustix::thread::sched_setaffinity(None, &self.before);
    }
}

#[cfg(not(target_os = "linux"))]
impl Pinned {
    pub(super) fn to(n: usize) -> Result<Self> {
        Err(Error::Invalid {
            what: "core to pin",
            value: n,
            expected: "Linux; elsewhere leave threads unpinned",
        })
    }
}
