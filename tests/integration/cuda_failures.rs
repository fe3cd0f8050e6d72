//! What goes wrong on a GPU in the middle of a run, and before it: what is kept, what is said, and how it goes on.
//!
//! The GPU is emulated and fails as its script says. What a user sees is read from a process of its own, which is this
//! program again, with the variables that name the driver.
#![cfg(target_arch = "x86_64")]

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use bench_core::event::EventKind;
use bench_core::plan::{Plan, Trial};
use bench_core::trace::{RequestTrace, TrialTrace};
use bench_runner::store::TrialStatus;
use bench_runner::{Observer, Progress, Quiet, RunFolder, provenance};
use cuda_stub::{Failure, Loaded, Report, Script, code};

use super::cuda::{images, scripted};
use super::cuda_run::{create, gpu, run_on, study};

const GIB: u64 = 1 << 30;
const CHILD: &str = "OSSBENCH_TEST_CUDA_ARGUMENTS";

/// How a command ended, and both of its streams.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) text: String,
}

/// Runs a command with the emulated driver in the folder `dir`.
pub(crate) fn ossbench(dir: &Path, script: &Script, args: &[&str]) -> Ran {
    ossbench_with(dir, script, &[], args)
}

/// The same with more variables.
pub(crate) fn ossbench_with(dir: &Path, script: &Script, vars: &[(&str, &str)], args: &[&str]) -> Ran {
    let (images, path) = (images(), dir.join("gpu.json"));
    std::fs::write(&path, serde_json::to_vec(script).unwrap()).unwrap();
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cuda_failures::child_that_runs_a_command", "--nocapture"])
        .current_dir(dir)
        .env(CHILD, args.join("\n"))
        .env("OSSBENCH_LIBCUDA", cuda_stub::library().unwrap())
        .env("OSSBENCH_CUDA_IMAGES", images.path())
        .env(cuda_stub::SCRIPT_VARIABLE, &path)
        .envs(vars.iter().copied())
        .output()
        .unwrap();
    let streams = [ended.stdout, ended.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    Ran { code: ended.status.code().unwrap(), text: streams.concat() }
}

/// Does nothing unless it is started by [`ossbench`].
#[test]
fn child_that_runs_a_command() {
    let Ok(args) = std::env::var(CHILD) else { return };
    let args = std::iter::once("ossbench").chain(args.lines()).map(OsString::from);
    let code = bench_cli::run(args, &mut std::io::stdout(), &mut std::io::stderr());
    std::process::exit(code.into());
}

/// A run on a device that is not there says what is wrong and leaves nothing behind.
fn check_missing(script: &Script, device: &str, says: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let args = ["latency", "-m", "dummy:gpt-oss-tiny", "-p", "16", "-n", "2", "-r", "1", "--ui", "none"];
    let ran = ossbench(dir.path(), script, &[&args[..], &["--device", device]].concat());
    assert_eq!(ran.code, 1, "{}", ran.text);
    for text in says {
        assert!(ran.text.contains(text), "no {text:?} in {}", ran.text);
    }
    assert!(!dir.path().join("results").exists(), "{}", ran.text);
}

#[test]
fn a_device_that_is_not_there_is_an_error_before_anything_is_written() {
    let one = || Script { devices: vec![gpu(GIB)], ..Script::default() };
    let old = Script { driver_version: 12_020, ..one() };
    check_missing(&old, "cuda:0", &["supports CUDA 12.2, expected 12.4 or newer", "update NVIDIA's driver"]);
    let none = Script { devices: Vec::new(), ..Script::default() };
    check_missing(&none, "cuda", &["finds no device (CUDA_ERROR_NO_DEVICE", "CUDA_VISIBLE_DEVICES"]);
    check_missing(&one(), "cuda:7", &["no device cuda:7; there are cuda:0 (NVIDIA H100"]);
    let mut volta = one();
    volta.devices[0].compute_capability = [7, 0];
    check_missing(&volta, "cuda:0", &["compute capability 7.0, expected 8.0 or newer"]);
}

#[test]
fn memory_that_another_process_holds_is_told_before_anything_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let mut shared = gpu(4 * GIB);
    shared.others_bytes = 4 * GIB - (100 << 20);
    let script = Script { devices: vec![shared], ..Script::default() };
    let path = dir.path().join("gpu.toml");
    std::fs::write(&path, study("20")).unwrap();
    let path = path.display().to_string();
    let ran = ossbench(dir.path(), &script, &["run", &path, "--power-source", "none", "--ui", "none"]);
    assert_eq!(ran.code, 1, "{}", ran.text);
    for text in [
        "dummy:gpt-oss-tiny does not fit on cuda:0 (NVIDIA H100",
        "100.0 MiB of 4.0 GiB are free, 3.9 GiB of 4.0 GiB are in use by other processes; end them (nvidia-smi",
        "every cell failed",
    ] {
        assert!(ran.text.contains(text), "no {text:?} in {}", ran.text);
    }
    // Its requests are counted as failed, not left out.
    let unified = std::fs::read_to_string(dir.path().join("results/unified.csv")).unwrap();
    assert!(unified.contains("INVALID"), "{unified}");
}

#[test]
fn fit_and_doctor_know_the_gpu_that_they_are_asked_about() {
    let dir = tempfile::tempdir().unwrap();
    let mut shared = gpu(80 * GIB);
    shared.others_bytes = 70 * GIB;
    let script = Script { devices: vec![shared], ..Script::default() };
    let fit = |args: &[&str]| ossbench(dir.path(), &script, &[&["fit", "dummy:gpt-oss-20b"], args].concat());
    let free = fit(&["--device", "cuda:0"]);
    assert!(free.code == 3 && free.text.contains("does not fit in 10.00 GiB on cuda:0"), "{}", free.text);
    let whole = fit(&["--device", "cuda:0", "--memory", "80GiB"]);
    assert!(whole.code == 0 && whole.text.contains("in 80.00 GiB on cuda:0, predicted"), "{}", whole.text);
    assert!(whole.text.contains("max_position_embeddings"), "{}", whole.text);
    let doctor = ossbench(dir.path(), &script, &["doctor", "dummy:gpt-oss-20b", "--device", "cuda:0"]);
    assert_eq!(doctor.code, 3, "{}", doctor.text);
    for text in ["on cuda:0 (10.0 GiB free)", "unless a GPU is asked for", "does not fit on cuda:0"] {
        assert!(doctor.text.contains(text), "no {text:?} in {}", doctor.text);
    }
}

/// What the emulated driver has done when each trial ends.
struct Count<'a> {
    loaded: &'a Loaded,
    after: Vec<Report>,
}

impl Observer for Count<'_> {
    fn trial_finished(&mut self, _: &Progress, _: &Trial, _: bool) {
        self.after.push(self.loaded.report().unwrap());
    }
}

/// A run without failures; the reports at the ends of its trials, from which the scripts of others follow.
fn counted(text: &str) -> Vec<Report> {
    let stub = scripted(&Script { devices: vec![gpu(GIB)], ..Script::default() });
    let dir = tempfile::tempdir().unwrap();
    let (plan, mut folder) = create(dir.path(), text);
    let mut count = Count { loaded: &stub.loaded, after: Vec::new() };
    let outcome = run_on(&stub.place, &plan, &mut folder, &mut count);
    assert_eq!((outcome.failed_requests, outcome.lost), (0, None));
    count.after
}

fn failing(symbol: &str, after: u64, code: u32) -> Script {
    let failure = Failure { symbol: symbol.to_owned(), after, times: None, code, sticky: false };
    Script { devices: vec![gpu(GIB)], failures: vec![failure], ..Script::default() }
}

fn messages(trial: &TrialTrace) -> Vec<&str> {
    fn message(request: &RequestTrace) -> Option<&str> {
        match &request.events.last()?.kind {
            EventKind::Failed { message, .. } => Some(message),
            _ => None,
        }
    }
    trial.requests.iter().filter_map(message).collect()
}

fn statuses(folder: &RunFolder, plan: &Plan) -> Vec<TrialStatus> {
    plan.trials.iter().map(|trial| folder.status(trial).unwrap()).collect()
}

#[test]
fn a_batch_without_memory_fails_and_the_run_goes_on() {
    const ALLOC: &str = "cuMemAlloc_v2";
    let text = study("20, 40, 60");
    let allocs: Vec<u64> = counted(&text).iter().map(|report| report.calls[ALLOC]).collect();
    // The first trial after another that takes memory of its own.
    let short = (1..allocs.len()).find(|i| allocs[*i] > allocs[i - 1]).unwrap();
    let stub = scripted(&failing(ALLOC, allocs[short - 1], code::OUT_OF_MEMORY));
    let dir = tempfile::tempdir().unwrap();
    let (plan, mut folder) = create(dir.path(), &text);
    let outcome = run_on(&stub.place, &plan, &mut folder, &mut Quiet);
    assert_eq!((outcome.trials_done, &outcome.lost), (3, &None), "{outcome:?}");
    assert_eq!(statuses(&folder, &plan), [TrialStatus::Complete; 3]);
    let mut trials = folder.read_trials().unwrap();
    trials.sort_by_key(|trial| trial.trial);
    assert!(trials[..short].iter().all(|trial| messages(trial).is_empty()), "what was before is kept");
    let told = messages(&trials[short]);
    assert_eq!(told.len(), 4, "{told:?}");
    for text in ["cuda:0 (NVIDIA H100", "not enough memory", "asked for", "free; this process holds"] {
        assert!(told[0].contains(text), "no {text:?} in {}", told[0]);
    }
    assert!(outcome.cells_failed[&trials[short].cell].contains("not enough memory"), "{outcome:?}");
    assert!(outcome.failed_requests >= 4);
}

#[test]
fn a_lost_device_ends_the_run_and_a_resumed_one_does_the_rest() {
    let text = study("20, 40, 60");
    let kernels: Vec<u64> = counted(&text).iter().map(|report| report.kernels.values().sum()).collect();
    let dir = tempfile::tempdir().unwrap();
    let (plan, path) = {
        // In the middle of the second trial.
        let middle = kernels[0].midpoint(kernels[1]);
        let stub = scripted(&failing("kernel", middle, code::LAUNCH_FAILED));
        let (plan, mut folder) = create(dir.path(), &text);
        let outcome = run_on(&stub.place, &plan, &mut folder, &mut Quiet);
        let why = outcome.lost.as_deref().unwrap();
        assert!(
            why.starts_with("cuda:0 (NVIDIA H100") && why.contains("is lost: CUDA_ERROR_LAUNCH"),
            "{why}"
        );
        assert_eq!((outcome.trials_done, outcome.interrupted), (1, false), "{outcome:?}");
        let expected = [TrialStatus::Complete, TrialStatus::Incomplete, TrialStatus::Missing];
        assert_eq!(statuses(&folder, &plan), expected);
        let trials = folder.read_trials().unwrap();
        let cut = trials.iter().find(|trial| trial.trial == 1).unwrap();
        let told = messages(cut);
        assert!(!told.is_empty() && told.iter().all(|message| message.contains("is lost")), "{told:?}");
        (plan, folder.path().to_owned())
    };
    let stub = scripted(&Script { devices: vec![gpu(GIB)], ..Script::default() });
    let mut folder = RunFolder::resume(&path, &plan, &provenance::gather(&plan, &[])).unwrap();
    let outcome = run_on(&stub.place, &plan, &mut folder, &mut Quiet);
    assert_eq!((outcome.trials_done, outcome.trials_skipped), (2, 1), "{outcome:?}");
    assert_eq!((outcome.failed_requests, outcome.lost), (0, None));
    assert_eq!(statuses(&folder, &plan), [TrialStatus::Complete; 3]);
}

#[test]
fn a_device_that_is_lost_while_a_model_is_loaded_leaves_every_trial_to_come() {
    let stub = scripted(&failing("kernel", 3, code::ILLEGAL_ADDRESS));
    let dir = tempfile::tempdir().unwrap();
    let (plan, mut folder) = create(dir.path(), &study("20"));
    let outcome = run_on(&stub.place, &plan, &mut folder, &mut Quiet);
    assert!(outcome.lost.is_some_and(|why| why.contains("is lost")));
    assert_eq!((outcome.trials_done, outcome.failed_requests), (0, 0));
    assert_eq!(statuses(&folder, &plan), [TrialStatus::Missing]);
}

/// The words that a user reads, and the way to go on.
#[test]
fn a_lost_device_is_told_with_the_way_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gpu.toml");
    std::fs::write(&path, study("20, 40, 60")).unwrap();
    let path = path.display().to_string();
    let run = |script: &Script, more: &[&str]| {
        let args = ["run", &path, "--power-source", "none", "--ui", "none"];
        ossbench(dir.path(), script, &[&args[..], more].concat())
    };
    // A kernel that measures of the machine do not run.
    let routed = counted(&study("20, 40, 60"))[0].kernels["route"];
    let lost = run(&failing("kernel:route", routed + 3, code::ECC_UNCORRECTABLE), &[]);
    assert_eq!(lost.code, 1, "{}", lost.text);
    for text in
        ["the run ended early: cuda:0", "what was finished is kept (1 trials); go on with --resume gpu-"]
    {
        assert!(lost.text.contains(text), "no {text:?} in {}", lost.text);
    }
    let healthy = Script { devices: vec![gpu(GIB)], ..Script::default() };
    let resumed = run(&healthy, &["--resume", "latest"]);
    assert_eq!(resumed.code, 0, "{}", resumed.text);
}
