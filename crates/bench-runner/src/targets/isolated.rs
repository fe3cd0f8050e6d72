//! The engine in a process of its own, one for each trial: no cell inherits what another has allocated.
//!
//! This side starts the process, sends it the plan, and hands on what it tells; it computes nothing and is
//! the only one that writes results. The other side is [`serve`]. The two talk in JSON lines, and what the
//! process tells of a trial it tells between measured windows, waiting for an answer, so that nothing runs
//! beside a window.

mod process;
mod protocol;
mod serve;
#[cfg(test)]
mod tests;

use bench_core::clock::Clock;
use bench_core::event::{Event, EventKind, FailureKind};
use bench_core::plan::{Cell, ModelPlan, Plan, Trial};
use bench_core::shape::ModelFacts;
use bench_core::target::{Recorder, Request, StopFlag, Target, TargetError, TrialSink};
use bench_core::trace::RequestTrace;
use process::{Process, Silence};
use protocol::{FromEngine, Start, ToEngine};
pub use serve::{die_with_parent, serve};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The argument by which the program is told to be the process of a trial.
pub const COMMAND: &str = "engine-process";

/// Long enough for a token of a large model; the results before it are stored already.
const TO_STOP: Duration = Duration::from_secs(5);
/// A process that loads has no results to wait for.
const AT_ONCE: Duration = Duration::ZERO;

/// The engine, in a new process for each trial.
pub struct IsolatedTarget {
    plan: Plan,
    program: PathBuf,
    clock: Arc<dyn Clock>,
    /// Loaded and waiting for its trial.
    process: Option<Process>,
    how_loaded: Option<String>,
    notes: Vec<String>,
    /// What processes told of their loads: each of them may tell the same, which is noted once.
    told: BTreeSet<String>,
    /// Why the last process could not go on, in its own words: the next would hardly fare better, and a person should
    /// look first.
    lost: Option<String>,
    /// How long a process that was told to stop may take to its next token and its results.
    to_stop: Duration,
}

impl IsolatedTarget {
    /// Starts nothing yet. `program` is called with [`COMMAND`]; the instants that it stamps are those of
    /// `clock`.
    pub fn new(plan: &Plan, program: &Path, clock: Arc<dyn Clock>) -> Self {
        Self {
            plan: plan.clone(),
            program: program.to_owned(),
            clock,
            process: None,
            how_loaded: None,
            notes: Vec::new(),
            told: BTreeSet::new(),
            lost: None,
            to_stop: TO_STOP,
        }
    }

    fn start(&self, model: &ModelPlan) -> Result<Process, TargetError> {
        let mut process = Process::spawn(&self.program).map_err(|e| {
            TargetError(format!("cannot start the process of a trial ({}): {e}", self.program.display()))
        })?;
        process.tell(&ToEngine::Start(Box::new(Start {
            plan: self.plan.clone(),
            model: model.label.clone(),
            clock_zero_ns: protocol::clock_zero_ns(self.clock.as_ref()),
        })));
        Ok(process)
    }

    /// A request of which the process can no longer tell.
    fn lost(&self, (repeat, slot): (u32, u32), message: &str) -> RequestTrace {
        let at = self.clock.now();
        let failed = EventKind::Failed { failure: FailureKind::Engine, message: message.to_owned() };
        RequestTrace {
            repeat,
            slot,
            prompt_hash: String::new(),
            asked: None,
            server: None,
            kv_allocated_bytes: None,
            events: [EventKind::Intended, failed].map(|kind| Event { at, kind }).to_vec(),
        }
    }
}

impl Target for IsolatedTarget {
    fn key(&self) -> &'static str {
        "engine"
    }

    fn prepare(
        &mut self,
        model: &ModelPlan,
        progress: &mut dyn FnMut(f64),
        stop: &StopFlag,
    ) -> Result<Option<ModelFacts>, TargetError> {
        // The process before, if its trial never came, ends first: two models need not fit at once.
        self.process = None;
        let mut process = self.start(model)?;
        let of_model = |why: String| TargetError(format!("model \"{}\": {why}", model.label));
        loop {
            match process.next(stop, AT_ONCE) {
                Ok(FromEngine::Loading(fraction)) => progress(fraction),
                Ok(FromEngine::Loaded { how, notes }) => {
                    self.how_loaded = how;
                    let new = notes.into_iter().filter(|note| self.told.insert(note.clone()));
                    self.notes.extend(new);
                }
                Ok(FromEngine::Ready(facts)) => {
                    self.process = Some(process);
                    return Ok(facts.map(|facts| *facts));
                }
                Ok(FromEngine::Failed(message)) => return Err(TargetError(message)),
                Ok(FromEngine::Lost(why)) => {
                    self.lost = Some(why.clone());
                    return Err(TargetError(why));
                }
                Ok(_) => return Err(of_model(process.give_up("told of a trial that it was not given"))),
                Err(Silence::Stopped) => return Err(of_model("stopped while it was loaded".to_owned())),
                Err(Silence::Ended(why)) => return Err(of_model(why)),
            }
        }
    }

    fn prompt(&mut self, cell: &Cell, _index: u64, _warmup: bool) -> Result<Vec<u32>, TargetError> {
        Err(TargetError(format!("cell {}: a process of its own makes its prompts itself", cell.id)))
    }

    fn run(&mut self, requests: &[Request], recorder: &mut Recorder<'_>, _stop: &StopFlag) {
        for slot in 0..requests.len() {
            let message = "a process of its own takes whole trials only".to_owned();
            recorder.record(slot, EventKind::Failed { failure: FailureKind::Engine, message });
        }
    }

    fn takes_trials(&self) -> bool {
        true
    }

    fn fresh_for_each_trial(&self) -> bool {
        true
    }

    fn lost(&self) -> Option<String> {
        self.lost.clone()
    }

    fn process(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    fn how_loaded(&mut self) -> Option<String> {
        self.how_loaded.take()
    }

    fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    fn run_trial(
        &mut self,
        trial: &Trial,
        cell: &Cell,
        sink: &mut dyn TrialSink,
        stop: &StopFlag,
    ) -> Result<(), TargetError> {
        let no_process = || TargetError("no model is loaded".to_owned());
        let mut process = self.process.take().ok_or_else(no_process)?;
        process.tell(&ToEngine::Trial(trial.index));
        let mut left = requests_of(trial, cell);
        match follow(&mut process, &mut left, sink, stop, self.to_stop) {
            Ok(End::Told(error)) => {
                self.notes.extend(process.end());
                error.map_or(Ok(()), |message| Err(TargetError(message)))
            }
            Ok(End::Lost(why)) => {
                self.notes.extend(process.end());
                self.lost = Some(why);
                Ok(())
            }
            Err(Silence::Stopped) => Ok(()),
            Err(Silence::Ended(why)) => {
                // What the process took with it is counted, not left out.
                for request in left {
                    sink.request(self.lost(request, &why), false);
                }
                Err(TargetError(why))
            }
        }
    }
}

/// Repeat and slot of every measured request.
fn requests_of(trial: &Trial, cell: &Cell) -> BTreeSet<(u32, u32)> {
    let repeats = trial.first_repeat..trial.first_repeat + trial.repeats;
    repeats.flat_map(|repeat| (0..cell.requests_per_repeat).map(move |slot| (repeat, slot))).collect()
}

/// How a trial ended that its process told of.
enum End {
    /// As it should; or why it could not begin.
    Told(Option<String>),
    /// Nothing more can run there.
    Lost(String),
}

/// Hands on what `process` tells until the trial has ended; then why the trial could not begin, if it could
/// not. What was handed on is taken from `left`.
fn follow(
    process: &mut Process,
    left: &mut BTreeSet<(u32, u32)>,
    sink: &mut dyn TrialSink,
    stop: &StopFlag,
    to_stop: Duration,
) -> Result<End, Silence> {
    loop {
        let more = match process.next(stop, to_stop)? {
            FromEngine::Warmup(trace) => sink.request(trace, true),
            FromEngine::Request(trace) => {
                if !left.remove(&(trace.repeat, trace.slot)) {
                    let (repeat, slot) = (trace.repeat, trace.slot);
                    let problem = format!("told of request {slot} of repeat {repeat}, which is not to come");
                    return Err(Silence::Ended(process.give_up(&problem)));
                }
                sink.request(trace, false)
            }
            FromEngine::Memory(memory) => {
                sink.memory(memory);
                true
            }
            FromEngine::Experts(experts) => {
                sink.experts(experts);
                true
            }
            FromEngine::Ended(error) => return Ok(End::Told(error)),
            FromEngine::Lost(why) => return Ok(End::Lost(why)),
            FromEngine::Loading(_)
            | FromEngine::Loaded { .. }
            | FromEngine::Ready(_)
            | FromEngine::Failed(_) => {
                return Err(Silence::Ended(process.give_up("told of loading inside a trial")));
            }
        };
        process.tell(&ToEngine::Taken(more));
    }
}
