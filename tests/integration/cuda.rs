//! Models on a GPU that the CPU emulates: the kernels' own source behind a stub of the driver, so that everything but
//! the hardware is what runs on one.
//!
//! The stub is one per process: tests take turns.
#![cfg(target_arch = "x86_64")]

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bench_engine::config::ExpertDtype;
use bench_engine::dummy::Dummy;
use bench_engine::parity::{self, Options};
use bench_engine::place::Place;
use bench_engine::preflight::{self, Need};
use bench_engine::sampling::{Sampler, SamplingParams};
use bench_engine::{
    ActivationDtype, DenseDtype, ExpertMode, Hooks, KvDtype, LoadOptions, Model, Routing, Sequence,
};
use bench_kernels::cuda::device::{Device, Files};
use cuda_stub::{Device as Gpu, Loaded, Script};

/// An emulated GPU, for one test at a time.
pub(crate) struct Stub {
    pub(crate) place: Place,
    pub(crate) loaded: Loaded,
    _turn: MutexGuard<'static, ()>,
}

/// Few multiprocessors, since the CPU has few: persistent kernels then have few blocks. Threads run in the order of
/// `seed`.
pub(crate) fn stub(seed: u64, memory_bytes: u64) -> Stub {
    let gpu = Gpu { multiprocessors: 2, memory_bytes, ..Gpu::default() };
    scripted(&Script { seed, devices: vec![gpu], ..Script::default() })
}

/// The first device of any script.
pub(crate) fn scripted(script: &Script) -> Stub {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let loaded = cuda_stub::preload(script).unwrap();
    let images = images();
    let driver = cuda_stub::library().unwrap();
    let files = Files { driver: Some(&driver), images: Some(images.path()) };
    Stub { place: Place::Cuda(Device::open_with(0, files).unwrap()), loaded, _turn: turn }
}

/// A folder of kernels: the stub looks at no image.
pub(crate) fn images() -> tempfile::TempDir {
    let images = tempfile::tempdir().unwrap();
    for architecture in ["sm_80", "sm_90a"] {
        std::fs::write(images.path().join(format!("all.{architecture}.cubin")), "stub").unwrap();
    }
    images
}

pub(crate) const GIB: u64 = 1 << 30;

fn holds(models: &[&'static str], activations: &[ActivationDtype], seed: u64) {
    let stub = stub(seed, GIB);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let options = Options { golden: &golden, models, activations, place: stub.place.clone() };
    let mut largest: f64 = 0.0;
    let findings = parity::compare(&options, |row| {
        assert!(row.holds, "{row:?}");
        largest = row.difference.map_or(largest, |d| largest.max(d.max_abs));
    });
    let findings = findings.unwrap();
    assert!(findings.hold() && findings.rows.len() >= 13, "{:?}", findings.failures);
    println!("{models:?} {activations:?}: largest difference {largest:.2e}");
}

#[test]
fn gpt_oss_is_equal_to_its_reference() {
    holds(&["gpt-oss-tiny"], &[ActivationDtype::F32, ActivationDtype::Bf16], 0);
}

#[test]
fn dense_models_are_equal_to_their_references() {
    holds(&["qwen3-tiny", "llama-tiny"], &[ActivationDtype::F32], 5);
}

pub(crate) fn dummy(preset: &str, options: &LoadOptions) -> Model {
    let dummy = Dummy::new(preset, 7, Some(2)).unwrap();
    Model::build(dummy.config().clone(), &dummy, options, &mut |_| ()).unwrap()
}

/// Logits of two sequences: a prompt in chunks, then steps of both, which a graph replays from the third on.
fn logits(model: &Model) -> Vec<f32> {
    let (mut a, mut b) = (model.sequence(), model.sequence());
    a.reserve(30);
    let ids: [&[u32]; 2] = [&[1, 5, 9, 13, 40, 41, 42], &[7, 8, 9]];
    let sequences: &mut [&mut Sequence] = &mut [&mut a, &mut b];
    let (mut workspace, mut hooks) = (model.workspace(), Hooks::none());
    let first = model.prefill_in(&mut workspace, sequences, &ids, 4, &mut hooks);
    let mut all = first.unwrap().values().unwrap().to_vec();
    for id in 0..5 {
        let step = model.decode_step_in(&mut workspace, sequences, &[id, 40 - id], &mut hooks);
        all.extend(step.unwrap().values().unwrap());
    }
    all
}

#[test]
fn every_way_to_keep_weights_equals_the_host() {
    let stub = stub(3, GIB);
    let base = LoadOptions::default();
    let choices = [
        ("gpt-oss-tiny", base.clone()),
        ("gpt-oss-tiny", LoadOptions { expert_dtype: ExpertDtype::Bf16, ..base.clone() }),
        ("gpt-oss-tiny", LoadOptions { dense_dtype: DenseDtype::Q8_0, ..base.clone() }),
        ("gpt-oss-tiny", LoadOptions { kv_dtype: Some(KvDtype::Bf16), ..base.clone() }),
        ("dense-tiny", LoadOptions { dense_dtype: DenseDtype::Q8_0, ..base }),
    ];
    for (preset, host) in choices {
        let device = LoadOptions { place: stub.place.clone(), ..host.clone() };
        let (expected, found) = (logits(&dummy(preset, &host)), logits(&dummy(preset, &device)));
        let differences = found.iter().zip(&expected).map(|(f, e)| (f - e).abs());
        let largest = differences.fold(0.0, f32::max);
        println!("{preset} {host:?}: largest difference {largest:.2e}");
        assert!(found.len() == expected.len() && largest < 1e-4, "{preset} {host:?}: {largest}");
    }
}

/// Batches give the bits of the chosen experts: each row's product is its own, and sums are in the order of choice.
#[test]
fn all_experts_equal_the_chosen_ones_and_are_all_touched() {
    let stub = stub(2, GIB);
    for activation_dtype in [ActivationDtype::F32, ActivationDtype::Bf16] {
        let routed = LoadOptions { activation_dtype, place: stub.place.clone(), ..LoadOptions::default() };
        let all = LoadOptions { expert_mode: ExpertMode::DenseAll, ..routed.clone() };
        let host = LoadOptions { place: Place::Host, ..all.clone() };
        let [routed, all] = [&routed, &all].map(|options| dummy("gpt-oss-tiny", options));
        let off = |found: &[f32], expected: &[f32]| {
            assert_eq!(found.len(), expected.len());
            found.iter().zip(expected).map(|(f, e)| (f - e).abs()).fold(0.0, f32::max)
        };
        let found = logits(&all);
        let largest = off(&found, &logits(&routed));
        assert!(largest <= 1e-6, "{activation_dtype:?}: {largest}");
        // Near ties go another way where values are rounded elsewhere: only f32 is compared beyond the same kernels.
        let exact = activation_dtype == ActivationDtype::F32;
        let largest = off(&found, &logits(&dummy("gpt-oss-tiny", &host)));
        assert!(!exact || largest < 1e-3, "against the host: {largest}");

        // One sequence: a prompt, and steps of which the last are a graph's.
        let run = |model: &Model| {
            let mut sequence = model.sequence();
            let (mut workspace, mut hooks) = (model.workspace(), Hooks::none());
            let mut values = model
                .prefill_in(&mut workspace, &mut [&mut sequence], &[&[3, 1, 4, 1, 5]], 4, &mut hooks)
                .unwrap()
                .values()
                .unwrap()
                .to_vec();
            for id in 0..4 {
                let step = model.decode_step_in(&mut workspace, &mut [&mut sequence], &[id], &mut hooks);
                values.extend(step.unwrap().values().unwrap());
            }
            (values, model.take_routing(&mut workspace, &mut hooks).unwrap())
        };
        let ((expected, few), (found, many)) = (run(&routed), run(&all));
        let largest = off(&found, &expected);
        assert!(!exact || largest < 1e-3, "one sequence: {largest}");
        // Two layers; chunks of four tokens and of one, and four steps.
        assert_eq!(many, Routing { layer_passes: 2 * 6, experts: 2 * 6 * 8, tokens: 2 * 9 });
        assert_eq!((few.layer_passes, few.tokens), (many.layer_passes, many.tokens));
        assert!(few.experts < many.experts, "{few:?}");
    }
}

#[test]
fn caches_have_the_bytes_of_the_hosts_and_tokens_are_chosen_on_the_device() {
    let stub = stub(0, GIB);
    let models = [Place::Host, stub.place.clone()].map(|place| {
        let model = dummy("gpt-oss-tiny", &LoadOptions { place, ..LoadOptions::default() });
        let mut sequence = model.sequence();
        sequence.reserve(200);
        let (mut workspace, mut hooks) = (model.workspace(), Hooks::none());
        let mut sampler = Sampler::new(SamplingParams::default()).unwrap();
        let mut chosen = Vec::new();
        let prompt: &[u32] = &[3; 150];
        let mut step = model
            .prefill_in(&mut workspace, &mut [&mut sequence], &[prompt], 64, &mut hooks)
            .unwrap()
            .sample(0, &mut sampler, &[]);
        for _ in 0..4 {
            let id = step.unwrap();
            chosen.push(id);
            let mut logits =
                model.decode_step_in(&mut workspace, &mut [&mut sequence], &[id], &mut hooks).unwrap();
            let best = logits.sample(0, &mut sampler, &[]).unwrap();
            // What is suppressed is never chosen.
            step = logits.sample(0, &mut sampler, &[best]);
            assert_ne!(*step.as_ref().unwrap(), best);
        }
        let routing = model.take_routing(&mut workspace, &mut hooks).unwrap();
        // They are taken, and what the next user of this workspace sees is its own.
        assert_eq!(model.take_routing(&mut workspace, &mut hooks).unwrap(), Routing::default());
        let bytes = (sequence.kv_bytes(), sequence.kv_used_bytes());
        sequence.reset();
        assert_eq!(sequence.kv_bytes(), 0);
        (chosen, bytes, routing)
    });
    assert_eq!(models[0], models[1]);
}

/// What preflight computes without a device is what the device's counters show, byte for byte.
#[test]
fn memory_is_what_preflight_said() {
    let stub = stub(0, GIB);
    let base = LoadOptions { place: stub.place.clone(), ..LoadOptions::default() };
    let bf16 = LoadOptions { activation_dtype: ActivationDtype::Bf16, ..base.clone() };
    let choices = [
        ("gpt-oss-tiny", base.clone(), 1, 40, 8),
        ("gpt-oss-tiny", bf16.clone(), 2, 50, 16),
        ("gpt-oss-tiny", LoadOptions { expert_dtype: ExpertDtype::Bf16, ..bf16.clone() }, 3, 20, 9),
        ("gpt-oss-tiny", LoadOptions { dense_dtype: DenseDtype::Q8_0, ..base }, 1, 20, 20),
        ("dense-tiny", LoadOptions { dense_dtype: DenseDtype::Q8_0, ..bf16.clone() }, 2, 33, 16),
        ("dense-tiny", bf16.clone(), 9, 6, 4),
        // Passes in parts: of two chunks, and of fewer rows than a step has.
        ("gpt-oss-tiny", LoadOptions { pass_rows: Some(25), ..bf16.clone() }, 5, 25, 10),
        ("dense-tiny", LoadOptions { pass_rows: Some(3), ..bf16.clone() }, 5, 6, 4),
        (
            "gpt-oss-tiny",
            LoadOptions { expert_mode: ExpertMode::DenseAll, pass_rows: Some(4), ..bf16 },
            7,
            5,
            1,
        ),
    ];
    for (preset, options, batch, prompt, chunk) in choices {
        let model = dummy(preset, &options);
        let loaded = stub.place.meter().unwrap().usage();
        let steps = 3;
        let mut sequences: Vec<Sequence> = (0..batch).map(|_| model.sequence()).collect();
        for sequence in &mut sequences {
            sequence.reserve(prompt + steps);
        }
        let ids = vec![7_u32; prompt];
        let mut running: Vec<&mut Sequence> = sequences.iter_mut().collect();
        let (mut workspace, mut hooks) = (model.workspace(), Hooks::none());
        let prompts = vec![ids.as_slice(); batch];
        model.prefill_in(&mut workspace, &mut running, &prompts, chunk, &mut hooks).unwrap();
        for _ in 0..steps {
            model.decode_step_in(&mut workspace, &mut running, &vec![1; batch], &mut hooks).unwrap();
        }
        let need = Need { context_tokens: prompt + steps, batch, prefill_chunk: chunk, ..Need::of(&options) };
        let expected = preflight::parts(model.config(), &need, 0);
        let used = stub.place.meter().unwrap().usage();
        assert_eq!(
            [used.weights, used.kv_cache, used.activations, used.workspace].map(|part| part.live_bytes),
            [expected.weights_bytes, expected.kv_bytes, expected.activation_bytes, expected.workspace_bytes],
            "{preset} {options:?}"
        );
        // While it is loaded nothing else is held, and never more than was said.
        assert_eq!(loaded.weights.live_bytes, expected.weights_bytes, "{preset} {options:?}");
        let most = expected.weights_bytes + expected.workspace_bytes + expected.loading_bytes;
        assert!(loaded.total.peak_bytes <= most, "{preset}: {} of {most}", loaded.total.peak_bytes);
        assert!(used.total.peak_bytes <= expected.total_bytes(), "{preset} {options:?}");
        drop(running);
        drop((sequences, workspace, model));
        let meter = stub.place.meter().unwrap();
        assert_eq!(meter.usage().total.live_bytes, 0, "{preset}: all is given back");
        meter.reset_peaks();
    }
}

#[test]
fn a_step_is_one_graph_of_few_launches() {
    let stub = stub(0, GIB);
    let options = LoadOptions { place: stub.place.clone(), ..LoadOptions::default() };
    let all = LoadOptions { expert_mode: ExpertMode::DenseAll, ..options.clone() };
    for (preset, options, of_layer) in
        [("gpt-oss-tiny", &options, 7), ("gpt-oss-tiny", &all, 11), ("dense-tiny", &options, 5)]
    {
        let model = dummy(preset, options);
        let mut sequence = model.sequence();
        sequence.reserve(40);
        let (mut workspace, mut hooks) = (model.workspace(), Hooks::none());
        let mut step = |id| {
            model.decode_step_in(&mut workspace, &mut [&mut sequence], &[id], &mut hooks).unwrap();
        };
        (0..3).for_each(&mut step);
        let before = stub.loaded.report().unwrap();
        step(3);
        let after = stub.loaded.report().unwrap();
        let calls = |name: &str| {
            after.calls.get(name).copied().unwrap_or(0) - before.calls.get(name).copied().unwrap_or(0)
        };
        let kernels = after.kernels.values().sum::<u64>() - before.kernels.values().sum::<u64>();
        // Two layers, embedding and unembedding.
        assert_eq!(kernels, 2 * of_layer + 2, "{preset}");
        assert_eq!(calls("cuGraphLaunch"), 1, "{preset}");
        for name in ["cuLaunchKernel", "cuLaunchKernelEx", "cuStreamSynchronize", "cuMemAlloc_v2"] {
            assert_eq!(calls(name), 0, "{preset} {name}");
        }
    }
}

#[test]
fn what_a_device_does_not_have_is_refused_with_what_to_do() {
    let stub = stub(0, GIB);
    let place = || stub.place.clone();
    let model = dummy("gpt-oss-tiny", &LoadOptions { place: place(), ..LoadOptions::default() });
    let mut hooks = Hooks::read(&["attn_probs.0"]).unwrap();
    let error = model.prefill(&mut [&mut model.sequence()], &[&[1, 2]], 4, &mut hooks).unwrap_err();
    assert!(error.to_string().contains("--device cpu"), "{error}");
    let q6 = LoadOptions { dense_dtype: DenseDtype::Q6_0, place: place(), ..LoadOptions::default() };
    let dummy = Dummy::new("gpt-oss-tiny", 7, Some(1)).unwrap();
    let error = Model::build(dummy.config().clone(), &dummy, &q6, &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("valid there: native, q8_0"), "{error}");
    let q8 = LoadOptions { kv_dtype: Some(KvDtype::Q8_0), place: place(), ..LoadOptions::default() };
    let error = Model::build(dummy.config().clone(), &dummy, &q8, &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("valid there: f32, bf16"), "{error}");
    let host = self::dummy("gpt-oss-tiny", &LoadOptions::default());
    let error = model.prefill(&mut [&mut host.sequence()], &[&[1]], 4, &mut Hooks::none()).unwrap_err();
    assert!(error.to_string().contains("belongs to the model"), "{error}");
}

#[test]
fn too_little_device_memory_is_an_error_that_says_how_much() {
    let stub = stub(0, 200 << 10);
    let dummy = Dummy::new("gpt-oss-tiny", 7, None).unwrap();
    let options = LoadOptions { place: stub.place.clone(), ..LoadOptions::default() };
    let error = Model::build(dummy.config().clone(), &dummy, &options, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("memory") && error.contains("cuda:0"), "{error}");
}

#[test]
fn memory_of_a_device_is_measured_by_reading_it() {
    let stub = stub(0, GIB);
    let (found, bytes) = bench_engine::system::gpu::bandwidth(&stub.place).unwrap();
    // Eight times the cache that the stub says it has.
    assert_eq!(bytes, 8 << 20);
    for rates in [&found.read_bytes_s, &found.copy_bytes_s] {
        assert!(rates.len() == 11 && rates[0] > 0.0 && rates.is_sorted(), "{rates:?}");
    }
    let error = bench_engine::system::gpu::bandwidth(&Place::Host).unwrap_err().to_string();
    assert!(error.contains("\"cpu\""), "{error}");
}
