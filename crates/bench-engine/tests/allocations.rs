//! A decode step like the one before takes nothing from the heap, counted by the allocator itself.

#![allow(clippy::unwrap_used)]

use bench_engine::dummy::Dummy;
use bench_engine::{ActivationDtype, Hooks, LoadOptions, MatmulPrecision, Model, heap};

#[global_allocator]
static ALLOCATOR: heap::CountingAllocator = heap::CountingAllocator;

/// Fewest allocations of eight steps of two sequences, of three such runs: the harness's own thread is counted too.
fn allocations(preset: &str, options: &LoadOptions) -> u64 {
    let dummy = Dummy::new(preset, 3, None).unwrap();
    let model = Model::build(dummy.config().clone(), &dummy, options, &mut |_| ()).unwrap();
    let (mut a, mut b) = (model.sequence(), model.sequence());
    a.reserve(60);
    b.reserve(60);
    let (mut workspace, mut hooks) = (model.workspace(), Hooks::none());
    let sequences = &mut [&mut a, &mut b];
    let ids: [&[u32]; 2] = [&[1, 5, 9, 13, 40, 41, 42], &[7, 8, 9]];
    model.prefill_in(&mut workspace, sequences, &ids, 4, &mut hooks).unwrap();
    model.decode_step_in(&mut workspace, sequences, &[1, 2], &mut hooks).unwrap();
    let mut run = || {
        let before = heap::allocations();
        for id in 0..8 {
            let logits = model.decode_step_in(&mut workspace, sequences, &[id, 40 - id], &mut hooks);
            let logits = logits.unwrap().values().unwrap();
            assert!(logits.len() == 2 * model.config().vocab_size && logits.iter().any(|l| *l != 0.0));
        }
        heap::allocations() - before
    };
    (0..3).map(|_| run()).min().unwrap()
}

#[test]
fn a_decode_step_takes_nothing_from_the_heap() {
    assert!(heap::installed() && heap::allocations() > 0);
    for preset in ["gpt-oss-tiny", "dense-tiny"] {
        for activation_dtype in [ActivationDtype::F32, ActivationDtype::Bf16] {
            for matmul_precision in [MatmulPrecision::F32, MatmulPrecision::Int16, MatmulPrecision::Int8] {
                let options = LoadOptions { activation_dtype, matmul_precision, ..LoadOptions::default() };
                let taken = allocations(preset, &options);
                assert_eq!(taken, 0, "{preset} {activation_dtype:?} {matmul_precision:?}");
            }
        }
    }
}
