//! One thread of the client: its own event loop, its own connections, its share of the load.
//!
//! Everything that costs time is done before the measured window or on other threads: prompts are made and
//! rendered elsewhere, finished requests are handed on as they are.

use super::drive::{Common, Done, Driver, Job, Wire};
use super::rounds::Rounds;
use bench_core::unit::Nanos;
use bench_http::{
    Ahead, Dialer, Event, EventKind, Exchange, Failed, Failure, Pool, PoolCounts, Route, Terms,
};
use bench_http::{ReadCounts, Timeouts};
use bytes::Bytes;
use http::HeaderValue;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use tokio::sync::mpsc::{Receiver, UnboundedReceiver};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::LocalSet;

/// Connections that may be on their way at once; the usual accept queue holds 128.
const OPENING_AT_ONCE: usize = 64;

/// How the requests are sent and what ends them.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) dialer: Arc<Dialer>,
    pub(super) route: Route,
    pub(super) streamed: bool,
    /// Whether the server lets a connection carry a second request.
    pub(super) reuse: bool,
    /// The next turn of a conversation needs the answer's text.
    pub(super) keep_text: bool,
    pub(super) expected_tokens: u32,
    pub(super) timeouts: Timeouts,
    pub(super) stop: bench_http::Stop,
}

/// One worker's share of a trial.
pub(super) struct Share {
    pub(super) line: Line,
    pub(super) common: Arc<Common>,
    /// Connections to open ahead.
    pub(super) connections: usize,
    pub(super) warmup: Receiver<Job>,
    pub(super) warmup_slots: u32,
    pub(super) jobs: Receiver<Job>,
    pub(super) pace: Pace,
    /// `true` when the measured window begins.
    pub(super) go: watch::Receiver<bool>,
    pub(super) out: Sender<FromWorker>,
}

pub(super) enum Pace {
    Closed { slots: u32 },
    Open { ticks: UnboundedReceiver<Nanos>, most: Option<Arc<Semaphore>> },
}

/// What a worker tells.
pub(super) enum FromWorker {
    /// Connections are open, as far as they could be, and warm-up is over.
    Ready,
    Request {
        done: Done,
        warmup: bool,
    },
    /// All of its requests have ended.
    Ended(WorkerHealth),
    /// It cannot work at all.
    Broken(String),
    /// A job could not be made, by whoever makes them.
    NoJob(String),
    /// All that can be made ahead has been made.
    Prefilled,
}

/// How one worker fared in the measured window.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct WorkerHealth {
    pub(super) cpu_ns: u64,
    pub(super) wall_ns: u64,
    pub(super) stall_max_ns: u64,
    pub(super) stall_p99_ns: u64,
    pub(super) reads: ReadCounts,
    pub(super) pool: PoolCounts,
}

/// Runs the share to its end on this thread.
pub(super) fn run(share: Share) {
    let rounds = Arc::new(Rounds::new(share.common.clock.clone()));
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_io().enable_time();
    rounds.watch(&mut builder);
    let out = share.out.clone();
    match builder.build() {
        Ok(runtime) => LocalSet::new().block_on(&runtime, work(share, &rounds)),
        // Who listens is gone only when the trial is over.
        Err(error) => _ = out.send(FromWorker::Broken(format!("cannot start an event loop: {error}"))),
    }
}

async fn work(share: Share, rounds: &Rounds) {
    let Share { line, common, connections, warmup, warmup_slots, jobs, pace, mut go, out } = share;
    let pool = Pool::new(line.dialer.clone());
    let pool = Rc::new(if line.reuse { pool } else { pool.without_reuse() });
    let ahead = Ahead {
        connections: if line.reuse { connections } else { 0 },
        at_once: OPENING_AT_ONCE,
        warm: Some(Route::Models),
        timeouts: &line.timeouts,
        stop: &line.stop,
    };
    // What cannot be opened now fails again with its request, and is told there.
    pool.open_ahead(&ahead).await;
    let stop = line.stop.clone();
    let reads = Rc::new(RefCell::new(ReadCounts::default()));
    let driver = |jobs, warm: bool| {
        let (out, reads) = (out.clone(), reads.clone());
        Rc::new(Driver {
            common: common.clone(),
            wire: HttpWire { line: line.clone(), pool: pool.clone() },
            jobs: Mutex::new(jobs),
            done: Box::new(move |done: Done| {
                if !warm {
                    add(&mut reads.borrow_mut(), done.exchange.reads);
                }
                let _ = out.send(FromWorker::Request { done, warmup: warm });
            }),
            stop: stop.clone(),
        })
    };
    driver(warmup, true).closed(warmup_slots).await;
    let _ = out.send(FromWorker::Ready);
    tokio::select! {
        () = stop.wait() => {}
        _ = go.wait_for(|begun| *begun) => {}
    }
    let before = pool.counts();
    let (wall, cpu) = (common.clock.now(), thread_cpu_ns());
    rounds.reset();
    match pace {
        Pace::Closed { slots } => driver(jobs, false).closed(slots).await,
        Pace::Open { ticks, most } => driver(jobs, false).open(ticks, most).await,
    }
    let (stall_max_ns, stall_p99_ns) = rounds.longest_and_p99();
    let counts = pool.counts();
    let health = WorkerHealth {
        cpu_ns: thread_cpu_ns().saturating_sub(cpu),
        wall_ns: common.clock.now().since(wall).map_or(0, |n| n.0),
        stall_max_ns,
        stall_p99_ns,
        reads: *reads.borrow(),
        // What was opened ahead counts as opened; reuse is that of the measured window.
        pool: PoolCounts {
            opened: counts.opened,
            reused: counts.reused - before.reused,
            closed_by_server: counts.closed_by_server - before.closed_by_server,
            opened_late: counts.opened_late - before.opened_late,
        },
    };
    let _ = out.send(FromWorker::Ended(health));
}

fn add(sum: &mut ReadCounts, more: ReadCounts) {
    sum.reads += more.reads;
    sum.bytes += more.bytes;
    sum.events += more.events;
    sum.shared += more.shared;
}

/// Processor time of this thread.
fn thread_cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Requests over the worker's connections.
struct HttpWire {
    line: Line,
    pool: Rc<Pool>,
}

impl Wire for HttpWire {
    async fn exchange(&self, id: &str, body: Bytes) -> Exchange {
        let line = &self.line;
        let failed = |failed: Failed| {
            let at_ns = line.dialer.clock().now_ns();
            let kind = EventKind::Failed { failure: failed.failure, message: failed.message };
            Exchange { events: vec![Event { at_ns, kind }], ..Exchange::default() }
        };
        let mut connection = match self.pool.take(&line.timeouts, &line.stop).await {
            Ok(connection) => connection,
            Err(error) => return failed(error),
        };
        let mut request = match line.dialer.endpoint().post(line.route, body) {
            Ok(request) => request,
            Err(error) => return failed(Failed { failure: Failure::Connect, message: error.to_string() }),
        };
        if let Ok(id) = HeaderValue::from_str(id) {
            request.headers_mut().insert("x-request-id", id);
        }
        let terms = Terms {
            streamed: line.streamed,
            keep_text: line.keep_text,
            expected_tokens: line.expected_tokens,
            timeouts: &line.timeouts,
            stop: &line.stop,
        };
        let exchange = connection.exchange(request, &terms).await;
        self.pool.give_back(connection, exchange.reusable);
        exchange
    }
}
