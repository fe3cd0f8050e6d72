//! Presets and generated weights: published sizes exactly, the same bits everywhere, sane magnitudes.

use std::fs;

use bench_engine::config::{ExpertDtype, ModelConfig};
use bench_engine::dummy::Dummy;
use bench_engine::layout::{self, Role};
use bench_engine::preset;
use bench_engine::weights::{TensorDtype, WeightSource};
use bench_engine::{Hooks, KvDtype, LoadOptions, Model};
use serde_json::Value;

use crate::checkpoint::golden;

/// Preset and its name in params.json.
const PUBLISHED: [(&str, &str); 5] = [
    ("gpt-oss-20b", "gpt-oss-20b"),
    ("gpt-oss-120b", "gpt-oss-120b"),
    ("qwen3-32b", "Qwen3-32B"),
    ("yi-34b", "Yi-34B"),
    ("llama-3.1-70b", "Llama-3.1-70B"),
];

fn params() -> Value {
    serde_json::from_str(&fs::read_to_string(golden("params.json")).unwrap()).unwrap()
}

#[test]
fn counts_equal_those_of_transformers() {
    let params = params();
    for (name, key) in PUBLISHED {
        let config = preset::config(name).unwrap();
        let counts = layout::parameter_counts(&config);
        let bf16 = ModelConfig { mxfp4: false, ..config.clone() };
        let kv = |tokens, windowed| layout::kv_bytes(&config, tokens, KvDtype::Bf16, windowed);
        let far = 1 << 20;
        let ours = [
            ("total", counts.total),
            ("embedding", counts.embedding),
            ("lm_head", counts.lm_head),
            ("experts", counts.experts),
            ("attention", counts.attention),
            ("non_embedding", counts.total - counts.embedding - counts.lm_head),
            ("active_all", counts.active_with_embedding),
            ("active_without_input_embedding", counts.active_per_token),
            ("checkpoint_bytes", layout::weights_bytes(&config, ExpertDtype::Native)),
            ("all_bf16_bytes", layout::weights_bytes(&config, ExpertDtype::Bf16)),
            ("all_bf16_bytes", layout::weights_bytes(&bf16, ExpertDtype::Native)),
            (
                "weight_bytes_read_per_decoded_token_batch1",
                layout::decode_read_bytes(&config, ExpertDtype::Native),
            ),
            ("kv_bytes_per_token_all_layers", kv(1, true)),
            ("kv_bytes_per_token_all_layers", kv(far + 1, false) - kv(far, false)),
            ("kv_bytes_per_token_full_layers_only", kv(far + 1, true) - kv(far, true)),
        ];
        for (what, value) in ours {
            assert_eq!(Some(value), params[key][what].as_u64(), "{name} {what}");
        }
        let fixed = params[key]["kv_bytes_sliding_layers_fixed"].as_u64().unwrap();
        let full = params[key]["kv_bytes_per_token_full_layers_only"].as_u64().unwrap();
        assert_eq!(kv(far, true), fixed + full * far as u64, "{name}");
        let sum = counts.embedding + counts.lm_head + counts.experts + counts.mlp + counts.attention;
        assert_eq!(sum + counts.router + counts.norms, counts.total, "{name}");
    }
}

#[test]
fn presets_equal_the_reference_configs() {
    let params = params();
    for (name, key) in PUBLISHED {
        let reference = ModelConfig::from_json(&params[key]["config"].to_string()).unwrap();
        let mut preset = preset::config(name).unwrap();
        preset.eos_token_ids.truncate(1);
        // The reference configs of gpt-oss were written with "truncate" true, the published file has false.
        preset.rope_scaling = reference.rope_scaling.clone();
        assert_eq!(preset, reference, "{name}");
    }
    let real = ModelConfig::from_folder(&golden("real-gpt-oss-20b")).unwrap();
    assert_eq!(preset::config("gpt-oss-20b").unwrap(), real);
}

#[test]
fn nano_models_have_equal_totals() {
    let total = |name| layout::parameter_counts(&preset::config(name).unwrap()).total as f64;
    assert!((total("dense-nano") / total("gpt-oss-nano") - 1.0).abs() < 0.01);
    for name in preset::names() {
        let config = preset::config(name).unwrap();
        assert_eq!(config.intermediate_size % 32, 0, "{name}");
        assert!(!config.eos_token_ids.is_empty(), "{name}");
    }
    let error = preset::config("gpt-oss-21b").unwrap_err().to_string();
    assert!(preset::names().iter().all(|name| error.contains(name)), "{error}");
}

#[test]
fn written_configs_read_back() {
    for name in preset::names() {
        for layers in [None, Some(1), Some(2)] {
            let (json, generation) = preset::config_files(name, layers).unwrap();
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("config.json"), json).unwrap();
            fs::write(dir.path().join("generation_config.json"), generation).unwrap();
            let mut expected = preset::config(name).unwrap();
            if let Some(layers) = layers {
                expected = expected.with_layers(layers).unwrap();
            }
            assert_eq!(ModelConfig::from_folder(dir.path()).unwrap(), expected, "{name} {layers:?}");
        }
        assert!(preset::config_files(name, Some(1000)).is_err());
    }
}

/// FNV-1a of all tensors of a model in layout order.
fn fingerprint(dummy: &Dummy) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for spec in layout::tensors(dummy.config()) {
        for byte in dummy.tensor(&spec.name, &spec.shape).unwrap().as_bytes() {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}

#[test]
fn weights_depend_on_seed_and_name_alone() {
    for (preset, expected) in [("gpt-oss-tiny", GPT_OSS_TINY), ("dense-tiny", DENSE_TINY)] {
        let one = rayon_threads(1, || fingerprint(&Dummy::new(preset, 42, None).unwrap()));
        let four = rayon_threads(4, || fingerprint(&Dummy::new(preset, 42, None).unwrap()));
        assert_eq!((one, four), (expected, expected), "{preset}");
        assert_ne!(one, fingerprint(&Dummy::new(preset, 43, None).unwrap()), "{preset}");
    }
    let (all, two) =
        (Dummy::new("gpt-oss-tiny", 1, None).unwrap(), Dummy::new("gpt-oss-tiny", 1, Some(2)).unwrap());
    for spec in layout::tensors(two.config()) {
        let (a, b) = (all.tensor(&spec.name, &spec.shape), two.tensor(&spec.name, &spec.shape));
        assert_eq!(a.unwrap().as_bytes(), b.unwrap().as_bytes(), "{}", spec.name);
    }
    assert!(!two.contains("model.layers.2.input_layernorm.weight"));
    assert!(two.tensor("model.layers.2.input_layernorm.weight", &[64]).is_err());
    assert!(two.tensor("model.norm.weight", &[65]).unwrap_err().to_string().contains("[64]"));
}

/// From `tests/golden/dummy_fingerprint.py`, which makes the same weights without this project's code.
const GPT_OSS_TINY: u64 = 0x5f20_9385_3128_fdd0;
const DENSE_TINY: u64 = 0x4c30_f62f_6078_cccd;

fn rayon_threads<T: Send>(threads: usize, run: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run)
}

#[test]
fn magnitudes_follow_the_fan_in() {
    let dummy = Dummy::new("gpt-oss-nano", 3, Some(2)).unwrap();
    for spec in layout::tensors(dummy.config()) {
        let tensor = dummy.tensor(&spec.name, &spec.shape).unwrap();
        match spec.role {
            Role::ExpertScales => assert!(tensor.as_u8().unwrap().iter().all(|s| (110..130).contains(s))),
            Role::ExpertBlocks => assert_eq!(tensor.dtype, TensorDtype::U8),
            _ => {
                let values = tensor.to_f32_vec().unwrap();
                let n = values.len() as f64;
                let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
                let std = (values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n).sqrt();
                if spec.role == Role::Attention && spec.shape.len() == 2 {
                    let expected = 1.0 / (spec.shape[1] as f64).sqrt();
                    assert!((std / expected - 1.0).abs() < 0.01, "{}: {std}", spec.name);
                }
                assert!(values.iter().all(|x| x.is_finite() && x.abs() < 4.0) && std > 0.0, "{}", spec.name);
            }
        }
    }
}

#[test]
fn tensors_in_use_are_made_once() {
    let dummy = Dummy::new("dense-tiny", 0, None).unwrap();
    let get = || dummy.tensor("lm_head.weight", &[1024, 64]).unwrap();
    let (a, b) = (get(), get());
    assert_eq!(a.as_bytes().as_ptr(), b.as_bytes().as_ptr());
}

/// The logits of the last of `ids`, and per layer how many experts they were sent to.
fn run(preset: &str, ids: &[u32]) -> (Vec<f32>, Vec<usize>) {
    let dummy = Dummy::new(preset, 11, None).unwrap();
    let config = dummy.config().clone();
    let model = Model::build(config.clone(), &dummy, &LoadOptions::default(), &mut |_| ()).unwrap();
    let layers = if config.moe.is_some() { config.num_hidden_layers } else { 0 };
    let sites: Vec<String> = (0..layers).map(|l| format!("expert_index.{l}")).collect();
    let names: Vec<&str> = sites.iter().map(String::as_str).collect();
    let mut hooks = Hooks::read(&names).unwrap();
    let logits = model.prefill(&mut [&mut model.sequence()], &[ids], ids.len(), &mut hooks).unwrap();
    let chosen = |site: &str| {
        let of = |t: &candle_core::Tensor| {
            t.to_dtype(candle_core::DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let mut experts: Vec<u32> = hooks.take(site).iter().flat_map(of).map(|e| e as u32).collect();
        experts.sort_unstable();
        experts.dedup();
        experts.len()
    };
    let spread = names.into_iter().map(chosen).collect();
    (logits.flatten_all().unwrap().to_vec1().unwrap(), spread)
}

#[test]
fn generated_models_behave_like_models() {
    for preset in ["gpt-oss-nano", "dense-nano", "gpt-oss-tiny", "dense-tiny"] {
        let config = preset::config(preset).unwrap();
        let random = |i: u32| i.wrapping_mul(2_654_435_761) % config.vocab_size as u32;
        let ids: Vec<u32> = (1..=256).map(random).collect();
        let (logits, spread) = run(preset, &ids);
        let n = logits.len() as f32;
        let mean = logits.iter().sum::<f32>() / n;
        let std = (logits.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n).sqrt();
        assert!((1.0..6.0).contains(&std), "{preset}: logits spread by {std}");
        let (other, _) = run(preset, &ids[..255]);
        assert!(logits.iter().zip(&other).any(|(a, b)| (a - b).abs() > 0.5), "{preset}: logits are constant");
        if let Some(moe) = &config.moe {
            assert_eq!(spread.len(), config.num_hidden_layers);
            let enough = moe.num_local_experts / 2;
            assert!(spread.iter().all(|chosen| *chosen > enough), "{preset}: experts used {spread:?}");
        }
    }
}
