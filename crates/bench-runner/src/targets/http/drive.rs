//! Sends requests as a load wants them: slots that follow one another, or instants of a schedule.
//!
//! One worker's share. Generic over what carries a request, so that tests run it on the runtime's scripted
//! time. Nothing is computed here but who is next.

use super::convert::Asked;
use bench_core::clock::Clock;
use bench_core::unit::Nanos;
use bench_http::{Event, EventKind, Exchange, Failure};
use bytes::Bytes;
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, UnboundedReceiver};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;

/// Carries one request to the server and back.
pub(super) trait Wire: 'static {
    fn exchange(&self, id: &str, body: Bytes) -> impl Future<Output = Exchange>;
}

/// One request.
pub(super) struct Turn {
    pub(super) asked: Asked,
    pub(super) body: Bytes,
}

/// Makes a turn from what the one before brought.
pub(super) type NextTurn = Box<dyn FnOnce(&Exchange) -> Result<Turn, String> + Send>;

/// One request, or the turns of one conversation.
pub(super) struct Job {
    pub(super) first: Turn,
    /// With what they are called in the results, should an earlier turn fail.
    pub(super) later: VecDeque<(Asked, NextTurn)>,
}

/// A request that has ended.
pub(super) struct Done {
    pub(super) asked: Asked,
    pub(super) intended: Nanos,
    pub(super) exchange: Exchange,
}

/// What the workers of a trial have in common.
pub(super) struct Common {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) in_flight: AtomicU32,
    /// Failures to reach the server in a row, over all workers.
    pub(super) unreachable: AtomicU32,
    /// So many in a row, and the rest of the trial is not sent.
    pub(super) give_up_after: u32,
    pub(super) think: Duration,
}

/// One worker's share of a load.
pub(super) struct Driver<W> {
    pub(super) common: Arc<Common>,
    pub(super) wire: W,
    pub(super) jobs: Mutex<Receiver<Job>>,
    pub(super) done: Box<dyn Fn(Done)>,
    pub(super) stop: bench_http::Stop,
}

impl<W: Wire> Driver<W> {
    /// Closed loop: `slots` requests in flight until there are no more jobs. Must run in a `LocalSet`.
    pub(super) async fn closed(self: Rc<Self>, slots: u32) {
        let mut tasks = JoinSet::new();
        for _ in 0..slots {
            let this = self.clone();
            tasks.spawn_local(async move {
                loop {
                    // The slot is free from here on: a job that is not ready is the generator's own delay.
                    let free = this.common.clock.now();
                    let job = this.next_job().await;
                    let Some(job) = job else { return };
                    this.conversation(job, free).await;
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    }

    /// Open loop: a job at each instant that `ticks` brings, whatever became of those before. With `most`,
    /// requests beyond that many in flight are held back.
    pub(super) async fn open(
        self: Rc<Self>,
        mut ticks: UnboundedReceiver<Nanos>,
        most: Option<Arc<Semaphore>>,
    ) {
        let mut tasks = JoinSet::new();
        while let Some(due) = self.tick(&mut ticks).await {
            let Some(job) = self.next_job().await else { break };
            let (this, most) = (self.clone(), most.clone());
            tasks.spawn_local(async move {
                let permit = match most {
                    Some(most) => this.permit(most).await,
                    None => Ok(None),
                };
                // A request that was still held back when the run was stopped was never sent.
                if let Ok(_held) = permit {
                    this.conversation(job, due).await;
                }
            });
            while tasks.try_join_next().is_some() {}
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn tick(&self, ticks: &mut UnboundedReceiver<Nanos>) -> Option<Nanos> {
        tokio::select! {
            biased;
            () = self.stop.wait() => None,
            tick = ticks.recv() => tick,
        }
    }

    async fn permit(&self, most: Arc<Semaphore>) -> Result<Option<tokio::sync::OwnedSemaphorePermit>, ()> {
        tokio::select! {
            biased;
            () = self.stop.wait() => Err(()),
            permit = most.acquire_owned() => permit.map(Some).map_err(|_| ()),
        }
    }

    async fn next_job(&self) -> Option<Job> {
        tokio::select! {
            biased;
            () = self.stop.wait() => None,
            job = async { self.jobs.lock().await.recv().await } => job,
        }
    }

    /// The turns of one conversation, one after another. After a turn that failed the later ones cannot be
    /// asked: they are failures too, of the same kind.
    async fn conversation(&self, job: Job, intended: Nanos) {
        let Job { first, mut later } = job;
        let (mut turn, mut intended) = (first, intended);
        loop {
            let exchange = self.send(&turn.asked.id, turn.body).await;
            let failed = failure_of(&exchange);
            let Some((asked, next)) = later.pop_front() else {
                return (self.done)(Done { asked: turn.asked, intended, exchange });
            };
            let made = match &failed {
                Some((failure, message)) => {
                    Err((*failure, format!("not sent: a turn before it failed: {message}")))
                }
                None => next(&exchange).map_err(|message| (Failure::BadFrame, message)),
            };
            (self.done)(Done { asked: turn.asked, intended, exchange });
            if matches!(failed, Some((Failure::Interrupted, _))) {
                return;
            }
            if made.is_ok() {
                self.think().await;
            }
            intended = self.common.clock.now();
            match made {
                Ok(next) => turn = next,
                Err((failure, message)) => {
                    let lost = std::iter::once(asked).chain(later.into_iter().map(|(asked, _)| asked));
                    for asked in lost {
                        let exchange = not_sent(intended, failure, message.clone());
                        (self.done)(Done { asked, intended, exchange });
                    }
                    return;
                }
            }
        }
    }

    async fn think(&self) {
        if !self.common.think.is_zero() {
            tokio::select! {
                biased;
                () = self.stop.wait() => {}
                () = tokio::time::sleep(self.common.think) => {}
            }
        }
    }

    /// A server that cannot be reached any more is not asked to the end: the rest fail at once, so that the
    /// trial ends in bounded time.
    async fn send(&self, id: &str, body: Bytes) -> Exchange {
        let common = &self.common;
        let lost = common.unreachable.load(Relaxed);
        if lost >= common.give_up_after {
            let message = format!("not sent: the server could not be reached {lost} times in a row");
            return not_sent(common.clock.now(), Failure::Connect, message);
        }
        common.in_flight.fetch_add(1, Relaxed);
        let exchange = self.wire.exchange(id, body).await;
        common.in_flight.fetch_sub(1, Relaxed);
        match failure_of(&exchange) {
            Some((Failure::Connect | Failure::Timeout, _)) => _ = common.unreachable.fetch_add(1, Relaxed),
            Some((Failure::Interrupted, _)) => {}
            _ => common.unreachable.store(0, Relaxed),
        }
        exchange
    }
}

fn not_sent(at: Nanos, failure: Failure, message: String) -> Exchange {
    let failed = Event { at_ns: at.0, kind: EventKind::Failed { failure, message } };
    Exchange { events: vec![failed], ..Exchange::default() }
}

fn failure_of(exchange: &Exchange) -> Option<(Failure, String)> {
    match exchange.events.last().map(|e| &e.kind) {
        Some(EventKind::Failed { failure, message }) => Some((*failure, message.clone())),
        _ => None,
    }
}

#[cfg(test)]
#[path = "drive_tests.rs"]
mod tests;
