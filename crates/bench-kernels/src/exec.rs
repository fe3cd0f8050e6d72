//! Where kernels run: an instruction set and the threads that share the work.
//!
//! Every kernel takes one. Results depend on the instruction set, never on the number of threads.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::pool::Pool;
use crate::variant::Variant;

/// An instruction set and a pool of threads; cheap to clone.
#[derive(Debug, Clone)]
pub struct Exec {
    variant: Variant,
    pool: Arc<Pool>,
}

impl Exec {
    pub fn new(variant: Variant, pool: Arc<Pool>) -> Self {
        Self { variant, pool }
    }

    /// The fastest instruction set on the threads that this process shares, one for each core.
    pub fn shared() -> Self {
        static SHARED: OnceLock<Exec> = OnceLock::new();
        SHARED.get_or_init(|| Self::new(Variant::active(), Pool::shared())).clone()
    }

    /// On the calling thread alone.
    pub fn serial(variant: Variant) -> Self {
        Self::new(variant, Arc::new(Pool::serial()))
    }

    pub fn variant(&self) -> Variant {
        self.variant
    }

    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Calls `task` once for each of `0..tasks`, on any thread and in any order ([`Pool::run`]).
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        self.pool.run(tasks, &task);
    }

    /// As [`Exec::run`], for tasks that read memory one after the other: a thread takes neighbours together, so that
    /// its stream goes on, and single ones at the end, so that threads end together. What a task computes must not
    /// depend on who else runs.
    pub fn run_streams(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        /// Neighbours at most.
        const STRETCH: usize = 8;
        let stretch = (tasks / (4 * self.threads())).clamp(1, STRETCH);
        let long = tasks.saturating_sub(self.threads() * stretch) / stretch;
        let single = tasks - long * stretch;
        self.run(long + single, |i| {
            if i < long {
                (i * stretch..(i + 1) * stretch).for_each(&task);
            } else {
                task(long * stretch + i - long);
            }
        });
    }

    /// Calls `task` on consecutive ranges that cover `0..n` and begin at multiples of `step`. What n steps cost in
    /// all, in `operations`, decides how many; the number of threads does not.
    pub fn run_ranges(&self, n: usize, step: usize, operations: usize, task: impl Fn(Range<usize>) + Sync) {
        /// A task costs about 0.1 µs to hand out, in which a core does a hundredth of this.
        const WORTH_A_TASK: usize = 1 << 16;
        /// More would not spread any better over the threads that a machine has.
        const MAX_TASKS: usize = 512;
        let tasks = (operations / WORTH_A_TASK).clamp(1, MAX_TASKS);
        let len = n.div_ceil(tasks).max(1).next_multiple_of(step.max(1));
        self.run(n.div_ceil(len), |i| task(i * len..((i + 1) * len).min(n)));
    }
}

impl Default for Exec {
    fn default() -> Self {
        Self::shared()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::pool::PoolOptions;

    #[test]
    fn streams_take_every_task_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(PoolOptions { threads: Some(threads), pin: false }).unwrap();
            let exec = Exec::new(Variant::Scalar, Arc::new(pool));
            for tasks in [0, 1, 2, 7, 16, 33, 250] {
                let seen: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                exec.run_streams(tasks, |i| _ = seen[i].fetch_add(1, Ordering::Relaxed));
                assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{threads} {tasks}");
            }
        }
    }
}
