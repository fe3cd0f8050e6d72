//! A decode step like the one before takes nothing from the heap, and a prompt what preflight says, counted by the
//! allocator itself. It counts the whole process: tests take turns.

#![allow(clippy::unwrap_used)]

use std::sync::{Mutex, PoisonError};

use bench_engine::dummy::Dummy;
use bench_engine::preflight::{self, Need};
use bench_engine::{ActivationDtype, ExpertMode, Hooks, LoadOptions, MatmulPrecision, Model, heap};

#[global_allocator]
static ALLOCATOR: heap::CountingAllocator = heap::CountingAllocator;

static TURN: Mutex<()> = Mutex::new(());

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
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(heap::installed() && heap::allocations() > 0);
    let modes = [("gpt-oss-tiny", ExpertMode::Routed), ("gpt-oss-tiny", ExpertMode::DenseAll)];
    for (preset, expert_mode) in modes.into_iter().chain([("dense-tiny", ExpertMode::Routed)]) {
        for activation_dtype in [ActivationDtype::F32, ActivationDtype::Bf16] {
            for matmul_precision in [MatmulPrecision::F32, MatmulPrecision::Int16, MatmulPrecision::Int8] {
                let options =
                    LoadOptions { activation_dtype, matmul_precision, expert_mode, ..LoadOptions::default() };
                let taken = allocations(preset, &options);
                assert_eq!(taken, 0, "{preset} {expert_mode:?} {activation_dtype:?} {matmul_precision:?}");
            }
        }
    }
}

/// Bytes that a prompt of 256 tokens leaves in the workspace, and what preflight says that it takes.
fn held(expert_mode: ExpertMode) -> (f64, f64) {
    let dummy = Dummy::new("gpt-oss-tiny", 3, Some(1)).unwrap();
    let options = LoadOptions { expert_mode, ..LoadOptions::default() };
    let model = Model::build(dummy.config().clone(), &dummy, &options, &mut |_| ()).unwrap();
    let (mut sequence, mut workspace) = (model.sequence(), model.workspace());
    sequence.reserve(256);
    let before = heap::live_bytes();
    let prompt: &[u32] = &[3; 256];
    model.prefill_in(&mut workspace, &mut [&mut sequence], &[prompt], 256, &mut Hooks::none()).unwrap();
    let held = heap::live_bytes() - before;
    let need = Need { context_tokens: 256, prefill_chunk: 256, ..Need::of(&options) };
    (held as f64, preflight::parts(model.config(), &need, 0).activation_bytes as f64)
}

#[test]
fn all_experts_take_as_much_more_as_preflight_says() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // Threads keep what they work in: it is there before anything is compared.
    held(ExpertMode::DenseAll);
    let ((few, few_told), (many, many_told)) = (held(ExpertMode::Routed), held(ExpertMode::DenseAll));
    let of_told = (many - few) / (many_told - few_told);
    assert!((of_told - 1.0).abs() < 0.02, "{of_told}: {few} and {many}, told {few_told} and {many_told}");
}
