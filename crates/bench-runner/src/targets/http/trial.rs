//! One trial under load: makes jobs ahead, starts the workers, opens the window, gathers what comes.
//!
//! The calling thread only gathers and stores. Jobs are made on a thread of their own, ahead of the window as
//! far as memory allows; the workers send and read; the pacer wakes them.

use super::convert;
use super::drive::{Common, Done, Job};
use super::pacer::Pacer;
use super::worker::{self, FromWorker, Line, Pace, Share, WorkerHealth};
use bench_core::client::{ClientHealth, Scrape};
use bench_core::clock::Clock;
use bench_core::target::{StopFlag, TargetError, TrialSink};
use bench_core::unit::Nanos;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, watch};

/// How often the gathering thread looks at the stop flag and tells how many requests are in flight.
const LOOK: Duration = Duration::from_millis(100);

/// How often it takes what has come. It is not woken for each request: waking it would cost the workers time,
/// and a core where there are few.
const TAKE: Duration = Duration::from_millis(5);

/// From the decision to begin to the first scheduled instant, so that the pacer is there in time.
const LEAD: Nanos = Nanos::from_millis(5);

/// Prompts that are ready and wait may take so much memory.
const PREFILL_BYTES: usize = 48 << 20;

/// A server that fails to answer so many requests in a row, beyond those in flight, is given up.
const GIVE_UP: u32 = 20;

/// Makes the jobs of one trial.
pub(super) trait JobSource: Send {
    /// The `index`-th job; warm-up jobs are numbered apart from measured ones.
    fn job(&mut self, index: u32, warmup: bool) -> Result<Job, String>;
}

/// How the jobs are started.
pub(super) enum Start {
    /// So many in flight.
    Closed(u32),
    /// At these instants after the window opens, in nanoseconds; at most so many in flight.
    Open { after_ns: Vec<u64>, most: Option<u32> },
}

/// One trial.
pub(super) struct TrialLoad<'a> {
    pub(super) line: Line,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) jobs: Box<dyn JobSource + 'a>,
    pub(super) first: u32,
    pub(super) number: u32,
    pub(super) warmup: std::ops::Range<u32>,
    pub(super) start: Start,
    pub(super) threads: u32,
    pub(super) think: Duration,
    pub(super) keep_awake: bool,
    /// Bytes that one job is expected to hold.
    pub(super) job_bytes: usize,
    /// Readings of the server's metrics, as they come.
    pub(super) scrapes: Option<Receiver<Scrape>>,
}

impl TrialLoad<'_> {
    /// Requests in flight that connections are opened for.
    fn level(&self) -> u32 {
        match &self.start {
            Start::Closed(slots) => *slots,
            Start::Open { after_ns, most } => most.unwrap_or_else(|| expected_in_flight(after_ns)),
        }
    }
}

/// As many as start within a second, at most 1,024: what is needed beyond is opened late, and counted.
fn expected_in_flight(after_ns: &[u64]) -> u32 {
    let mut most = 1;
    let mut from = 0;
    for (at, instant) in after_ns.iter().enumerate() {
        while after_ns[from] + 1_000_000_000 < *instant {
            from += 1;
        }
        most = most.max(at - from + 1);
    }
    most.min(1_024) as u32
}

/// Runs the trial; what it brings goes to `sink`.
pub(super) fn run(load: TrialLoad<'_>, sink: &mut dyn TrialSink, stop: &StopFlag) -> Result<(), TargetError> {
    let workers = load.threads.clamp(1, load.level().max(1));
    let (out, gathered) = mpsc::channel();
    let (go, wait) = watch::channel(false);
    let common = Arc::new(Common {
        clock: load.clock.clone(),
        in_flight: AtomicU32::new(0),
        unreachable: AtomicU32::new(0),
        give_up_after: GIVE_UP + load.level(),
        think: load.think,
    });
    let line = load.line.clone();
    let mut senders = Senders::default();
    let mut shares = Vec::new();
    let depth = (PREFILL_BYTES / load.job_bytes.max(1) / workers as usize).clamp(2, 1 << 20);
    let most = match &load.start {
        Start::Open { most: Some(most), .. } => Some(Arc::new(Semaphore::new(*most as usize))),
        _ => None,
    };
    for index in 0..workers {
        let slots = share_of(load.level(), workers, index);
        let (warm, warmup) = tokio::sync::mpsc::channel(load.warmup.len().max(1));
        let (measured, jobs) = tokio::sync::mpsc::channel(depth.min(load.number as usize + 1));
        let pace = match &load.start {
            Start::Closed(_) => Pace::Closed { slots },
            Start::Open { .. } => {
                let (tick, ticks) = tokio::sync::mpsc::unbounded_channel();
                senders.ticks.push(tick);
                Pace::Open { ticks, most: most.clone() }
            }
        };
        senders.warmup.push(warm);
        senders.measured.push(measured);
        shares.push(Share {
            line: line.clone(),
            common: common.clone(),
            connections: slots as usize,
            warmup,
            warmup_slots: slots.min(load.warmup.len() as u32),
            jobs,
            pace,
            go: wait.clone(),
            out: out.clone(),
        });
    }
    let Senders { warmup, measured, ticks } = senders;
    let TrialLoad { mut jobs, first, number, warmup: warm, start, clock, scrapes, keep_awake, .. } = load;
    let client_stop = line.stop.clone();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Set when this closure is left, however that comes about.
        let _over = SetAtEnd(&over);
        if keep_awake {
            for _ in 0..thread::available_parallelism().map_or(1, std::num::NonZero::get) {
                scope.spawn(|| stay_awake(&over));
            }
        }
        for share in shares {
            scope.spawn(move || worker::run(share));
        }
        let to_gather = out.clone();
        let in_turn = matches!(start, Start::Open { .. });
        scope.spawn(move || {
            make_jobs(jobs.as_mut(), (warm, warmup), (first..first + number, measured), in_turn, &to_gather);
        });
        drop(out);
        let begin = || {
            if let Start::Open { after_ns, .. } = &start {
                let zero = clock.now() + LEAD;
                let due = after_ns.iter().map(|after| zero + Nanos(*after)).collect();
                let pacer = Pacer { clock: clock.clone(), due, workers: ticks };
                scope.spawn(move || pacer.run(stop));
            }
            let _ = go.send(true);
        };
        let gather = Gather { sink, stop, client_stop, common: &common, scrapes, workers };
        gather.all(&gathered, begin)
    })
}

struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Keeps a core from sleeping: whatever else wants it goes first.
fn stay_awake(over: &AtomicBool) {
    // On Linux this is the thread's own priority; where it cannot be lowered, staying awake would cost more
    // than it brings.
    #[cfg(target_os = "linux")]
    if rustix::process::setpriority_process(None, 19).is_ok() {
        while !over.load(Relaxed) {
            std::hint::spin_loop();
        }
    }
}

#[derive(Default)]
struct Senders {
    warmup: Vec<tokio::sync::mpsc::Sender<Job>>,
    measured: Vec<tokio::sync::mpsc::Sender<Job>>,
    ticks: Vec<tokio::sync::mpsc::UnboundedSender<Nanos>>,
}

/// Of `total`, what falls to worker `index` of `workers`.
fn share_of(total: u32, workers: u32, index: u32) -> u32 {
    total / workers + u32::from(index < total % workers)
}

type Numbered = (std::ops::Range<u32>, Vec<tokio::sync::mpsc::Sender<Job>>);

/// Makes all jobs in order. In an open loop worker `i` gets every `i`-th; in a closed loop whoever has most
/// room.
fn make_jobs(
    jobs: &mut dyn JobSource,
    (warm, warm_to): Numbered,
    (measured, to): Numbered,
    in_turn: bool,
    out: &Sender<FromWorker>,
) {
    for (number, index) in warm.enumerate() {
        match jobs.job(index, true) {
            Ok(job) => {
                if warm_to[number % warm_to.len()].blocking_send(job).is_err() {
                    return;
                }
            }
            Err(message) => {
                let _ = out.send(FromWorker::NoJob(message));
                return;
            }
        }
    }
    drop(warm_to);
    let mut told = false;
    for (number, index) in measured.enumerate() {
        let job = match jobs.job(index, false) {
            Ok(job) => job,
            Err(message) => {
                let _ = out.send(FromWorker::NoJob(message));
                return;
            }
        };
        let worker = if in_turn {
            number % to.len()
        } else {
            (0..to.len()).max_by_key(|w| to[*w].capacity()).unwrap_or(0)
        };
        match to[worker].try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Closed(_)) => return,
            Err(TrySendError::Full(job)) => {
                if !told {
                    told = true;
                    let _ = out.send(FromWorker::Prefilled);
                }
                if to[worker].blocking_send(job).is_err() {
                    return;
                }
            }
        }
    }
    if !told {
        let _ = out.send(FromWorker::Prefilled);
    }
}

/// Takes what the workers tell, and passes it on.
struct Gather<'a> {
    sink: &'a mut dyn TrialSink,
    stop: &'a StopFlag,
    client_stop: bench_http::Stop,
    common: &'a Common,
    scrapes: Option<Receiver<Scrape>>,
    workers: u32,
}

impl Gather<'_> {
    fn all(mut self, gathered: &Receiver<FromWorker>, begin: impl FnOnce()) -> Result<(), TargetError> {
        let mut begin = Some(begin);
        let (mut ready, mut prefilled) = (0, false);
        let mut healths = Vec::new();
        let mut failed = None;
        let mut looked = Instant::now();
        loop {
            let mut over = false;
            loop {
                match gathered.try_recv() {
                    Ok(FromWorker::Ready) => ready += 1,
                    Ok(FromWorker::Prefilled) => prefilled = true,
                    Ok(FromWorker::Request { done, warmup }) => self.take(done, warmup),
                    Ok(FromWorker::Ended(health)) => healths.push(health),
                    Ok(FromWorker::Broken(why) | FromWorker::NoJob(why)) => {
                        failed.get_or_insert(why);
                        self.client_stop.stop();
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        over = true;
                        break;
                    }
                }
            }
            if over {
                break;
            }
            if ready == self.workers
                && prefilled
                && let Some(begin) = begin.take()
            {
                begin();
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                self.look();
            }
            thread::sleep(TAKE);
        }
        self.look();
        if !healths.is_empty() {
            self.sink.client(together(&healths));
        }
        failed.map_or(Ok(()), |why| Err(TargetError(why)))
    }

    fn take(&mut self, done: Done, warmup: bool) {
        let trace = convert::trace(done.asked, done.intended, &done.exchange);
        if !self.sink.request(trace, warmup) {
            self.client_stop.stop();
        }
    }

    fn look(&mut self) {
        if self.stop.is_set() {
            self.client_stop.stop();
        }
        self.sink.in_flight(self.common.in_flight.load(Relaxed));
        for scrape in self.scrapes.iter().flat_map(Receiver::try_iter) {
            self.sink.scrape(scrape);
        }
    }
}

/// All workers as one: sums, and of times the worst.
fn together(workers: &[WorkerHealth]) -> ClientHealth {
    let share = |w: &WorkerHealth| (w.wall_ns > 0).then(|| w.cpu_ns as f64 / w.wall_ns as f64);
    let worst = |of: fn(&WorkerHealth) -> u64| workers.iter().map(of).max().unwrap_or(0);
    let sum = |of: fn(&WorkerHealth) -> u64| workers.iter().map(of).sum();
    ClientHealth {
        threads: workers.len() as u32,
        cpu_share: workers.iter().filter_map(share).reduce(f64::max),
        cpu_s: Nanos(sum(|w| w.cpu_ns)).as_secs(),
        stall_max_ms: Nanos(worst(|w| w.stall_max_ns)).as_ms(),
        stall_p99_ms: Nanos(worst(|w| w.stall_p99_ns)).as_ms(),
        reads: sum(|w| w.reads.reads),
        events: sum(|w| w.reads.events),
        shared_events: sum(|w| w.reads.shared),
        connections_opened: sum(|w| w.pool.opened),
        connections_reused: sum(|w| w.pool.reused),
        opened_late: sum(|w| w.pool.opened_late),
        closed_by_server: sum(|w| w.pool.closed_by_server),
    }
}
