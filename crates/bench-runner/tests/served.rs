//! Whole trials against the loopback server: what is stored is what the server did.
#![cfg(feature = "http")]
#![allow(clippy::unwrap_used)]

use bench_core::event::{Event, EventKind, FailureKind};
use bench_core::plan::Plan;
use bench_core::probe::Probes;
use bench_core::spec::RunSpec;
use bench_core::target::StopFlag;
use bench_core::trace::{Timeline, TrialTrace};
use bench_http::SystemClock;
use bench_http::loopback::{Fault, FaultRule, Loopback, LoopbackHandle, LoopbackOptions, Outcome};
use bench_runner::targets::{self, Secrets};
use bench_runner::{Quiet, RunContext, RunFolder, RunOutcome, provenance};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn server(options: LoopbackOptions) -> LoopbackHandle {
    Loopback::start(options, Arc::new(SystemClock::default())).unwrap()
}

fn plan(url: &str, rest: &str) -> Plan {
    let text = format!(
        "[run]\nname = \"served\"\nwarmup = 1\n[target]\nkind = \"http\"\n[[models]]\nid = \"loopback\"\n\
         [server]\nbase_url = \"{url}\"\ncalibrate = false\nmetrics_interval_ms = 20.0\n{rest}"
    );
    RunSpec::from_toml("t", &text).unwrap().resolve().unwrap()
}

fn run(plan: &Plan, dir: &Path) -> (RunOutcome, Vec<TrialTrace>, RunFolder) {
    let provenance = provenance::gather(plan, &["test".to_owned()]);
    let mut folder = RunFolder::create(dir, "", plan, &provenance).unwrap();
    let mut opened = targets::open(plan, Secrets::default()).unwrap();
    let outcome = bench_runner::run(RunContext {
        plan,
        folder: &mut folder,
        target: opened.target.as_mut(),
        clock: &opened.clock,
        stop: &StopFlag::new(),
        observer: &mut Quiet,
        probes: Probes::default(),
    });
    let trials = folder.read_trials().unwrap();
    (outcome.unwrap(), trials, folder)
}

fn timelines(trial: &TrialTrace) -> Vec<Timeline> {
    trial.requests.iter().map(|r| Timeline::read(&trial.cell, r).unwrap()).collect()
}

fn failure(events: &[Event]) -> Option<(FailureKind, &str)> {
    match events.last().map(|e| &e.kind) {
        Some(EventKind::Failed { failure, message }) => Some((*failure, message)),
        _ => None,
    }
}

#[test]
fn closed_and_open_loops_store_every_request_with_its_tokens() {
    let options = LoopbackOptions { ttft_ns: 2_000_000, gap_ns: 500_000, ..LoopbackOptions::default() };
    let server = server(options);
    for (load, requests) in [
        ("[load]\nconcurrency = [1, 4]\nrequests = 12\n", 12),
        ("[load]\narrival = \"poisson\"\nrate = [200.0]\nrequests = 20\n", 20),
        ("[load]\narrival = \"constant\"\nrate = [100.0]\nmax_concurrency = 2\nrequests = 10\n", 10),
        ("[load]\narrival = \"burst\"\nrequests = 9\n", 9),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let lengths = "[workload]\nprompt_tokens = [24]\noutput_tokens = [5]\n";
        let plan = plan(&server.base_url(), &format!("{load}{lengths}"));
        let (outcome, trials, folder) = run(&plan, dir.path());
        assert_eq!((outcome.failed_requests, outcome.interrupted), (0, false), "{load}");
        assert_eq!(trials.len(), plan.cells.len());
        for trial in &trials {
            assert!(trial.complete && trial.client.is_some(), "{load}");
            assert_eq!(trial.requests.len(), requests, "{load}");
            for t in timelines(trial) {
                assert!(t.succeeded() && t.intended <= t.sent, "{load}");
                let counts = (t.output_tokens, t.prompt_tokens, t.chunks.len());
                assert_eq!(counts, (Some(5), Some(24), 5), "{load}");
            }
            let all = || trial.requests.iter().chain(&trial.warmup);
            let hashes: HashSet<_> = all().map(|r| &r.prompt_hash).collect();
            assert_eq!(hashes.len(), all().count(), "no prompt twice");
        }
        let cells = folder.path().join("cells");
        let stored = cells.join(&plan.cells[0].id).join("schedule-round-000.csv");
        assert_eq!(stored.exists(), load.contains("arrival"), "{load}");
        let server = &folder.provenance().servers["loopback"];
        assert!(server.api == "completions" && !server.takes.is_empty(), "{server:?}");
    }
}

#[test]
fn an_open_loop_starts_when_its_schedule_says() {
    let server = server(LoopbackOptions::default());
    let dir = tempfile::tempdir().unwrap();
    let rest = "[load]\narrival = \"constant\"\nrate = [500.0]\nrequests = 100\n\
                [workload]\noutput_tokens = [2]\n";
    let (_, trials, folder) = run(&plan(&server.base_url(), rest), dir.path());
    let mut intended: Vec<_> = timelines(&trials[0]).iter().map(|t| t.intended.0).collect();
    intended.sort_unstable();
    assert!(intended.windows(2).all(|w| w[1] - w[0] == 2_000_000), "distances are those of the schedule");
    let csv = folder.path().join("cells").join(&trials[0].cell).join("schedule-round-000.csv");
    let rows = bench_runner::load::stored::read(&csv).unwrap();
    assert!(rows.iter().zip(&intended).all(|(row, at)| row.intended_ns == at - intended[0]));
}

#[test]
fn a_conversation_carries_its_answers() {
    let server = server(LoopbackOptions::default());
    let dir = tempfile::tempdir().unwrap();
    let rest = "[load]\nconcurrency = [2]\nrequests = 6\n\
                [workload]\nturns = 3\nprompt_tokens = [30]\noutput_tokens = [4]\n";
    let (outcome, trials, _) = run(&plan(&server.base_url(), rest), dir.path());
    assert_eq!(outcome.failed_requests, 0, "{:?}", outcome.cells_failed);
    let mut prompts = BTreeMap::new();
    for (request, t) in trials[0].requests.iter().zip(timelines(&trials[0])) {
        prompts.insert((request.repeat, request.slot), t.prompt_tokens.unwrap());
    }
    for conversation in 0..2 {
        let [a, b, c] = [0, 1, 2].map(|turn| prompts[&(conversation, turn)]);
        assert!(a < b && b < c, "{prompts:?}");
        assert_eq!(c - b, b - a, "each turn adds a question and an answer");
    }
}

#[test]
fn a_failing_request_is_counted_and_the_rest_go_on() {
    // The probes come first: from the 40th request on every fifth one meets a fault.
    let kinds = [Fault::Status(503), Fault::DropAfterTokens(2), Fault::NoFinish];
    let faults: FaultRule = Arc::new(move |index| match (index, index % 5) {
        (40.., 0) => Some(kinds[index as usize / 5 % 3]),
        _ => None,
    });
    let server = server(LoopbackOptions { faults: Some(faults), ..LoopbackOptions::default() });
    let dir = tempfile::tempdir().unwrap();
    let rest = "[load]\nconcurrency = [4]\nrequests = 100\n[workload]\noutput_tokens = [6]\n";
    let (outcome, trials, _) = run(&plan(&server.base_url(), rest), dir.path());
    let failures: Vec<_> = trials[0].requests.iter().filter_map(|r| failure(&r.events)).collect();
    assert!(trials[0].complete && trials[0].requests.len() == 100);
    assert_eq!(failures.len() as u64, outcome.failed_requests);
    for kind in [FailureKind::Status, FailureKind::TruncatedStream] {
        assert!(failures.iter().filter(|f| f.0 == kind).count() >= 3, "{kind:?} in {failures:?}");
    }
}

/// The server dies at 100 different instants: every request that it had finished is there, all others have a
/// reason.
#[test]
fn a_server_that_is_killed_loses_no_finished_request() {
    let rest = "[load]\nconcurrency = [3]\nrequests = 60\n\
                [workload]\noutput_tokens = [4]\nprompt_tokens = [16]\n";
    let options = || LoopbackOptions { ttft_ns: 600_000, gap_ns: 200_000, ..LoopbackOptions::default() };
    let whole_run = server(options());
    run(&plan(&whole_run.base_url(), rest), tempfile::tempdir().unwrap().path());
    let before = whole_run.stop().finished() - 60;
    let mut cut = 0;
    for instant in 0..100_u64 {
        let server = server(options());
        let plan = plan(&server.base_url(), rest);
        let log = server.log().clone();
        let killer = std::thread::spawn(move || {
            while server.log().finished() < before + instant * 6 / 10 {
                std::thread::yield_now();
            }
            // Not a wait for anything: where within a request the server dies is to vary.
            std::thread::sleep(Duration::from_micros(instant % 7 * 60));
            server.stop();
        });
        let dir = tempfile::tempdir().unwrap();
        let (outcome, trials, _) = run(&plan, dir.path());
        killer.join().unwrap();
        let trial = &trials[0];
        assert!(trial.complete && trial.requests.len() == 60, "{instant}: {}", trial.requests.len());
        let lost: Vec<_> = trial.requests.iter().filter(|r| failure(&r.events).is_some()).collect();
        assert_eq!(lost.len() as u64, outcome.failed_requests);
        cut += u32::from((1..60).contains(&lost.len()));
        let served = log.take_all().into_iter().filter(|s| s.outcome == Outcome::Complete);
        let whole: HashSet<String> = served.map(|s| s.id).collect();
        for request in lost {
            let (_, message) = failure(&request.events).unwrap();
            let id = format!("{}-{}-0", trial.cell, request.repeat);
            // Bytes that were on their way when the server died can be lost with its sockets.
            let on_its_way = message.contains("broke") || message.contains("closed");
            assert!(!message.is_empty() && (!whole.contains(&id) || on_its_way), "{id}: {message}");
        }
    }
    assert!(cut >= 40, "the server died inside only {cut} of 100 trials");
}

#[test]
fn a_wait_for_a_server_that_does_not_come_ends_with_the_wish_to_stop() {
    // A port that was free a moment ago: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let plan = plan(&format!("http://127.0.0.1:{port}"), "ready_timeout_s = 3600.0\n");
    let dir = tempfile::tempdir().unwrap();
    let provenance = provenance::gather(&plan, &["test".to_owned()]);
    let mut folder = RunFolder::create(dir.path(), "", &plan, &provenance).unwrap();
    let mut opened = targets::open(&plan, Secrets::default()).unwrap();
    let stop = StopFlag::new();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            stop.stop();
        });
        bench_runner::run(RunContext {
            plan: &plan,
            folder: &mut folder,
            target: opened.target.as_mut(),
            clock: &opened.clock,
            stop: &stop,
            observer: &mut Quiet,
            probes: Probes::default(),
        })
    });
    let outcome = outcome.unwrap();
    assert!(outcome.interrupted && outcome.cells_failed.is_empty(), "{outcome:?}");
    assert!(folder.read_trials().unwrap().is_empty(), "what did not begin can be resumed");
}
