//! Configs, layouts and safetensors folders, against the reference checkpoints and the real gpt-oss-20b files.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use bench_engine::checkpoint::Folder;
use bench_engine::config::{Architecture, ExpertDtype, LayerType, ModelConfig, RopeScaling};
use bench_engine::layout;
use bench_engine::weights::{TensorDtype, WeightSource};
use serde_json::{Value, json};

pub(crate) fn golden(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/golden")).join(path)
}

const MODELS: [&str; 4] = ["gpt-oss-tiny", "gpt-oss-tiny-bf16", "qwen3-tiny", "llama-tiny"];

/// Copies a reference checkpoint (config and weights) to a folder that a test may damage.
pub(crate) fn copy_of(model: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden(model)).unwrap() {
        let entry = entry.unwrap();
        if !entry.file_name().to_string_lossy().starts_with("tokenizer") {
            // Written anew and not copied: the permissions of a read-only original would come along.
            fs::write(dir.path().join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap();
        }
    }
    dir
}

#[test]
fn every_reference_checkpoint_has_exactly_the_tensors_of_its_layout() {
    for model in MODELS {
        let config = ModelConfig::from_folder(&golden(model)).unwrap();
        let folder = Folder::open(&golden(model)).unwrap();
        folder.check(&config).unwrap();
        let specs = layout::tensors(&config);
        let mut expected: Vec<&str> = specs.iter().map(|s| s.name.as_str()).collect();
        let mut found: Vec<&str> = folder.names().collect();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(expected, found, "{model}");
        assert_eq!(folder.data_bytes(), layout::weights_bytes(&config, ExpertDtype::Native), "{model}");
    }
}

#[test]
fn tensors_have_the_bytes_that_the_safetensors_crate_reads() {
    for model in MODELS {
        let folder = Folder::open(&golden(model)).unwrap();
        let mut compared = 0;
        for entry in fs::read_dir(golden(model)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "safetensors") {
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            for (name, view) in safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors() {
                let tensor = folder.tensor(&name, view.shape()).unwrap();
                assert_eq!(tensor.as_bytes(), view.data(), "{model} {name}");
                assert_eq!(tensor.dtype.name(), format!("{:?}", view.dtype()), "{model} {name}");
                compared += 1;
            }
        }
        assert_eq!(compared, folder.names().count(), "{model}");
    }
}

#[test]
fn the_real_20b_layout_is_reproduced() {
    let config = ModelConfig::from_folder(&golden("real-gpt-oss-20b")).unwrap();
    assert_eq!(config.eos_token_ids, [200_002, 199_999, 200_012]);
    assert_eq!(config.layer_types[0], LayerType::Sliding);
    assert_eq!(config.layer_types[23], LayerType::Full);
    let text = fs::read_to_string(golden("real-gpt-oss-20b/tensors.json")).unwrap();
    let real: BTreeMap<String, (String, Vec<usize>)> = serde_json::from_str(&text).unwrap();
    let ours: BTreeMap<String, (String, Vec<usize>)> = layout::tensors(&config)
        .into_iter()
        .map(|s| (s.name, (s.dtype.name().to_owned(), s.shape)))
        .collect();
    assert_eq!(real.len(), 459);
    assert_eq!(ours, real);
    let index = fs::read_to_string(golden("real-gpt-oss-20b/model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    let total = index["metadata"]["total_size"].as_u64().unwrap();
    assert_eq!(layout::weights_bytes(&config, ExpertDtype::Native), total);
    assert!(layout::tensors(&config).iter().all(|s| index["weight_map"][&s.name].is_string()));
}

#[test]
fn configs_are_read_in_both_spellings() {
    let old = ModelConfig::from_folder(&golden("gpt-oss-tiny")).unwrap();
    let mut new = ModelConfig::from_folder(&golden("gpt-oss-tiny-bf16")).unwrap();
    assert!(old.mxfp4 && !new.mxfp4);
    new.mxfp4 = true;
    assert_eq!(old, new);
    assert_eq!(old.eos_token_ids, [494, 491, 504]);
    assert_eq!(old.sliding_window, Some(16));
    let RopeScaling::Yarn { factor, truncate, original_max_position_embeddings, .. } = old.rope_scaling
    else {
        panic!("{:?}", old.rope_scaling)
    };
    assert_eq!((factor, truncate, original_max_position_embeddings), (32.0, false, 4096));
    let qwen = ModelConfig::from_folder(&golden("qwen3-tiny")).unwrap();
    assert_eq!((qwen.architecture, qwen.head_dim), (Architecture::Qwen3, 64));
    assert!(qwen.tie_word_embeddings && qwen.sliding_window.is_none());
    let yi = ModelConfig::from_folder(&golden("llama-tiny")).unwrap();
    assert_eq!((yi.architecture, yi.head_dim, yi.rope_theta), (Architecture::Llama, 32, 5e6));
}

/// The config of `model` with some keys replaced (or removed, by null).
fn changed(model: &str, changes: &Value) -> String {
    let text = fs::read_to_string(golden(model).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config.to_string()
}

fn refused(model: &str, changes: &Value, expected: &str) {
    match ModelConfig::from_json(&changed(model, changes)) {
        Ok(_) => panic!("{model} with {changes} was accepted"),
        Err(e) => assert!(e.to_string().contains(expected), "{changes}: {e:?} lacks {expected:?}"),
    }
}

#[test]
fn bad_configs_are_refused_with_the_key() {
    let keys = [
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "attention_bias",
        "sliding_window",
        "rope_theta",
        "num_local_experts",
        "num_experts_per_tok",
        "swiglu_limit",
    ];
    for key in keys {
        refused("gpt-oss-tiny", &json!({ key: null }), key);
        refused("gpt-oss-tiny", &json!({ key: "many" }), if key == "model_type" { "many" } else { key });
    }
    for key in ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"] {
        for size in [json!(0), json!(-1), json!(1.5), json!(1e30), json!(u64::MAX)] {
            refused("llama-tiny", &json!({ key: size }), key);
        }
    }
    let cases = [
        (json!({"model_type": "mistral"}), "expected one of gpt_oss, qwen3, llama"),
        (json!({"architectures": ["GptOssForSequenceClassification"]}), "not supported"),
        (json!({"num_key_value_heads": 3}), "not a multiple"),
        (json!({"head_dim": 63}), "odd"),
        (json!({"num_experts_per_tok": 9}), "more than \"num_local_experts\" 8"),
        (json!({"layer_types": ["full_attention"]}), "1 entries for 4"),
        (json!({"layer_types": ["full_attention", "full_attention", "full_attention", "none"]}), "\"none\""),
        (json!({"hidden_size": 16_777_216, "intermediate_size": 16_777_216}), "parameters, more than"),
        (json!({"num_hidden_layers": 5000, "layer_types": null}), "more than 4096"),
        (json!({"hidden_size": 100}), "multiple of 32"),
        (json!({"hidden_act": "gelu"}), "only value"),
        (json!({"rope_scaling": {"rope_type": "linear", "factor": 2}}), "one of default, yarn, llama3"),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 2}}), "rope_scaling.beta_fast"),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 0.5}}), "below 1"),
        (json!({"rope_scaling": {"rope_type": "default", "rope_theta": 1}}), "two values"),
        (json!({"rope_scaling": 3}), "an object"),
        (json!({"quantization_config": {"quant_method": "gptq"}}), "gptq"),
        (json!({"eos_token_id": 512}), "vocab_size"),
        (json!({"rms_norm_eps": 0}), "a positive number"),
    ];
    for (changes, expected) in cases {
        refused("gpt-oss-tiny", &changes, expected);
    }
    refused("llama-tiny", &json!({"num_attention_heads": 6}), "no \"head_dim\"");
    refused("qwen3-tiny", &json!({"quantization_config": {"quant_method": "mxfp4"}}), "mxfp4");
    assert!(ModelConfig::from_json("[]").is_err() && ModelConfig::from_json("{\"a\":").is_err());
}

#[test]
fn layers_can_be_cut() {
    let config = ModelConfig::from_folder(&golden("gpt-oss-tiny")).unwrap();
    let cut = config.clone().with_layers(2).unwrap();
    assert_eq!((cut.num_hidden_layers, cut.layer_types.len()), (2, 2));
    assert!(layout::tensors(&cut).iter().all(|s| s.layer.is_none_or(|l| l < 2)));
    assert!(layout::tensors(&cut).iter().any(|s| s.name == "lm_head.weight"));
    Folder::open(&golden("gpt-oss-tiny")).unwrap().check(&cut).unwrap();
    for layers in [0, 5] {
        let error = config.clone().with_layers(layers).unwrap_err().to_string();
        assert!(error.contains("expected 1 to 4"), "{error}");
    }
}

fn open_error(folder: &Path) -> String {
    match Folder::open(folder) {
        Ok(opened) => {
            let config = ModelConfig::from_folder(folder).unwrap();
            opened.check(&config).expect_err("a damaged folder was accepted").to_string()
        }
        Err(e) => e.to_string(),
    }
}

fn assert_names(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
}

#[test]
fn damaged_folders_are_refused_by_name() {
    let shard = "model-00002-of-00002.safetensors";
    let dir = copy_of("gpt-oss-tiny");
    let path = dir.path().join(shard);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert_names(&open_error(dir.path()), &[shard, "is truncated: tensor", "download it again"]);
    fs::write(&path, &whole[..100]).unwrap();
    assert_names(&open_error(dir.path()), &[shard, "claims a header of"]);
    fs::write(&path, b"").unwrap();
    assert_names(&open_error(dir.path()), &[shard, "too few"]);
    let mut claim = whole.clone();
    claim[5] = 0xff;
    fs::write(&path, &claim).unwrap();
    assert_names(&open_error(dir.path()), &[shard, "claims a header of"]);
    fs::remove_file(&path).unwrap();
    assert_names(&open_error(dir.path()), &[shard, "is missing", "tensors in it"]);

    let dir = copy_of("qwen3-tiny");
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert_names(&open_error(dir.path()), &["is not a checkpoint", "model.safetensors.index.json"]);
    fs::remove_file(dir.path().join("config.json")).unwrap();
    let error = ModelConfig::from_folder(dir.path()).unwrap_err().to_string();
    assert_names(&error, &["has no config.json"]);
    let error = ModelConfig::from_folder(&dir.path().join("nothing")).unwrap_err().to_string();
    assert_names(&error, &["nothing", "is not a folder"]);
}

#[test]
fn index_and_files_must_agree() {
    let dir = copy_of("gpt-oss-tiny");
    let path = dir.path().join("model.safetensors.index.json");
    let whole: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let write = |tensor: &str, file: &str| {
        let mut index = whole.clone();
        index["weight_map"][tensor] = json!(file);
        fs::write(&path, index.to_string()).unwrap();
        open_error(dir.path())
    };
    let last = "model-00002-of-00002.safetensors";
    assert_names(&write("lm_head.weight", last), &["lm_head.weight", last, "not of one version"]);
    assert_names(&write("lm_head.weight", "model-3.safetensors"), &["model-3.safetensors", "is missing"]);
    for outside in ["../model.safetensors", "/etc/passwd", "a/../../b.safetensors"] {
        assert_names(&write("lm_head.weight", outside), &["lm_head.weight", outside, "inside of the folder"]);
    }
}

/// What becomes of a tensor's name and header entry; `None` drops it.
type Change = dyn Fn(&str, Value) -> Option<(String, Value)>;

/// Rewrites a single-file checkpoint with some tensors changed, dropped or renamed.
fn rewrite(dir: &Path, change: &Change) {
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: HashMap<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let (mut map, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, info) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        let range = |i: usize| 8 + length + info["data_offsets"][i].as_u64().unwrap() as usize;
        let slice = &bytes[range(0)..range(1)];
        if let Some((name, mut info)) = change(&name, info.clone()) {
            info["data_offsets"] = json!([data.len(), data.len() + slice.len()]);
            data.extend_from_slice(slice);
            map.insert(name, info);
        }
    }
    // An odd header length, so that every tensor of two-byte elements starts at an odd address.
    let mut header = Value::Object(map).to_string();
    if header.len().is_multiple_of(2) {
        header.push(' ');
    }
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    fs::write(&path, file).unwrap();
}

#[test]
fn wrong_tensors_are_refused_by_name() {
    const TARGET: &str = "model.layers.1.mlp.experts.down_proj";
    let edit = |change: &Change| {
        let dir = copy_of("gpt-oss-tiny-bf16");
        rewrite(dir.path(), change);
        open_error(dir.path())
    };
    let error = edit(&|name, info| (name != TARGET).then(|| (name.to_owned(), info)));
    assert_names(&error, &[TARGET, "is missing", "model.safetensors", "download is incomplete"]);
    let error = edit(&|name, mut info| {
        if name == TARGET {
            info["shape"] = json!([8, 128, 96]);
        }
        Some((name.to_owned(), info))
    });
    assert_names(&error, &[TARGET, "has shape [8, 128, 96]", "asks for [8, 96, 128]"]);
    let error = edit(&|name, mut info| {
        if name == TARGET {
            info["dtype"] = json!("I16");
        }
        Some((name.to_owned(), info))
    });
    assert_names(&error, &[TARGET, "has dtype I16"]);
    let error = edit(&|name, info| {
        let name = if name == TARGET { format!("{name}_blocks") } else { name.to_owned() };
        Some((name, info))
    });
    assert_names(&error, &[TARGET, "the experts are MXFP4, but config.json does not say so"]);
}

#[test]
fn blocks_without_scales_are_refused() {
    let dir = copy_of("gpt-oss-tiny");
    let scales = "model.layers.2.mlp.experts.down_proj_scales";
    let path = dir.path().join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    index["weight_map"].as_object_mut().unwrap().remove(scales);
    fs::write(&path, index.to_string()).unwrap();
    assert_names(&open_error(dir.path()), &[scales, "mean nothing without their scales"]);

    let config: Value = serde_json::from_str(&changed("gpt-oss-tiny", &json!({}))).unwrap();
    let dir = copy_of("gpt-oss-tiny-bf16");
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    assert_names(&open_error(dir.path()), &["gate_up_proj_blocks", "bf16, but config.json says mxfp4"]);
}

#[test]
fn unaligned_tensors_are_copied_and_equal() {
    let dir = copy_of("llama-tiny");
    rewrite(dir.path(), &|name, info| Some((name.to_owned(), info)));
    let (original, moved) = (Folder::open(&golden("llama-tiny")).unwrap(), Folder::open(dir.path()).unwrap());
    for spec in layout::tensors(&ModelConfig::from_folder(dir.path()).unwrap()) {
        let (a, b) = (original.tensor(&spec.name, &spec.shape), moved.tensor(&spec.name, &spec.shape));
        let (a, b) = (a.unwrap(), b.unwrap());
        assert!(a.is_mapped() && !b.is_mapped() && b.dtype == TensorDtype::Bf16);
        assert_eq!(a.as_bf16().unwrap(), b.as_bf16().unwrap(), "{}", spec.name);
    }
}
