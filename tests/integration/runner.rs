//! Plan to stored traces with scripted targets: every event is exact, what fails is kept beside what works.

use bench_core::event::{Channel, CountSource, Event, EventKind, FailureKind, FinishReason};
use bench_core::plan::{Cell, Plan, Trial};
use bench_core::probe::Probes;
use bench_core::spec::RunSpec;
use bench_core::target::{Request, StopFlag, TargetError};
use bench_core::trace::{RequestTrace, Timeline, TrialTrace};
use bench_core::unit::Nanos;
use bench_runner::targets::mock::{MockTarget, steady};
use bench_runner::{Observer, Progress, Quiet, RunContext, RunFolder, RunOutcome, provenance, run, targets};
use std::cell::Cell as Counter;
use std::collections::HashSet;
use std::path::Path;
use std::rc::Rc;

/// 2 models x 2 prompt lengths in 2 rounds: 8 trials of 2 repeats, batch 2, 1 warm-up.
pub(crate) const STUDY: &str = r#"
[run]
name = "scripted"
repeats = 4
warmup = 1
[target]
kind = "mock"
[mock]
ttft_us = 300
gap_us = 20
tokens_per_chunk = 3
[workload]
prompt_tokens = [4, 9]
output_tokens = [7]
batch = [2]
[[models]]
id = "dummy:a"
[[models]]
id = "dummy:b"
"#;

pub(crate) fn plan_of(text: &str) -> Plan {
    RunSpec::from_toml("study", text).unwrap().resolve().unwrap()
}

pub(crate) fn create(results: &Path, plan: &Plan) -> RunFolder {
    RunFolder::create(results, STUDY, plan, &provenance::gather(plan, &[])).unwrap()
}

pub(crate) fn run_with(
    plan: &Plan,
    folder: &mut RunFolder,
    target: &mut MockTarget,
    stop: &StopFlag,
    observer: &mut dyn Observer,
) -> RunOutcome {
    let clock: std::sync::Arc<dyn bench_core::clock::Clock> = target.clock();
    run(RunContext { plan, folder, target, clock: &clock, stop, observer, probes: Probes::default() })
        .unwrap()
}

/// The plan's own script, with no way to stop it.
pub(crate) fn run_all(plan: &Plan, folder: &mut RunFolder) -> RunOutcome {
    run_with(plan, folder, &mut MockTarget::from_plan(plan), &StopFlag::new(), &mut Quiet)
}

/// Events with their distance from the first.
fn relative(request: &RequestTrace) -> Vec<(u64, EventKind)> {
    let zero = request.events[0].at;
    request.events.iter().map(|e| (e.at.since(zero).unwrap().0, e.kind.clone())).collect()
}

#[test]
fn a_scripted_run_is_exact_to_the_nanosecond() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan_of(STUDY);
    let mut folder = create(dir.path(), &plan);
    let outcome = run_all(&plan, &mut folder);
    assert_eq!(outcome, RunOutcome { trials_done: 8, ..RunOutcome::default() });

    let tokens = |count| EventKind::Tokens { count, channel: Channel::Unknown };
    let traces = RunFolder::open(folder.path()).unwrap().read_trials().unwrap();
    assert_eq!(traces.len(), 8);
    for trace in &traces {
        let prompt_tokens = plan.cell(&trace.cell).unwrap().prompt_tokens;
        let counted = EventKind::Counted {
            prompt_tokens,
            output_tokens: 7,
            cached_prompt_tokens: None,
            source: CountSource::TokenIds,
        };
        let expected = [
            (0, EventKind::Intended),
            (0, EventKind::Sent),
            (300_000, tokens(3)),
            (320_000, tokens(3)),
            (340_000, tokens(1)),
            (340_000, counted),
            (340_000, EventKind::Done { finish: FinishReason::Length }),
        ];
        assert!(trace.complete);
        assert_eq!((trace.planned_requests, trace.requests.len(), trace.warmup.len()), (4, 4, 2));
        for request in trace.requests.iter().chain(&trace.warmup) {
            assert_eq!(relative(request), expected, "{} round {}", trace.cell, trace.round);
        }
    }
}

#[test]
fn trials_of_a_cell_stand_together_and_no_prompt_comes_twice() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan_of(STUDY);
    let mut folder = create(dir.path(), &plan);
    run_all(&plan, &mut folder);
    let traces = folder.read_trials().unwrap();
    let order: Vec<_> = traces.iter().map(|t| (t.cell.clone(), t.round)).collect();
    let expected: Vec<_> = plan.cells.iter().flat_map(|c| [(c.id.clone(), 0), (c.id.clone(), 1)]).collect();
    assert_eq!(order, expected);
    for rounds in traces.chunks(2) {
        let requests: Vec<_> = rounds.iter().flat_map(|t| t.warmup.iter().chain(&t.requests)).collect();
        let prompts: HashSet<_> = requests.iter().map(|r| &r.prompt_hash).collect();
        assert_eq!((prompts.len(), requests.len()), (12, 12));
        let measured: Vec<_> = rounds.iter().flat_map(|t| &t.requests).map(|r| (r.repeat, r.slot)).collect();
        assert_eq!(measured, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]);
    }
}

#[test]
fn a_model_is_prepared_once_per_block_of_trials() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan_of(STUDY);
    let calls = Rc::new(Counter::new(0));
    let seen = Rc::clone(&calls);
    let mut target = MockTarget::from_plan(&plan).with_prepare(move |_| {
        seen.set(seen.get() + 1);
        Ok(None)
    });
    run_with(&plan, &mut create(dir.path(), &plan), &mut target, &StopFlag::new(), &mut Quiet);
    let models: Vec<_> = plan.trials.iter().map(|t| &plan.cell(&t.cell).unwrap().model).collect();
    let blocks = 1 + models.windows(2).filter(|w| w[0] != w[1]).count();
    assert!((2..=4).contains(&blocks), "two rounds of two models make two to four blocks");
    assert_eq!(calls.get(), blocks);
}

#[test]
fn a_model_that_cannot_be_prepared_fails_in_its_cells_only() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan_of(STUDY);
    let mut target = MockTarget::from_plan(&plan).with_prepare(|model| match model.label.as_str() {
        "a" => Err(TargetError("weights need 12 GiB, 8 GiB are free".to_owned())),
        _ => Ok(None),
    });
    let mut folder = create(dir.path(), &plan);
    let outcome = run_with(&plan, &mut folder, &mut target, &StopFlag::new(), &mut Quiet);
    assert_eq!((outcome.trials_done, outcome.failed_requests, outcome.interrupted), (8, 16, false));
    assert_eq!(outcome.cells_failed.len(), 2);
    for trace in folder.read_trials().unwrap() {
        assert_eq!((trace.complete, trace.requests.len()), (true, 4));
        let failed = trace.cell.starts_with("a_");
        for request in &trace.requests {
            let timeline = Timeline::read(&trace.cell, request).unwrap();
            assert_eq!(timeline.succeeded(), !failed);
            if failed {
                let last = &request.events.last().unwrap().kind;
                let message = "weights need 12 GiB, 8 GiB are free".to_owned();
                assert_eq!(*last, EventKind::Failed { failure: FailureKind::Engine, message });
            }
        }
    }
}

#[test]
fn a_request_that_fails_is_an_event_and_the_rest_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan_of(STUDY);
    let times = plan.target.mock.clone().unwrap();
    let mut target = MockTarget::new(move |request: &Request| {
        let mut script = steady(&times, request);
        if (request.repeat, request.slot) == (2, 1) {
            let message = "the server answered 503".to_owned();
            script.truncate(2);
            script.push((Nanos(310_000), EventKind::Failed { failure: FailureKind::Status, message }));
        }
        script
    });
    let mut folder = create(dir.path(), &plan);
    let outcome = run_with(&plan, &mut folder, &mut target, &StopFlag::new(), &mut Quiet);
    assert_eq!((outcome.trials_done, outcome.failed_requests), (8, 4));
    assert!(outcome.cells_failed.is_empty(), "a cell in which something succeeded has not failed");
    let failed: Vec<_> = folder.read_trials().unwrap().iter().flat_map(failures).collect();
    assert_eq!(failed, [(2, 1); 4]);
}

fn failures(trace: &TrialTrace) -> Vec<(u32, u32)> {
    let failed = |r: &&RequestTrace| !Timeline::read(&trace.cell, r).unwrap().succeeded();
    trace.requests.iter().filter(failed).map(|r| (r.repeat, r.slot)).collect()
}

#[test]
fn the_null_target_gives_every_token_on_the_real_clock() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[target]\nkind = \"null\"\n[[models]]\nid = \"dummy:a\"\n[workload]\noutput_tokens = [50]\n";
    let plan = plan_of(text);
    let mut folder = create(dir.path(), &plan);
    let mut opened = targets::open(&plan, targets::Secrets::default()).unwrap();
    let outcome = run(RunContext {
        plan: &plan,
        folder: &mut folder,
        target: &mut *opened.target,
        clock: &opened.clock,
        stop: &StopFlag::new(),
        observer: &mut Quiet,
        probes: Probes::default(),
    });
    assert_eq!(outcome.unwrap().failed_requests, 0);
    let traces = folder.read_trials().unwrap();
    let requests: Vec<_> = traces.iter().flat_map(|t| &t.requests).collect();
    assert_eq!(requests.len(), 20);
    for request in requests {
        let timeline = Timeline::read("a", request).unwrap();
        assert_eq!((timeline.chunks.len(), timeline.prompt_tokens), (50, Some(128)));
        let ordered = |w: &[Event]| w[0].at <= w[1].at;
        assert!(timeline.succeeded() && request.events.windows(2).all(ordered));
    }
}

#[derive(Default)]
struct Watcher {
    last: Progress,
    requests: u64,
    warmup: u64,
    trials: Vec<u32>,
}

impl Observer for Watcher {
    fn request_done(&mut self, progress: &Progress, _cell: &Cell, _request: &RequestTrace, warmup: bool) {
        self.requests += 1;
        self.warmup += u64::from(warmup);
        self.last = progress.clone();
    }

    fn trial_finished(&mut self, _progress: &Progress, trial: &Trial, complete: bool) {
        assert!(complete);
        self.trials.push(trial.index);
    }
}

#[test]
fn the_observer_sees_all_the_work_in_the_order_of_the_plan() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan_of(STUDY);
    let mut watcher = Watcher::default();
    let mut target = MockTarget::from_plan(&plan);
    run_with(&plan, &mut create(dir.path(), &plan), &mut target, &StopFlag::new(), &mut watcher);
    assert_eq!(watcher.trials, (0..8).collect::<Vec<_>>());
    assert_eq!((watcher.requests, watcher.warmup), (48, 16));
    let Progress { requests_total, requests_done, tokens_total, tokens_done, .. } = watcher.last;
    assert_eq!((requests_done, requests_total), (48, 48));
    // 24 requests with prompts of 4, 24 with prompts of 9, all with 7 tokens of output.
    assert_eq!((tokens_done, tokens_total), (24 * 11 + 24 * 16, 24 * 11 + 24 * 16));
}

/// Two tiny checkpoints and a folder that is not there, through the engine.
#[test]
fn the_engine_gives_each_request_its_length_and_a_missing_model_fails_alone() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/golden");
    let text = format!(
        "[run]\nrepeats = 2\nwarmup = 1\n[target]\nthreads = 1\nprefill_chunk = 16\n\
         [workload]\nchat = \"plain\"\nprompt_tokens = [40]\noutput_tokens = [1, 6]\nbatch = [1, 3]\n\
         [[models]]\nid = \"{golden}/gpt-oss-tiny\"\n[[models]]\nid = \"{golden}/llama-tiny\"\n\
         [[models]]\nid = \"{golden}/none\"\n"
    );
    let plan = plan_of(&text);
    let dir = tempfile::tempdir().unwrap();
    let mut folder = create(dir.path(), &plan);
    let mut opened = targets::open(&plan, targets::Secrets::default()).unwrap();
    let outcome = run(RunContext {
        plan: &plan,
        folder: &mut folder,
        target: &mut *opened.target,
        clock: &opened.clock,
        stop: &StopFlag::new(),
        observer: &mut Quiet,
        probes: Probes::default(),
    })
    .unwrap();
    let failed: Vec<_> = outcome.cells_failed.keys().map(|c| c.starts_with("none_")).collect();
    assert_eq!(failed, [true; 4], "{:?}", outcome.cells_failed);
    assert!(outcome.cells_failed.values().all(|m| m.contains("/golden/none")), "{:?}", outcome.cells_failed);
    for trace in folder.read_trials().unwrap().iter().filter(|t| !t.cell.starts_with("none_")) {
        let cell = plan.cell(&trace.cell).unwrap();
        assert_eq!(trace.requests.len(), cell.batch as usize);
        for request in trace.requests.iter().chain(&trace.warmup) {
            let timeline = Timeline::read(&trace.cell, request).unwrap();
            assert!(timeline.succeeded(), "{:?}", timeline.outcome);
            assert_eq!(timeline.chunks.len(), cell.output_tokens as usize);
            assert_eq!(timeline.prompt_tokens, Some(40));
            assert!(timeline.sent < timeline.first_token().unwrap());
            assert!(request.kv_allocated_bytes.is_some_and(|b| b > 0));
        }
    }
    let models = RunFolder::open(folder.path()).unwrap().provenance().models.clone();
    let layers: Vec<_> = models.iter().map(|(label, f)| (label.as_str(), f.num_hidden_layers)).collect();
    assert_eq!(layers, [("gpt-oss-tiny", 4), ("llama-tiny", 3)]);
}
