//! A study on an emulated GPU: what its counters and marks leave in raw files, and what is made of it.
#![cfg(target_arch = "x86_64")]

use std::path::Path;
use std::sync::Arc;

use bench_core::clock::{Clock, MonotonicClock};
use bench_core::metric::Metric;
use bench_core::plan::Plan;
use bench_core::probe::Probes;
use bench_core::row::Row;
use bench_core::target::StopFlag;
use bench_engine::place::Place;
use bench_engine::preflight::{self, Need};
use bench_engine::{ActivationDtype, LoadOptions, preset};
use bench_memory::SystemProbe;
use bench_runner::targets::engine::EngineTarget;
use bench_runner::{Observer, RunContext, RunFolder, RunOutcome, provenance};
use cuda_stub::{Device as Gpu, Script};

use super::cuda::scripted;
use super::runner::plan_of;

/// One cell for each prompt length, of a model that is small on any machine. Bandwidth is given, since an emulated GPU
/// takes long to have none.
pub(crate) fn study(prompts: &str) -> String {
    format!(
        "[run]\nname = \"gpu\"\nrepeats = 2\nrounds = 1\nwarmup = 1\nseed = 5\n[target]\nkind = \"engine\"\n\
         device = \"cuda:0\"\nthreads = 1\nprefill_chunk = 16\n[workload]\nchat = \"plain\"\n\
         prompt_tokens = [{prompts}]\noutput_tokens = [3]\nbatch = [2]\n[[models]]\nid = \"dummy:gpt-oss-tiny\"\n\
         layers = 2\n[ape]\nbandwidth_gb_s = 100.0\n"
    )
}

pub(crate) fn gpu(memory_bytes: u64) -> Gpu {
    Gpu { multiprocessors: 2, memory_bytes, ..Gpu::default() }
}

pub(crate) fn create(results: &Path, text: &str) -> (Plan, RunFolder) {
    let plan = plan_of(text);
    let folder = RunFolder::create(results, text, &plan, &provenance::gather(&plan, &[])).unwrap();
    (plan, folder)
}

/// Runs what is missing on the device that is open.
pub(crate) fn run_on(
    place: &Place,
    plan: &Plan,
    folder: &mut RunFolder,
    observer: &mut dyn Observer,
) -> RunOutcome {
    let (clock, memory): (Arc<dyn Clock>, _) = (Arc::new(MonotonicClock::default()), SystemProbe::new(None));
    let mut target = EngineTarget::at(plan, place.clone()).unwrap();
    bench_runner::run(RunContext {
        plan,
        folder,
        target: &mut target,
        clock: &clock,
        stop: &StopFlag::new(),
        observer,
        probes: Probes { memory: Some(&memory), power: None },
    })
    .unwrap()
}

/// The only trial of a study of one cell, stored and read again.
#[test]
fn a_batch_on_a_gpu_is_told_by_its_counters_and_marks() {
    let stub = scripted(&Script { devices: vec![gpu(1 << 30)], ..Script::default() });
    let dir = tempfile::tempdir().unwrap();
    let (plan, mut folder) = create(dir.path(), &study("40"));
    let outcome = run_on(&stub.place, &plan, &mut folder, &mut bench_runner::Quiet);
    assert_eq!((outcome.trials_done, outcome.failed_requests), (1, 0), "{outcome:?}");
    let trials = folder.read_trials().unwrap();
    let trial = &trials[0];
    let options = LoadOptions {
        activation_dtype: ActivationDtype::Bf16,
        place: stub.place.clone(),
        ..LoadOptions::default()
    };
    let need = Need { context_tokens: 42, batch: 2, prefill_chunk: 16, ..Need::of(&options) };
    let config = preset::config("gpt-oss-tiny").unwrap().with_layers(2).unwrap();
    let expected = preflight::parts(&config, &need, 0);
    assert_eq!(trial.memory.len(), 2);
    for (repeat, memory) in (0..).zip(&trial.memory) {
        let device = memory.device.as_ref().unwrap();
        let (first, held) = (device.first_token.unwrap(), device.held.unwrap());
        let released = device.released.unwrap();
        assert_eq!(device.device_bytes, 1 << 30);
        assert_eq!(device.before.weights.live_bytes, expected.weights_bytes);
        assert_eq!(held.kv_cache.live_bytes - device.before.kv_cache.live_bytes, expected.kv_bytes);
        assert_eq!(released.kv_cache.live_bytes, device.before.kv_cache.live_bytes);
        assert_eq!(first.activations.peak_bytes, expected.activation_bytes);
        assert!(first.total.peak_bytes >= held.total.live_bytes && first.total.live_bytes > 0);
        assert!(device.trial_peak_bytes.unwrap() >= first.total.peak_bytes.max(held.total.peak_bytes));
        assert_eq!(device.loading_peak_bytes, None, "the process was there before the trial");
        // Marks lie between the first stamp of the batch and its last.
        let of_batch = trial.requests.iter().filter(|r| r.repeat == repeat);
        let stamps: Vec<f64> = of_batch.flat_map(|r| r.events.iter().map(|e| e.at.as_ms())).collect();
        let host_ms = stamps.iter().copied().fold(f64::MIN, f64::max) - stamps[0];
        let (prefill, decode) = (device.device_prefill_ms.unwrap(), device.device_decode_ms.unwrap());
        assert!(prefill > 0.0 && decode > 0.0, "{prefill} {decode}");
        // The last mark stands behind the last stamp, by the time of a call.
        assert!(prefill + decode < host_ms + 1000.0, "{prefill} {decode} {host_ms}");
    }
}

/// From flags to tables: the GPU's figures are there, and the host's heap is not taken for the model's.
#[test]
fn tables_hold_what_the_gpu_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let study_path = dir.path().join("gpu.toml");
    std::fs::write(&study_path, study("20, 40, 60")).unwrap();
    let script = Script { devices: vec![gpu(1 << 30)], ..Script::default() };
    let ran = super::cuda_failures::ossbench(
        dir.path(),
        &script,
        &["run", &study_path.display().to_string(), "--power-source", "none", "--ui", "none"],
    );
    assert_eq!(ran.code, 0, "{}", ran.text);
    let rows = bench_report::unified::read(&dir.path().join("results/unified.csv")).unwrap();
    let value = |metric: Metric, scope: &str, stat: &str, prompt: u32| {
        let is = |r: &&Row| {
            (r.metric, r.scope.as_str(), r.stat.as_str()) == (metric.def().key, scope, stat)
                && r.prompt_tokens == prompt
        };
        let found = rows.iter().find(is).unwrap_or_else(|| panic!("{} {scope} {stat}", metric.def().key));
        found.value.unwrap_or_else(|| panic!("{} {scope} {stat}: {found:?}", metric.def().key))
    };
    for prompt in [20, 40, 60] {
        let retained = value(Metric::KvRetained, "", "p50", prompt);
        let theory = value(Metric::KvTheory, "", "value", prompt);
        assert!((retained / theory - 1.0).abs() < 1e-9, "{prompt}: {retained} {theory}");
        let all = value(Metric::PeakBytes, "gpu_allocator", "max", prompt);
        let parts = ["gpu_weights", "gpu_kv_cache", "gpu_activations", "gpu_workspace"];
        let sum: f64 = parts.iter().map(|part| value(Metric::PeakBytes, part, "max", prompt)).sum();
        assert!(all > 0.0 && all <= sum, "{prompt}: {all} {sum}");
        assert!(value(Metric::PeakBytes, "gpu_trial", "max", prompt) >= all);
        let ape = rows.iter().find(|r| r.metric == "ape_memory" && r.prompt_tokens == prompt).unwrap();
        assert_eq!(ape.scope, "gpu_allocator");
    }
    let slope = value(Metric::KvPerToken, "", "value", 20);
    let theory = value(Metric::KvPerTokenTheory, "", "value", 20);
    assert!((slope / theory - 1.0).abs() < 1e-9, "{slope} {theory}");
    let memory = std::fs::read_to_string(dir.path().join("results/wide_memory.csv")).unwrap();
    assert!(memory.lines().next().unwrap().contains("peak_gpu_allocator_max_bytes"), "{memory}");
}
