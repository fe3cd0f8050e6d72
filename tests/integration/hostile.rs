//! Damaged and malicious checkpoints: an error that names file and tensor, never a panic or a huge allocation.
//!
//! Seeded mutations of the reference checkpoints' headers, index files and configs go through all that a load
//! does, in a process of their own, so that its memory is theirs alone.

// What became of each kind of mutation is part of the result.
#![allow(clippy::print_stdout)]

mod mutate;

use std::fs::{self, File};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use bench_engine::checkpoint::Folder;
use bench_engine::config::{ExpertDtype, ModelConfig};
use bench_engine::{Error, Hooks, KvDtype, LoadOptions, Model, layout};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::checkpoint::{copy_of, golden};
use mutate::{mutate_bytes, mutate_header, mutate_index, mutate_value};

const MODELS: [&str; 4] = ["gpt-oss-tiny", "gpt-oss-tiny-bf16", "qwen3-tiny", "llama-tiny"];
const INDEX: &str = "model.safetensors.index.json";
/// Of each model: 4 x (1200 + 500 + 800) = 10,000.
const HEADERS: u64 = 1200;
const INDICES: u64 = 500;
const CONFIGS: u64 = 800;
const MAX_BYTES: u64 = 1 << 30;
/// Set in the process that does the work.
const CHILD: &str = "OSSBENCH_HOSTILE_CHILD";

/// All that loading does, up to the first tokens.
fn load(folder: &Path) -> Result<(), Error> {
    let text = fs::read(folder.join("config.json")).unwrap();
    ModelConfig::from_json(&String::from_utf8_lossy(&text))?;
    let config = ModelConfig::from_folder(folder)?;
    // None of the arithmetic on a valid config may overflow.
    let (counts, kv) =
        (layout::parameter_counts(&config), layout::kv_bytes(&config, 1 << 20, KvDtype::F32, true));
    assert!(counts.total > 0 && kv > 0 && layout::weights_bytes(&config, ExpertDtype::Bf16) > 0);
    let weights = Folder::open(folder)?;
    let checked = weights.check(&config);
    // The model stands on its own checks too: it is built from what `check` refuses as well.
    let model = Model::build(config, &weights, &LoadOptions::default(), &mut |_| ())?;
    checked?;
    let mut sequence = model.sequence();
    model.prefill(&mut [&mut sequence], &[&[0, 1, 2]], 2, &mut Hooks::default())?;
    model.decode_step(&mut [&mut sequence], &[0], &mut Hooks::default())?;
    Ok(())
}

/// A safetensors file in its parts.
struct Shard {
    path: PathBuf,
    whole: Vec<u8>,
    header: Value,
    data: usize,
}

impl Shard {
    fn read(path: PathBuf) -> Self {
        let whole = fs::read(&path).unwrap();
        let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&whole[8..8 + length]).unwrap();
        Self { path, header, data: whole.len() - 8 - length, whole }
    }

    fn restore(&self) {
        fs::write(&self.path, &self.whole).unwrap();
    }

    /// Writes a file with `header` and as many bytes of data as there were; they are zeros and take no space.
    fn write(&self, length: u64, header: &[u8], data: usize) {
        let mut file = File::create(&self.path).unwrap();
        file.write_all(&length.to_le_bytes()).unwrap();
        file.write_all(header).unwrap();
        file.set_len((8 + header.len() + data) as u64).unwrap();
    }

    fn write_header(&self, header: &Value) {
        let text = header.to_string();
        self.write(text.len() as u64, text.as_bytes(), self.data);
    }
}

fn shards(folder: &Path) -> Vec<Shard> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
    paths.sort();
    paths.into_iter().map(Shard::read).collect()
}

/// What became of the cases of one kind.
#[derive(Default)]
struct Outcome {
    loaded: u64,
    refused: u64,
    panicked: Vec<u64>,
    longest: usize,
}

impl Outcome {
    /// Loads `folder` once for each case, after `damage` did its work.
    fn run(&mut self, folder: &Path, cases: u64, mut damage: impl FnMut(u64, &mut ChaCha8Rng)) {
        for case in 0..cases {
            let mut rng = ChaCha8Rng::seed_from_u64(case);
            damage(case, &mut rng);
            match catch_unwind(AssertUnwindSafe(|| load(folder))) {
                Ok(Ok(())) => self.loaded += 1,
                Ok(Err(error)) => {
                    self.refused += 1;
                    self.longest = self.longest.max(error.to_string().len());
                }
                Err(_) => self.panicked.push(case),
            }
        }
    }
}

/// Damages a folder many times, and leaves it as it was.
type Damage = fn(&Path) -> Outcome;

fn damage_configs(folder: &Path) -> Outcome {
    let path = folder.join("config.json");
    let text = fs::read(&path).unwrap();
    let value: Value = serde_json::from_slice(&text).unwrap();
    let mut outcome = Outcome::default();
    outcome.run(folder, CONFIGS, |case, rng| {
        let mutated = if case % 4 == 0 { mutate_bytes(&text, rng) } else { mutate_value(&value, rng) };
        fs::write(&path, mutated).unwrap();
    });
    fs::write(&path, text).unwrap();
    outcome
}

fn damage_indices(folder: &Path) -> Outcome {
    let path = folder.join(INDEX);
    // Checkpoints of one file get an index that names it.
    let original = fs::read(&path).ok();
    let text = original.clone().unwrap_or_else(|| {
        let shard = Shard::read(folder.join("model.safetensors"));
        let names = shard.header.as_object().unwrap().keys().filter(|name| *name != "__metadata__");
        let map: serde_json::Map<String, Value> =
            names.map(|name| (name.clone(), json!("model.safetensors"))).collect();
        json!({"metadata": {}, "weight_map": map}).to_string().into_bytes()
    });
    fs::create_dir(folder.join("folder.safetensors")).unwrap();
    let value: Value = serde_json::from_slice(&text).unwrap();
    let mut outcome = Outcome::default();
    outcome.run(folder, INDICES, |case, rng| {
        let mutated = match case % 4 {
            0 => mutate_bytes(&text, rng),
            1 => mutate_value(&value, rng),
            _ => mutate_index(&value, rng),
        };
        fs::write(&path, mutated).unwrap();
    });
    fs::remove_dir(folder.join("folder.safetensors")).unwrap();
    match original {
        Some(text) => fs::write(&path, text).unwrap(),
        None => fs::remove_file(&path).unwrap(),
    }
    outcome
}

fn damage_headers(folder: &Path) -> Outcome {
    let mut outcome = Outcome::default();
    let shards = shards(folder);
    for shard in &shards {
        let text = shard.header.to_string();
        outcome.run(folder, HEADERS / shards.len() as u64, |case, rng| {
            let (mut data, mut length) = (shard.data, None);
            let header = match case % 8 {
                0 => mutate_bytes(text.as_bytes(), rng),
                1 => mutate_value(&shard.header, rng),
                2 => {
                    length = Some(match rng.random_range(0..3) {
                        0 => rng.random::<u64>() >> rng.random_range(0..64),
                        1 => text.len() as u64 + 1,
                        _ => text.len() as u64 - 1,
                    });
                    text.clone().into_bytes()
                }
                3 => {
                    data = rng.random_range(0..2 * shard.data);
                    text.clone().into_bytes()
                }
                _ => mutate_header(&shard.header, rng),
            };
            shard.write(length.unwrap_or(header.len() as u64), &header, data);
        });
        shard.restore();
    }
    outcome
}

/// A number of kilobytes from this process's status, as bytes.
fn status_bytes(field: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The work itself, in the child.
fn ten_thousand() {
    let start = std::time::Instant::now();
    let space_before = status_bytes("VmSize");
    let (mut cases, mut refused, mut panics) = (0, 0, Vec::new());
    for model in MODELS {
        let folder = copy_of(model);
        load(folder.path()).unwrap();
        let kinds: [(&str, Damage); 3] =
            [("configs", damage_configs), ("index files", damage_indices), ("headers", damage_headers)];
        for (kind, damage) in kinds {
            let outcome = damage(folder.path());
            let n = outcome.loaded + outcome.refused + outcome.panicked.len() as u64;
            println!(
                "{model}: of {n} {kind}, {} refused, {} loaded, {} panicked; longest error {} bytes",
                outcome.refused,
                outcome.loaded,
                outcome.panicked.len(),
                outcome.longest
            );
            assert!(outcome.refused > n / 3, "{model}: most mutations of {kind} changed nothing");
            assert!(outcome.longest < 1500, "{model}: an error about {kind} repeats what the file says");
            cases += n;
            refused += outcome.refused;
            panics.extend(outcome.panicked.into_iter().map(|case| format!("{model}, {kind}, case {case}")));
            // What a case damaged is whole again.
            load(folder.path()).unwrap();
        }
    }
    println!("{cases} mutated files, {refused} refused, in {:.1} s", start.elapsed().as_secs_f64());
    assert!(panics.is_empty(), "panics: {panics:?}");
    assert_eq!(cases, 10_000);
    let (Some(peak), Some(space), Some(before)) =
        (status_bytes("VmHWM"), status_bytes("VmPeak"), space_before)
    else {
        println!("memory not measured: no /proc/self/status here");
        return;
    };
    // Memory that is asked for and never touched shows in the address space alone.
    let asked = space.saturating_sub(before);
    println!("peak resident {} MB, address space grew by {} MB", peak >> 20, asked >> 20);
    assert!(peak < MAX_BYTES, "{peak} bytes resident");
    assert!(asked < MAX_BYTES, "{asked} bytes of address space");
}

/// Runs `body` in a process of its own, whose memory no other test moves: this binary again, with this test only.
fn alone(test: &str, body: fn()) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args([&format!("hostile::{test}"), "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        // The allocator sets address space aside for every thread.
        .env("RAYON_NUM_THREADS", "2")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
    println!("{text}");
    assert!(child.status.success() && text.contains("1 passed"), "the child ended with {}", child.status);
}

#[test]
fn ten_thousand_mutated_files_are_loaded_or_refused() {
    alone("ten_thousand_mutated_files_are_loaded_or_refused", ten_thousand);
}

#[test]
fn headers_that_claim_much_allocate_little() {
    alone("headers_that_claim_much_allocate_little", open_claims);
}

fn open_claims() {
    let before = status_bytes("VmHWM");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let entry = |shape: &str, end: u64| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
    };
    let many = format!("[{}1]", "1,".repeat(1 << 20));
    let claims = [
        (1 << 40, String::new()),
        (u64::MAX, "{}".to_owned()),
        (0, entry("[1099511627776]", 4 << 40)),
        (0, entry("[4294967296,4294967296]", 0)),
        (0, entry(&many, 4)),
        (0, entry(&"[".repeat(1 << 20), 4)),
        (0, format!("{{\"{}\":1}}", "a".repeat(1 << 20))),
    ];
    for (length, header) in claims {
        let length = if length == 0 { header.len() as u64 } else { length };
        fs::write(&path, [&length.to_le_bytes()[..], header.as_bytes(), b"data"].concat()).unwrap();
        let error = Folder::open(dir.path()).err().expect("a false claim was believed").to_string();
        assert!(error.contains("model.safetensors") && error.len() < 1500, "{} bytes of error", error.len());
    }
    if let (Some(before), Some(after)) = (before, status_bytes("VmHWM")) {
        assert!(after - before < 256 << 20, "memory grew from {before} to {after} bytes");
    }
}

fn check(folder: &Path, expected: &[&str]) {
    let error = load(folder).expect_err("a damaged checkpoint was loaded").to_string();
    for part in expected {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
}

/// Loads a copy of `model` after `change` to the header of its shard number `shard`.
fn check_header(model: &str, shard: usize, change: impl Fn(&mut Value), expected: &[&str]) {
    let folder = copy_of(model);
    let shards = shards(folder.path());
    let mut header = shards[shard].header.clone();
    change(&mut header);
    shards[shard].write_header(&header);
    let file = shards[shard].path.file_name().unwrap().to_str().unwrap();
    check(folder.path(), &[&[file], expected].concat());
}

#[test]
fn errors_name_file_and_tensor() {
    let tensor = "model.layers.1.mlp.down_proj.weight";
    check_header(
        "qwen3-tiny",
        0,
        |header| header[tensor]["shape"].as_array_mut().unwrap().reverse(),
        &[tensor, "has shape [320, 128]", "asks for [128, 320]"],
    );
    check_header(
        "qwen3-tiny",
        0,
        |header| {
            let entry = header.as_object_mut().unwrap().remove(tensor).unwrap();
            header["renamed"] = entry;
        },
        &[tensor, "is missing"],
    );
    check_header(
        "qwen3-tiny",
        0,
        |header| {
            let begin = header[tensor]["data_offsets"][0].as_u64().unwrap();
            header[tensor]["shape"] = json!([1_u64 << 40]);
            header[tensor]["data_offsets"][1] = json!(begin + (2 << 40));
        },
        &[tensor, "is truncated", "ends at byte 219"],
    );
    check_header(
        "llama-tiny",
        0,
        |header| header[tensor]["dtype"] = json!("F31"),
        &[tensor, "unknown dtype \"F31\""],
    );
}

#[test]
fn truncated_files_and_terabyte_headers_are_named() {
    let folder = copy_of("gpt-oss-tiny");
    let shard = &shards(folder.path())[0];
    let (file, size) = (shard.path.file_name().unwrap().to_str().unwrap(), shard.whole.len());
    fs::write(&shard.path, &shard.whole[..size - 1000]).unwrap();
    check(folder.path(), &[file, "is truncated: tensor \"model.", &format!("the file has {}", size - 1000)]);
    shard.write(1 << 42, b"{}", 0);
    check(folder.path(), &[file, "claims a header of 4398046511104 bytes"]);
    // Below the limit of the format, but more than there is.
    shard.write(90_000_000, b"{}", 0);
    check(folder.path(), &[file, "claims a header of 90000000 bytes", "only 10 bytes"]);
}

#[test]
fn blocks_without_scales_and_missing_shards_are_named() {
    let folder = copy_of("gpt-oss-tiny");
    let path = folder.path().join(INDEX);
    let whole: Value =
        serde_json::from_slice(&fs::read(golden("gpt-oss-tiny").join(INDEX)).unwrap()).unwrap();
    let scales = "model.layers.0.mlp.experts.gate_up_proj_scales";
    let mut index = whole.clone();
    index["weight_map"].as_object_mut().unwrap().remove(scales).unwrap();
    fs::write(&path, index.to_string()).unwrap();
    let folder_name = folder.path().to_str().unwrap();
    check(folder.path(), &[folder_name, scales, "gate_up_proj_blocks\" is there", "without their scales"]);
    let mut index = whole;
    index["weight_map"][scales] = json!("model-00003-of-00002.safetensors");
    fs::write(&path, index.to_string()).unwrap();
    check(folder.path(), &["model-00003-of-00002.safetensors is missing", INDEX, "1 tensors"]);
}
