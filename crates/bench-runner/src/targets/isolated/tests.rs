//! Both sides of the line, each against a scripted other one.

use super::protocol::{line, parse, read_line};
use super::*;
use crate::targets::null::NullTarget;
use crate::{Quiet, RunContext, RunFolder, RunOutcome, provenance};
use bench_core::clock::MonotonicClock;
use bench_core::memory::{Heap, ProcessMemory};
use bench_core::probe::{MemoryProbe, Probes};
use bench_core::spec::RunSpec;
use bench_core::trace::{Timeline, TrialTrace};
use std::fmt::Write as _;
use std::io::{self, BufReader, PipeReader, PipeWriter, Write};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Instant;
use tempfile::TempDir;

fn plan(models: u32) -> Plan {
    let mut text = "[run]\nname = \"t\"\nrepeats = 3\nrounds = 1\nwarmup = 1\n[target]\nkind = \"null\"\n\
        [workload]\nprompt_tokens = [8]\noutput_tokens = [4]\nbatch = [2]\n"
        .to_owned();
    for number in 0..models {
        writeln!(text, "[[models]]\nid = \"dummy:m{number}\"").unwrap();
    }
    RunSpec::from_toml("t", &text).unwrap().resolve().unwrap()
}

/// The process of a trial as a thread, with the run played by the test.
struct Served {
    to: PipeWriter,
    from: BufReader<PipeReader>,
    thread: JoinHandle<io::Result<()>>,
    stop: &'static StopFlag,
}

struct Counted;

impl MemoryProbe for Counted {
    fn heap(&self) -> Option<Heap> {
        Some(Heap { live_bytes: 1, peak_bytes: 2 })
    }

    fn reset_heap_peak(&self) {}

    fn process(&self) -> Option<ProcessMemory> {
        None
    }

    fn reset_process_peak(&self) {}
}

impl Served {
    fn new() -> Self {
        let stop: &'static StopFlag = Box::leak(Box::default());
        let (input, to) = io::pipe().unwrap();
        let (from, mut output) = io::pipe().unwrap();
        let open = |_: &Plan| Ok(Box::new(NullTarget) as Box<dyn Target>);
        let thread = thread::spawn(move || serve(input, &mut output, Some(&Counted), stop, open));
        Self { to, from: BufReader::new(from), thread, stop }
    }

    /// One that has been given `plan` and is ready, and one of its clock's instants before.
    fn ready(plan: &Plan, clock: &MonotonicClock) -> Self {
        let mut served = Self::new();
        let clock_zero_ns = protocol::clock_zero_ns(clock);
        let model = plan.models[0].label.clone();
        served.tell(&ToEngine::Start(Box::new(Start { plan: plan.clone(), model, clock_zero_ns })));
        assert!(matches!(served.hear(), Some(FromEngine::Loading(f)) if f == 1.0));
        assert!(matches!(served.hear(), Some(FromEngine::Ready(None))));
        served
    }

    fn tell(&mut self, message: &ToEngine) {
        self.to.write_all(&line(message).unwrap()).unwrap();
    }

    fn hear(&mut self) -> Option<FromEngine> {
        read_line(&mut self.from).unwrap().map(|line| parse(&line).unwrap())
    }
}

#[test]
fn a_served_trial_is_told_in_order_on_the_clock_of_the_run() {
    let (plan, clock) = (plan(1), MonotonicClock::default());
    let mut served = Served::ready(&plan, &clock);
    let before = clock.now();
    served.tell(&ToEngine::Trial(0));
    let mut told = String::new();
    loop {
        match served.hear().unwrap() {
            FromEngine::Warmup(trace) => write!(told, "w{}.{} ", trace.repeat, trace.slot).unwrap(),
            FromEngine::Request(trace) => {
                write!(told, "r{}.{} ", trace.repeat, trace.slot).unwrap();
                let times = Timeline::read("cell", &trace).unwrap();
                assert!(times.succeeded() && times.token_count() == 4);
                let now = clock.now();
                assert!(before <= times.sent && times.done.unwrap() <= now, "{before:?} {times:?} {now:?}");
            }
            FromEngine::Memory(memory) => {
                assert!(memory.own_process && memory.before.is_some());
                write!(told, "m{} ", memory.repeat).unwrap();
            }
            FromEngine::Ended(None) => break,
            other => panic!("{other:?}"),
        }
        served.tell(&ToEngine::Taken(true));
    }
    assert_eq!(told, "w0.0 w0.1 r0.0 r0.1 m0 r1.0 r1.1 m1 r2.0 r2.1 m2 ");
    assert!(served.thread.join().unwrap().is_ok());
}

#[test]
fn a_served_trial_ends_when_the_run_wants_no_more_or_stops() {
    for stopped in [false, true] {
        let (plan, clock) = (plan(1), MonotonicClock::default());
        let mut served = Served::ready(&plan, &clock);
        served.tell(&ToEngine::Trial(0));
        assert!(matches!(served.hear(), Some(FromEngine::Warmup(_))));
        if stopped {
            served.tell(&ToEngine::Stop);
        }
        served.tell(&ToEngine::Taken(stopped));
        // The rest of the batch of warm-up is there, and nothing after it.
        assert!(matches!(served.hear(), Some(FromEngine::Warmup(_))));
        served.tell(&ToEngine::Taken(stopped));
        assert!(matches!(served.hear(), Some(FromEngine::Ended(None))));
        assert!(served.thread.join().unwrap().is_ok());
    }
}

#[test]
fn a_served_trial_ends_with_the_run_and_refuses_what_it_does_not_understand() {
    let (plan, clock) = (plan(1), MonotonicClock::default());
    let mut served = Served::ready(&plan, &clock);
    served.tell(&ToEngine::Trial(0));
    assert!(matches!(served.hear(), Some(FromEngine::Warmup(_))));
    drop(served.to);
    assert_eq!(served.thread.join().unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert!(served.stop.is_set());

    for (said, expected) in [("hello\n", "\"hello\""), ("{\"trial\":0}\n", "where a plan was expected")] {
        let mut served = Served::new();
        served.to.write_all(said.as_bytes()).unwrap();
        let error = served.thread.join().unwrap().unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    let mut served = Served::ready(&plan, &clock);
    served.tell(&ToEngine::Trial(7));
    assert!(matches!(served.hear(), Some(FromEngine::Ended(Some(why))) if why.contains("no trial 7")));
}

/// A program that is `script`. The file is written by another process: one that has it open for writing while
/// a test beside this one forks could not be started.
fn program(dir: &Path, script: &str) -> PathBuf {
    let path = dir.join("program");
    let mut writer = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod +x \"$0\""])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    writer.stdin.take().unwrap().write_all(format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
    path
}

fn run(plan: &Plan, program: &Path, dir: &Path, stop: &StopFlag) -> (RunOutcome, Vec<TrialTrace>) {
    let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::default());
    let mut target = IsolatedTarget::new(plan, program, clock.clone());
    target.to_stop = Duration::from_millis(50);
    let mut folder = RunFolder::create(dir, "", plan, &provenance::gather(plan, &[])).unwrap();
    let outcome = crate::run(RunContext {
        plan,
        folder: &mut folder,
        target: &mut target,
        clock: &clock,
        stop,
        observer: &mut Quiet,
        probes: Probes::default(),
    });
    (outcome.unwrap(), folder.read_trials().unwrap())
}

fn failures(trial: &TrialTrace) -> Vec<&str> {
    fn failure(request: &RequestTrace) -> Option<&str> {
        match request.events.last().map(|e| &e.kind) {
            Some(EventKind::Failed { message, .. }) => Some(message),
            _ => None,
        }
    }
    trial.requests.iter().filter_map(failure).collect()
}

const READY: &str = "echo '{\"ready\":null}'\nread start\nread trial\n";

#[test]
fn a_process_that_fails_fails_its_trial_and_the_run_goes_on() {
    let stranger = "{\"request\":{\"repeat\":9,\"slot\":0,\"prompt_hash\":\"\",\"events\":[]}}";
    for (script, expected) in [
        ("echo hello\nexec sleep 60", vec!["wrote \"hello\""]),
        ("exit 3", vec!["ended with exit status 3 before"]),
        ("echo a lot of 'memory!' >&2\nkill -9 $$", vec!["signal 9 (out of memory?)", "a lot of memory!"]),
        ("yes nonsense | head -c 300000 >&2\nexit 1", vec!["exit status 1", "nonsense / nonsense"]),
        ("yes | head -c 300000 | tr -d '\\n'", vec!["wrote \"yyy"]),
        ("echo '{\"failed\":\"no such model\"}'", vec!["no such model"]),
        ("echo '{\"ended\":null}'\nexec sleep 60", vec!["a trial that it was not given"]),
        (&format!("{READY}kill -9 $$"), vec!["was killed by signal 9 (out of memory?) before the trial"]),
        (&format!("{READY}echo '{{\"ended\":\"no prompt\"}}'"), vec!["no prompt"]),
        (&format!("{READY}echo '{stranger}'\nexec sleep 60"), vec!["request 0 of repeat 9"]),
    ] {
        let (dir, plan) = (TempDir::new().unwrap(), plan(2));
        let program = program(dir.path(), script);
        let (outcome, trials) = run(&plan, &program, dir.path(), &StopFlag::new());
        assert_eq!((outcome.trials_done, outcome.cells_failed.len()), (2, 2), "{script}: {outcome:?}");
        assert!(!outcome.interrupted && outcome.failed_requests == 12, "{script}: {outcome:?}");
        for trial in &trials {
            let messages = failures(trial);
            assert!(trial.complete && messages.len() == 6, "{script}: {messages:?}");
            let told = messages[0];
            assert!(expected.iter().all(|e| told.contains(e)) && told.len() < 400, "{script}: {told}");
        }
    }
    let (dir, plan) = (TempDir::new().unwrap(), plan(1));
    let (outcome, _) = run(&plan, &dir.path().join("missing"), dir.path(), &StopFlag::new());
    let why = outcome.cells_failed.values().next().unwrap();
    assert!(why.starts_with("cannot start the process of a trial"), "{why}");
}

#[test]
fn a_process_that_lost_its_device_ends_the_run_and_what_did_not_run_is_left() {
    let gone = "echo '{\"lost\":\"the device is gone\"}'";
    for (script, stored) in [(gone.to_owned(), 0), (format!("{READY}{gone}"), 1)] {
        let (dir, plan) = (TempDir::new().unwrap(), plan(2));
        let program = program(dir.path(), &script);
        let (outcome, trials) = run(&plan, &program, dir.path(), &StopFlag::new());
        assert_eq!(outcome.lost.as_deref(), Some("the device is gone"), "{script}");
        assert_eq!((outcome.trials_done, outcome.interrupted), (0, false), "{script}: {outcome:?}");
        // A trial that had begun is not complete, so that it runs again.
        assert_eq!(trials.iter().map(|t| t.complete).collect::<Vec<_>>(), vec![false; stored], "{script}");
    }
}

#[test]
fn what_a_process_told_before_it_died_is_kept() {
    let (dir, plan) = (TempDir::new().unwrap(), plan(1));
    let told = "{\"request\":{\"repeat\":0,\"slot\":1,\"prompt_hash\":\"0f\",\"events\":[\
        {\"at\":1,\"kind\":\"intended\"},{\"at\":2,\"kind\":\"tokens\",\"count\":1,\"channel\":\"unknown\"},\
        {\"at\":3,\"kind\":\"done\",\"finish\":\"length\"}]}}";
    let program = program(dir.path(), &format!("{READY}echo '{told}'\nread taken\necho $taken >&2\nexit 7"));
    let (outcome, trials) = run(&plan, &program, dir.path(), &StopFlag::new());
    let trial = &trials[0];
    assert!(trial.complete && trial.requests.len() == 6 && trial.requests[0].prompt_hash == "0f");
    let messages = failures(trial);
    assert!(messages.len() == 5 && messages[0].contains("exit status 7"), "{messages:?}");
    assert!(messages[0].ends_with("its last words: {\"taken\":true}"), "{messages:?}");
    assert_eq!((outcome.failed_requests, outcome.interrupted), (5, false));
    assert!(outcome.cells_failed[&trial.cell].contains("exit status 7"));
}

/// Sets the flag when the trial has begun.
struct StopInTrial<'a>(&'a StopFlag);

impl crate::Observer for StopInTrial<'_> {
    fn trial_started(&mut self, _: &crate::Progress, _: &Trial, _: &Cell) {
        self.0.stop();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_process_that_does_not_stop_is_killed_and_waited_for() {
    let (dir, plan) = (TempDir::new().unwrap(), plan(1));
    let pid = dir.path().join("pid");
    let script = format!("echo $$ > {}\n{READY}exec sleep 60", pid.display());
    let program = program(dir.path(), &script);
    let (clock, stop): (Arc<dyn Clock>, _) = (Arc::new(MonotonicClock::default()), StopFlag::new());
    let mut target = IsolatedTarget::new(&plan, &program, clock.clone());
    target.to_stop = Duration::from_millis(50);
    let mut folder = RunFolder::create(dir.path(), "", &plan, &provenance::gather(&plan, &[])).unwrap();
    let began = Instant::now();
    let outcome = crate::run(RunContext {
        plan: &plan,
        folder: &mut folder,
        target: &mut target,
        clock: &clock,
        stop: &stop,
        observer: &mut StopInTrial(&stop),
        probes: Probes::default(),
    })
    .unwrap();
    assert!(outcome.interrupted && outcome.cells_failed.is_empty(), "{outcome:?}");
    assert!(!folder.read_trials().unwrap()[0].complete);
    assert!(began.elapsed() < Duration::from_secs(30), "it was waited for until its end");
    let pid = std::fs::read_to_string(pid).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "a zombie, or still there");
    assert_eq!(target.process(), None);
}

#[test]
fn notes_tell_what_a_process_said_though_it_went_well() {
    let (dir, plan) = (TempDir::new().unwrap(), plan(1));
    let program =
        program(dir.path(), &format!("{READY}echo mind this >&2\necho '{{\"ended\":null}}'\nexit 4"));
    let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::default());
    let mut target = IsolatedTarget::new(&plan, &program, clock);
    let stop = StopFlag::new();
    target.prepare(&plan.models[0], &mut |_| {}, &stop).unwrap();
    assert!(target.process().is_some());
    let process = target.process.as_mut().unwrap();
    process.tell(&ToEngine::Trial(0));
    assert!(matches!(process.next(&stop, AT_ONCE), Ok(FromEngine::Ended(None))));
    let notes = target.process.take().unwrap().end();
    assert_eq!(
        notes,
        [
            "the process of the trial ended with exit status 4 after its results",
            "the process of the trial says: mind this"
        ]
    );
}

/// What it is told, warnings marked.
#[derive(Default)]
struct Heard(Vec<String>);

impl crate::Observer for Heard {
    fn warning(&mut self, message: &str) {
        self.0.push(format!("! {message}"));
    }

    fn model_loaded(&mut self, model: &str, how: &str) {
        self.0.push(format!("{model} {how}"));
    }
}

#[test]
fn what_processes_tell_of_their_loads_is_stored_and_told_once() {
    // Three trials of each of two models, all in processes that say the same.
    let (dir, mut plan) = (TempDir::new().unwrap(), plan(2));
    let again: Vec<Trial> = plan.trials.iter().flat_map(|trial| [trial; 3]).cloned().collect();
    plan.trials = again;
    for (index, trial) in plan.trials.iter_mut().enumerate() {
        (trial.index, trial.round) = (index as u32, index as u32 % 3);
    }
    let told = "echo '{\"loaded\":{\"how\":\"from a file\",\"notes\":[\"mind the disk\"]}}'\n";
    let program = program(dir.path(), &format!("{told}{READY}echo '{{\"ended\":\"no prompt\"}}'"));
    let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::default());
    let mut target = IsolatedTarget::new(&plan, &program, clock.clone());
    let mut folder = RunFolder::create(dir.path(), "", &plan, &provenance::gather(&plan, &[])).unwrap();
    let mut heard = Heard::default();
    crate::run(RunContext {
        plan: &plan,
        folder: &mut folder,
        target: &mut target,
        clock: &clock,
        stop: &StopFlag::new(),
        observer: &mut heard,
        probes: Probes::default(),
    })
    .unwrap();
    let labels: Vec<&str> = plan.models.iter().map(|model| model.label.as_str()).collect();
    let expected = [
        "! mind the disk".to_owned(),
        format!("{} from a file", labels[0]),
        format!("{} from a file", labels[1]),
    ];
    let mut heard = heard.0;
    heard.sort();
    assert_eq!(heard, expected);
    let stored = RunFolder::open(folder.path()).unwrap().provenance().loads.clone();
    let stored: Vec<(&str, &[String])> = stored.iter().map(|(l, ways)| (l.as_str(), &ways[..])).collect();
    let ways = ["from a file".to_owned()];
    assert_eq!(stored, [(labels[0], &ways[..]), (labels[1], &ways[..])]);
}
