//! The pool's promises: every task once, panics late, nothing waits for who has nothing to do.
//!
//! Small enough for Miri and the thread sanitizer; the commands stand in the crate's README.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use bench_kernels::pool::{Pool, PoolOptions};
use bench_kernels::{Exec, Variant};

fn pool(threads: usize) -> Pool {
    Pool::new(PoolOptions { threads: Some(threads), pin: false }).unwrap()
}

/// How often each task ran.
fn counts(pool: &Pool, tasks: usize) -> Vec<usize> {
    let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
    pool.run(tasks, &|i| {
        counts[i].fetch_add(1, Relaxed);
    });
    counts.into_iter().map(AtomicUsize::into_inner).collect()
}

#[test]
fn every_task_runs_once_whatever_the_number_of_threads() {
    for threads in [1, 2, 3, 8] {
        let pool = pool(threads);
        assert_eq!(pool.threads(), threads);
        for tasks in [0, 1, 2, 3, 7, 64] {
            assert_eq!(counts(&pool, tasks), vec![1; tasks], "{threads} threads, {tasks} tasks");
        }
    }
    assert_eq!(Pool::serial().threads(), 1);
    assert_eq!(counts(&Pool::serial(), 5), [1; 5]);
}

/// Jobs follow each other at all distances, so that workers are found spinning, falling asleep and asleep; each job
/// borrows memory that is gone afterwards.
#[test]
fn jobs_that_follow_each_other_do_not_mix() {
    let jobs = if cfg!(miri) { 30 } else { 5000 };
    let pool = pool(3);
    for job in 0..jobs {
        let tasks = 1 + job % 5;
        let sum = Box::new(AtomicUsize::new(0));
        pool.run(tasks, &|i| {
            sum.fetch_add(job * 10 + i, Relaxed);
        });
        assert_eq!(sum.into_inner(), tasks * job * 10 + tasks * (tasks - 1) / 2, "job {job}");
        for _ in 0..(job % 97) * (job % 89) {
            std::hint::spin_loop();
        }
    }
}

/// What is written in one job without any synchronization of its own is seen by the next, on whatever thread.
#[test]
fn a_job_sees_what_the_one_before_wrote() {
    let pool = pool(4);
    let mut values = [0_u64; 24];
    for round in 1..=if cfg!(miri) { 5 } else { 500 } {
        let cells: Vec<Mutex<&mut [u64]>> = values.chunks_mut(3).map(Mutex::new).collect();
        pool.run(cells.len(), &|i| cells[i].lock().unwrap().iter_mut().for_each(|v| *v += 1));
        drop(cells);
        assert!(values.iter().all(|&v| v == round));
    }
}

#[test]
fn low_numbers_are_claimed_first() {
    let order = Mutex::new(Vec::new());
    Pool::serial().run(4, &|i| order.lock().unwrap().push(i));
    assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3]);
    // Of two threads, whoever claims next finds all lower numbers claimed: each sees its own ascend.
    let pool = pool(2);
    let seen = Mutex::new(Vec::new());
    pool.run(32, &|i| seen.lock().unwrap().push((thread::current().id(), i)));
    let seen = seen.into_inner().unwrap();
    for (id, _) in &seen {
        let own: Vec<_> = seen.iter().filter(|s| s.0 == *id).map(|s| s.1).collect();
        assert!(own.is_sorted(), "{own:?}");
    }
}

/// Two tasks that wait for each other need two threads at once.
#[test]
fn tasks_run_at_the_same_time() {
    let pool = pool(3);
    let barrier = Barrier::new(3);
    let names = Mutex::new(HashSet::new());
    pool.run(3, &|_| {
        barrier.wait();
        names.lock().unwrap().insert(thread::current().name().unwrap_or_default().to_owned());
    });
    let names = names.into_inner().unwrap();
    assert!(names.contains("kernel-1") && names.contains("kernel-2") && names.len() == 3, "{names:?}");
}

/// The caller does all tasks while the only worker is kept busy elsewhere: a late thread is not waited for.
#[test]
fn a_thread_that_claimed_nothing_is_not_waited_for() {
    let pool = pool(2);
    let worker_has_one = AtomicBool::new(false);
    let left = AtomicUsize::new(8);
    let caller = thread::current().id();
    pool.run(9, &|_| {
        if thread::current().id() == caller {
            while !worker_has_one.load(SeqCst) {
                thread::yield_now();
            }
            left.fetch_sub(1, SeqCst);
        } else if !worker_has_one.swap(true, SeqCst) {
            // As if preempted in its first task: it ends only when the caller has done everything else.
            while left.load(SeqCst) > 0 {
                thread::yield_now();
            }
        } else {
            panic!("the worker claimed a task while its first was not done");
        }
    });
    assert_eq!(left.into_inner(), 0);
}

#[test]
fn a_call_from_inside_a_task_runs_there() {
    let pool = pool(3);
    let total = AtomicUsize::new(0);
    pool.run(4, &|_| {
        let here = thread::current().id();
        pool.run(5, &|_| {
            assert_eq!(thread::current().id(), here);
            total.fetch_add(1, Relaxed);
        });
        pool.broadcast(&|_| {
            total.fetch_add(100, Relaxed);
        });
    });
    assert_eq!(total.into_inner(), 4 * 5 + 4 * 300);
}

#[test]
fn several_threads_may_call_at_once() {
    let pool = pool(3);
    let rounds = if cfg!(miri) { 5 } else { 500 };
    let total = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..rounds {
                    pool.run(6, &|i| {
                        total.fetch_add(i, Relaxed);
                    });
                }
            });
        }
    });
    assert_eq!(total.into_inner(), 3 * rounds * 15);
}

#[test]
fn a_panic_comes_after_the_other_tasks_and_leaves_the_pool_usable() {
    for pool in [pool(1), pool(2), pool(4)] {
        for bad in [0, 5] {
            let done = AtomicUsize::new(0);
            let call = || {
                pool.run(6, &|i| {
                    assert!(i != bad && i != 3, "task {i} fails");
                    done.fetch_add(1, Relaxed);
                });
            };
            let panic = catch_unwind(AssertUnwindSafe(call)).unwrap_err();
            let message = panic.downcast_ref::<String>().unwrap();
            assert!(message.starts_with("task ") && message.ends_with(" fails"), "{message}");
            assert_eq!(done.into_inner(), 4);
            assert_eq!(counts(&pool, 9), [1; 9]);
        }
        assert!(catch_unwind(AssertUnwindSafe(|| pool.broadcast(&|_| panic!("all fail")))).is_err());
        assert_eq!(counts(&pool, 9), [1; 9]);
    }
}

#[test]
fn a_broadcast_reaches_each_thread_under_its_number() {
    for threads in [1, 2, 5] {
        let pool = pool(threads);
        let place = || {
            let ids: Vec<_> = (0..threads).map(|_| Mutex::new(None)).collect();
            pool.broadcast(&|n| assert!(ids[n].lock().unwrap().replace(thread::current().id()).is_none()));
            ids.into_iter().map(|id| id.into_inner().unwrap().unwrap()).collect::<Vec<_>>()
        };
        let first = place();
        assert_eq!(first[0], thread::current().id());
        assert_eq!(first.iter().collect::<HashSet<_>>().len(), threads);
        counts(&pool, 20);
        assert_eq!(place(), first);
    }
    // A worker of one pool is the caller of another.
    let (outer, inner) = (pool(2), pool(2));
    let meet = Barrier::new(2);
    outer.run(2, &|_| {
        meet.wait();
        let numbers = Mutex::new(Vec::new());
        inner.broadcast(&|n| numbers.lock().unwrap().push(n));
        let mut numbers = numbers.into_inner().unwrap();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1]);
    });
}

/// Workers hold the pool's memory: it is given back only when the last has ended.
#[test]
fn dropping_a_pool_ends_its_threads() {
    let alive = Arc::new(());
    for jobs in [0, 1, 20] {
        let pool = pool(4);
        for _ in 0..jobs {
            let alive = Arc::clone(&alive);
            pool.run(8, &|_| drop(Arc::clone(&alive)));
        }
        drop(pool);
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}

#[test]
fn impossible_options_are_errors() {
    let error = Pool::new(PoolOptions { threads: Some(0), pin: false }).unwrap_err().to_string();
    assert!(error.contains("threads") && error.contains("at least 1"), "{error}");
}

/// The number of cores that the system says this thread may use.
#[cfg(all(target_os = "linux", not(miri)))]
fn cores() -> usize {
    rustix::thread::sched_getaffinity(None).unwrap().count() as usize
}

#[cfg(all(target_os = "linux", not(miri)))]
#[test]
fn pinned_threads_have_one_core_each_and_the_caller_keeps_its_own() {
    let all = cores();
    let pinned = Pool::new(PoolOptions { threads: Some(3), pin: true }).unwrap();
    assert_eq!(cores(), all);
    let counts = Mutex::new(vec![0; 3]);
    pinned.broadcast(&|n| counts.lock().unwrap()[n] = cores());
    assert_eq!(counts.into_inner().unwrap(), [all, 1, 1]);
    {
        let _here = pinned.pin_caller().unwrap().unwrap();
        assert_eq!(cores(), 1);
    }
    assert_eq!(cores(), all);
    assert!(pool(2).pin_caller().unwrap().is_none() && cores() == all);
}

#[test]
fn ranges_cover_everything_and_do_not_follow_the_threads() {
    let ranges = |threads, n, step, operations| {
        let exec = Exec::new(Variant::Scalar, Arc::new(pool(threads)));
        let ranges = Mutex::new(Vec::new());
        exec.run_ranges(n, step, operations, |range| ranges.lock().unwrap().push(range));
        let mut ranges = ranges.into_inner().unwrap();
        ranges.sort_by_key(|r| r.start);
        ranges
    };
    for (n, step, operations) in [(0, 16, 1 << 30), (1, 1, 0), (100, 16, 1 << 20), (1001, 8, usize::MAX)] {
        let cut = ranges(1, n, step, operations);
        assert_eq!(ranges(3, n, step, operations), cut);
        assert!(cut.iter().all(|r| r.start % step == 0 && !r.is_empty()));
        let covered: Vec<usize> = cut.into_iter().flatten().collect();
        assert_eq!(covered, (0..n).collect::<Vec<_>>());
    }
    assert_eq!(ranges(2, 100, 16, 1 << 20).len(), 7);
    assert_eq!(ranges(2, 100, 16, 1000), std::iter::once(0..100).collect::<Vec<_>>());
}
