//! The run loop: trials in the plan's order, each warmed up at its own shape, measured and stored.
//!
//! Prompts are made before the measured window, files are written between requests. A failing request is an
//! event, a failing model is recorded in its cells, and the rest go on; only a results folder that cannot be
//! written ends a run with an error.

use crate::observer::{Observer, Progress};
use crate::store::{RunFolder, TrialHeader, TrialStatus, TrialWriter};
use crate::time::since_epoch;
use crate::{Error, Result};
use bench_core::client::{ClientHealth, Scrape};
use bench_core::clock::Clock;
use bench_core::event::{Event, EventKind, FailureKind};
use bench_core::load::Load;
use bench_core::plan::{Cell, Plan, Trial, derive_seed, short_hash};
use bench_core::target::{Recorder, Request, StopFlag, Target, TrialSink};
use bench_core::trace::RequestTrace;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Everything that a run needs.
pub struct RunContext<'a> {
    pub plan: &'a Plan,
    pub folder: &'a mut RunFolder,
    pub target: &'a mut dyn Target,
    /// The clock that the target stamps with.
    pub clock: &'a dyn Clock,
    pub stop: &'a StopFlag,
    pub observer: &'a mut dyn Observer,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunOutcome {
    pub trials_done: u32,
    /// Finished by an earlier process and left untouched.
    pub trials_skipped: u32,
    /// Measured requests that failed, those cut by the stop flag left out.
    pub failed_requests: u64,
    /// The stop flag ended the run before its last trial.
    pub interrupted: bool,
    /// Cells with a trial in which nothing succeeded, and why.
    pub cells_failed: BTreeMap<String, String>,
}

/// Runs what is missing of `ctx.plan`. Finished trials are skipped, an incomplete one is run anew.
pub fn run(ctx: RunContext<'_>) -> Result<RunOutcome> {
    ctx.folder.check_plan(ctx.plan)?;
    for note in ctx.folder.notes() {
        ctx.observer.warning(note);
    }
    let mut skip = BTreeSet::new();
    for trial in &ctx.plan.trials {
        if ctx.folder.status(trial)? == TrialStatus::Complete {
            skip.insert(trial.index);
            ctx.observer.trial_skipped(trial);
        }
    }
    let progress = totals(ctx.plan, &skip)?;
    Session { ctx, progress, outcome: RunOutcome::default(), started: Instant::now(), ready: None }.all(&skip)
}

struct Session<'a> {
    ctx: RunContext<'a>,
    progress: Progress,
    outcome: RunOutcome,
    started: Instant,
    /// Label of the model that was prepared last, and how that ended.
    ready: Option<(String, Result<(), String>)>,
}

/// Requests that run together, made ready before the measured window.
struct Batch {
    warmup: bool,
    requests: Vec<Request>,
    prompt_hashes: Vec<String>,
}

impl Session<'_> {
    fn all(mut self, skip: &BTreeSet<u32>) -> Result<RunOutcome> {
        let plan = self.ctx.plan;
        for trial in &plan.trials {
            let cell = cell_of(plan, trial)?;
            if skip.contains(&trial.index) {
                self.outcome.trials_skipped += 1;
                continue;
            }
            if !self.ctx.stop.is_set() {
                self.make_ready(trial, &cell.model)?;
            }
            if !self.ctx.stop.is_set() {
                self.calibrate(cell)?;
            }
            if self.ctx.stop.is_set() {
                self.outcome.interrupted = true;
                break;
            }
            self.trial(trial, cell)?;
        }
        Ok(self.outcome)
    }

    /// Prepares the model unless the trial before used it. A failure is kept for the trials of this block.
    fn make_ready(&mut self, trial: &Trial, label: &str) -> Result<()> {
        if self.ready.as_ref().is_some_and(|(l, _)| l == label) {
            return Ok(());
        }
        let RunContext { plan, folder, target, observer, stop, .. } = &mut self.ctx;
        let model = plan.model(label).ok_or_else(|| broken(trial, "model", label))?;
        let told = &mut |fraction| observer.model_loading(label, fraction);
        let prepared = target.prepare(model, told, stop);
        let result = match prepared {
            Ok(facts) => {
                if let Some(facts) = &facts {
                    folder.record_model(label, facts)?;
                }
                observer.model_ready(label, facts.as_ref());
                if let Some(server) = target.server() {
                    folder.record_server(label, &server)?;
                    for note in &server.notes {
                        observer.warning(&format!("{label}: {note}"));
                    }
                }
                Ok(())
            }
            Err(error) => {
                observer.model_failed(label, &error.to_string());
                Err(error.to_string())
            }
        };
        self.ready = Some((label.to_owned(), result));
        Ok(())
    }

    /// Once for each cell, before its first trial. A calibration that cannot be made is said, and missing.
    fn calibrate(&mut self, cell: &Cell) -> Result<()> {
        let RunContext { folder, target, observer, stop, .. } = &mut self.ctx;
        let ready = self.ready.as_ref().is_some_and(|(_, prepared)| prepared.is_ok());
        if !ready || folder.calibration(&cell.id)?.is_some() {
            return Ok(());
        }
        observer.calibrating(cell);
        match target.calibrate(cell, stop) {
            Ok(None) => {}
            Ok(Some(calibration)) => {
                folder.record_calibration(&cell.id, &calibration)?;
                observer.calibrated(cell, &calibration);
            }
            Err(error) => observer.warning(&format!("cell {} is not calibrated: {error}", cell.id)),
        }
        Ok(())
    }

    fn trial(&mut self, trial: &Trial, cell: &Cell) -> Result<()> {
        self.progress.elapsed = self.started.elapsed();
        self.ctx.observer.trial_started(&self.progress, trial, cell);
        let mut writer = self.ctx.folder.begin_trial(trial, &self.header(trial, cell))?;
        let complete = if cell.load == Load::Batch {
            match self.batches(trial, cell) {
                Ok(batches) => self.measure(&mut writer, cell, batches)?,
                Err(message) => self.write_failed(&mut writer, trial, cell, &message)?,
            }
        } else {
            self.under_load(&mut writer, trial, cell)?
        };
        writer.finish(complete)?;
        if complete {
            self.outcome.trials_done += 1;
            self.progress.trials_done += 1;
        } else {
            self.outcome.interrupted = true;
        }
        self.progress.elapsed = self.started.elapsed();
        self.ctx.observer.trial_finished(&self.progress, trial, complete);
        Ok(())
    }

    fn header(&self, trial: &Trial, cell: &Cell) -> TrialHeader {
        let at_zero = since_epoch().as_millis() as u64;
        TrialHeader {
            schema_version: bench_core::SCHEMA_VERSION,
            trial: trial.index,
            cell: cell.id.clone(),
            round: trial.round,
            planned_requests: trial.repeats * cell.requests_per_repeat,
            started_at_unix_ms: at_zero.saturating_sub(self.ctx.clock.now().0 / 1_000_000),
        }
    }

    /// Warm-up batches, then measured ones, with their prompts; the error is that of the model or a prompt.
    fn batches(&mut self, trial: &Trial, cell: &Cell) -> Result<Vec<Batch>, String> {
        if let Some((_, Err(message))) = &self.ready {
            return Err(message.clone());
        }
        let warmup =
            (0..self.ctx.plan.warmup).map(|w| (true, w, u64::from(trial.round * self.ctx.plan.warmup + w)));
        let measured =
            (trial.first_repeat..trial.first_repeat + trial.repeats).map(|r| (false, r, u64::from(r)));
        let mut batches = Vec::new();
        for (warmup, repeat, number) in warmup.chain(measured) {
            let mut batch = Batch { warmup, requests: Vec::new(), prompt_hashes: Vec::new() };
            for slot in 0..cell.batch {
                let index = number * u64::from(cell.batch) + u64::from(slot);
                let prompt = self.ctx.target.prompt(cell, index, warmup).map_err(|e| e.to_string())?;
                let bytes: Vec<u8> = prompt.iter().flat_map(|id| id.to_le_bytes()).collect();
                batch.prompt_hashes.push(short_hash(&bytes));
                let purpose = format!("sampler/{}/{warmup}/{index}", cell.id);
                let seed = derive_seed(self.ctx.plan.seed, &purpose);
                batch.requests.push(Request {
                    repeat,
                    slot,
                    prompt,
                    output_tokens: cell.output_tokens,
                    seed,
                });
            }
            batches.push(batch);
        }
        Ok(batches)
    }

    /// Runs the batches one after another, storing each when it has ended; `false` when the stop flag cut it.
    fn measure(&mut self, writer: &mut TrialWriter, cell: &Cell, batches: Vec<Batch>) -> Result<bool> {
        let mut succeeded = 0_u64;
        let mut failure = None;
        for batch in batches {
            if self.ctx.stop.is_set() {
                return Ok(false);
            }
            let traces = self.run_batch(&batch, cell);
            let mut cut = false;
            for trace in &traces {
                self.progress.requests_done += 1;
                self.progress.tokens_done += tokens(cell);
                self.progress.elapsed = self.started.elapsed();
                self.ctx.observer.request_done(&self.progress, cell, trace, batch.warmup);
                match failure_of(&trace.events) {
                    Some((FailureKind::Interrupted, _)) => cut = true,
                    Some((_, message)) if !batch.warmup => {
                        self.outcome.failed_requests += 1;
                        failure.get_or_insert_with(|| message.to_owned());
                    }
                    None if !batch.warmup => succeeded += 1,
                    _ => {}
                }
                if batch.warmup { writer.warmup(trace)? } else { writer.request(trace)? }
            }
            if cut {
                return Ok(false);
            }
        }
        if let (0, Some(message)) = (succeeded, failure) {
            self.outcome.cells_failed.entry(cell.id.clone()).or_insert(message);
        }
        Ok(true)
    }

    /// A whole trial by the target itself, which sends its requests as the cell's load wants them.
    fn under_load(&mut self, writer: &mut TrialWriter, trial: &Trial, cell: &Cell) -> Result<bool> {
        if let Some((_, Err(message))) = &self.ready {
            let message = message.clone();
            return self.write_failed(writer, trial, cell, &message);
        }
        let planned = trial.repeats * cell.requests_per_repeat;
        let mut sink = Sink {
            writer,
            folder: &*self.ctx.folder,
            trial,
            cell,
            observer: &mut *self.ctx.observer,
            progress: &mut self.progress,
            outcome: &mut self.outcome,
            started: self.started,
            measured: 0,
            succeeded: 0,
            failure: None,
            cut: false,
            broken: None,
        };
        let ran = self.ctx.target.run_trial(trial, cell, &mut sink, self.ctx.stop);
        let Sink { measured, succeeded, failure, cut, broken, .. } = sink;
        if let Some(error) = broken {
            return Err(error);
        }
        match ran {
            Err(error) if measured == 0 => self.write_failed(writer, trial, cell, &error.to_string()),
            Err(error) => {
                self.outcome.cells_failed.entry(cell.id.clone()).or_insert_with(|| error.to_string());
                Ok(false)
            }
            Ok(()) => {
                if let (0, Some(message)) = (succeeded, failure) {
                    self.outcome.cells_failed.entry(cell.id.clone()).or_insert(message);
                }
                Ok(!cut && measured == planned)
            }
        }
    }

    /// The measured window: nothing between the stamps but the target.
    fn run_batch(&mut self, batch: &Batch, cell: &Cell) -> Vec<RequestTrace> {
        let mut recorder = Recorder::new(self.ctx.clock, batch.requests.len(), cell.output_tokens as usize);
        let intended = recorder.now();
        for slot in 0..batch.requests.len() {
            recorder.record_at(slot, intended, EventKind::Intended);
        }
        self.ctx.target.run(&batch.requests, &mut recorder, self.ctx.stop);
        let of_requests = batch.requests.iter().zip(&batch.prompt_hashes);
        let traces = of_requests.zip(recorder.into_parts());
        traces
            .map(|((request, prompt_hash), (events, kv_allocated_bytes))| RequestTrace {
                repeat: request.repeat,
                slot: request.slot,
                prompt_hash: prompt_hash.clone(),
                asked: None,
                server: None,
                kv_allocated_bytes,
                events,
            })
            .collect()
    }

    /// Stores every request of the trial as failed: what could not run is counted, not left out.
    fn write_failed(
        &mut self,
        writer: &mut TrialWriter,
        trial: &Trial,
        cell: &Cell,
        message: &str,
    ) -> Result<bool> {
        for repeat in trial.first_repeat..trial.first_repeat + trial.repeats {
            for slot in 0..cell.requests_per_repeat {
                let at = self.ctx.clock.now();
                let failed = EventKind::Failed { failure: FailureKind::Engine, message: message.to_owned() };
                let events = [EventKind::Intended, failed].map(|kind| Event { at, kind }).to_vec();
                let prompt_hash = String::new();
                writer.request(&RequestTrace {
                    repeat,
                    slot,
                    prompt_hash,
                    asked: None,
                    server: None,
                    kv_allocated_bytes: None,
                    events,
                })?;
            }
        }
        let requests = u64::from(trial.repeats) * u64::from(cell.requests_per_repeat);
        self.outcome.failed_requests += requests;
        self.outcome.cells_failed.entry(cell.id.clone()).or_insert_with(|| message.to_owned());
        let with_warmup =
            u64::from(trial.repeats + self.ctx.plan.warmup) * u64::from(cell.requests_per_repeat);
        self.progress.requests_done += with_warmup;
        self.progress.tokens_done += with_warmup * tokens(cell);
        Ok(true)
    }
}

/// Stores and tells what a target under load hands over.
struct Sink<'a> {
    writer: &'a mut TrialWriter,
    folder: &'a RunFolder,
    trial: &'a Trial,
    cell: &'a Cell,
    observer: &'a mut dyn Observer,
    progress: &'a mut Progress,
    outcome: &'a mut RunOutcome,
    started: Instant,
    measured: u32,
    succeeded: u64,
    /// Of the first request that failed.
    failure: Option<String>,
    /// A request was interrupted: the trial is not complete.
    cut: bool,
    /// The store failed.
    broken: Option<Error>,
}

impl Sink<'_> {
    fn keep(&mut self, written: Result<()>) -> bool {
        if let Err(error) = written {
            self.broken.get_or_insert(error);
        }
        self.broken.is_none()
    }
}

impl TrialSink for Sink<'_> {
    fn request(&mut self, trace: RequestTrace, warmup: bool) -> bool {
        self.progress.requests_done += 1;
        self.progress.tokens_done += tokens(self.cell);
        self.progress.elapsed = self.started.elapsed();
        self.observer.request_done(self.progress, self.cell, &trace, warmup);
        self.measured += u32::from(!warmup);
        match failure_of(&trace.events) {
            Some((FailureKind::Interrupted, _)) => self.cut = true,
            Some((_, message)) if !warmup => {
                self.outcome.failed_requests += 1;
                self.failure.get_or_insert_with(|| message.to_owned());
            }
            None if !warmup => self.succeeded += 1,
            _ => {}
        }
        let written = if warmup { self.writer.warmup(&trace) } else { self.writer.request(&trace) };
        self.keep(written)
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> bool {
        let written = self.folder.write_beside(self.trial, name, bytes);
        self.keep(written)
    }

    fn client(&mut self, health: ClientHealth) {
        let written = self.writer.client(health);
        self.keep(written);
    }

    fn scrape(&mut self, scrape: Scrape) {
        let written = self.writer.scrape(scrape);
        self.keep(written);
    }

    fn in_flight(&mut self, requests: u32) {
        self.observer.in_flight(requests);
    }
}

/// How a request failed, `None` if it ended well; one that has no end counts as truncated.
fn failure_of(events: &[Event]) -> Option<(FailureKind, &str)> {
    for event in events.iter().rev() {
        match &event.kind {
            EventKind::Failed { failure, message } => return Some((*failure, message)),
            EventKind::Done { .. } => return None,
            _ => {}
        }
    }
    Some((FailureKind::TruncatedStream, "no end was recorded"))
}

fn totals(plan: &Plan, skip: &BTreeSet<u32>) -> Result<Progress> {
    let mut progress = Progress { trials_skipped: skip.len() as u32, ..Progress::default() };
    for trial in plan.trials.iter().filter(|t| !skip.contains(&t.index)) {
        let cell = cell_of(plan, trial)?;
        let requests = u64::from(trial.repeats + plan.warmup) * u64::from(cell.requests_per_repeat);
        progress.trials_total += 1;
        progress.requests_total += requests;
        progress.tokens_total += requests * tokens(cell);
    }
    Ok(progress)
}

/// Work of one request, for the time left.
fn tokens(cell: &Cell) -> u64 {
    u64::from(cell.prompt_tokens) + u64::from(cell.output_tokens)
}

fn cell_of<'a>(plan: &'a Plan, trial: &Trial) -> Result<&'a Cell> {
    plan.cell(&trial.cell).ok_or_else(|| broken(trial, "cell", &trial.cell))
}

fn broken(trial: &Trial, what: &'static str, name: &str) -> Error {
    Error::BrokenPlan { trial: trial.index, what, name: name.to_owned() }
}
