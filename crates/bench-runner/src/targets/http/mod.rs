//! A server over HTTP as a target: finds out what it serves, sends it a load, measures its own error.
//!
//! A thin adapter over `bench-http`, which stamps; what is due when stands in `load`.

pub mod ask;
mod calibrate;
mod convert;
mod drive;
mod jobs;
pub mod mock;
mod pacer;
pub mod probe;
pub mod prompts;
mod rounds;
pub mod scrape;
mod trial;
mod worker;

pub use calibrate::{CalibrationLoad, calibrate};

use super::Secrets;
use crate::load::replay::Replay;
use crate::load::{Schedule, stored};
use bench_core::client::{Calibration, ServerFacts};
use bench_core::clock::Clock;
use bench_core::event::{EventKind, FailureKind};
use bench_core::load::{Arrival, Load};
use bench_core::plan::{Cell, ModelPlan, Plan, ServerPlan, Trial, derive_seed};
use bench_core::shape::ModelFacts;
use bench_core::target::{Recorder, Request, StopFlag, Target, TargetError, TrialSink};
use bench_core::unit::Nanos;
use bench_http::discover::Questions;
use bench_http::{Api, ApiKey, Dialer, Endpoint, Terms, Timeouts, TlsOptions};
use jobs::StudyJobs;
use probe::{Capabilities, Served};
use prompts::PromptSource;
use scrape::Scraping;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use trial::{Start, TrialLoad};
use worker::Line;

/// In-flight requests that one thread sends and reads, unless the plan says how many threads.
const STREAMS_PER_THREAD: u32 = 512;
/// Warm-up of a load without a level: a burst, a recorded trace.
const WARMUP_LEVEL: u32 = 4;
/// The gap that is assumed where the probe had too few tokens to tell.
const USUAL_GAP_MS: f64 = 20.0;
/// How often a wish to stop is looked for while a server is asked.
const LOOK: Duration = Duration::from_millis(50);
/// A server that closes a connection after its answer has done so by then.
const CLOSING: Duration = Duration::from_millis(20);

/// The run's clock, as the client wants it.
struct RunClock(Arc<dyn Clock>);

impl bench_http::Clock for RunClock {
    fn now_ns(&self) -> u64 {
        self.0.now().0
    }
}

/// A server that was asked and is ready.
struct Ready {
    label: String,
    dialer: Arc<Dialer>,
    served: Arc<Served>,
    prompts: Arc<PromptSource>,
    scraping: Option<Scraping>,
    /// Whether a connection carries a second request.
    reuse: bool,
    facts: ServerFacts,
}

pub struct HttpTarget {
    plan: Plan,
    server: ServerPlan,
    secrets: Secrets,
    clock: Arc<dyn Clock>,
    ready: Vec<Ready>,
    calibrated: Vec<(CalibrationLoad, Calibration)>,
}

impl HttpTarget {
    /// Takes the plan's settings; asks nobody yet.
    ///
    /// # Errors
    /// A plan without a server.
    pub fn new(plan: &Plan, secrets: Secrets, clock: Arc<dyn Clock>) -> Result<Self, TargetError> {
        let server = plan.server.clone().ok_or_else(|| TargetError("the plan names no server".to_owned()))?;
        raise_open_files();
        Ok(Self { plan: plan.clone(), server, secrets, clock, ready: Vec::new(), calibrated: Vec::new() })
    }

    fn current(&self) -> Result<&Ready, TargetError> {
        self.ready.last().ok_or_else(|| TargetError("no server was asked yet".to_owned()))
    }

    fn dialer(&self, model: &ModelPlan) -> Result<Dialer, TargetError> {
        let failed = |e: bench_http::SetupError| TargetError(e.to_string());
        let url = model.base_url.as_ref().or(self.server.base_url.as_ref());
        let url = url.ok_or_else(|| TargetError(format!("model {} has no server.base_url", model.label)))?;
        let mut endpoint = Endpoint::parse(url).map_err(failed)?;
        if let Some(key) = &self.secrets.api_key {
            endpoint = endpoint.with_api_key(&ApiKey::new(key)).map_err(failed)?;
        }
        for (name, value) in
            self.server.headers.iter().chain(self.secrets.headers.iter().map(|(n, v)| (n, v)))
        {
            endpoint = endpoint.with_header(&format!("{name}: {value}")).map_err(failed)?;
        }
        let tls = TlsOptions {
            insecure: self.server.insecure,
            ca_file: self.server.ca_file.as_ref().map(Into::into),
        };
        Dialer::new(endpoint, &tls, Arc::new(RunClock(self.clock.clone()))).map_err(failed)
    }

    async fn ask(&self, model: &ModelPlan, stop: &bench_http::Stop) -> Result<Ready, TargetError> {
        let dialer = Arc::new(self.dialer(model)?);
        let timeouts = timeouts(&self.server);
        let questions = Questions { dialer: &dialer, timeouts: &timeouts, stop };
        let served = probe::probe(&questions, &self.plan, model, self.secrets.api_key.is_some()).await?;
        let (prompts, mut notes) = PromptSource::open(&questions, &self.plan, model, &served).await?;
        notes.splice(0..0, served.notes.iter().cloned());
        let mut scraping = Scraping::planned(&self.server, &dialer, &served.model, &self.clock)?;
        if let Some(reader) = &scraping
            && let Err(why) = reader.check(stop).await
        {
            notes.push(why);
            scraping = None;
        }
        let reuse = keeps_alive(&dialer, &served, &timeouts, stop).await;
        if !reuse {
            notes.push(
                "the server closes the connection after a streamed answer: each request opens its own, which \
                 is part of its schedule lag"
                    .to_owned(),
            );
        }
        let notes: Vec<String> = notes.iter().map(|note| self.secrets.scrub(note)).collect();
        let facts = ServerFacts {
            base_url: dialer.endpoint().base(),
            server: served.server.clone(),
            api: match served.api {
                Api::Completions => "completions".to_owned(),
                Api::Chat => "chat".to_owned(),
            },
            max_context: served.max_context,
            takes: taken(served.capabilities),
            notes,
        };
        Ok(Ready {
            label: model.label.clone(),
            dialer,
            served: Arc::new(served),
            prompts: Arc::new(prompts),
            scraping,
            reuse,
            facts,
        })
    }

    fn threads(&self, level: u32) -> u32 {
        let cores = thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let usual = level.div_ceil(STREAMS_PER_THREAD).clamp(1, (cores / 2).max(1));
        self.server.client_threads.unwrap_or(usual)
    }

    /// The instants of a trial's requests; `None` in a closed loop.
    fn schedule(&self, trial: &Trial, cell: &Cell) -> Result<Option<Schedule>, TargetError> {
        let Load::Open { arrival, .. } = &cell.load else { return Ok(None) };
        let failed = |e: crate::Error| TargetError(e.to_string());
        if let Arrival::Replay { .. } = arrival {
            let Some(trace) = &self.server.trace else {
                return Err(TargetError("the plan replays a trace and names none".to_owned()));
            };
            return Ok(Some(slice(&Replay::open_planned(trace).map_err(failed)?, trial)));
        }
        // A conversation is one arrival: its later turns follow from its answers.
        let seed = derive_seed(self.plan.seed, &format!("load/{}/{}", cell.id, trial.round));
        Schedule::draw(arrival, trial.repeats as usize, seed).map(Some).map_err(failed)
    }

    fn store_schedule(
        &self,
        trial: &Trial,
        cell: &Cell,
        schedule: &Schedule,
        sink: &mut dyn TrialSink,
    ) -> Result<bool, TargetError> {
        let ready = self.current()?;
        let fixed = self.server.prompts.fixed_lengths() && !matches!(cell.load.key().as_str(), "replay");
        let mut rows = Vec::with_capacity(schedule.intended_ns.len());
        for (index, intended_ns) in (0_u64..).zip(&schedule.intended_ns) {
            let lengths = if fixed {
                None
            } else {
                Some(ready.prompts.lengths_of(cell, u64::from(trial.first_repeat) + index))
            };
            rows.push(stored::ScheduleRow {
                index,
                intended_ns: *intended_ns,
                prompt_tokens: Some(lengths.map_or(cell.prompt_tokens, |l| l.prompt_tokens)),
                output_tokens: Some(lengths.map_or(cell.output_tokens, |l| l.output_tokens)),
                group: None,
                blocks: Vec::new(),
            });
        }
        let mut csv = Vec::new();
        stored::write(&mut csv, &rows).map_err(|e| TargetError(format!("cannot write the schedule: {e}")))?;
        Ok(sink.file(&stored::file_name(trial.round), &csv))
    }

    fn calibration_load(&self, cell: &Cell) -> Result<CalibrationLoad, TargetError> {
        let ready = self.current()?;
        let first = &ready.served.first;
        let gap_ms = first.gap_ms.filter(|gap| *gap > 0.0).unwrap_or(USUAL_GAP_MS);
        let nanos = |ms: f64| Nanos((ms * 1e6) as u64);
        let concurrency = level(cell);
        Ok(CalibrationLoad {
            concurrency,
            rate: cell.load.rate(),
            ttft: nanos(first.ttft_ms),
            // A batch of one has the shortest gaps: the client is judged by more tokens per second than will come.
            gap: nanos(gap_ms).max(Nanos(100_000)),
            prompt_tokens: cell.prompt_tokens,
            output_tokens: cell.output_tokens,
            requests: 0,
            threads: self.threads(concurrency),
            keep_awake: self.server.keep_awake,
            seed: derive_seed(self.plan.seed, "calibration"),
        }
        .within_budget())
    }
}

impl Target for HttpTarget {
    fn key(&self) -> &'static str {
        "http"
    }

    fn takes_trials(&self) -> bool {
        true
    }

    fn prepare(
        &mut self,
        model: &ModelPlan,
        progress: &mut dyn FnMut(f64),
        stop: &StopFlag,
    ) -> Result<Option<ModelFacts>, TargetError> {
        if let Some(at) = self.ready.iter().position(|r| r.label == model.label) {
            let ready = self.ready.remove(at);
            self.ready.push(ready);
        } else {
            let asked = event_loop()?.block_on(async {
                let gone = bench_http::Stop::new();
                tokio::select! {
                    asked = self.ask(model, &gone) => asked,
                    () = wish(stop) => Err(TargetError("stopped while the server was asked".to_owned())),
                }
            });
            self.ready.push(asked.map_err(|e| TargetError(self.secrets.scrub(&e.to_string())))?);
        }
        progress(1.0);
        sizes(model)
    }

    fn prompt(&mut self, cell: &Cell, _index: u64, _warmup: bool) -> Result<Vec<u32>, TargetError> {
        Err(TargetError(format!("cell {}: a server takes whole trials only", cell.id)))
    }

    fn run(&mut self, requests: &[Request], recorder: &mut Recorder<'_>, _stop: &StopFlag) {
        for slot in 0..requests.len() {
            let message = "a server takes whole trials only".to_owned();
            recorder.record(slot, EventKind::Failed { failure: FailureKind::Engine, message });
        }
    }

    fn run_trial(
        &mut self,
        trial: &Trial,
        cell: &Cell,
        sink: &mut dyn TrialSink,
        stop: &StopFlag,
    ) -> Result<(), TargetError> {
        let schedule = self.schedule(trial, cell)?;
        if let Some(schedule) = &schedule
            && !self.store_schedule(trial, cell, schedule, sink)?
        {
            return Ok(());
        }
        let ready = self.current()?;
        let level = level(cell);
        let prompts = &self.server.prompts;
        let (scraper, scrapes) = match ready.scraping.clone().map(Scraping::start).transpose()? {
            Some((scraper, scrapes)) => (Some(scraper), Some(scrapes)),
            None => (None, None),
        };
        let warmup = self.plan.warmup * level;
        let load = TrialLoad {
            line: Line {
                dialer: ready.dialer.clone(),
                route: ready.served.api.route(),
                streamed: ready.served.template.streams(),
                reuse: ready.reuse,
                keep_text: prompts.turns > 1,
                expected_tokens: cell.output_tokens,
                timeouts: timeouts(&self.server),
                stop: bench_http::Stop::new(),
            },
            clock: self.clock.clone(),
            jobs: Box::new(StudyJobs::new(&self.plan, cell, &ready.served, &ready.prompts)),
            first: trial.first_repeat,
            number: trial.repeats,
            warmup: trial.round * warmup..(trial.round + 1) * warmup,
            start: match (schedule, &cell.load) {
                (Some(schedule), Load::Open { max_concurrency, .. }) => {
                    Start::Open { after_ns: schedule.intended_ns, most: *max_concurrency }
                }
                _ => Start::Closed(level),
            },
            threads: self.threads(level),
            keep_awake: self.server.keep_awake,
            think: Duration::from_secs_f64(prompts.think_time_ms / 1e3),
            job_bytes: 1_024 + 8 * cell.prompt_tokens as usize * prompts.turns as usize,
            scrapes,
        };
        let mut scrubbed = Scrubbed { sink, secrets: &self.secrets };
        let ran = trial::run(load, &mut scrubbed, stop);
        if let Some(scraper) = scraper {
            scraper.end();
        }
        ran
    }

    fn server(&self) -> Option<ServerFacts> {
        self.ready.last().map(|ready| ready.facts.clone())
    }

    fn calibrate(&mut self, cell: &Cell, stop: &StopFlag) -> Result<Option<Calibration>, TargetError> {
        if !self.server.calibrate {
            return Ok(None);
        }
        let load = self.calibration_load(cell)?;
        if let Some((_, known)) = self.calibrated.iter().find(|(known, _)| *known == load) {
            return Ok(Some(known.clone()));
        }
        let calibration = calibrate(&load, &self.clock, stop)?;
        self.calibrated.push((load, calibration.clone()));
        Ok(Some(calibration))
    }
}

/// Resolves soon after `stop` is set; a signal handler can set a flag and wake nobody.
async fn wish(stop: &StopFlag) {
    while !stop.is_set() {
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether a connection is still open a moment after a streamed answer; headers do not always tell.
async fn keeps_alive(dialer: &Dialer, served: &Served, timeouts: &Timeouts, stop: &bench_http::Stop) -> bool {
    let prompt = bench_http::Prompt::Text("Hello".to_owned());
    let body = served.template.render(&served.variable(&prompt, 2, None));
    let request = body.and_then(|body| dialer.endpoint().post(served.api.route(), body));
    let opened = dialer.open(timeouts.connect, stop).await;
    // What fails here fails again, and is told, where it counts.
    let (Ok(request), Ok(mut connection)) = (request, opened) else { return true };
    let terms =
        Terms { streamed: served.template.streams(), keep_text: false, expected_tokens: 2, timeouts, stop };
    let exchange = connection.exchange(request, &terms).await;
    tokio::time::sleep(CLOSING).await;
    exchange.reusable && connection.is_open()
}

/// Requests in flight that a cell is made for, as far as that is known beforehand.
fn level(cell: &Cell) -> u32 {
    let rate = cell.load.rate().map(|rate| rate.ceil().clamp(1.0, 256.0) as u32);
    match &cell.load {
        Load::Batch => 1,
        Load::Closed { concurrency } => *concurrency,
        Load::Open { max_concurrency, .. } => {
            max_concurrency.unwrap_or(u32::MAX).min(rate.unwrap_or(WARMUP_LEVEL))
        }
    }
}

/// The part of a recorded trace that a trial replays, from its own beginning.
fn slice(replay: &Replay, trial: &Trial) -> Schedule {
    let all = Schedule::of_replay(replay).intended_ns;
    let (from, to) = (trial.first_repeat as usize, (trial.first_repeat + trial.repeats) as usize);
    let own = all.get(from..to.min(all.len())).unwrap_or_default();
    let begin = own.first().copied().unwrap_or_default();
    Schedule { intended_ns: own.iter().map(|at| at - begin).collect() }
}

fn timeouts(server: &ServerPlan) -> Timeouts {
    Timeouts {
        connect: Duration::from_secs_f64(server.connect_timeout_s),
        first_byte: Duration::from_secs_f64(server.first_token_timeout_s),
        between_tokens: Duration::from_secs_f64(server.gap_timeout_s),
        total: Duration::from_secs_f64(server.request_timeout_s),
    }
}

fn taken(capabilities: Capabilities) -> Vec<String> {
    let all = [
        ("ignore_eos", capabilities.ignore_eos),
        ("min_tokens", capabilities.min_tokens),
        ("continuous_usage_stats", capabilities.continuous_usage),
        ("return_token_ids", capabilities.token_ids),
        ("max_completion_tokens", capabilities.max_completion_tokens),
        ("prompt token ids", capabilities.prompt_ids),
    ];
    all.into_iter().filter(|(_, takes)| *takes).map(|(name, _)| name.to_owned()).collect()
}

fn event_loop() -> Result<tokio::runtime::Runtime, TargetError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|e| TargetError(format!("cannot start an event loop: {e}")))
}

#[cfg(feature = "engine")]
fn sizes(model: &ModelPlan) -> Result<Option<ModelFacts>, TargetError> {
    crate::shape::served(model)
}

/// Without the engine nobody here reads a model's config.
#[cfg(not(feature = "engine"))]
fn sizes(_model: &ModelPlan) -> Result<Option<ModelFacts>, TargetError> {
    Ok(None)
}

/// Each connection is an open file, and the usual soft limit is 1,024. Where it cannot be raised, connections
/// fail with a text that says so.
fn raise_open_files() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

/// A server may repeat a key in the text of an error: it is not stored.
struct Scrubbed<'a> {
    sink: &'a mut dyn TrialSink,
    secrets: &'a Secrets,
}

impl TrialSink for Scrubbed<'_> {
    fn request(&mut self, mut trace: bench_core::trace::RequestTrace, warmup: bool) -> bool {
        for event in &mut trace.events {
            if let EventKind::Failed { message, .. } = &mut event.kind {
                *message = self.secrets.scrub(message);
            }
        }
        self.sink.request(trace, warmup)
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> bool {
        self.sink.file(name, bytes)
    }

    fn client(&mut self, health: bench_core::client::ClientHealth) {
        self.sink.client(health);
    }

    fn scrape(&mut self, scrape: bench_core::client::Scrape) {
        self.sink.scrape(scrape);
    }

    fn memory(&mut self, memory: bench_core::memory::MemoryTrace) {
        self.sink.memory(memory);
    }

    fn experts(&mut self, experts: bench_core::shape::ExpertUse) {
        self.sink.experts(experts);
    }

    fn in_flight(&mut self, requests: u32) {
        self.sink.in_flight(requests);
    }
}
