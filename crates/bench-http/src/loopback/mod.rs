//! An OpenAI-compatible server whose token times are known: token i is due at arrival + TTFT + i · gap.
//!
//! It judges clients, ours at a run's own load first of all, so it states its own error: every write is
//! stamped just before its system call, on the clock that was handed in. It runs no model and does not batch;
//! words are always the same.

mod api;
mod ask;
mod http;
mod log;
mod metrics;
mod options;
mod pacer;
mod script;
mod server;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, mpsc as channel};
use std::thread::{Builder, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, mpsc, watch};

pub use log::{Log, Outcome, ServedRequest, ServerError};
pub use options::{Fault, FaultRule, LoopbackOptions, RoleChunk, UsagePolicy, faults_in_order};

use crate::Clock;
use metrics::Counters;
use pacer::Inbox;
use server::{Shard, Shared};

/// Why a loopback server did not start.
#[derive(Debug, thiserror::Error)]
pub enum LoopbackError {
    #[error("the loopback server cannot listen on {address}: {source}; port 0 takes a free one")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("the loopback server cannot start its threads: {0}")]
    Threads(#[from] io::Error),
}

/// The server; see [`Loopback::start`].
pub struct Loopback;

impl Loopback {
    /// Listens and serves on threads of its own until the handle is stopped or dropped. Due instants and
    /// stamps are the clock's; it must run as fast as real time.
    pub fn start(
        mut options: LoopbackOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<LoopbackHandle, LoopbackError> {
        let address = options.bind;
        let bind = |source| LoopbackError::Bind { address, source };
        let listener = std::net::TcpListener::bind(address).map_err(bind)?;
        listener.set_nonblocking(true).map_err(bind)?;
        let addr = listener.local_addr().map_err(bind)?;

        let mut threads = Threads::default();
        let mut lines = None;
        if let Some(out) = options.summary.take() {
            let (sender, receiver) = channel::channel();
            lines = Some(sender);
            threads.writer = Some(
                Builder::new().name("loopback-log".into()).spawn(move || log::write_lines(&receiver, out))?,
            );
        }
        let log = Arc::new(Log::new(options.log_cap, lines));
        let pairs = options.threads.max(1);
        let shared = Arc::new(Shared {
            options,
            clock,
            log: Arc::clone(&log),
            counters: Counters::default(),
            created_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            next_index: AtomicU64::new(0),
            with_pacer: AtomicU64::new(0),
            refuse: Notify::new(),
        });
        let (stop, stopped) = watch::channel(false);
        let mut handle = LoopbackHandle { addr, log, stop, threads };
        handle.threads.spawn(pairs, listener, &shared, &stopped)?;
        Ok(handle)
    }
}

/// A running server. Dropping it stops it.
pub struct LoopbackHandle {
    addr: SocketAddr,
    log: Arc<Log>,
    stop: watch::Sender<bool>,
    threads: Threads,
}

impl LoopbackHandle {
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Without `/v1` and without a slash at the end.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// How late the server's writes were so far.
    pub fn server_error(&self) -> ServerError {
        self.log.server_error()
    }

    /// CPU time of the server's threads so far, in nanoseconds; the kernel's work on their behalf is in it.
    /// `None` where the system does not state it (`schedstat` of Linux).
    pub fn cpu_ns(&self) -> Option<u64> {
        self.threads.cpu_ns()
    }

    /// Ends all connections and joins all threads. Answers that were under way are not logged.
    pub fn stop(mut self) -> Arc<Log> {
        self.shut_down();
        Arc::clone(&self.log)
    }

    fn shut_down(&mut self) {
        self.threads.stop(&self.stop);
        self.log.close();
        if let Some(writer) = self.threads.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Drop for LoopbackHandle {
    fn drop(&mut self) {
        self.shut_down();
    }
}

type Pacer = (Arc<Inbox<Arc<tokio::net::TcpStream>>>, JoinHandle<()>);

#[derive(Default)]
struct Threads {
    pacers: Vec<Pacer>,
    readers: Vec<JoinHandle<()>>,
    writer: Option<JoinHandle<()>>,
    /// Where the system states each thread's CPU time.
    accounts: Arc<Mutex<Vec<PathBuf>>>,
}

impl Threads {
    fn spawn(
        &mut self,
        pairs: usize,
        listener: std::net::TcpListener,
        shared: &Arc<Shared>,
        stopped: &watch::Receiver<bool>,
    ) -> io::Result<()> {
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..pairs).map(|_| mpsc::unbounded_channel()).unzip();
        let mut acceptor = Some((listener, senders));
        for (i, receiver) in receivers.into_iter().enumerate() {
            let inbox = Arc::new(Inbox::new());
            let (paced, clock, progress) =
                (Arc::clone(&inbox), Arc::clone(&shared.clock), Arc::clone(shared));
            let accounts = Arc::clone(&self.accounts);
            let pacer = Builder::new().name(format!("loopback-pace-{i}")).spawn(move || {
                open_account(&accounts);
                ask_for_precise_sleep();
                paced.pace(&*clock, &progress.counters);
            })?;
            let shard = Shard {
                shared: Arc::clone(shared),
                inbox: Arc::clone(&inbox),
                pacer: pacer.thread().clone(),
            };
            self.pacers.push((inbox, pacer));

            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
            let acceptor = match acceptor.take() {
                Some((listener, senders)) => {
                    let _inside = runtime.enter();
                    Some((tokio::net::TcpListener::from_std(listener)?, senders))
                }
                None => None,
            };
            let (stopped, accounts) = (stopped.clone(), Arc::clone(&self.accounts));
            self.readers.push(Builder::new().name(format!("loopback-io-{i}")).spawn(move || {
                open_account(&accounts);
                runtime.block_on(async move {
                    if let Some((listener, senders)) = acceptor {
                        tokio::spawn(server::accept(listener, senders, Arc::clone(&shard.shared)));
                    }
                    server::run_shard(shard, receiver, stopped).await;
                });
            })?);
        }
        Ok(())
    }

    /// Ends the pacers first: readers may then count on every answer having come back. A thread that panicked
    /// has ended its part already.
    fn stop(&mut self, stop: &watch::Sender<bool>) {
        self.pacers.iter().for_each(|(inbox, thread)| inbox.stop(thread.thread()));
        self.pacers.drain(..).for_each(|(_, thread)| drop(thread.join()));
        let _ = stop.send(true);
        self.readers.drain(..).for_each(|thread| drop(thread.join()));
    }

    fn cpu_ns(&self) -> Option<u64> {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if accounts.is_empty() {
            return None;
        }
        accounts
            .iter()
            .map(|path| {
                let text = fs::read_to_string(path.join("schedstat")).ok()?;
                text.split_whitespace().next()?.parse::<u64>().ok()
            })
            .sum()
    }
}

/// This thread's folder under the system's process files, as seen from other threads.
fn own_task() -> Option<PathBuf> {
    let task = fs::read_link("/proc/thread-self").ok()?;
    Some(PathBuf::from("/proc/self/task").join(task.file_name()?))
}

fn open_account(accounts: &Mutex<Vec<PathBuf>>) {
    accounts.lock().unwrap_or_else(PoisonError::into_inner).extend(own_task());
}

/// Linux lets a thread's sleep end up to 50 µs late to save wake-ups; asks for none of that where it can be
/// asked for.
fn ask_for_precise_sleep() {
    if let Some(name) = own_task().as_deref().and_then(|task| task.file_name().map(ToOwned::to_owned)) {
        let _ = fs::write(PathBuf::from("/proc").join(name).join("timerslack_ns"), "1");
    }
}
