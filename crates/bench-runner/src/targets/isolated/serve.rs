//! The process of a trial: loads one model, runs one trial, tells what came of it, and ends.
//!
//! It writes no file. It ends with its parent, whatever the parent dies of.

use super::protocol::{FromEngine, Start, ToEngine, continued, line, parse, read_line};
use crate::Batches;
use bench_core::client::{ClientHealth, Scrape};
use bench_core::memory::MemoryTrace;
use bench_core::plan::{Plan, Trial};
use bench_core::probe::MemoryProbe;
use bench_core::shape::ExpertUse;
use bench_core::target::{StopFlag, Target, TargetError, TrialSink};
use bench_core::trace::RequestTrace;
use std::io::{self, BufReader, Read, Write};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

/// Loading is told in steps of this size.
const STEP: f64 = 0.01;

/// Has the system kill this process when the thread that started it ends; elsewhere than on Linux the end of
/// the standard input has to do.
pub fn die_with_parent() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Signal, set_parent_process_death_signal};
        // Without it the end of the standard input is still seen.
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
    }
}

/// Does what is asked for on `input` and tells of it on `output`, with the target that `open` makes. Returns
/// when the trial has ended or the other side is gone.
///
/// # Errors
/// The other side is gone, or says what is not understood.
pub fn serve(
    input: impl Read + Send + 'static,
    output: &mut dyn Write,
    memory: Option<&dyn MemoryProbe>,
    stop: &'static StopFlag,
    open: impl FnOnce(&Plan) -> crate::Result<Box<dyn Target>>,
) -> io::Result<()> {
    let (to_me, inbox) = mpsc::channel();
    thread::Builder::new().name("parent".to_owned()).spawn(move || listen(input, &to_me, stop))?;
    let mut line = Line { output, inbox, broken: None };
    let ToEngine::Start(start) = line.hear()? else {
        return Err(unexpected("something else where a plan was expected"));
    };
    let Start { plan, model, clock_zero_ns } = *start;
    let clock = continued(clock_zero_ns);
    let mut target = match make_ready(&plan, &model, &mut line, stop, open) {
        Ok(target) => target,
        Err(Unready { why, lost: false }) => return line.say(&FromEngine::Failed(why)),
        Err(Unready { why, lost: true }) => return line.say(&FromEngine::Lost(why)),
    };
    let ToEngine::Trial(index) = line.hear()? else {
        return Err(unexpected("something else where a trial was expected"));
    };
    let ended = match find(&plan, index) {
        Ok((trial, cell)) => {
            let target = target.as_mut();
            let batches =
                Batches { plan: &plan, trial, cell, target, clock: &clock, memory, own_process: true, stop };
            batches.run(&mut line)
        }
        Err(error) => Err(error),
    };
    if let Some(error) = line.broken.take() {
        return Err(error);
    }
    if let Some(why) = target.lost() {
        return line.say(&FromEngine::Lost(why));
    }
    line.say(&FromEngine::Ended(ended.err().map(|error| error.to_string())))
}

/// Why there is no model.
struct Unready {
    why: String,
    /// The target can do nothing more in any case.
    lost: bool,
}

impl From<TargetError> for Unready {
    fn from(error: TargetError) -> Self {
        Self { why: error.to_string(), lost: false }
    }
}

/// Opens the target and loads the model, telling how far it is.
fn make_ready(
    plan: &Plan,
    label: &str,
    line: &mut Line<'_>,
    stop: &StopFlag,
    open: impl FnOnce(&Plan) -> crate::Result<Box<dyn Target>>,
) -> Result<Box<dyn Target>, Unready> {
    let mut target = open(plan).map_err(|e| TargetError(e.to_string()))?;
    let model =
        plan.model(label).ok_or_else(|| TargetError(format!("the plan holds no model \"{label}\"")))?;
    let mut told = 0.0;
    let mut progress = |fraction: f64| {
        if fraction >= told + STEP || fraction >= 1.0 {
            told = fraction;
            // If nobody hears it, the next message will say so.
            let _ = line.say(&FromEngine::Loading(fraction));
        }
    };
    let facts = target
        .prepare(model, &mut progress, stop)
        .map_err(|error| Unready { lost: target.lost().is_some(), ..error.into() })?;
    let nobody = |e: io::Error| TargetError(format!("nobody listens: {e}"));
    let (how, notes) = (target.how_loaded(), target.notes());
    if how.is_some() || !notes.is_empty() {
        line.say(&FromEngine::Loaded { how, notes }).map_err(nobody)?;
    }
    line.say(&FromEngine::Ready(facts.map(Box::new))).map_err(nobody)?;
    Ok(target)
}

fn find(plan: &Plan, index: u32) -> Result<(&Trial, &bench_core::plan::Cell), TargetError> {
    let trial = plan.trials.iter().find(|t| t.index == index);
    let found = trial.and_then(|trial| Some((trial, plan.cell(&trial.cell)?)));
    found.ok_or_else(|| TargetError(format!("the plan holds no trial {index}")))
}

/// Hears what the parent says at any time: a wish to stop cannot wait until a batch has ended. Its end is
/// one.
fn listen(input: impl Read, to_me: &Sender<io::Result<ToEngine>>, stop: &StopFlag) {
    let mut reader = BufReader::new(input);
    loop {
        let heard = match read_line(&mut reader) {
            Ok(Some(line)) => parse(&line).map_err(|problem| unexpected(&problem)),
            Ok(None) => break,
            Err(error) => Err(error),
        };
        match heard {
            Ok(ToEngine::Stop) => stop.stop(),
            heard => {
                let last = heard.is_err();
                if to_me.send(heard).is_err() || last {
                    break;
                }
            }
        }
    }
    stop.stop();
}

fn unexpected(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the run {what}"))
}

/// The line to the parent.
struct Line<'a> {
    output: &'a mut dyn Write,
    inbox: Receiver<io::Result<ToEngine>>,
    /// Why nothing more can be told.
    broken: Option<io::Error>,
}

impl Line<'_> {
    fn say(&mut self, message: &FromEngine) -> io::Result<()> {
        self.output.write_all(&line(message)?)?;
        self.output.flush()
    }

    fn hear(&mut self) -> io::Result<ToEngine> {
        self.inbox.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }

    /// Tells, and waits until the parent has stored it: so it does not work while the next batch is measured.
    fn hand_over(&mut self, message: &FromEngine) -> bool {
        if self.broken.is_some() {
            return false;
        }
        match self.say(message).and_then(|()| self.hear()) {
            Ok(ToEngine::Taken(more)) => more,
            Ok(_) => {
                self.broken = Some(unexpected("something else where an answer was expected"));
                false
            }
            Err(error) => {
                self.broken = Some(error);
                false
            }
        }
    }
}

/// Batches bring requests, memory and experts; the rest belongs to servers.
impl TrialSink for Line<'_> {
    fn request(&mut self, trace: RequestTrace, warmup: bool) -> bool {
        self.hand_over(&if warmup { FromEngine::Warmup(trace) } else { FromEngine::Request(trace) })
    }

    fn file(&mut self, _name: &str, _bytes: &[u8]) -> bool {
        true
    }

    fn client(&mut self, _health: ClientHealth) {}

    fn scrape(&mut self, _scrape: Scrape) {}

    fn memory(&mut self, memory: MemoryTrace) {
        self.hand_over(&FromEngine::Memory(memory));
    }

    fn experts(&mut self, experts: ExpertUse) {
        self.hand_over(&FromEngine::Experts(experts));
    }

    fn in_flight(&mut self, _requests: u32) {}
}
