//! The engine on every instruction set and number of threads: the same answers, within what is promised.

#![allow(clippy::print_stdout)] // the largest difference of each comparison

use std::sync::Arc;

use bench_engine::checkpoint::Folder;
use bench_engine::config::ModelConfig;
use bench_engine::dummy::Dummy;
use bench_engine::{DenseDtype, Hooks, KvDtype, LoadOptions, MatmulPrecision, Model};
use bench_kernels::pool::{Pool, PoolOptions};
use bench_kernels::{Exec, Variant};

use crate::checkpoint::golden;
use crate::golden_model::open;

fn exec(variant: Variant, threads: usize) -> Exec {
    let options = PoolOptions { threads: Some(threads), ..PoolOptions::default() };
    Exec::new(variant, Arc::new(Pool::new(options).unwrap()))
}

/// Logits of every position of `ids`, in two chunks, and of three steps after them.
fn logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    let mut sequence = model.sequence();
    let all = model.forward_all(&mut [&mut sequence], &[ids], ids.len().div_ceil(2), &mut Hooks::none());
    let mut logits: Vec<f32> = all.unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let mut workspace = model.workspace();
    for id in [3, 1, 4] {
        let step = model.decode_step_in(&mut workspace, &mut [&mut sequence], &[id], &mut Hooks::none());
        logits.extend_from_slice(step.unwrap().values().unwrap());
    }
    logits
}

#[test]
fn every_instruction_set_equals_the_reference() {
    let mut compared = 0;
    for name in ["gpt-oss-tiny", "qwen3-tiny", "llama-tiny"] {
        let gold = open(&format!("goldens/{name}/p70.safetensors"));
        let ids = gold.ids("ids.prompt").unwrap();
        let expected = gold.get("logits.prefill").unwrap();
        for variant in Variant::available() {
            let config = ModelConfig::from_folder(&golden(name)).unwrap();
            let folder = Folder::open(&golden(name)).unwrap();
            let options = LoadOptions { exec: exec(variant, 2), ..LoadOptions::default() };
            let model = Model::build(config, &folder, &options, &mut |_| ()).unwrap();
            let found = logits(&model, &ids);
            let largest = found.iter().zip(expected).map(|(f, e)| (f - e).abs()).fold(0.0_f32, f32::max);
            println!("{name} on {}: largest difference {largest:.2e}", variant.name());
            assert!(found.len() > expected.len() && largest <= 5e-4, "{name} {variant:?}: {largest}");
            compared += 1;
        }
    }
    assert!(compared >= 3);
}

/// Every precision and dtype, bit for bit; a second run of the same is equal too.
#[test]
fn logits_do_not_depend_on_the_number_of_threads() {
    let dummy = Dummy::new("gpt-oss-tiny", 5, None).unwrap();
    let ids: Vec<u32> = (0..90).map(|i| i * 7 % 400).collect();
    for matmul_precision in [MatmulPrecision::F32, MatmulPrecision::Int16, MatmulPrecision::Int8] {
        for (dense_dtype, kv_dtype) in [
            (DenseDtype::Native, KvDtype::F32),
            (DenseDtype::Q8_0, KvDtype::Bf16),
            (DenseDtype::Q6_0, KvDtype::Q8_0),
        ] {
            let run = |threads| {
                let options = LoadOptions {
                    matmul_precision,
                    dense_dtype,
                    kv_dtype: Some(kv_dtype),
                    exec: exec(Variant::active(), threads),
                    ..LoadOptions::default()
                };
                let model = Model::build(dummy.config().clone(), &dummy, &options, &mut |_| ()).unwrap();
                logits(&model, &ids)
            };
            let one = run(1);
            assert!(one.iter().any(|l| *l != 0.0));
            for threads in [1, 2, 3, 5] {
                assert!(run(threads) == one, "{matmul_precision:?} {dense_dtype:?} {threads} threads");
            }
        }
    }
}
