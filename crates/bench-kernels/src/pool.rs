//! Threads that stay, for work that is shared many times a millisecond.
//!
//! One job at a time: its tasks are claimed one by one from a counter, and a call returns when all tasks are done,
//! whoever did them. It never waits for a thread that claimed nothing, so that a busy core costs its share and not
//! more. No queue, no priorities, no results: tasks write where their caller says.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};

use crate::error::{Error, Result};

mod pin;
mod spin;

pub use pin::Pinned;
use spin::Spin;

/// What a job calls with the number of a task.
type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// The bit of [`Shared::pending`] that says that the caller is parked.
const WAITING: usize = 1 << (usize::BITS - 1);
/// Tasks of one job at most: half of what a half of [`Shared::claim`] holds, so that failed claims cannot overflow.
const MAX_TASKS: usize = 1 << 31;

thread_local! {
    /// Number of this thread in its pool; 0 for callers.
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

/// How a pool is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolOptions {
    /// Threads, the caller included; `None`: one for each core that this process may use.
    pub threads: Option<usize>,
    /// Bind each thread to a core of its own. The caller is another's thread and stays as it is; its owner may
    /// bind it to the core that is left with [`Pool::pin_caller`].
    pub pin: bool,
}

/// Threads that wait for work; the caller is one of them.
///
/// Waiting threads spin for some tens of microseconds, less where the machine's cores are wanted by others, and then
/// sleep. Dropping a pool ends its threads.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    /// Threads 1, 2, …; the caller is thread 0.
    workers: Vec<JoinHandle<()>>,
    pin: bool,
}

impl Pool {
    /// # Errors
    /// No threads, more than the system starts, or pinning where the system refuses it.
    pub fn new(options: PoolOptions) -> Result<Self> {
        let threads = options.threads.unwrap_or_else(available_threads);
        let refuse = |expected| Error::Invalid { what: "threads", value: threads, expected };
        if threads == 0 {
            return Err(refuse("at least 1"));
        }
        let mut pool =
            Self { shared: Arc::new(Shared::new(threads - 1)), workers: Vec::new(), pin: options.pin };
        for worker in 0..threads - 1 {
            let shared = Arc::clone(&pool.shared);
            // A thread begins where its parent is bound to, so that a refusal is known here.
            let bound = if options.pin { Some(Pinned::to(worker + 1)?) } else { None };
            let builder = thread::Builder::new().name(format!("kernel-{}", worker + 1));
            let started = builder.spawn(move || shared.serve(worker));
            drop(bound);
            pool.workers.push(started.map_err(|_| refuse("a number of threads that the system can start"))?);
        }
        Ok(pool)
    }

    /// The caller alone.
    pub fn serial() -> Self {
        Self { shared: Arc::new(Shared::new(0)), workers: Vec::new(), pin: false }
    }

    /// The pool that this process shares, one thread for each core.
    pub fn shared() -> Arc<Self> {
        static SHARED: OnceLock<Arc<Pool>> = OnceLock::new();
        let make = || Arc::new(Self::new(PoolOptions::default()).unwrap_or_else(|_| Self::serial()));
        Arc::clone(SHARED.get_or_init(make))
    }

    /// Threads that work, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Binds the calling thread to the first core, which the workers of a pinned pool leave free, until the value is
    /// dropped. Threads started meanwhile inherit the binding. `None` if the pool is not pinned.
    ///
    /// # Errors
    /// The system refuses.
    pub fn pin_caller(&self) -> Result<Option<Pinned>> {
        if self.pin { Pinned::to(0).map(Some) } else { Ok(None) }
    }

    /// Calls `task` once for each of `0..tasks`, lower numbers first, and returns when all are done. A task that
    /// panics makes this call panic, after the others.
    ///
    /// Called from inside a task, or while another thread's call runs, it does all tasks on the calling thread.
    pub fn run(&self, tasks: usize, task: &Task<'_>) {
        let mut first = 0;
        while tasks - first > MAX_TASKS {
            self.part(MAX_TASKS, &|i| task(first + i));
            first += MAX_TASKS;
        }
        if first == 0 { self.part(tasks, task) } else { self.part(tasks - first, &|i| task(first + i)) }
    }

    fn part(&self, tasks: usize, task: &Task<'_>) {
        if self.workers.is_empty() || tasks < 2 || !self.share(tasks, task) {
            alone(tasks, task);
        }
    }

    /// Calls `task` once on each thread with its number, the caller's being 0: what one call writes, the same
    /// thread finds in the next one. Waits for all threads. Inside a task, or while another thread's call runs, the
    /// calling thread takes all numbers.
    pub fn broadcast(&self, task: &Task<'_>) {
        /// Puts the number back, also when a task panicked.
        struct Restore(usize);
        impl Drop for Restore {
            fn drop(&mut self) {
                NUMBER.set(self.0);
            }
        }
        let threads = self.threads();
        let arrived = AtomicUsize::new(0);
        let meet = |_| {
            // Nobody begins before everybody has a task, so that nobody takes two.
            arrived.fetch_add(1, AcqRel);
            while arrived.load(Acquire) < threads {
                thread::yield_now();
            }
            task(NUMBER.get());
        };
        let _restore = Restore(NUMBER.replace(0));
        if threads == 1 || !self.share(threads, &meet) {
            alone(threads, task);
        }
    }

    /// Shares the tasks with the workers; `false`, with nothing done, if they have another job.
    fn share(&self, tasks: usize, task: &Task<'_>) -> bool {
        let shared = &*self.shared;
        if shared.busy.compare_exchange(false, true, Acquire, Relaxed).is_err() {
            return false;
        }
        shared.publish(tasks, task);
        shared.wake(tasks - 1, &self.workers);
        let done = shared.work();
        // Nothing between `publish` and the end of `wait` may unwind: tasks borrow from the caller.
        if shared.pending.0.fetch_sub(done, AcqRel) != done {
            shared.wait();
        }
        let panic = shared.take_panic();
        shared.busy.store(false, Release);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        true
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches what tasks throw; it has no panic of its own to tell.
            let _ = worker.join();
        }
    }
}

/// Cores that this process may use, by its affinity and its control group.
fn available_threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// All tasks on this thread, with `run`'s promise on panics.
fn alone(tasks: usize, task: &Task<'_>) {
    let mut first = None;
    for i in 0..tasks {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(i))) {
            keep_first(&mut first, panic);
        }
    }
    if let Some(panic) = first {
        resume_unwind(panic);
    }
}

/// Dropping what a panic carries runs foreign code, which may panic again.
fn keep_first(first: &mut Option<Box<dyn Any + Send>>, panic: Box<dyn Any + Send>) {
    if first.is_none() {
        *first = Some(panic);
    } else if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(again);
    }
}

/// A value with cache lines of its own; processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line<T>(T);

/// What caller and workers share.
struct Shared {
    /// Tasks of the job in the upper half, the next one to claim in the lower. Who adds 1 and finds a number below
    /// the upper half has that task, of the job that is current at this moment: a late thread cannot get an old one.
    claim: Line<AtomicU64>,
    /// Tasks that are not done, and [`WAITING`].
    pending: Line<AtomicUsize>,
    /// Workers that sleep or are about to.
    sleepers: Line<AtomicUsize>,
    /// Whether a caller has the pool.
    busy: AtomicBool,
    /// Set for the parked caller by the worker that did the last task.
    woken: AtomicBool,
    stop: AtomicBool,
    panicked: AtomicBool,
    /// The core on which the caller of the job was.
    core: AtomicUsize,
    /// Of the job; written by the caller while no task can be claimed, read by those who hold a task.
    task: UnsafeCell<Option<*const Task<'static>>>,
    /// The caller, when `WAITING` is set; read by the worker that did the last task, before it sets `woken`.
    caller: UnsafeCell<Option<Thread>>,
    /// What the first panic carried; locked only after one.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// For each worker, whether it must be woken.
    asleep: Box<[Line<AtomicBool>]>,
}

// SAFETY: the two cells are the only parts that are not Send and Sync; the protocol in their comments keeps each
// write apart from every other access, and what `task` points to may be called from any thread.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("claim", &self.claim)
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn new(workers: usize) -> Self {
        Self {
            claim: Line::default(),
            pending: Line::default(),
            sleepers: Line::default(),
            busy: AtomicBool::new(false),
            woken: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            core: AtomicUsize::new(usize::MAX),
            task: UnsafeCell::new(None),
            caller: UnsafeCell::new(None),
            panic: Mutex::new(None),
            asleep: (0..workers).map(|_| Line::default()).collect(),
        }
    }

    /// Makes tasks claimable. The caller has `busy`, and all tasks of the last job are done.
    fn publish(&self, tasks: usize, task: &Task<'_>) {
        // SAFETY: only the lifetime changes. Who has a task calls it, and the caller, who lent it, does not
        // return before every task is done.
        let task = unsafe { std::mem::transmute::<&Task<'_>, &'static Task<'static>>(task) };
        // SAFETY: no task can be claimed, so that nobody reads.
        unsafe { *self.task.get() = Some(std::ptr::from_ref(task)) };
        self.pending.0.store(tasks, Relaxed);
        self.core.store(pin::core().unwrap_or(usize::MAX), Relaxed);
        // In one order with `asleep`: either a worker sees these tasks before it sleeps, or `wake` sees it asleep.
        self.claim.0.store((tasks as u64) << 32, SeqCst);
    }

    /// Wakes workers that sleep, until `wanted` are awake.
    fn wake(&self, wanted: usize, workers: &[JoinHandle<()>]) {
        if self.sleepers.0.load(SeqCst) == 0 {
            return;
        }
        for (asleep, worker) in self.asleep.iter().zip(workers).take(wanted) {
            if asleep.0.load(SeqCst) && asleep.0.swap(false, SeqCst) {
                worker.thread().unpark();
            }
        }
    }

    fn has_task(&self) -> bool {
        let claim = self.claim.0.load(SeqCst);
        claim & u64::from(u32::MAX) < claim >> 32
    }

    /// Does tasks until none can be claimed; returns how many. They stay pending until the caller of this subtracts
    /// them.
    fn work(&self) -> usize {
        let mut done = 0;
        while self.has_task() {
            let claim = self.claim.0.fetch_add(1, AcqRel);
            let number = claim & u64::from(u32::MAX);
            if number >= claim >> 32 {
                break;
            }
            // SAFETY: this thread holds a task of the current job. `publish` wrote the cell before the claim that
            // was just read, and writes it again only when this task is done.
            let task = unsafe { *self.task.get() };
            let call = || {
                if let Some(task) = task {
                    // SAFETY: what the caller lent lives until all tasks are done; this one is not.
                    unsafe { (*task)(number as usize) }
                }
            };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(call)) {
                keep_first(&mut self.panic.lock().unwrap_or_else(PoisonError::into_inner), panic);
                self.panicked.store(true, Relaxed);
            }
            done += 1;
        }
        done
    }

    fn take_panic(&self) -> Option<Box<dyn Any + Send>> {
        // Ordered by `pending`: the thread that set it had its task subtracted afterwards.
        if !self.panicked.load(Relaxed) {
            return None;
        }
        self.panicked.store(false, Relaxed);
        self.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The caller waits until the tasks of others are done.
    fn wait(&self) {
        if Spin::default().until(|| self.pending.0.load(Acquire) == 0) {
            return;
        }
        // SAFETY: only callers write here, one at a time, and a worker reads only after the next line.
        unsafe { *self.caller.get() = Some(thread::current()) };
        if self.pending.0.fetch_or(WAITING, AcqRel) != 0 {
            while !self.woken.swap(false, Acquire) {
                thread::park();
            }
        }
    }

    /// A worker's tasks are done.
    fn finish(&self, done: usize) {
        if self.pending.0.fetch_sub(done, AcqRel) != done | WAITING {
            return;
        }
        // SAFETY: the caller wrote its handle before it set WAITING, and does not go on before `woken` is set.
        let caller = unsafe { (*self.caller.get()).clone() };
        self.woken.store(true, Release);
        if let Some(caller) = caller {
            caller.unpark();
        }
    }

    /// The life of a worker.
    fn serve(&self, worker: usize) {
        NUMBER.set(worker + 1);
        let mut spin = Spin::default();
        let ready = || self.has_task() || self.stop.load(SeqCst);
        while !self.stop.load(SeqCst) {
            let done = self.work();
            if done > 0 {
                self.finish(done);
            }
            // A worker that was woken on the caller's core keeps it from going on.
            let in_the_way = pin::core().is_some_and(|core| core == self.core.load(Relaxed));
            if in_the_way || !spin.until(ready) {
                self.sleep(worker, ready);
            }
        }
    }

    fn sleep(&self, worker: usize, ready: impl Fn() -> bool) {
        let asleep = &self.asleep[worker].0;
        self.sleepers.0.fetch_add(1, SeqCst);
        asleep.store(true, SeqCst);
        // A wake-up takes the flag away; one without is the system's whim, or a late one.
        while asleep.load(SeqCst) && !ready() {
            thread::park();
        }
        asleep.store(false, SeqCst);
        self.sleepers.0.fetch_sub(1, SeqCst);
    }
}
