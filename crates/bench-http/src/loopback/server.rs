//! Connections: reads requests, stamps their arrival, hands answers that take time to the pacer.
//!
//! One current-thread runtime per thread pair. It renders nothing and knows no due instant.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::Thread;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::api::{Generation, Plan, Site, error_answer, generates};
use super::http::{Inlet, Request};
use super::log::{Log, Outcome, ServedRequest};
use super::metrics::Counters;
use super::options::LoopbackOptions;
use super::pacer::{Delivered, Inbox, Job};
use super::script::{End, frame};
use crate::Clock;

const READ_BYTES: usize = 16 << 10;

/// What all threads of a server share.
pub(super) struct Shared {
    pub(super) options: LoopbackOptions,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) log: Arc<Log>,
    pub(super) counters: Counters,
    pub(super) created_s: u64,
    pub(super) next_index: AtomicU64,
    /// Answers that are with a pacer, or have come back and are not yet in the log.
    pub(super) with_pacer: AtomicU64,
    /// Tells the acceptor to close the listener.
    pub(super) refuse: Notify,
}

/// One thread pair's view.
#[derive(Clone)]
pub(super) struct Shard {
    pub(super) shared: Arc<Shared>,
    pub(super) inbox: Arc<Inbox<Arc<TcpStream>>>,
    pub(super) pacer: Thread,
}

/// How a connection comes to the thread that serves it.
pub(super) type Handover = mpsc::UnboundedSender<std::net::TcpStream>;

/// Accepts, and deals the connections out in turn; returns when told to refuse.
pub(super) async fn accept(listener: TcpListener, shards: Vec<Handover>, shared: Arc<Shared>) {
    let mut turn = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.refuse.notified() => return,
        };
        match accepted.and_then(|(stream, _)| stream.into_std()) {
            Ok(stream) => {
                let _ = shards[turn % shards.len()].send(stream);
                turn += 1;
            }
            // Out of descriptors, most likely: some may be free soon.
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Serves the connections that come in until `stop` changes, and logs what the pacers had finished by then.
/// They have let go of all answers when it changes, so that waiting for these ends.
pub(super) async fn run_shard(
    shard: Shard,
    connections: mpsc::UnboundedReceiver<std::net::TcpStream>,
    stop: watch::Receiver<bool>,
) {
    let shared = Arc::clone(&shard.shared);
    serve_all(shard, connections, stop).await;
    while shared.with_pacer.load(Ordering::Acquire) > 0 {
        tokio::task::yield_now().await;
    }
}

async fn serve_all(
    shard: Shard,
    mut connections: mpsc::UnboundedReceiver<std::net::TcpStream>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let stream = tokio::select! {
            stream = connections.recv() => stream,
            _ = stop.changed() => return,
        };
        let Some(stream) = stream else {
            // The acceptor has ended; what is connected is still served.
            let _ = stop.changed().await;
            return;
        };
        let shard = shard.clone();
        tokio::spawn(async move {
            if stream.set_nodelay(true).is_ok()
                && let Ok(stream) = TcpStream::from_std(stream)
            {
                // Whatever ends a connection early is the client's doing or a fault that was asked for.
                let _ = Connection { stream: Arc::new(stream), inlet: Inlet::default(), shard }.serve().await;
            }
        });
    }
}

struct Connection {
    stream: Arc<TcpStream>,
    inlet: Inlet,
    shard: Shard,
}

/// Whether the connection can carry another request.
type Open = bool;

impl Connection {
    async fn serve(mut self) -> io::Result<()> {
        while let Some((request, arrival_ns)) = self.read_request().await? {
            let open = if generates(&request) {
                self.generate(&request, arrival_ns).await?
            } else {
                let shared = Arc::clone(&self.shard.shared);
                self.write(&site(&shared).plain(&request)).await?;
                true
            };
            if !open || !request.keep_alive {
                break;
            }
        }
        Ok(())
    }

    /// The next request with the stamp of the read that completed it; none at the connection's end.
    async fn read_request(&mut self) -> io::Result<Option<(Request, u64)>> {
        let mut stamp = self.shard.shared.clock.now_ns();
        loop {
            match self.inlet.request() {
                Ok(Some(request)) => return Ok(Some((request, stamp))),
                Ok(None) => {}
                Err(refused) => {
                    self.write(&error_answer(refused.status, "connection: close\r\n", &refused.why, None))
                        .await?;
                    return Ok(None);
                }
            }
            if self.inlet.take_continue() {
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            }
            self.stream.readable().await?;
            let buffer = self.inlet.buffer();
            buffer.reserve(READ_BYTES);
            let read = self.stream.try_read_buf(buffer);
            stamp = self.shard.shared.clock.now_ns();
            match read {
                Ok(0) => return Ok(None),
                // Requests that came at the same time are all stamped before the first one is answered.
                Ok(_) => tokio::task::yield_now().await,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }

    async fn generate(&mut self, request: &Request, arrival_ns: u64) -> io::Result<Open> {
        let shared = Arc::clone(&self.shard.shared);
        let index = shared.next_index.fetch_add(1, Ordering::Relaxed);
        let id = request.id.clone().unwrap_or_else(|| index.to_string());
        let fault = shared.options.faults.as_ref().and_then(|rule| rule(index));
        match site(&shared).generation(request, &id, fault) {
            Plan::Answer(bytes) => self.write(&bytes).await.map(|()| true),
            Plan::Last(bytes) => self.write(&bytes).await.map(|()| false),
            Plan::Silence => self.wait_for_close().await.map(|()| false),
            Plan::Refuse => {
                shared.refuse.notify_one();
                Ok(false)
            }
            Plan::Endless(head) => {
                self.write(&head).await?;
                self.write(&frame(b"data: {\"id\":\"")).await?;
                let more = frame(&[b'a'; READ_BYTES]);
                loop {
                    self.write(&more).await?;
                    tokio::task::yield_now().await;
                }
            }
            Plan::Generate(generation) => self.pace(*generation, arrival_ns, index, id).await,
        }
    }

    async fn pace(
        &mut self,
        generation: Generation,
        arrival_ns: u64,
        index: u64,
        id: String,
    ) -> io::Result<Open> {
        let shared = Arc::clone(&self.shard.shared);
        let Generation { head, script, first_after_ns, step_ns, cached_tokens, end, cut } = generation;
        let prompt_tokens = script.prompt_tokens;
        let running = shared.counters.begin(prompt_tokens, cached_tokens, script.tokens);
        if !head.is_empty() {
            self.write(&head).await?;
        }
        let first_due_ns = arrival_ns.saturating_add(first_after_ns);
        let (tokens_per_write, all_writes, all_tokens) =
            (script.tokens_per_write, script.writes as usize, script.tokens);
        let (done, result) = oneshot::channel();
        let paced = WithPacer::new(&shared);
        let job = Job { sink: Arc::clone(&self.stream), script, first_due_ns, step_ns, done };
        self.shard.inbox.submit(job, &self.shard.pacer);
        // The pacer lets go of a job unfinished only when the server stops.
        let Ok(Delivered { written_ns, whole }) = result.await else { return Ok(false) };

        let ttft_ns = written_ns.first().map(|at| at.saturating_sub(arrival_ns));
        shared.counters.end(ttft_ns, whole && !cut);
        let output_tokens = if written_ns.len() == all_writes {
            all_tokens
        } else {
            tokens_per_write * written_ns.len() as u32
        };
        let outcome = match (whole, cut) {
            (false, _) => Outcome::Broken,
            (true, true) => Outcome::Cut,
            (true, false) => Outcome::Complete,
        };
        // Before the log: whoever waits for a request there finds it no longer running.
        drop(running);
        shared.log.add(ServedRequest {
            id,
            index,
            arrival_ns,
            first_due_ns,
            step_ns,
            written_ns,
            tokens_per_write,
            output_tokens,
            prompt_tokens,
            outcome,
        });
        drop(paced);
        match end {
            End::KeepAlive => Ok(whole),
            End::Close => Ok(false),
            End::Stall => self.wait_for_close().await.map(|()| false),
        }
    }

    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.stream.try_write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.stream.writable().await?,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Reads and forgets until the client ends the connection.
    async fn wait_for_close(&self) -> io::Result<()> {
        let mut waste = [0; 512];
        loop {
            self.stream.readable().await?;
            match self.stream.try_read(&mut waste) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// Counts an answer as unlogged until it is dropped.
struct WithPacer<'a>(&'a AtomicU64);

impl<'a> WithPacer<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.with_pacer.fetch_add(1, Ordering::AcqRel);
        Self(&shared.with_pacer)
    }
}

impl Drop for WithPacer<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn site(shared: &Shared) -> Site<'_> {
    Site { options: &shared.options, counters: &shared.counters, created_s: shared.created_s }
}
