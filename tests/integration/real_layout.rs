//! The published gpt-oss layouts at their real sizes: shards whose data is one hole in the file system, so that
//! 14 and 65 GB are opened, checked and run without a byte of weights.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use bench_engine::checkpoint::Folder;
use bench_engine::config::{ExpertDtype, ModelConfig};
use bench_engine::layout::{self, TensorSpec};
use bench_engine::{Hooks, LoadOptions, Model, preset};
use serde_json::{Map, Value, json};

use crate::checkpoint::golden;

/// Writes each shard's header, its tensors in the order of their names, and a hole for their data.
fn write_shards(folder: &Path, specs: &[TensorSpec], weight_map: &BTreeMap<String, String>) {
    let mut shards = BTreeMap::<&str, Vec<&TensorSpec>>::new();
    for spec in specs {
        shards.entry(&weight_map[&spec.name]).or_default().push(spec);
    }
    for (name, mut tensors) in shards {
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let (mut header, mut end) = (Map::new(), 0);
        for spec in tensors {
            let start = end;
            end += spec.bytes();
            let entry =
                json!({ "dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [start, end] });
            header.insert(spec.name.clone(), entry);
        }
        let header = Value::Object(header).to_string();
        let mut file = File::create(folder.join(name)).unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        file.set_len(8 + header.len() as u64 + end).unwrap();
    }
    let index = json!({ "metadata": {}, "weight_map": weight_map });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// Opens the folder, checks every tensor, and runs a prompt through the first two layers.
fn check_loads(folder: &Path, config: &ModelConfig) {
    let weights = Folder::open(folder).unwrap();
    weights.check(config).unwrap();
    assert_eq!(weights.data_bytes(), layout::weights_bytes(config, ExpertDtype::Native));
    let options = LoadOptions { num_layers: Some(2), ..LoadOptions::default() };
    let model = Model::build(config.clone(), &weights, &options, &mut |_| ()).unwrap();
    let mut sequence = model.sequence();
    let logits = model.prefill(&mut [&mut sequence], &[&[1, 2, 3]], 512, &mut Hooks::none()).unwrap();
    assert_eq!(logits.dims(), [1, 201_088]);
    // Weights that are all zero have logits that are all zero.
    assert!(logits.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|l| *l == 0.0));
}

#[test]
fn gpt_oss_20b_loads_through_its_published_index() {
    let dir = tempfile::tempdir().unwrap();
    let index = fs::read_to_string(golden("real-gpt-oss-20b/model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    let weight_map: BTreeMap<String, String> = serde_json::from_value(index["weight_map"].clone()).unwrap();
    // Three files that call themselves "of 2".
    assert!(weight_map.values().any(|file| file == "model-00000-of-00002.safetensors"));
    let config = ModelConfig::from_folder(&golden("real-gpt-oss-20b")).unwrap();
    write_shards(dir.path(), &layout::tensors(&config), &weight_map);
    check_loads(dir.path(), &config);
}

#[test]
fn gpt_oss_120b_loads_from_fifteen_shards_in_string_order() {
    let dir = tempfile::tempdir().unwrap();
    let config = preset::config("gpt-oss-120b").unwrap();
    let mut specs = layout::tensors(&config);
    specs.sort_by(|a, b| a.name.cmp(&b.name));
    let per_shard = specs.len().div_ceil(15);
    let shard = |i: usize| format!("model-{:05}-of-00014.safetensors", i / per_shard);
    let weight_map = specs.iter().enumerate().map(|(i, s)| (s.name.clone(), shard(i))).collect();
    write_shards(dir.path(), &specs, &weight_map);
    assert!(dir.path().join("model-00014-of-00014.safetensors").exists());
    check_loads(dir.path(), &config);
}
