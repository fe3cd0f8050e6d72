//! A generated checkpoint on disk, in Hugging Face layout, with the bits that `Dummy` has in memory.
//!
//! Tensors are made and written one by one; no more than one is in memory. Files appear whole or not at all.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::Error;
use crate::checkpoint::index::{INDEX_FILE, SINGLE_FILE};
use crate::dummy::Dummy;
use crate::layout::{self, TensorSpec};
use crate::model::Progress;
use crate::preset;
use crate::system::free_disk;
use crate::text::{Tokenizer, write_tokenizer};
use crate::weights::WeightSource;

/// Largest shard, as transformers writes them.
const SHARD_BYTES: u64 = 5_000_000_000;

/// What to write.
#[derive(Debug, Clone)]
pub struct Synth<'a> {
    pub preset: &'a str,
    pub seed: u64,
    /// `None`: all.
    pub layers: Option<usize>,
    /// Write into a folder that already holds files.
    pub force: bool,
}

/// Writes config, tokenizer and weights of `synth` into `folder`; `progress` counts bytes.
///
/// # Errors
/// An unknown preset, a folder that is not empty or cannot be written, too little disk space.
pub fn write(synth: &Synth<'_>, folder: &Path, progress: &mut dyn FnMut(Progress)) -> Result<(), Error> {
    let dummy = Dummy::new(synth.preset, synth.seed, synth.layers)?;
    let specs = layout::tensors(dummy.config());
    let total: u64 = specs.iter().map(TensorSpec::bytes).sum();
    prepare(folder, synth.force, total)?;
    remove_weights(folder)?;
    let (config, generation) = preset::config_files(synth.preset, synth.layers)?;
    write_whole(&folder.join("config.json"), config.as_bytes())?;
    write_whole(&folder.join("generation_config.json"), generation.as_bytes())?;
    write_tokenizer(&Tokenizer::o200k_truncated(dummy.config().vocab_size)?, folder)?;
    write_shards(&dummy, &specs, folder, SHARD_BYTES, progress)
}

fn prepare(folder: &Path, force: bool, bytes: u64) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(|e| io(folder, e))?;
    let empty = fs::read_dir(folder).map_err(|e| io(folder, e))?.next().is_none();
    if !empty && !force {
        let problem = "is not empty: choose another folder, or write into it with --force".to_owned();
        return Err(Error::BadFile { path: folder.to_owned(), problem });
    }
    match free_disk(folder) {
        Some(free) if free < bytes => {
            let problem =
                format!("has {free} bytes of free space, the checkpoint needs {bytes}: free some space");
            Err(Error::BadFile { path: folder.to_owned(), problem })
        }
        _ => Ok(()),
    }
}

/// Removes the weights of an earlier checkpoint: its index would be followed instead of a new single file.
fn remove_weights(folder: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(|e| io(folder, e))? {
        let path = entry.map_err(|e| io(folder, e))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let is_shard = name.starts_with("model") && path.extension().is_some_and(|e| e == "safetensors");
        if is_shard || name == INDEX_FILE {
            fs::remove_file(&path).map_err(|e| io(&path, e))?;
        }
    }
    Ok(())
}

fn write_shards(
    dummy: &Dummy,
    specs: &[TensorSpec],
    folder: &Path,
    shard_bytes: u64,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    let shards = split(specs, shard_bytes);
    let total: u64 = specs.iter().map(TensorSpec::bytes).sum();
    let (mut done, mut weight_map) = (0, Map::new());
    for (i, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => SINGLE_FILE.to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        write_shard(dummy, shard, &folder.join(&name), &mut |bytes| {
            done += bytes;
            progress(Progress { done, total, unit: "B" });
        })?;
        weight_map.extend(shard.iter().map(|spec| (spec.name.clone(), Value::from(name.as_str()))));
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        write_whole(&folder.join(INDEX_FILE), format!("{index:#}\n").as_bytes())?;
    }
    Ok(())
}

/// Consecutive tensors, at most `shard_bytes` together, at least one each.
fn split(specs: &[TensorSpec], shard_bytes: u64) -> Vec<&[TensorSpec]> {
    let (mut shards, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (i, spec) in specs.iter().enumerate() {
        if i > start && bytes + spec.bytes() > shard_bytes {
            shards.push(&specs[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += spec.bytes();
    }
    shards.push(&specs[start..]);
    shards
}

fn write_shard(
    dummy: &Dummy,
    specs: &[TensorSpec],
    path: &Path,
    wrote: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    let part = part_of(path);
    let mut file = BufWriter::new(File::create(&part).map_err(|e| io(&part, e))?);
    let header = header(specs);
    let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(|e| io(&part, e));
    put(&(header.len() as u64).to_le_bytes())?;
    put(header.as_bytes())?;
    for spec in specs {
        put(dummy.tensor(&spec.name, &spec.shape)?.as_bytes())?;
        wrote(spec.bytes());
    }
    let file = file.into_inner().map_err(|e| io(&part, e.into_error()))?;
    finish(&file, &part, path)
}

/// The JSON header of a safetensors file, padded so that data begins at a multiple of 8.
fn header(specs: &[TensorSpec]) -> String {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut start = 0;
    for spec in specs {
        let end = start + spec.bytes();
        let entry = json!({ "dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [start, end] });
        entries.insert(spec.name.clone(), entry);
        start = end;
    }
    let text = Value::Object(entries).to_string();
    let padding = text.len().next_multiple_of(8) - text.len();
    text + &" ".repeat(padding)
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let part = part_of(path);
    let mut file = File::create(&part).map_err(|e| io(&part, e))?;
    file.write_all(bytes).map_err(|e| io(&part, e))?;
    finish(&file, &part, path)
}

fn finish(file: &File, part: &Path, path: &Path) -> Result<(), Error> {
    file.sync_all().map_err(|e| io(part, e))?;
    fs::rename(part, path).map_err(|e| io(path, e))
}

fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Folder;
    use crate::config::ModelConfig;

    fn check_equal(folder: &Path, dummy: &Dummy) {
        let written = Folder::open(folder).unwrap();
        let specs = layout::tensors(dummy.config());
        assert_eq!(written.names().count(), specs.len());
        for spec in specs {
            let disk = written.tensor(&spec.name, &spec.shape).unwrap();
            let memory = dummy.tensor(&spec.name, &spec.shape).unwrap();
            assert_eq!(disk.dtype, memory.dtype, "{}", spec.name);
            assert!(disk.as_bytes() == memory.as_bytes(), "{}", spec.name);
        }
    }

    #[test]
    fn what_is_written_loads_bit_for_bit() {
        for (preset, layers) in [("gpt-oss-tiny", None), ("dense-tiny", Some(1))] {
            let dir = tempfile::tempdir().unwrap();
            write(&Synth { preset, seed: 7, layers, force: false }, dir.path(), &mut |_| ()).unwrap();
            let dummy = Dummy::new(preset, 7, layers).unwrap();
            assert_eq!(&ModelConfig::from_folder(dir.path()).unwrap(), dummy.config());
            check_equal(dir.path(), &dummy);
            assert_eq!(Tokenizer::from_folder(dir.path()).unwrap().vocab_size(), dummy.config().vocab_size);
        }
    }

    #[test]
    fn shards_are_found_through_the_index() {
        let dir = tempfile::tempdir().unwrap();
        let dummy = Dummy::new("gpt-oss-tiny", 7, None).unwrap();
        let specs = layout::tensors(dummy.config());
        let mut last = 0;
        write_shards(&dummy, &specs, dir.path(), 100_000, &mut |p| {
            assert!(p.done > last && p.done <= p.total);
            last = p.done;
        })
        .unwrap();
        assert!(fs::read_dir(dir.path()).unwrap().count() > 3);
        check_equal(dir.path(), &dummy);
    }

    #[test]
    fn weights_of_an_earlier_checkpoint_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let old = Dummy::new("gpt-oss-tiny", 1, None).unwrap();
        write_shards(&old, &layout::tensors(old.config()), dir.path(), 100_000, &mut |_| ()).unwrap();
        fs::write(dir.path().join("mine"), "x").unwrap();
        let synth = Synth { preset: "dense-tiny", seed: 1, layers: None, force: true };
        write(&synth, dir.path(), &mut |_| ()).unwrap();
        check_equal(dir.path(), &Dummy::new("dense-tiny", 1, None).unwrap());
        assert!(dir.path().join("mine").exists());
    }

    #[test]
    fn a_folder_with_files_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mine"), "x").unwrap();
        let synth = Synth { preset: "dense-tiny", seed: 1, layers: None, force: false };
        let error = write(&synth, dir.path(), &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("--force"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
