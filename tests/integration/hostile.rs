//! Ten thousand damaged checkpoints: every one is an error or is read, none panics or takes the memory.
//!
//! Damage is of bytes (flips, cuts, repeats) and of structure (huge numbers, swapped offsets, wrong types, deep
//! nesting, keys twice). What opens in spite of it is read to the end, as a model would.

#![allow(clippy::print_stdout)] // the counts, and how much memory it took

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use bench_engine::checkpoint::Folder;
use bench_engine::config::{ExpertDtype, ModelConfig};
use bench_engine::layout;
use bench_engine::weights::WeightSource;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::checkpoint::golden;

const MUTATIONS: usize = 10_000;
const MEMORY_LIMIT: u64 = 1 << 30;

/// Damages a JSON text, by structure or by bytes.
fn damage_json(text: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    if rng.random_bool(0.4) {
        return damage_bytes(text, rng);
    }
    let mut value: Value = serde_json::from_slice(text).unwrap();
    for _ in 0..rng.random_range(1..4) {
        damage_value(&mut value, rng, 0);
    }
    let text = value.to_string();
    if rng.random_bool(0.1) { key_twice(&text) } else { text.into_bytes() }
}

/// The same members once more, so that every key stands twice.
fn key_twice(text: &str) -> Vec<u8> {
    let inner = text.trim().trim_start_matches('{').trim_end_matches('}');
    format!("{{{inner},{inner}}}").into_bytes()
}

fn damage_value(value: &mut Value, rng: &mut ChaCha8Rng, depth: usize) {
    let descend = depth < 6 && rng.random_bool(0.85);
    match value {
        Value::Object(map) if descend && !map.is_empty() => {
            let key = map.keys().nth(rng.random_range(0..map.len())).unwrap().clone();
            match rng.random_range(0..12) {
                0 => drop(map.remove(&key)),
                1 => {
                    let moved = map.remove(&key).unwrap();
                    map.insert(format!("{key}_"), moved);
                }
                _ => damage_value(&mut map[&key], rng, depth + 1),
            }
        }
        Value::Array(list) if descend && !list.is_empty() => match rng.random_range(0..6) {
            0 => list.reverse(),
            1 => drop(list.pop()),
            2 => list.push(strange(rng)),
            _ => {
                let at = rng.random_range(0..list.len());
                damage_value(&mut list[at], rng, depth + 1);
            }
        },
        _ => *value = strange(rng),
    }
}

fn strange(rng: &mut ChaCha8Rng) -> Value {
    match rng.random_range(0..16) {
        0 => Value::Null,
        1 => json!(u64::MAX),
        2 => json!(i64::MIN),
        3 => json!(1e308),
        4 => json!(0),
        5 => json!(-1),
        6 => json!(1_u64 << rng.random_range(0..64)),
        7 => json!(rng.random_range(0..5000)),
        8 => json!("x".repeat(rng.random_range(0..2000))),
        9 => json!("../../etc/passwd.safetensors"),
        10 => json!([[[[]]]]),
        11 => json!(vec![u64::MAX; rng.random_range(0..64)]),
        12 => json!({"a": {"b": 1}}),
        13 => json!(["F64", "F4", "BOOL", "sliding_attention"][rng.random_range(0..4)]),
        14 => (0..100).fold(json!(1), |inner, _| json!([inner])),
        _ => json!(true),
    }
}

fn damage_bytes(bytes: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..rng.random_range(1..6) {
        if bytes.is_empty() {
            break;
        }
        let at = rng.random_range(0..bytes.len());
        match rng.random_range(0..6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.remove(at)),
            2 => bytes.insert(at, rng.random()),
            3 => bytes.splice(at..at, b"99999999999999999999".iter().copied()).for_each(drop),
            4 => bytes.splice(at..at, vec![b'['; 2000]).for_each(drop),
            _ => bytes[at] ^= 1 << rng.random_range(0..8),
        }
    }
    bytes
}

/// A file to damage: its first bytes, and how many zeros follow. Only headers are believed or not, so the data of
/// safetensors is a hole in the file, which costs no writing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Damageable {
    name: String,
    head: Vec<u8>,
    zeros: u64,
}

impl Damageable {
    fn read(path: &Path) -> Self {
        let (mut head, mut zeros) = (fs::read(path).unwrap(), 0);
        if path.extension().is_some_and(|e| e == "safetensors") {
            let end = 8 + u64::from_le_bytes(head[..8].try_into().unwrap()) as usize;
            zeros = (head.len() - end) as u64;
            head.truncate(end);
        }
        Self { name: path.file_name().unwrap().to_str().unwrap().to_owned(), head, zeros }
    }

    fn write(&self, folder: &Path) {
        let mut file = fs::File::create(folder.join(&self.name)).unwrap();
        file.write_all(&self.head).unwrap();
        file.set_len(self.head.len() as u64 + self.zeros).unwrap();
    }

    /// A damaged copy: for safetensors the length field, the JSON, or the length of the file.
    fn damaged(&self, rng: &mut ChaCha8Rng) -> Self {
        let mut copy = self.clone();
        if self.zeros == 0 {
            copy.head = damage_json(&self.head, rng);
            return copy;
        }
        match rng.random_range(0..10) {
            0 => copy.head[..8].copy_from_slice(&rng.random::<u64>().to_le_bytes()),
            1 => copy.head[..8].copy_from_slice(&(1_u64 << rng.random_range(0..64)).to_le_bytes()),
            2 => copy.zeros = rng.random_range(0..self.zeros),
            3 => copy.head = damage_bytes(&self.head, rng),
            _ => {
                let header = damage_json(&self.head[8..], rng);
                copy.head = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
            }
        }
        copy
    }
}

/// Opens a folder and reads every tensor of it and of its config; says whether all went well.
fn open_and_read(folder: &Path) -> bool {
    let opened = Folder::open(folder);
    let config = ModelConfig::from_folder(folder);
    if let Ok(config) = &config {
        // None of the arithmetic of a valid config may overflow.
        let counts = layout::parameter_counts(config);
        let kv = layout::kv_bytes(config, 1 << 20, 4, true);
        assert!(counts.total > 0 && kv > 0 && layout::weights_bytes(config, ExpertDtype::Bf16) > 0);
    }
    let (Ok(opened), Ok(config)) = (opened, config) else { return false };
    let whole = opened.check(&config).is_ok();
    for spec in layout::tensors(&config) {
        let Ok(tensor) = opened.tensor(&spec.name, &spec.shape) else { return false };
        let _ = tensor.to_f32_vec();
        assert!(tensor.rows(0..1).is_ok_and(|row| row.as_bytes().len() <= tensor.as_bytes().len()));
    }
    whole
}

/// The high-water mark of this process's memory, in bytes.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// Runs `body` in a process of its own, whose memory no other test moves: this binary again, with this test only.
fn alone(test: &str, body: fn()) {
    const MARK: &str = "OSSBENCH_HOSTILE_CHILD";
    if std::env::var_os(MARK).is_some() {
        return body();
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", &format!("hostile::{test}"), "--nocapture"]).env(MARK, "1");
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    println!("{text}");
    assert!(output.status.success() && text.contains("1 passed"), "the child process failed: {text}");
}

#[test]
fn ten_thousand_damaged_checkpoints_are_refused_or_read() {
    alone("ten_thousand_damaged_checkpoints_are_refused_or_read", damage_and_open);
}

fn damage_and_open() {
    let mut rng = ChaCha8Rng::seed_from_u64(20_26);
    let dirs: Vec<_> = ["gpt-oss-tiny", "qwen3-tiny"].map(hollow_copy).into();
    let before = peak_memory();
    let (mut accepted, mut refused) = (0, 0);
    for i in 0..MUTATIONS {
        let (folder, files) = &dirs[usize::from(i % 4 == 3)];
        let original = &files[rng.random_range(0..files.len())];
        original.damaged(&mut rng).write(folder.path());
        if open_and_read(folder.path()) {
            accepted += 1;
        } else {
            refused += 1;
        }
        original.write(folder.path());
    }
    for (folder, _) in &dirs {
        assert!(open_and_read(folder.path()), "the undamaged copy must open");
    }
    assert!(refused > MUTATIONS / 2, "{refused} refused: the damage is too mild to test anything");
    assert!(accepted > 0, "{accepted} accepted: the damage is too coarse to reach the later checks");
    if let (Some(before), Some(after)) = (before, peak_memory()) {
        println!("{refused} refused, {accepted} accepted, memory +{} MiB", (after - before) >> 20);
        assert!(after - before < MEMORY_LIMIT, "memory grew from {before} to {after} bytes");
    }
}

/// A copy of a checkpoint without its data, and its files.
fn hollow_copy(model: &str) -> (tempfile::TempDir, Vec<Damageable>) {
    let dir = tempfile::tempdir().unwrap();
    let paths = fs::read_dir(golden(model)).unwrap().map(|entry| entry.unwrap().path());
    let is_tokenizer = |f: &Damageable| f.name.starts_with("tokenizer");
    let mut files: Vec<_> = paths.map(|p| Damageable::read(&p)).filter(|f| !is_tokenizer(f)).collect();
    for file in &files {
        file.write(dir.path());
    }
    // The order of a folder's entries is not fixed, that of the damage is.
    files.sort();
    (dir, files)
}

#[test]
fn headers_that_claim_much_allocate_little() {
    alone("headers_that_claim_much_allocate_little", open_claims);
}

fn open_claims() {
    let before = peak_memory();
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
        assert!(error.contains("model.safetensors") && error.len() < 4096, "{} bytes of error", error.len());
    }
    if let (Some(before), Some(after)) = (before, peak_memory()) {
        assert!(after - before < 256 << 20, "memory grew from {before} to {after} bytes");
    }
}
