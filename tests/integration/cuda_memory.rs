//! Memory of an emulated GPU from batch to batch, and what is made in it.
#![cfg(target_arch = "x86_64")]

use std::collections::BTreeSet;

use bench_engine::dummy::Dummy;
use bench_engine::layout;
use bench_engine::place::Place;
use bench_engine::weights::WeightSource;
use bench_engine::{Hooks, KvDtype, LoadOptions, Model, Sequence};
use bench_kernels::cuda::device::{Category, Device};
use bench_kernels::cuda::vectors;

use crate::cuda::{GIB, Stub, dummy, stub};

fn device(stub: &Stub) -> &Device {
    match &stub.place {
        Place::Cuda(device) => device,
        Place::Host => panic!("the stub is a device"),
    }
}

/// Logits of a batch of two prompts from `first` on, and of steps behind them.
fn batch(model: &Model, first: u32, tokens: u32) -> Vec<f32> {
    let prompts = [first, first + 50].map(|id| (id..id + tokens).collect::<Vec<u32>>());
    let mut sequences = [model.sequence(), model.sequence()];
    for sequence in &mut sequences {
        sequence.reserve(tokens as usize + 4);
    }
    let mut sequences: Vec<&mut Sequence> = sequences.iter_mut().collect();
    let (mut workspace, mut hooks) = (model.workspace(), Hooks::none());
    let prompts = [prompts[0].as_slice(), prompts[1].as_slice()];
    let prefilled = model.prefill_in(&mut workspace, &mut sequences, &prompts, 16, &mut hooks);
    let mut all = prefilled.unwrap().values().unwrap().to_vec();
    for id in 0..4 {
        let step = model.decode_step_in(&mut workspace, &mut sequences, &[id, id + 9], &mut hooks);
        all.extend(step.unwrap().values().unwrap());
    }
    all
}

#[test]
fn a_batch_like_the_one_before_asks_the_driver_for_no_memory() {
    let stub = stub(1, GIB);
    for kv in [KvDtype::F32, KvDtype::Bf16] {
        let place = stub.place.clone();
        let model =
            dummy("gpt-oss-tiny", &LoadOptions { kv_dtype: Some(kv), place, ..LoadOptions::default() });
        let device = device(&stub);
        device.reset_peaks();
        let first = batch(&model, 3, 20);
        let kv_bytes = device.usage(Category::KvCache).peak_bytes;
        let calls = || {
            let report = stub.loaded.report().unwrap();
            let names = ["cuMemAlloc_v2", "cuMemFree_v2", "cuMemHostAlloc"];
            names.map(|name| report.calls.get(name).copied().unwrap_or(0))
        };
        let before = calls();
        // Other tokens, and then the first once more, in pages that still hold the others'.
        assert_ne!(batch(&model, 30, 20), first);
        assert_eq!(batch(&model, 3, 20), first);
        assert_eq!(calls(), before);
        // Nobody uses what is kept.
        let usage = device.usage(Category::KvCache);
        assert_eq!((usage.live_bytes, usage.peak_bytes), (0, kv_bytes));
        assert!(device.kept_bytes() >= kv_bytes && kv_bytes > 0);
        // What batches of another shape do not want is given back when the first of them ends.
        batch(&model, 3, 7);
        assert!(device.kept_bytes() < kv_bytes, "{} of {kv_bytes}", device.kept_bytes());
        drop(model);
        assert_eq!(device.kept_bytes(), 0);
    }
}

#[test]
fn caches_that_are_kept_make_room_for_others() {
    let stub = stub(0, 96 << 20);
    let device = device(&stub);
    let model =
        || dummy("gpt-oss-tiny", &LoadOptions { place: stub.place.clone(), ..LoadOptions::default() });
    let (one, other) = (model(), model());
    let expected = batch(&one, 3, 22);
    batch(&one, 3, 20);
    batch(&other, 3, 20);
    // All that the driver has: pages of another size must come from what is kept.
    let kept = device.kept_bytes();
    let free = device.memory().unwrap().0 - kept;
    let _held = device.buffer(free as usize, Category::Weights).unwrap();
    assert_eq!((device.memory().unwrap().0, device.kept_bytes()), (kept, kept));
    assert_eq!(batch(&other, 3, 22), expected);
    assert!(device.buffer(kept as usize, Category::Weights).is_ok(), "nothing was lost");
}

#[test]
fn generated_tensors_have_the_bits_of_the_hosts() {
    let stub = stub(6, GIB);
    let device = device(&stub);
    let mut kinds = BTreeSet::new();
    for preset in ["gpt-oss-tiny", "dense-tiny"] {
        let dummy = Dummy::new(preset, 7, None).unwrap();
        for spec in layout::tensors(dummy.config()) {
            let host = dummy.tensor(&spec.name, &spec.shape).unwrap();
            let recipe = dummy.recipe(&spec.name).unwrap();
            let bytes = host.as_bytes().len();
            let made = device.buffer(bytes, Category::Weights).unwrap();
            vectors::fill(device, recipe.fill.into(), recipe.key, 0, made.address(), bytes as u64).unwrap();
            let mut found = vec![0; bytes];
            device.download(made.address(), &mut found).unwrap();
            assert!(found == host.as_bytes(), "{preset} {}", spec.name);
            kinds.insert(format!("{:?}", spec.role));
        }
    }
    let of_experts = ["ExpertBlocks", "ExpertScales", "ExpertBias", "Router", "Norm", "Mlp", "LmHead"];
    assert!(of_experts.iter().all(|kind| kinds.contains(*kind)), "{kinds:?}");
}
