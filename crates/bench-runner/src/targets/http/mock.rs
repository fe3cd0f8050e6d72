//! The loopback server by itself, for other clients, and its own account of what it did.

use super::RunClock;
use bench_core::clock::Clock;
use bench_core::stats::Distribution;
use bench_core::target::TargetError;
use bench_http::loopback::{Loopback, LoopbackHandle, LoopbackOptions, ServedRequest};
use std::net::SocketAddr;
use std::sync::Arc;

/// What the server is to do.
pub struct MockServerOptions {
    /// 0 takes a free one.
    pub port: u16,
    pub ttft_ms: f64,
    pub gap_ms: f64,
    pub tokens_per_chunk: u32,
    pub model: String,
    pub threads: usize,
    /// Gets a JSON line for every request.
    pub summary: Option<Box<dyn std::io::Write + Send + Sync>>,
}

pub struct MockServer(LoopbackHandle);

impl MockServer {
    /// Listens on this machine only.
    ///
    /// # Errors
    /// A port that is taken, threads that cannot be started.
    pub fn start(options: MockServerOptions, clock: Arc<dyn Clock>) -> Result<Self, TargetError> {
        let nanos = |ms: f64| (ms * 1e6) as u64;
        super::raise_open_files();
        let options = LoopbackOptions {
            bind: SocketAddr::from(([127, 0, 0, 1], options.port)),
            ttft_ns: nanos(options.ttft_ms),
            gap_ns: nanos(options.gap_ms),
            tokens_per_chunk: options.tokens_per_chunk,
            model: options.model,
            threads: options.threads,
            summary: options.summary,
            ..LoopbackOptions::default()
        };
        let server = Loopback::start(options, Arc::new(RunClock(clock)));
        server.map(Self).map_err(|e| TargetError(e.to_string()))
    }

    pub fn base_url(&self) -> String {
        self.0.base_url()
    }

    /// Ends all connections; what the server says of its own times, in one line.
    pub fn end(self) -> String {
        let cpu_s = self.0.cpu_ns().map(|ns| ns as f64 / 1e9);
        let log = self.0.stop();
        let finished = log.finished();
        let requests = log.take_all();
        let ttft = requests.iter().filter_map(|r| Some(ms(*r.written_ns.first()?, r.arrival_ns)));
        let gaps = requests.iter().flat_map(|r| r.written_ns.windows(2).map(|w| ms(w[1], w[0])));
        let cpu = cpu_s.map_or_else(String::new, |s| format!(", {s:.2} s of processor time"));
        format!(
            "{finished} requests, first token after {} ms, gaps of {} ms (p50 / p99 by the server's own clock){cpu}",
            quantiles(ttft.collect()),
            quantiles(gaps.collect())
        )
    }

    /// The stamps of the requests that are kept.
    pub fn take(&self) -> Vec<ServedRequest> {
        self.0.log().take_all()
    }
}

fn ms(later: u64, earlier: u64) -> f64 {
    later.saturating_sub(earlier) as f64 / 1e6
}

fn quantiles(values: Vec<f64>) -> String {
    let values = Distribution::new(values).ok();
    let at = |p| values.as_ref().and_then(|v| v.quantile(p)).map_or("-".to_owned(), |v| format!("{v:.3}"));
    format!("{} / {}", at(0.5), at(0.99))
}
