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
    /// its stream goes on, many at first and single ones at the end, so that threads end together. What a task
    /// computes must not depend on who else runs.
    pub fn run_streams(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        let threads = self.threads();
        let stretches = Stretches { tasks, threads };
        self.run(stretches.count(), |i| stretches.get(i).for_each(&task));
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

/// Tasks in stretches of neighbours: each thread gets a half of its share of what is left, until that is one task.
#[derive(Debug, Clone, Copy)]
struct Stretches {
    tasks: usize,
    threads: usize,
}

impl Stretches {
    /// Rounds of one stretch for each thread, as the first task and the stretch's length; the last has length one and
    /// all that is left.
    fn rounds(self) -> impl Iterator<Item = (usize, usize)> {
        let mut first = 0;
        let mut is_last = false;
        std::iter::from_fn(move || {
            if is_last {
                return None;
            }
            let len = ((self.tasks - first) / (2 * self.threads)).max(1);
            is_last = len == 1;
            let round = (first, len);
            first += len * self.threads;
            Some(round)
        })
    }

    fn count(self) -> usize {
        self.rounds().map(|(first, len)| if len == 1 { self.tasks - first } else { self.threads }).sum()
    }

    fn get(self, i: usize) -> Range<usize> {
        let mut round = 0;
        for (first, len) in self.rounds() {
            if len == 1 || i < round + self.threads {
                let start = first + (i - round) * len;
                return start..start + len;
            }
            round += self.threads;
        }
        0..0
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
    fn stretches_become_shorter() {
        let of = |tasks, threads| {
            let stretches = Stretches { tasks, threads };
            (0..stretches.count()).map(|i| stretches.get(i)).collect::<Vec<_>>()
        };
        assert_eq!(of(20, 2), [0..5, 5..10, 10..12, 12..14, 14..15, 15..16, 16..17, 17..18, 18..19, 19..20]);
        assert_eq!(of(3, 8), [0..1, 1..2, 2..3]);
        assert!(of(0, 2).is_empty());
        let long = of(1000, 3);
        assert!(long.is_sorted_by(|a, b| a.end == b.start && a.len() >= b.len()) && long[0].len() == 166);
    }

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
