//! Reads a server's `/metrics` while a load runs, on a thread and a connection of its own.
//!
//! It shares nothing with the threads that stamp, so that it cannot disturb them. What the figures mean is
//! left to those who read the results.

use bench_core::client::Scrape;
use bench_core::clock::Clock;
use bench_core::plan::ServerPlan;
use bench_core::target::TargetError;
use bench_core::unit::Nanos;
use bench_http::{Connection, Dialer, Endpoint, Failed, Route, Stop, Timeouts, TlsOptions, prometheus};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};

/// The longest text that is read.
const LONGEST_BODY_BYTES: usize = 16 * 1024 * 1024;
/// A reading that takes longer is given up: the next one is due.
const READING_LIMIT: Duration = Duration::from_secs(5);

/// Where metrics are read, and how often.
#[derive(Clone)]
pub struct Scraping {
    dialer: Arc<Dialer>,
    /// Chooses among several served models.
    model: String,
    interval: Duration,
    clock: Arc<dyn Clock>,
}

/// A running reader; dropping it ends it.
pub struct Scraper {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Scraping {
    /// `dialer` is that of the load; `server.metrics_url` names another place. `None` where the plan wants
    /// none.
    ///
    /// # Errors
    /// A `metrics_url` that cannot be read.
    pub fn planned(
        server: &ServerPlan,
        dialer: &Arc<Dialer>,
        model: &str,
        clock: &Arc<dyn Clock>,
    ) -> Result<Option<Self>, TargetError> {
        if !server.metrics {
            return Ok(None);
        }
        let dialer = match &server.metrics_url {
            None => dialer.clone(),
            Some(url) => Arc::new(elsewhere(url, server, dialer)?),
        };
        Ok(Some(Self {
            dialer,
            model: model.to_owned(),
            interval: Duration::from_secs_f64(server.metrics_interval_ms / 1e3),
            clock: clock.clone(),
        }))
    }

    /// Reads once; the error is what to tell a user whose server has no metrics.
    ///
    /// # Errors
    /// No such path, or none of the known names on it.
    pub async fn check(&self, stop: &Stop) -> Result<(), String> {
        let url = self.dialer.endpoint().url(Route::Metrics);
        let reading = match self.dialer.open(READING_LIMIT, stop).await {
            Ok(mut connection) => self.read(&mut connection, stop).await,
            Err(failed) => Err(failed.message),
        };
        match reading {
            Ok(scrape) if !scrape.values.is_empty() => Ok(()),
            Ok(_) => {
                Err(format!("{url} has none of the figures that are known of vLLM, SGLang or llama.cpp"))
            }
            Err(why) => Err(format!("no server-side figures, {url}: {why}")),
        }
    }

    /// Starts reading at the interval, from now on; readings come in order of time.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub fn start(self) -> Result<(Scraper, Receiver<Scrape>), TargetError> {
        let (out, readings) = mpsc::channel();
        let stop = Stop::new();
        let ends = stop.clone();
        let failed = |e: std::io::Error| TargetError(format!("cannot start the reader of metrics: {e}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let thread = std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || runtime.block_on(self.run(&out, &ends)))
            .map_err(failed)?;
        Ok((Scraper { stop, thread: Some(thread) }, readings))
    }

    /// At absolute times: a late reading does not move those after it, and missed ones are left out.
    async fn run(self, out: &Sender<Scrape>, stop: &Stop) {
        let mut due = tokio::time::interval_at(Instant::now(), self.interval);
        due.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut connection: Option<Connection> = None;
        loop {
            tokio::select! {
                biased;
                () = stop.wait() => return,
                _ = due.tick() => {}
            }
            let mut open = match connection.take().filter_map_open() {
                Some(open) => open,
                None => match self.dialer.open(READING_LIMIT, stop).await {
                    Ok(open) => open,
                    Err(_) => continue,
                },
            };
            // A reading that fails is missing; the connection is made anew.
            if let Ok(scrape) = self.read(&mut open, stop).await {
                connection = Some(open);
                if !scrape.values.is_empty() && out.send(scrape).is_err() {
                    return;
                }
            }
        }
    }

    /// One reading, stamped in the middle between question and answer.
    async fn read(&self, connection: &mut Connection, stop: &Stop) -> Result<Scrape, String> {
        let told = |failed: Failed| failed.message;
        let request = self.dialer.endpoint().get(Route::Metrics).map_err(|e| e.to_string())?;
        let timeouts = Timeouts {
            connect: READING_LIMIT,
            first_byte: READING_LIMIT,
            between_tokens: READING_LIMIT,
            total: READING_LIMIT,
        };
        let asked = self.clock.now();
        let answer = connection.plain(request, LONGEST_BODY_BYTES, &timeouts, stop).await.map_err(told)?;
        let at = Nanos(asked.0.midpoint(self.clock.now().0));
        if !answer.status.is_success() {
            return Err(format!("status {}", answer.status.as_u16()));
        }
        let (values, _) = prometheus::figures(&String::from_utf8_lossy(&answer.body), &self.model);
        Ok(Scrape { at, values })
    }
}

/// A connection that the peer has not closed meanwhile.
trait StillOpen {
    fn filter_map_open(self) -> Option<Connection>;
}

impl StillOpen for Option<Connection> {
    fn filter_map_open(self) -> Option<Connection> {
        self.and_then(|mut connection| connection.is_open().then_some(connection))
    }
}

impl Scraper {
    /// Ends the reading and waits for the thread.
    pub fn end(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            // It holds nothing that a panic could leave broken.
            let _ = thread.join();
        }
    }
}

impl Drop for Scraper {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A place of its own, asked without the load's headers: they may hold a key that is not meant for it.
fn elsewhere(url: &str, server: &ServerPlan, dialer: &Dialer) -> Result<Dialer, TargetError> {
    let refused = |why: String| TargetError(format!("server.metrics_url \"{url}\": {why}"));
    let path = Route::Metrics.path();
    let base = url.trim_end_matches('/').strip_suffix(path);
    let base = base.ok_or_else(|| refused(format!("expected an address that ends with {path}")))?;
    let endpoint = Endpoint::parse(base).map_err(|e| refused(e.to_string()))?;
    let tls = TlsOptions { ca_file: server.ca_file.clone().map(Into::into), insecure: server.insecure };
    Dialer::new(endpoint, &tls, dialer.clock().clone()).map_err(|e| refused(e.to_string()))
}

#[cfg(test)]
mod tests;
