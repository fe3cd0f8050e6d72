//! What the client adds, measured against a loopback server whose token times are known.
//!
//! Client and server stamp with one clock, so that the server's own error is taken out write by write: what
//! is left is the socket, the client's wait for it, and the client. On a machine of few cores the server takes
//! some of the time that a distant one would leave to the client, so the figures are upper bounds there.

use super::RunClock;
use super::convert::Asked;
use super::drive::{Job, Turn};
use super::trial::{self, JobSource, Start, TrialLoad};
use super::worker::Line;
use bench_core::client::{Calibration, ClientHealth, ErrorBound, Scrape};
use bench_core::clock::Clock;
use bench_core::event::EventKind;
use bench_core::stats::Distribution;
use bench_core::target::{StopFlag, TargetError, TrialSink};
use bench_core::trace::{RequestTrace, Timeline};
use bench_core::unit::Nanos;
use bench_http::loopback::{Loopback, LoopbackOptions, ServedRequest};
use bench_http::{Api, BodyTemplate, Dialer, Endpoint, Prompt, Route, Timeouts, TlsOptions, Variable};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// The load under which the client is judged.
#[derive(Debug, Clone, PartialEq)]
pub struct CalibrationLoad {
    /// In flight at any time; with a rate, at most.
    pub concurrency: u32,
    /// Requests per second of an open loop with random distances.
    pub rate: Option<f64>,
    pub ttft: Nanos,
    pub gap: Nanos,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
    pub requests: u32,
    pub threads: u32,
    pub keep_awake: bool,
    pub seed: u64,
}

/// Time that one calibration before a study may take.
const BUDGET: Nanos = Nanos::from_millis(2_000);
/// Fewest requests, so that a 99th percentile of added TTFT is supported.
const REQUESTS: u32 = 100;

impl CalibrationLoad {
    /// Shortens times to first token and answers so that all requests fit into the budget; the number in
    /// flight and the gaps between tokens, which decide how busy the client is, stay.
    #[must_use]
    pub fn within_budget(mut self) -> Self {
        self.requests = match self.rate {
            Some(rate) => REQUESTS.max((rate * BUDGET.as_secs()).ceil() as u32),
            None => REQUESTS.max(self.concurrency.saturating_mul(2)),
        };
        let in_turn = match self.rate {
            Some(_) => 2,
            None => self.requests.div_ceil(self.concurrency.max(1)),
        };
        let each = BUDGET.0 / u64::from(in_turn);
        self.ttft = self.ttft.min(Nanos(each / 2));
        let gaps = (each / 2) / self.gap.0.max(1);
        self.output_tokens = u64::from(self.output_tokens).min(gaps + 1).max(2) as u32;
        self
    }
}

/// Runs the load against a loopback server and compares.
///
/// # Errors
/// No server on this machine, or no request that could be compared.
pub fn calibrate(
    load: &CalibrationLoad,
    clock: &Arc<dyn Clock>,
    stop: &StopFlag,
) -> Result<Calibration, TargetError> {
    let failed = |what: &str, error: &dyn std::fmt::Display| TargetError(format!("{what}: {error}"));
    let options = LoopbackOptions {
        ttft_ns: load.ttft.0,
        gap_ns: load.gap.0,
        log_cap: 2 * load.requests as usize + 64,
        ..LoopbackOptions::default()
    };
    let http_clock: Arc<dyn bench_http::Clock> = Arc::new(RunClock(clock.clone()));
    let server = Loopback::start(options, http_clock.clone())
        .map_err(|e| failed("cannot calibrate without a loopback server", &e))?;
    let endpoint = Endpoint::parse(&server.base_url()).map_err(|e| failed("loopback server", &e))?;
    let dialer = Dialer::new(endpoint, &TlsOptions::default(), http_clock)
        .map_err(|e| failed("loopback server", &e))?;
    let line = Line {
        dialer: Arc::new(dialer),
        route: Route::Completions,
        streamed: true,
        reuse: true,
        keep_text: false,
        expected_tokens: load.output_tokens,
        timeouts: Timeouts::default(),
        stop: bench_http::Stop::new(),
    };
    let start = match load.rate {
        None => Start::Closed(load.concurrency),
        Some(rate) => Start::Open { after_ns: arrivals(rate, load)?, most: None },
    };
    let mut gathered = Gathered::default();
    let warmup = load.concurrency.min(load.requests);
    let trial = TrialLoad {
        line,
        clock: clock.clone(),
        jobs: Box::new(SameWords::new(load)),
        first: warmup,
        number: load.requests,
        warmup: 0..warmup,
        start,
        threads: load.threads,
        think: Duration::ZERO,
        keep_awake: load.keep_awake,
        job_bytes: 256 + load.prompt_tokens as usize * 6,
        scrapes: None,
    };
    let begun = clock.now();
    trial::run(trial, &mut gathered, stop)?;
    let took = clock.now().since(begun).unwrap_or_default();
    let server = server.stop();
    gathered.compare(load, &server.take_all(), server.server_error(), took)
}

fn arrivals(rate: f64, load: &CalibrationLoad) -> Result<Vec<u64>, TargetError> {
    let arrival = bench_core::load::Arrival::Poisson { rate };
    crate::load::Schedule::draw(&arrival, load.requests as usize, load.seed)
        .map(|schedule| schedule.intended_ns)
        .map_err(|error| TargetError(error.to_string()))
}

/// The same prompt for all: the server counts its words and repeats its own.
struct SameWords {
    body: Result<bytes::Bytes, String>,
}

impl SameWords {
    fn new(load: &CalibrationLoad) -> Self {
        let prompt = Prompt::Text("token ".repeat(load.prompt_tokens as usize));
        let template = BodyTemplate::new(Api::Completions, LoopbackOptions::default().model);
        let variable = Variable { max_tokens: Some(load.output_tokens), ..Variable::new(&prompt) };
        Self { body: template.render(&variable).map_err(|e| e.to_string()) }
    }
}

impl JobSource for SameWords {
    fn job(&mut self, index: u32, _warmup: bool) -> Result<Job, String> {
        let asked = Asked {
            repeat: index,
            slot: 0,
            id: index.to_string(),
            prompt_hash: String::new(),
            lengths: None,
            prompt_is_known: false,
        };
        Ok(Job { first: Turn { asked, body: self.body.clone()? }, later: VecDeque::new() })
    }
}

#[derive(Default)]
struct Gathered {
    requests: Vec<RequestTrace>,
    health: ClientHealth,
}

impl TrialSink for Gathered {
    fn request(&mut self, trace: RequestTrace, warmup: bool) -> bool {
        if !warmup {
            self.requests.push(trace);
        }
        true
    }

    fn file(&mut self, _: &str, _: &[u8]) -> bool {
        true
    }

    fn client(&mut self, health: ClientHealth) {
        self.health = health;
    }

    fn scrape(&mut self, _: Scrape) {}

    fn memory(&mut self, _: bench_core::memory::MemoryTrace) {}

    fn experts(&mut self, _: bench_core::shape::ExpertUse) {}

    fn in_flight(&mut self, _: u32) {}
}

/// Differences in milliseconds.
#[derive(Default)]
struct Differences {
    /// First token read - written: `sent` is stamped just before the system call, so that all of the client's
    /// error lies at this end.
    ttft: Vec<f64>,
    /// The same with the way of the request, and the time in which the server did not read it.
    whole: Vec<f64>,
    gap: Vec<f64>,
    lag: Vec<f64>,
}

impl Gathered {
    fn compare(
        self,
        load: &CalibrationLoad,
        served: &[ServedRequest],
        server: bench_http::loopback::ServerError,
        took: Nanos,
    ) -> Result<Calibration, TargetError> {
        let served: HashMap<&str, &ServedRequest> = served.iter().map(|s| (s.id.as_str(), s)).collect();
        let mut differences = Differences::default();
        let (mut requests, mut tokens) = (0, 0);
        for request in &self.requests {
            let timeline = Timeline::read("calibration", request).map_err(|e| TargetError(e.to_string()))?;
            let Some(own) = served.get(request.repeat.to_string().as_str()) else { continue };
            if timeline.succeeded() {
                requests += 1;
                tokens += timeline.token_count();
                differences.add(&timeline, request, own);
            }
        }
        let Differences { ttft, whole, gap, lag } = differences;
        let lost = || {
            let why = self.requests.iter().flat_map(|r| &r.events).find_map(|e| match &e.kind {
                EventKind::Failed { message, .. } => Some(message.as_str()),
                _ => None,
            });
            let why = why.unwrap_or("the run was stopped, or answers had fewer than three tokens");
            TargetError(format!("too few requests to the loopback server could be compared: {why}"))
        };
        let ms = |ns: Option<u64>| ns.map(|ns| Nanos(ns).as_ms()).ok_or_else(lost);
        let gaps = gap.len() as u64;
        let sd = distribution(gap.clone())?.std_dev().ok_or_else(lost)?;
        let bound = |values| bound(&distribution(values)?).ok_or_else(lost);
        Ok(Calibration {
            concurrency: load.concurrency,
            rate: load.rate,
            ttft_ms: load.ttft.as_ms(),
            gap_ms: load.gap.as_ms(),
            output_tokens: load.output_tokens,
            requests,
            gaps,
            ttft_added: bound(ttft)?,
            ttft_difference: bound(whole)?,
            gap_error: bound(gap.into_iter().map(f64::abs).collect())?,
            gap_error_sd_ms: sd,
            schedule_lag: bound(lag)?,
            server_error: ErrorBound { p50_ms: ms(server.p50_ns)?, p99_ms: ms(server.p99_ns)? },
            token_rate: tokens as f64 / took.as_secs(),
            health: self.health,
        })
    }
}

impl Differences {
    fn add(&mut self, client: &Timeline, request: &RequestTrace, server: &ServedRequest) {
        let signed = |a: u64, b: u64| (a as f64 - b as f64) / 1e6;
        if let (Some(seen), Some(written)) = (client.first_token(), server.written_ns.first()) {
            self.ttft.push(signed(seen.0, *written));
            self.whole.push(signed(seen.0 - client.sent.0, written.saturating_sub(server.arrival_ns)));
        }
        // One write is one chunk; where their numbers differ the pairing is not known.
        if client.chunks.len() == server.written_ns.len() {
            let seen = client.chunks.windows(2).map(|c| c[1].0.0 - c[0].0.0);
            let written = server.written_ns.windows(2).map(|w| w[1] - w[0]);
            self.gap.extend(seen.zip(written).map(|(seen, written)| signed(seen, written)));
        }
        let sent = request.events.iter().find(|e| matches!(e.kind, EventKind::Sent));
        if let Some(lag) = sent.and_then(|e| e.at.since(client.intended)) {
            self.lag.push(lag.as_ms());
        }
    }
}

fn distribution(values: Vec<f64>) -> Result<Distribution, TargetError> {
    Distribution::new(values).map_err(|e| TargetError(e.to_string()))
}

fn bound(values: &Distribution) -> Option<ErrorBound> {
    Some(ErrorBound { p50_ms: values.quantile(0.5)?, p99_ms: values.quantile(0.99)? })
}
