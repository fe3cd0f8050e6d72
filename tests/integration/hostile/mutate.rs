//! Mutations of bytes, of any JSON, and of what safetensors headers and index files claim.
//!
//! Every choice comes from the generator that is passed in, so that a case can be made again from its number.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

/// One to four changes of single bytes or ranges.
pub(super) fn mutate_bytes(bytes: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..rng.random_range(1..=4) {
        if out.is_empty() {
            break;
        }
        let at = rng.random_range(0..out.len());
        let end = (at + rng.random_range(1..=40)).min(out.len());
        match rng.random_range(0..6) {
            0 => out[at] ^= 1 << rng.random_range(0..8),
            1 => out[at] = rng.random(),
            2 => out.truncate(at),
            3 => drop(out.drain(at..end)),
            4 => {
                let range = out[at..end].to_vec();
                drop(out.splice(at..at, range));
            }
            // Digits grow: 128 becomes 9128 or 99999128.
            _ => drop(out.splice(at..at, vec![b'9'; rng.random_range(1..=20)])),
        }
    }
    out
}

/// Values that no valid file has in most places.
fn strange(rng: &mut ChaCha8Rng) -> Value {
    let nested = |open: &str, close: &str, depth: usize| {
        // Built as text: as a value it would be dropped recursively.
        Value::String(format!("NESTED{}{}", open.repeat(depth), close.repeat(depth)))
    };
    match rng.random_range(0..16) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(-1),
        3 => json!(0),
        4 => json!(1),
        5 => json!(1_u64 << rng.random_range(1..64)),
        6 => json!(u64::MAX),
        7 => json!(i64::MIN),
        8 => json!(1e308),
        9 => json!(rng.random::<f64>()),
        10 => json!("../../x.safetensors"),
        11 => json!("x".repeat(rng.random_range(0..20_000))),
        12 => json!([]),
        13 => json!({}),
        14 => json!(vec![u64::MAX; rng.random_range(1..300)]),
        _ => nested("[", "]", rng.random_range(1..5000)),
    }
}

/// Writes a value; what `strange` nested becomes brackets again.
fn write(value: &Value) -> Vec<u8> {
    let text = value.to_string();
    let Some((before, rest)) = text.split_once("\"NESTED") else { return text.into_bytes() };
    let (nested, after) = rest.split_once('"').unwrap_or((rest, ""));
    format!("{before}{nested}{after}").into_bytes()
}

/// One to three changes anywhere in a JSON tree.
pub(super) fn mutate_value(value: &Value, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut out = value.clone();
    for _ in 0..rng.random_range(1..=3) {
        change(&mut out, rng);
    }
    let text = write(&out);
    if rng.random_range(0..12) == 0 { with_duplicate_key(&text, rng) } else { text }
}

/// Walks down a random path and changes the node at its end.
fn change(value: &mut Value, rng: &mut ChaCha8Rng) {
    let stop = rng.random_range(0..6) == 0;
    match value {
        Value::Object(map) if !map.is_empty() && !stop => {
            let key = keys(map).choose(rng).cloned().unwrap_or_default();
            match rng.random_range(0..8) {
                0 => drop(map.remove(&key)),
                1 => {
                    let moved = map.remove(&key).unwrap_or_default();
                    let names = ["", "../a", "a\0b", "model.embed_tokens.weight", "dtype", "\u{1F4A5}"];
                    map.insert((*names.choose(rng).unwrap_or(&"")).to_owned(), moved);
                }
                2 => {
                    let other = keys(map).choose(rng).cloned().unwrap_or_default();
                    let taken = map[&other].clone();
                    map.insert(key, taken);
                }
                _ => change(&mut map[&key], rng),
            }
        }
        Value::Array(list) if !list.is_empty() && !stop => {
            let at = rng.random_range(0..list.len());
            match rng.random_range(0..6) {
                0 => drop(list.remove(at)),
                1 => list.insert(at, strange(rng)),
                2 => list.reverse(),
                _ => change(&mut list[at], rng),
            }
        }
        Value::Number(n) if rng.random_range(0..3) > 0 => {
            let old = n.as_u64().unwrap_or(1);
            let new = [
                old.wrapping_add(1),
                old.saturating_sub(1),
                old.wrapping_mul(2),
                old / 2,
                old << 20,
                old | 1 << 62,
            ];
            *value = json!(new.choose(rng));
        }
        other => *other = strange(rng),
    }
}

fn keys(map: &Map<String, Value>) -> Vec<String> {
    map.keys().cloned().collect()
}

/// Repeats a part of an object's text before the object ends, so that a key may stand there twice.
fn with_duplicate_key(text: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let commas: Vec<usize> = (0..text.len()).filter(|i| text[*i] == b',').collect();
    let Some(&from) = commas.choose(rng) else { return text.to_vec() };
    let mut out = text[..text.len() - 1].to_vec();
    out.extend_from_slice(&text[from..]);
    out
}

/// Another file for one tensor, or fewer tensors.
pub(super) fn mutate_index(index: &Value, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut out = index.clone();
    let Some(map) = out["weight_map"].as_object_mut() else { return write(&out) };
    let names = keys(map);
    for _ in 0..rng.random_range(1..=3) {
        let name = names.choose(rng).cloned().unwrap_or_default();
        let long = format!("{}.safetensors", "x".repeat(5000));
        let files = [
            "../model.safetensors",
            "/model.safetensors",
            "a/../../b.safetensors",
            "..",
            "",
            "config.json",
            "folder.safetensors",
            "missing.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "c:\\model.safetensors",
            "a\0.safetensors",
            &long,
        ];
        match rng.random_range(0..5) {
            0 => drop(map.remove(&name)),
            1 => drop(map.insert(format!("{name}.more"), map.get(&name).cloned().unwrap_or_default())),
            2 => drop(map.insert(name, strange(rng))),
            _ => drop(map.insert(name, json!(files.choose(rng)))),
        }
    }
    write(&out)
}

/// A header that parses and lies: about places, sizes, dtypes and names.
pub(super) fn mutate_header(header: &Value, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut out = header.clone();
    let Some(map) = out.as_object_mut() else { return write(&out) };
    map.remove("__metadata__");
    let names = keys(map);
    let mut pick = || names.choose(rng).cloned().unwrap_or_default();
    let (name, other) = (pick(), pick());
    match rng.random_range(0..12) {
        0 => {
            let (a, b) = (map[&name]["data_offsets"].clone(), map[&other]["data_offsets"].clone());
            map[&name]["data_offsets"] = b;
            map[&other]["data_offsets"] = a;
        }
        1 => map[&name]["data_offsets"] = map[&other]["data_offsets"].clone(),
        2 => {
            let at = rng.random_range(0..2);
            let old = map[&name]["data_offsets"][at].as_u64().unwrap_or(0);
            let new = [old.wrapping_add(1), old.wrapping_sub(1), old ^ 2, 0, 1 << 40, 1 << 63, u64::MAX];
            map[&name]["data_offsets"][at] = json!(new.choose(rng));
        }
        3 => {
            // A claim that is right in itself: only the file's size contradicts it.
            let begin = map[&name]["data_offsets"][0].as_u64().unwrap_or(0);
            let elements = 1_u64 << rng.random_range(30..60);
            map[&name]["dtype"] = json!("U8");
            map[&name]["shape"] = json!([elements]);
            map[&name]["data_offsets"][1] = json!(begin + elements);
        }
        4 | 5 => {
            let dtypes =
                ["F16", "BF16", "F32", "F64", "U8", "I8", "BOOL", "F8_E8M0", "F4", "bf16", "", "F31"];
            map[&name]["dtype"] = json!(dtypes.choose(rng));
        }
        6 => map[&name]["shape"].as_array_mut().into_iter().for_each(|shape| shape.reverse()),
        7 => {
            let shapes = [
                json!([]),
                json!([0]),
                json!([1, 1, 1, 1, 1, 1, 1, 1, 1]),
                json!([1_u64 << 32, 1_u64 << 32]),
            ];
            map[&name]["shape"] = json!(shapes.choose(rng));
        }
        8 => {
            // The same bytes in another rank.
            let shape = map[&name]["shape"].as_array().cloned().unwrap_or_default();
            let flat = shape.iter().filter_map(Value::as_u64).product::<u64>();
            map[&name]["shape"] = json!([flat]);
        }
        9 => drop(map.remove(&name)),
        10 => {
            let entry = map.remove(&name).unwrap_or_default();
            let renamed = name.replace("_scales", "_scale").replace("weight", "../weight");
            map.insert(renamed, entry);
        }
        _ => return with_duplicate_key(&write(&out), rng),
    }
    write(&out)
}
