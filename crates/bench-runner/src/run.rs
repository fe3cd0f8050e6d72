//! The run loop: trials in the plan's order, each warmed up at its own shape, measured and stored.
//!
//! Prompts are made before the measured window, files are written between requests. A failing request is an
//! event, a failing model is recorded in its cells, and the rest go on; a target that cannot go on in this process
//! (a lost device) ends the run inside its trial, so that it can be resumed; only a results folder that cannot be
//! written ends a run with an error.

use crate::batch::Batches;
use crate::observer::{Observer, Progress};
use crate::store::{RunFolder, TrialHeader, TrialStatus, TrialWriter};
use crate::time::since_epoch;
use crate::{Error, Result};
use bench_core::client::{ClientHealth, Scrape};
use bench_core::clock::Clock;
use bench_core::event::{Event, EventKind, FailureKind};
use bench_core::load::Load;
use bench_core::memory::MemoryTrace;
use bench_core::plan::{Cell, Plan, Trial};
use bench_core::power::PowerTrace;
use bench_core::probe::{Cooling, Probes, Watch};
use bench_core::shape::ExpertUse;
use bench_core::target::{StopFlag, Target, TrialSink};
use bench_core::trace::RequestTrace;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Everything that a run needs.
pub struct RunContext<'a> {
    pub plan: &'a Plan,
    pub folder: &'a mut RunFolder,
    pub target: &'a mut dyn Target,
    /// The clock that the target stamps with.
    pub clock: &'a Arc<dyn Clock>,
    pub stop: &'a StopFlag,
    pub observer: &'a mut dyn Observer,
    /// What watches the machine.
    pub probes: Probes<'a>,
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
    /// Why the target could not go on in this process: the run ended inside a trial, the rest is left to a resumed one.
    pub lost: Option<String>,
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

impl Session<'_> {
    fn all(mut self, skip: &BTreeSet<u32>) -> Result<RunOutcome> {
        let plan = self.ctx.plan;
        if plan.trials.iter().any(|t| !skip.contains(&t.index)) {
            self.idle()?;
        }
        for trial in &plan.trials {
            let cell = cell_of(plan, trial)?;
            if skip.contains(&trial.index) {
                self.outcome.trials_skipped += 1;
                continue;
            }
            if !self.ctx.stop.is_set() {
                self.make_ready(trial, &cell.model)?;
            }
            self.outcome.lost = self.ctx.target.lost();
            if self.outcome.lost.is_some() {
                break;
            }
            if !self.ctx.stop.is_set() {
                self.calibrate(cell)?;
            }
            if self.ctx.stop.is_set() {
                self.outcome.interrupted = true;
                break;
            }
            self.trial(trial, cell)?;
            if self.outcome.lost.is_some() {
                break;
            }
        }
        Ok(self.outcome)
    }

    /// Prepares the model unless the trial before used it. A failure is kept for the trials of this block.
    fn make_ready(&mut self, trial: &Trial, label: &str) -> Result<()> {
        let fresh = self.ctx.target.fresh_for_each_trial();
        if !fresh && self.ready.as_ref().is_some_and(|(l, _)| l == label) {
            return Ok(());
        }
        let RunContext { plan, folder, target, observer, stop, .. } = &mut self.ctx;
        let model = plan.model(label).ok_or_else(|| broken(trial, "model", label))?;
        let told = &mut |fraction| observer.model_loading(label, fraction);
        let prepared = target.prepare(model, told, stop);
        target.notes().iter().for_each(|note| observer.warning(note));
        let result = match prepared {
            Ok(facts) => {
                if let Some(facts) = &facts {
                    folder.record_model(label, facts)?;
                }
                if let Some(how) = target.how_loaded()
                    && folder.record_load(label, &how)?
                {
                    observer.model_loaded(label, &how);
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
        let cooled = self.cool();
        self.watch_power();
        let ran = self.measure(&mut writer, trial, cell);
        let power = self.power_of(cooled);
        let lost = self.ctx.target.lost();
        // What a lost device answered is no result: the trial is to be run again.
        let complete = ran? && lost.is_none();
        for note in self.ctx.target.notes() {
            self.ctx.observer.warning(&format!("{}: {note}", cell.id));
        }
        if let Some(power) = power {
            writer.power(&power)?;
        }
        writer.finish(complete)?;
        if complete {
            self.outcome.trials_done += 1;
            self.progress.trials_done += 1;
        } else if lost.is_none() {
            self.outcome.interrupted = true;
        }
        self.outcome.lost = lost;
        self.progress.elapsed = self.started.elapsed();
        self.ctx.observer.trial_finished(&self.progress, trial, complete);
        Ok(())
    }

    /// Watches the idle machine before the first trial; a resumed run has done so.
    fn idle(&mut self) -> Result<()> {
        let watch = self.watch();
        let RunContext { plan, folder, observer, stop, probes, .. } = &mut self.ctx;
        let Some(power) = probes.power.as_deref_mut().filter(|p| !p.devices().is_empty()) else {
            return Ok(());
        };
        if let Some(idle) = folder.idle()? {
            power.remember_idle(&idle);
            return Ok(());
        }
        let duration = Duration::from_secs_f64(plan.energy.idle_s);
        observer.idle(duration);
        let idle = power.idle(&watch, duration, stop);
        if stop.is_set() { Ok(()) } else { folder.record_idle(&idle) }
    }

    /// Waits for cool devices; `None` where that was not asked for.
    fn cool(&mut self) -> Option<Duration> {
        let RunContext { plan, observer, stop, probes, .. } = &mut self.ctx;
        let energy = &plan.energy;
        let power = probes.power.as_deref_mut().filter(|_| energy.cooldown_s > 0.0)?;
        let longest = Duration::from_secs_f64(energy.cooldown_s);
        let (waited, cool) = power.cool(&Cooling { longest, above_idle_c: energy.cooldown_above_c }, stop);
        if !cool && !stop.is_set() {
            let limit = energy.cooldown_above_c;
            observer.warning(&format!(
                "after {:.0} s a device is still more than {limit} degrees warmer than idle; the trial begins warm",
                waited.as_secs_f64()
            ));
        }
        Some(waited)
    }

    fn watch(&self) -> Watch {
        let clock = self.ctx.clock.clone();
        Watch { zero_unix_ms: self.zero_unix_ms(), clock, process: self.ctx.target.process() }
    }

    fn watch_power(&mut self) {
        let watch = self.watch();
        if let Some(power) = self.ctx.probes.power.as_deref_mut() {
            power.begin(&watch);
        }
    }

    fn power_of(&mut self, cooled: Option<Duration>) -> Option<PowerTrace> {
        let mut power = self.ctx.probes.power.as_deref_mut()?.end();
        power.cooled_s = cooled.map(|waited| waited.as_secs_f64());
        Some(power).filter(|power| !power.devices.is_empty())
    }

    fn zero_unix_ms(&self) -> u64 {
        let now = since_epoch().as_millis() as u64;
        now.saturating_sub(self.ctx.clock.now().0 / 1_000_000)
    }

    fn header(&self, trial: &Trial, cell: &Cell) -> TrialHeader {
        TrialHeader {
            schema_version: bench_core::SCHEMA_VERSION,
            trial: trial.index,
            cell: cell.id.clone(),
            round: trial.round,
            planned_requests: trial.repeats * cell.requests_per_repeat,
            started_at_unix_ms: self.zero_unix_ms(),
        }
    }

    /// A whole trial, its requests one batch after another or as the target sends them; `false` if it was cut.
    fn measure(&mut self, writer: &mut TrialWriter, trial: &Trial, cell: &Cell) -> Result<bool> {
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
        let ran = if cell.load == Load::Batch && !self.ctx.target.takes_trials() {
            let batches = Batches {
                plan: self.ctx.plan,
                trial,
                cell,
                target: &mut *self.ctx.target,
                clock: self.ctx.clock.as_ref(),
                memory: self.ctx.probes.memory,
                own_process: false,
                stop: self.ctx.stop,
            };
            batches.run(&mut sink)
        } else {
            self.ctx.target.run_trial(trial, cell, &mut sink, self.ctx.stop)
        };
        let Sink { measured, succeeded, failure, cut, broken, .. } = sink;
        if let Some(error) = broken {
            return Err(error);
        }
        match ran {
            Err(error) if measured == 0 => self.write_failed(writer, trial, cell, &error.to_string()),
            Err(error) => {
                self.outcome.cells_failed.entry(cell.id.clone()).or_insert_with(|| error.to_string());
                // A target that failed inside a trial may still have told of every request how it ended.
                Ok(!cut && measured == planned)
            }
            Ok(()) => {
                if let (0, Some(message)) = (succeeded, failure) {
                    self.outcome.cells_failed.entry(cell.id.clone()).or_insert(message);
                }
                Ok(!cut && measured == planned)
            }
        }
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

    fn memory(&mut self, memory: MemoryTrace) {
        let written = self.writer.memory(memory);
        self.keep(written);
    }

    fn experts(&mut self, experts: ExpertUse) {
        let written = self.writer.experts(experts);
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
