//! What ends an exchange from the client's side: finite limits and the caller's stop flag.
//!
//! One timer per exchange: it is set anew only when it fires, never per read, so that a stream of a thousand
//! tokens costs one entry in the runtime's timer wheel. Limits run on tokio's clock; stamps do not.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::{Instant, Sleep};

use crate::error::Failed;
use crate::record::Failure;
use crate::stamped::Stamps;

/// The limits of one request; all finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Name resolution, TCP and TLS together.
    pub connect: Duration,
    /// From the first byte out to the first byte in: queue and prefill of the server lie here.
    pub first_byte: Duration,
    /// Without a byte, once bytes have come.
    pub between_tokens: Duration,
    /// From the first byte out to the end of the answer.
    pub total: Duration,
}

impl Default for Timeouts {
    /// Wide enough for a long prompt on a slow machine; a benchmark that means to wait longer says so.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            first_byte: Duration::from_mins(10),
            between_tokens: Duration::from_mins(2),
            total: Duration::from_hours(1),
        }
    }
}

/// The caller's wish to end: set once, seen by every exchange at once, from any thread.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    shared: Arc<StopShared>,
}

#[derive(Debug, Default)]
struct StopShared {
    stopped: AtomicBool,
    notify: Notify,
}

impl Stop {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn stop(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.shared.notify.notify_waiters();
    }

    pub fn is_stopped(&self) -> bool {
        self.shared.stopped.load(Ordering::SeqCst)
    }

    /// Resolves when [`Stop::stop`] is called, or has been.
    pub async fn wait(&self) {
        let mut notified = pin!(self.notified());
        notified.as_mut().enable();
        if !self.is_stopped() {
            notified.await;
        }
    }

    pub(crate) fn notified(&self) -> Notified<'_> {
        self.shared.notify.notified()
    }
}

/// The limits of one running exchange.
pub(crate) struct Watch<'a, 's> {
    timeouts: &'a Timeouts,
    stop: &'s Stop,
    stamps: &'a Stamps,
    timer: Pin<&'a mut Sleep>,
    notified: Pin<&'a mut Notified<'s>>,
    /// Whose task the timer and the flag wake.
    registered: Option<Waker>,
    /// The first byte has been seen.
    answering: bool,
    begun: Instant,
    last_read: Instant,
    reads_seen: u64,
    /// The answer is complete and only the end of the body is awaited: until then, and no failure after.
    grace_until: Option<Instant>,
}

impl<'a, 's> Watch<'a, 's> {
    pub(crate) fn new(
        timeouts: &'a Timeouts,
        stop: &'s Stop,
        stamps: &'a Stamps,
        mut timer: Pin<&'a mut Sleep>,
        notified: Pin<&'a mut Notified<'s>>,
    ) -> Self {
        let now = Instant::now();
        timer.as_mut().reset(now + timeouts.first_byte.min(timeouts.total));
        Self {
            timeouts,
            stop,
            stamps,
            timer,
            notified,
            registered: None,
            answering: false,
            begun: now,
            last_read: now,
            reads_seen: 0,
            grace_until: None,
        }
    }

    /// From here on only the end of the body is awaited, so long and not beyond the total limit. Set once:
    /// bytes that follow an answer that is complete gain no time.
    pub(crate) fn grace(&mut self, wait: Duration) {
        if self.grace_until.is_some() {
            return;
        }
        let until = (Instant::now() + wait).min(self.begun + self.timeouts.total);
        self.grace_until = Some(until);
        self.timer.as_mut().reset(until);
        self.registered = None;
    }

    /// Ready when the exchange must end.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Failed> {
        if !self.registered.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.registered = Some(cx.waker().clone());
            let _ = self.timer.as_mut().poll(cx);
            let _ = self.notified.as_mut().poll(cx);
        }
        // After registering, so that a stop in between is not missed.
        if self.stop.is_stopped() {
            return Poll::Ready(Failed::new(Failure::Interrupted, "stopped by the caller"));
        }
        let now = Instant::now();
        if self.stamps.reads() != self.reads_seen {
            self.reads_seen = self.stamps.reads();
            self.last_read = now;
        }
        // From the first byte on another limit holds, mostly shorter: the only time the timer moves forward.
        if !self.answering && self.grace_until.is_none() && self.stamps.first_byte_ns().is_some() {
            self.answering = true;
            self.set(self.deadline().0, cx);
        }
        while now >= self.timer.deadline() {
            let (deadline, limit) = self.deadline();
            if now >= deadline {
                return Poll::Ready(self.reached(limit));
            }
            self.set(deadline, cx);
        }
        Poll::Pending
    }

    fn set(&mut self, deadline: Instant, cx: &mut Context<'_>) {
        self.timer.as_mut().reset(deadline);
        let _ = self.timer.as_mut().poll(cx);
    }

    /// The limit that would be reached first, if nothing more came.
    fn deadline(&self) -> (Instant, Limit) {
        if let Some(until) = self.grace_until {
            return (until, Limit::Grace);
        }
        let quiet = if self.answering {
            (self.last_read + self.timeouts.between_tokens, Limit::BetweenTokens)
        } else {
            (self.begun + self.timeouts.first_byte, Limit::FirstByte)
        };
        let total = (self.begun + self.timeouts.total, Limit::Total);
        if total.0 <= quiet.0 { total } else { quiet }
    }

    fn reached(&self, limit: Limit) -> Failed {
        let timeouts = self.timeouts;
        let message = match limit {
            Limit::FirstByte => {
                format!("no byte of the answer within {:?} (first-byte limit)", timeouts.first_byte)
            }
            Limit::BetweenTokens => {
                format!("no further byte within {:?} (between-token limit)", timeouts.between_tokens)
            }
            Limit::Total => format!("not finished within {:?} (total limit)", timeouts.total),
            Limit::Grace => "the body did not end".to_owned(),
        };
        Failed::new(Failure::Timeout, message)
    }
}

#[derive(Debug, Clone, Copy)]
enum Limit {
    FirstByte,
    BetweenTokens,
    Total,
    Grace,
}
