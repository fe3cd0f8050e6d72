//! Passes of more rows than a GPU is to hold at once: whole sequences, part by part.
#![cfg(target_arch = "x86_64")]

use bench_core::target::Target;
use bench_engine::place::Place;
use bench_engine::preflight::{self, Need};
use bench_engine::{
    ActivationDtype, ExpertMode, Hooks, KvDtype, LoadOptions, Model, Routing, Sequence, preset,
};
use bench_runner::Observer;
use bench_runner::targets::engine::EngineTarget;
use candle_core::Tensor;
use cuda_stub::Script;

use crate::cuda::{GIB, dummy, scripted, stub};
use crate::cuda_run::{create, gpu, run_on, study};

/// Prompts of these lengths, each of its own ids.
fn prompts(lengths: &[usize]) -> Vec<Vec<u32>> {
    let prompt = |(i, length): (usize, &usize)| (0..*length).map(|j| (31 * i + 7 * j) as u32 % 300).collect();
    lengths.iter().enumerate().map(prompt).collect()
}

/// What a prefill and three steps leave.
struct Ran {
    logits: Vec<f32>,
    prefill: Routing,
    steps: Routing,
}

fn run(model: &Model, lengths: &[usize], chunk: usize) -> Ran {
    let prompts = prompts(lengths);
    let ids: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let mut sequences: Vec<Sequence> = ids.iter().map(|_| model.sequence()).collect();
    let mut sequences: Vec<&mut Sequence> = sequences.iter_mut().collect();
    let (mut workspace, mut hooks) = (model.workspace(), Hooks::none());
    let first = model.prefill_in(&mut workspace, &mut sequences, &ids, chunk, &mut hooks);
    let mut logits = first.unwrap().values().unwrap().to_vec();
    let prefill = model.take_routing(&mut workspace, &mut hooks).unwrap();
    for id in 0..3 {
        let next = vec![id; ids.len()];
        let step = model.decode_step_in(&mut workspace, &mut sequences, &next, &mut hooks);
        logits.extend(step.unwrap().values().unwrap());
    }
    let steps = model.take_routing(&mut workspace, &mut hooks).unwrap();
    Ran { logits, prefill, steps }
}

fn largest_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(f, e)| (f - e).abs()).fold(0.0, f32::max)
}

fn kinds(place: &Place) -> [(&'static str, LoadOptions); 5] {
    let f32 = LoadOptions { place: place.clone(), ..LoadOptions::default() };
    let bf16 = LoadOptions { activation_dtype: ActivationDtype::Bf16, ..f32.clone() };
    [
        ("gpt-oss-tiny", f32.clone()),
        ("gpt-oss-tiny", LoadOptions { expert_mode: ExpertMode::DenseAll, ..bf16.clone() }),
        ("gpt-oss-tiny", bf16.clone()),
        ("dense-tiny", LoadOptions { kv_dtype: Some(KvDtype::Bf16), ..f32 }),
        ("dense-tiny", bf16),
    ]
}

/// Rows are multiplied by themselves: where parts are so large that the same kernels take them, not a bit differs.
#[test]
fn parts_of_equal_prompts_have_the_bits_of_the_whole() {
    let stub = stub(6, GIB);
    for (preset, options) in kinds(&stub.place) {
        let whole = dummy(preset, &options);
        let parts = dummy(preset, &LoadOptions { pass_rows: Some(100), ..options.clone() });
        assert_eq!(parts.pass_rows(), Some(100));
        assert!(whole.pass_rows().unwrap() > 1 << 16);
        let lengths = [48; 4];
        let (expected, found) = (run(&whole, &lengths, 48), run(&parts, &lengths, 48));
        let largest = largest_difference(&found.logits, &expected.logits);
        assert_eq!(largest, 0.0, "{preset} {options:?}");
        // Both parts read weights, and both are counted.
        let (one, two) = (expected.prefill, found.prefill);
        assert_eq!((two.layer_passes, two.tokens), (2 * one.layer_passes, one.tokens), "{preset}");
        assert!(two.experts >= one.experts && two.experts <= 2 * one.experts, "{one:?} {two:?}");
        assert_eq!(found.steps, expected.steps, "{preset}");
    }
}

/// Small parts go through other kernels, which add in another order; a prompt that is too long by itself is chunked, so
/// that part of its keys come from the cache.
#[test]
fn ragged_prompts_long_ones_and_steps_are_divided() {
    let stub = stub(1, GIB);
    for (preset, options) in kinds(&stub.place) {
        if options.activation_dtype == ActivationDtype::Bf16 {
            // Roundings go another way where sums do, and so do choices of experts.
            continue;
        }
        let options = LoadOptions { kv_dtype: None, ..options };
        let whole = dummy(preset, &options);
        for (lengths, chunk, most) in [
            (&[24, 7, 19, 24, 3][..], 10, 20),
            (&[20], 20, 8),
            (&[9, 17], 64, 12),
            // More sequences than rows: steps are divided too.
            (&[5; 5], 5, 3),
        ] {
            let expected = run(&whole, lengths, chunk);
            let parts = dummy(preset, &LoadOptions { pass_rows: Some(most), ..options.clone() });
            let found = run(&parts, lengths, chunk);
            let largest = largest_difference(&found.logits, &expected.logits);
            println!("{preset} {lengths:?} in parts of {most}: largest difference {largest:.1e}");
            assert!(largest < 1e-4, "{preset} {lengths:?} {most}: {largest}");
            assert_eq!(found.prefill.tokens, expected.prefill.tokens);
        }
    }
}

/// All that hooks see of a pass they see of its parts, and logits of all positions stand in the order of sequences.
#[test]
fn hooks_see_each_part_and_all_positions_are_kept() {
    let stub = stub(0, GIB);
    let options = LoadOptions { place: stub.place.clone(), ..LoadOptions::default() };
    let prompts = prompts(&[12, 5, 9]);
    let ids: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let seen = |pass_rows| {
        let model = dummy("gpt-oss-tiny", &LoadOptions { pass_rows, ..options.clone() });
        let mut sequences: Vec<Sequence> = ids.iter().map(|_| model.sequence()).collect();
        let mut sequences: Vec<&mut Sequence> = sequences.iter_mut().collect();
        let mut hooks = Hooks::read(&["resid_post.1"]).unwrap();
        let logits = model.forward_all(&mut sequences, &ids, 64, &mut hooks).unwrap();
        let values = hooks.take("resid_post.1");
        let rows = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (values.len(), rows(&Tensor::cat(&values, 0).unwrap()), rows(&logits))
    };
    let (whole, expected, expected_logits) = seen(None);
    let (parts, found, logits) = seen(Some(17));
    assert_eq!((whole, parts), (1, 2));
    assert!(largest_difference(&found, &expected) < 1e-4);
    assert!(largest_difference(&logits, &expected_logits) < 1e-4);
}

/// A short prompt's last row waits for a long one, for which everything else is laid out anew.
#[test]
fn rows_that_wait_for_longer_prompts_stay() {
    let stub = stub(0, GIB);
    let model = dummy("gpt-oss-tiny", &LoadOptions { place: stub.place.clone(), ..LoadOptions::default() });
    let together = run(&model, &[3, 300], 128).logits;
    let alone = run(&model, &[3], 128).logits;
    let vocab = model.config().vocab_size;
    let largest = largest_difference(&together[..vocab], &alone[..vocab]);
    assert!(largest < 1e-4, "{largest}");
}

#[derive(Default)]
struct Warnings(Vec<String>);

impl Observer for Warnings {
    fn warning(&mut self, message: &str) {
        self.0.push(message.to_owned());
    }
}

/// A batch of which the GPU holds one prompt at a time runs all the same, in the memory that was predicted, and says so.
#[test]
fn what_fits_only_in_parts_runs_in_parts() {
    let text = study("40");
    let config = preset::config("gpt-oss-tiny").unwrap().with_layers(2).unwrap();
    let need = |context_tokens, place: &Place| {
        let bf16 = LoadOptions {
            activation_dtype: ActivationDtype::Bf16,
            place: place.clone(),
            ..LoadOptions::default()
        };
        Need { context_tokens, batch: 2, prefill_chunk: 16, ..Need::of(&bf16) }
    };
    let needed = {
        let stub = stub(0, GIB);
        let taken = GIB - stub.place.memory().unwrap().unwrap().free_bytes;
        taken + preflight::parts(&config, &need(43, &stub.place), preflight::PROGRAM_BYTES).total_bytes()
    };
    for (memory_bytes, parts) in [(needed, None), (needed - 1, Some(16))] {
        let stub = scripted(&Script { devices: vec![gpu(memory_bytes)], ..Script::default() });
        let dir = tempfile::tempdir().unwrap();
        let (plan, mut folder) = create(dir.path(), &text);
        let mut warnings = Warnings::default();
        let outcome = run_on(&stub.place, &plan, &mut folder, &mut warnings);
        assert_eq!((outcome.trials_done, outcome.failed_requests), (1, 0), "{outcome:?}");
        let expected = preflight::parts(&config, &Need { pass_rows: parts, ..need(42, &stub.place) }, 0);
        let trials = folder.read_trials().unwrap();
        for memory in &trials[0].memory {
            let first = memory.device.as_ref().unwrap().first_token.unwrap();
            assert_eq!(first.activations.peak_bytes, expected.activation_bytes, "{parts:?}");
        }
        let told = warnings.0.iter().any(|w| w.contains("in parts of at most 16 tokens"));
        assert_eq!(told, parts.is_some(), "{:?}", warnings.0);
        let mut target = EngineTarget::at(&plan, stub.place.clone()).unwrap();
        let facts = target.prepare(&plan.models[0], &mut |_| (), &bench_core::target::StopFlag::new());
        assert_eq!(facts.unwrap().unwrap().pass_rows, parts.map(|rows| rows as u64));
    }
}
