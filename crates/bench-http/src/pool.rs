//! The open connections of one worker: opened ahead of time, handed out last in first out.
//!
//! Last in first out keeps few connections warm and lets the rest age, as a client with keep-alive does. A
//! connection that the server closed meanwhile is seen before use where the runtime knows of it. No retries.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinSet;

use crate::connection::Connection;
use crate::dial::Dialer;
use crate::endpoint::Route;
use crate::error::Failed;
use crate::limits::{Stop, Timeouts};
use crate::record::Failure;

/// What a warming answer may weigh; it is thrown away.
const WARM_BYTES: usize = 1 << 20;

/// What became of connections; each is counted once per event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolCounts {
    /// All that were opened, ahead and late.
    pub opened: u64,
    /// Handed out again after an earlier exchange, or after warming.
    pub reused: u64,
    /// Idle connections that the server had closed.
    pub closed_by_server: u64,
    /// Opened because none was idle; that time is part of the schedule lag.
    pub opened_late: u64,
}

/// How connections are opened before the clock starts.
#[derive(Debug, Clone, Copy)]
pub struct Ahead<'a> {
    pub connections: usize,
    /// How many may be on their way at once; more than the server's accept queue holds are lost there.
    pub at_once: usize,
    /// A harmless GET on each, so that the server has accepted it and its first costs are paid.
    pub warm: Option<Route>,
    pub timeouts: &'a Timeouts,
    pub stop: &'a Stop,
}

/// What came of opening ahead.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Opened {
    pub opened: usize,
    pub failed: usize,
    /// The first reason.
    pub failure: Option<Failed>,
}

/// Connections to one endpoint. Meant for one worker; `Sync`, so that its tasks can share it by reference.
pub struct Pool {
    dialer: Arc<Dialer>,
    reuse: bool,
    idle: Mutex<Vec<Connection>>,
    opened: AtomicU64,
    reused: AtomicU64,
    closed_by_server: AtomicU64,
    opened_late: AtomicU64,
}

impl Pool {
    pub fn new(dialer: Arc<Dialer>) -> Self {
        Self {
            dialer,
            reuse: true,
            idle: Mutex::default(),
            opened: AtomicU64::new(0),
            reused: AtomicU64::new(0),
            closed_by_server: AtomicU64::new(0),
            opened_late: AtomicU64::new(0),
        }
    }

    /// For a server that closes after every answer, whatever its header says: each request gets a connection
    /// of its own, instead of one that is about to end.
    #[must_use]
    pub fn without_reuse(mut self) -> Self {
        self.reuse = false;
        self
    }

    pub fn dialer(&self) -> &Arc<Dialer> {
        &self.dialer
    }

    /// Opens connections ahead, some at a time; stops at the caller's wish. Failures do not end it.
    pub async fn open_ahead(&self, ahead: &Ahead<'_>) -> Opened {
        let mut result = Opened::default();
        let mut opening = JoinSet::new();
        let mut begun = 0;
        loop {
            while begun < ahead.connections
                && opening.len() < ahead.at_once.max(1)
                && !ahead.stop.is_stopped()
            {
                begun += 1;
                let (dialer, warm) = (self.dialer.clone(), ahead.warm);
                let (timeouts, stop) = (*ahead.timeouts, ahead.stop.clone());
                opening.spawn(async move { warmed(&dialer, warm, &timeouts, &stop).await });
            }
            let Some(joined) = opening.join_next().await else { return result };
            let failure = match joined {
                Ok(Ok(connection)) => {
                    self.opened.fetch_add(1, Relaxed);
                    result.opened += 1;
                    self.lock().push(connection);
                    continue;
                }
                Ok(Err(failed)) => failed,
                Err(error) => Failed::new(Failure::Connect, error.to_string()),
            };
            result.failed += 1;
            result.failure.get_or_insert(failure);
        }
    }

    /// An idle connection, or a new one where none is idle.
    pub async fn take(&self, timeouts: &Timeouts, stop: &Stop) -> Result<Connection, Failed> {
        if self.idle() > 0 {
            // The runtime looks at its sockets once more: an end that came right after the last answer is seen
            // before a request is lost to it.
            tokio::task::yield_now().await;
        }
        if let Some(connection) = self.take_idle() {
            return Ok(connection);
        }
        let connection = self.dialer.open(timeouts.connect, stop).await?;
        self.opened.fetch_add(1, Relaxed);
        self.opened_late.fetch_add(1, Relaxed);
        Ok(connection)
    }

    /// Gives a connection back after an exchange; one that is not reusable is closed.
    pub fn give_back(&self, connection: Connection, reusable: bool) {
        if reusable && self.reuse {
            self.lock().push(connection);
        }
    }

    /// Connections that lie idle.
    pub fn idle(&self) -> usize {
        self.lock().len()
    }

    pub fn counts(&self) -> PoolCounts {
        PoolCounts {
            opened: self.opened.load(Relaxed),
            reused: self.reused.load(Relaxed),
            closed_by_server: self.closed_by_server.load(Relaxed),
            opened_late: self.opened_late.load(Relaxed),
        }
    }

    fn take_idle(&self) -> Option<Connection> {
        loop {
            let mut connection = self.lock().pop()?;
            if connection.is_open() {
                if connection.has_served() {
                    self.reused.fetch_add(1, Relaxed);
                }
                return Some(connection);
            }
            self.closed_by_server.fetch_add(1, Relaxed);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn warmed(
    dialer: &Dialer,
    warm: Option<Route>,
    timeouts: &Timeouts,
    stop: &Stop,
) -> Result<Connection, Failed> {
    let mut connection = dialer.open(timeouts.connect, stop).await?;
    let Some(route) = warm else { return Ok(connection) };
    let request = dialer.endpoint().get(route);
    let request = request.map_err(|error| Failed::new(Failure::Connect, error.to_string()))?;
    // Any status will do: the path may not exist there.
    connection.plain(request, WARM_BYTES, timeouts, stop).await?;
    if connection.is_open() {
        return Ok(connection);
    }
    // The server closes after each answer: a fresh connection is what a request will find.
    dialer.open(timeouts.connect, stop).await
}
