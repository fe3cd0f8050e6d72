//! Products of prompts by Hopper's own instructions: taken on a Hopper that makes them right, and told where not.
#![cfg(target_arch = "x86_64")]

use bench_core::target::{StopFlag, Target};
use bench_engine::{ActivationDtype, DenseDtype, Hooks, LoadOptions, Model};
use bench_runner::targets::engine::EngineTarget;
use cuda_stub::{Device as Gpu, Script};

use super::cuda::{Stub, dummy, scripted};
use super::cuda_failures::ossbench_with;
use super::cuda_run::study;
use super::runner::plan_of;

const HOPPER_KERNELS: [&str; 3] = bench_kernels::cuda::tiles::HOPPER_KERNELS;
/// One expert has more rows than half a tile.
const TOKENS: usize = 180;

fn script(compute_capability: [u32; 2], wrong_products: bool) -> Script {
    let gpu = Gpu { compute_capability, multiprocessors: 2, ..Gpu::default() };
    Script { devices: vec![gpu], wrong_products, ..Script::default() }
}

fn model(stub: &Stub, dense_dtype: DenseDtype) -> Model {
    let base = LoadOptions { activation_dtype: ActivationDtype::Bf16, dense_dtype, ..LoadOptions::default() };
    dummy("gpt-oss-tiny", &LoadOptions { place: stub.place.clone(), ..base })
}

/// Logits of a prompt in one pass.
fn logits(model: &Model) -> Vec<f32> {
    let ids: Vec<u32> = (0..TOKENS as u32).map(|i| i * 37 % 101).collect();
    let (mut workspace, mut hooks) = (model.workspace(), Hooks::none());
    let mut sequence = model.sequence();
    let found = model.prefill_in(&mut workspace, &mut [&mut sequence], &[&ids], TOKENS, &mut hooks);
    found.unwrap().values().unwrap().to_vec()
}

/// How often each kernel of Hopper ran.
fn runs(stub: &Stub) -> [u64; 3] {
    let kernels = stub.loaded.report().unwrap().kernels;
    HOPPER_KERNELS.map(|name| kernels.get(name).copied().unwrap_or(0))
}

#[test]
fn prompts_are_multiplied_by_what_the_device_has() {
    for dense in [DenseDtype::Native, DenseDtype::Q8_0] {
        let hopper = scripted(&script([9, 0], false));
        let loaded = model(&hopper, dense);
        let (tried, found) = (runs(&hopper), logits(&loaded));
        assert_eq!((tried, hopper.place.note()), ([1; 3], None));
        // Gate and up, and down, of two layers.
        assert_eq!(runs(&hopper)[1], 5, "{dense:?}");
        drop((loaded, hopper));
        let ampere = scripted(&script([8, 0], false));
        let loaded = model(&ampere, dense);
        let expected = logits(&loaded);
        assert_eq!((runs(&ampere), ampere.place.note()), ([0; 3], None));
        let largest = found.iter().zip(&expected).map(|(f, e)| (f - e).abs()).fold(0.0, f32::max);
        let size = expected.iter().map(|e| e.abs()).fold(0.0, f32::max);
        println!("{dense:?}: largest difference {largest:.2e} of {size:.2e}");
        assert!(largest <= 0.02 * size, "{dense:?}: {largest} of {size}");
    }
}

#[test]
fn wrong_products_are_told_and_not_taken() {
    let hopper = scripted(&script([9, 0], true));
    let loaded = model(&hopper, DenseDtype::Native);
    let found = logits(&loaded);
    assert_eq!(runs(&hopper), [1; 3]);
    let note = hopper.place.note().unwrap();
    assert!(note.starts_with("cuda:0 (NVIDIA H100") && note.contains("by wgmma are wrong"), "{note}");

    let plan = plan_of(&study("20"));
    let mut target = EngineTarget::at(&plan, hopper.place.clone()).unwrap();
    target.prepare(&plan.models[0], &mut |_| {}, &StopFlag::new()).unwrap();
    assert_eq!(target.notes(), [note]);
    assert!(target.notes().is_empty());

    drop((target, loaded, hopper));
    let ampere = scripted(&script([8, 0], true));
    assert_eq!(found, logits(&model(&ampere, DenseDtype::Native)));
}

#[test]
fn the_variable_forces_one() {
    let dir = tempfile::tempdir().unwrap();
    let run = |script: &Script, products: &str| {
        let args = ["bench-kernels", "--device", "cuda:0", "--check", "--filter", "route", "--cases", "1"];
        let ran = ossbench_with(dir.path(), script, &[("OSSBENCH_CUDA_PRODUCTS", products)], &args);
        (ran.code, ran.text)
    };
    let (right, wrong, ampere) = (script([9, 0], false), script([9, 0], true), script([8, 0], false));
    for (script, products, code, says) in [
        (&right, "", 0, ""),
        (&right, "tensor", 1, "OSSBENCH_CUDA_PRODUCTS=tensor: expected mma or wgmma"),
        (&ampere, "wgmma", 1, "compute capability 8.0, expected 9.0"),
        (&wrong, "", 0, "warning: cuda:0"),
        (&wrong, "wgmma", 0, "they are made all the same"),
    ] {
        let (found, text) = run(script, products);
        assert!(found == code && text.contains(says), "{products}: {found}, {text}");
    }
    for (script, products) in [(&right, ""), (&wrong, "mma"), (&right, "wgmma"), (&ampere, "")] {
        let (code, text) = run(script, products);
        assert!(code == 0 && !text.contains("warning"), "{products}: {text}");
    }
}
