//! A run that was cut, by Ctrl-C or by `kill -9`, goes on where it stood and ends as if it had not been cut.

use super::runner::{STUDY, create, plan_of, run_all, run_with};
use bench_core::event::{Event, EventKind, FailureKind};
use bench_core::plan::{Plan, Trial};
use bench_core::probe::Probes;
use bench_core::target::StopFlag;
use bench_core::trace::{RequestTrace, TrialTrace};
use bench_runner::store::TrialStatus;
use bench_runner::targets::mock::MockTarget;
use bench_runner::{Error, Observer, Progress, Quiet, RunFolder, RunOutcome, list_runs, provenance};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Sets the stop flag when as many trials have finished.
struct StopAfter<'a> {
    trials: usize,
    stop: &'a StopFlag,
}

impl Observer for StopAfter<'_> {
    fn trial_finished(&mut self, _progress: &Progress, _trial: &Trial, _complete: bool) {
        self.trials -= 1;
        if self.trials == 0 {
            self.stop.stop();
        }
    }
}

#[derive(Default)]
struct Warnings(Vec<String>);

impl Observer for Warnings {
    fn warning(&mut self, message: &str) {
        self.0.push(message.to_owned());
    }
}

fn resume(path: &Path, plan: &Plan) -> bench_runner::Result<RunFolder> {
    RunFolder::resume(path, plan, &provenance::gather(plan, &[]))
}

/// What identifies a file and its content: content, inode, time of its last change.
type Print = (Vec<u8>, u64, i64, i64);

fn files(folder: &Path) -> BTreeMap<PathBuf, Print> {
    let mut found = BTreeMap::new();
    for cell in fs::read_dir(folder.join("cells")).unwrap() {
        for file in fs::read_dir(cell.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let meta = fs::metadata(&path).unwrap();
            let print = (fs::read(&path).unwrap(), meta.ino(), meta.mtime(), meta.mtime_nsec());
            found.insert(path, print);
        }
    }
    found
}

fn is_finished(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    !name.starts_with('.') && !name.contains("partial")
}

/// Everything of a run but its instants' common zero and the wall clock.
fn without_stamps(folder: &Path) -> Vec<TrialTrace> {
    let rebase = |request: &RequestTrace| {
        let zero = request.events[0].at;
        let rebased = |e: &Event| Event { at: e.at.since(zero).unwrap(), kind: e.kind.clone() };
        RequestTrace { events: request.events.iter().map(rebased).collect(), ..request.clone() }
    };
    let traces = RunFolder::open(folder).unwrap().read_trials().unwrap();
    let strip = |t: TrialTrace| TrialTrace {
        started_at_unix_ms: 0,
        warmup: t.warmup.iter().map(rebase).collect(),
        requests: t.requests.iter().map(rebase).collect(),
        ..t
    };
    traces.into_iter().map(strip).collect()
}

fn uninterrupted(plan: &Plan) -> Vec<TrialTrace> {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = create(dir.path(), plan);
    run_all(plan, &mut folder);
    without_stamps(folder.path())
}

#[test]
fn a_run_stopped_between_trials_goes_on_and_equals_an_uninterrupted_one() {
    let plan = plan_of(STUDY);
    for k in [1, 5, 7] {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = create(dir.path(), &plan);
        let stop = StopFlag::new();
        let mut observer = StopAfter { trials: k, stop: &stop };
        let outcome = run_with(&plan, &mut folder, &mut MockTarget::from_plan(&plan), &stop, &mut observer);
        assert!(outcome.interrupted && outcome.trials_done == k as u32);
        let path = folder.path().to_owned();
        drop(folder);

        let before = files(&path);
        assert_eq!(before.len(), k);
        let outcome = run_all(&plan, &mut resume(&path, &plan).unwrap());
        let rest = 8 - k as u32;
        assert_eq!(
            outcome,
            RunOutcome { trials_done: rest, trials_skipped: k as u32, ..RunOutcome::default() }
        );
        let after = files(&path);
        assert!(before.iter().all(|(p, print)| after[p] == *print), "finished files are untouched");
        assert_eq!(without_stamps(&path), uninterrupted(&plan));
        let resumptions = RunFolder::open(&path).unwrap().provenance().resumptions.len();
        assert_eq!(resumptions, 1);
    }
}

#[test]
fn a_run_with_nothing_left_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan_of(STUDY);
    let mut folder = create(dir.path(), &plan);
    run_all(&plan, &mut folder);
    let before = files(folder.path());
    let outcome = run_all(&plan, &mut folder);
    assert_eq!((outcome.trials_done, outcome.trials_skipped, outcome.interrupted), (0, 8, false));
    assert_eq!(files(folder.path()), before);
}

#[test]
fn a_trial_that_was_cut_is_kept_beside_its_second_run() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan_of(STUDY);
    let mut folder = create(dir.path(), &plan);
    let stop = Arc::new(StopFlag::new());
    let (flag, mut requests) = (Arc::clone(&stop), 0);
    // 6 requests per trial, warm-up first: the 10th is the second measured one of trial 1.
    let mut target = MockTarget::from_plan(&plan).with_before(move |_| {
        requests += 1;
        if requests == 10 {
            flag.stop();
        }
    });
    let outcome = run_with(&plan, &mut folder, &mut target, &stop, &mut Quiet);
    assert!(outcome.interrupted && outcome.failed_requests == 0 && outcome.trials_done == 1);
    let cut = &plan.trials[1];
    let path = folder.trial_path(cut);
    assert_eq!(folder.status(cut).unwrap(), TrialStatus::Incomplete);
    let traces = folder.read_trials().unwrap();
    let trace = traces.iter().find(|t| t.trial == 1).unwrap();
    assert_eq!((trace.complete, trace.warmup.len(), trace.requests.len()), (false, 2, 2));
    let last = trace.requests[1].events.last().unwrap();
    assert!(matches!(&last.kind, EventKind::Failed { failure: FailureKind::Interrupted, .. }), "{last:?}");

    let partial = fs::read(&path).unwrap();
    let root = folder.path().to_owned();
    drop(folder);
    let outcome = run_all(&plan, &mut resume(&root, &plan).unwrap());
    assert_eq!((outcome.trials_done, outcome.trials_skipped), (7, 1));
    assert_eq!(
        fs::read(path.with_file_name(format!("round-{:03}.partial-0.jsonl", cut.round))).unwrap(),
        partial
    );
    assert_eq!(without_stamps(&root), uninterrupted(&plan));
}

#[test]
fn another_plan_is_refused_with_both_hashes_and_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan_of(STUDY);
    let path = create(dir.path(), &plan).path().to_owned();
    for (from, to, difference) in [
        ("repeats = 4", "repeats = 6", "repeats: 4 before, 6 now"),
        ("gap_us = 20", "gap_us = 21", "target.mock.gap_us: 20 before, 21 now"),
        ("[4, 9]", "[4, 8]", "cells[1].id: \"a_p9_n7_b2\" before, \"a_p8_n7_b2\" now"),
        ("[4, 9]", "[4]", "cells: 4 entries before, 2 now"),
    ] {
        let other = plan_of(&STUDY.replace(from, to));
        let error = resume(&path, &other).err().unwrap().to_string();
        for part in [&plan.hash(), &other.hash(), difference] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
    let stored = path.join("plan.json");
    let edited = fs::read_to_string(&stored).unwrap().replace("\"gap_us\": 20", "\"gap_us\": 2");
    fs::write(&stored, edited).unwrap();
    let error = RunFolder::open(&path).err().unwrap().to_string();
    assert!(error.contains("plan.json was edited"), "{error}");
}

#[test]
fn two_processes_cannot_work_on_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan_of(STUDY);
    let first = create(dir.path(), &plan);
    let error = resume(first.path(), &plan).err().unwrap();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    RunFolder::open(first.path()).unwrap();
    let path = first.path().to_owned();
    drop(first);
    resume(&path, &plan).unwrap();
}

#[test]
fn another_build_goes_on_with_a_warning_and_is_noted() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan_of(STUDY);
    let path = create(dir.path(), &plan).path().to_owned();
    let mut other = provenance::gather(&plan, &[]);
    other.build.commit = Some("0123456789abcdef".to_owned());
    let mut folder = RunFolder::resume(&path, &plan, &other).unwrap();
    let mut warnings = Warnings::default();
    run_with(&plan, &mut folder, &mut MockTarget::from_plan(&plan), &StopFlag::new(), &mut warnings);
    assert_eq!(warnings.0.len(), 1);
    assert!(warnings.0[0].contains("0123456789abcdef"), "{:?}", warnings.0);
    assert_eq!(RunFolder::open(&path).unwrap().provenance().resumptions[0].build, other.build);
}

#[test]
fn a_damaged_trial_is_named_instead_of_being_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan_of(STUDY);
    let mut folder = create(dir.path(), &plan);
    run_all(&plan, &mut folder);
    let path = folder.trial_path(&plan.trials[2]);
    let root = folder.path().to_owned();
    drop(folder);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, &text[..text.len() - 30]).unwrap();
    let mut folder = resume(&root, &plan).unwrap();
    let mut target = MockTarget::from_plan(&plan);
    let clock: std::sync::Arc<dyn bench_core::clock::Clock> = target.clock();
    let error = bench_runner::run(bench_runner::RunContext {
        plan: &plan,
        folder: &mut folder,
        target: &mut target,
        clock: &clock,
        stop: &StopFlag::new(),
        observer: &mut Quiet,
        probes: Probes::default(),
    });
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}, line 8: ", path.display())), "{error}");
}

/// Tells the child of the test below where to run; without it that child has nothing to do.
const CHILD: &str = "OSSBENCH_TEST_KILLED_RUN";
const STUCK: &str = "the fourth trial is in progress";

/// Not a test by itself: the process that is killed. It says when it is in its fourth trial, and waits there
/// until its parent kills it or is gone.
#[test]
fn child_that_is_killed() {
    let Some(results) = std::env::var_os(CHILD) else { return };
    let plan = plan_of(STUDY);
    let mut requests = 0;
    let mut target = MockTarget::from_plan(&plan).with_before(move |_| {
        requests += 1;
        // 6 requests per trial: the 23rd is the last but one of the fourth.
        if requests == 23 {
            writeln!(std::io::stdout(), "{STUCK}").unwrap();
            std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
            std::process::exit(1);
        }
    });
    let mut folder = create(Path::new(&results), &plan);
    run_with(&plan, &mut folder, &mut target, &StopFlag::new(), &mut Quiet);
}

#[test]
fn a_run_killed_at_once_goes_on_and_equals_an_uninterrupted_one() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan_of(STUDY);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "resume::child_that_is_killed", "--nocapture"])
        .env(CHILD, dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    assert!(output.lines().any(|l| l.unwrap().contains(STUCK)), "the child ended before its fourth trial");
    let [path] = list_runs(dir.path()).unwrap().try_into().unwrap();
    assert!(matches!(resume(&path, &plan), Err(Error::Locked { .. })), "the child holds the lock");
    // SIGKILL on Unix.
    child.kill().unwrap();
    child.wait().unwrap();

    let left = files(&path);
    let finished: BTreeMap<_, _> = left.iter().filter(|(p, _)| is_finished(p)).collect();
    assert_eq!(
        (left.len(), finished.len()),
        (4, 3),
        "three trials and a half-written file: {:?}",
        left.keys()
    );
    let mut folder = resume(&path, &plan).unwrap();
    assert_eq!(files(&path).len(), 3, "the half-written file is gone");
    let outcome = run_all(&plan, &mut folder);
    assert_eq!((outcome.trials_done, outcome.trials_skipped), (5, 3));
    let after = files(&path);
    assert!(finished.into_iter().all(|(p, print)| after[p] == *print), "finished files are untouched");
    assert_eq!(without_stamps(&path), uninterrupted(&plan));
    assert!(after.keys().all(|p| is_finished(p)) && after.len() == 8);
}
