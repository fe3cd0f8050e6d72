//! Loads of a tiny checkpoint with a cache, and what happens to the cache in between.

use std::cell::Cell;
use std::fs::{self, File, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, symlink};

use bench_kernels::Variant;
use bench_kernels::host::AlignedBytes;
use bench_kernels::packed::quantize;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::*;
use crate::checkpoint::Folder;
use crate::config::ModelConfig;
use crate::dummy::Dummy;
use crate::weights::TensorDtype;
use crate::{Hooks, Model};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/llama-tiny");
/// Of three layers with seven each, and the unembedding.
const MATRICES: usize = 3 * 7 + 1;

/// A checkpoint and a cache, each in a folder of its own.
struct Case {
    dir: TempDir,
    dense: DenseDtype,
    layers: Option<usize>,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("llama");
        fs::create_dir(&model).unwrap();
        for entry in fs::read_dir(TINY).unwrap() {
            let from = entry.unwrap();
            // Written anew and not copied: the permissions of a read-only original would come along.
            fs::write(model.join(from.file_name()), fs::read(from.path()).unwrap()).unwrap();
        }
        Self { dir, dense: DenseDtype::Q8_0, layers: None }
    }

    fn weights(&self) -> PathBuf {
        self.dir.path().join("llama/model.safetensors")
    }

    fn source(&self) -> Folder {
        Folder::open(&self.dir.path().join("llama")).unwrap()
    }

    /// Whatever it takes.
    fn cache(&self) -> PackedCache {
        PackedCache { folder: self.dir.path().join("cache/packed"), at_least: Duration::ZERO }
    }

    fn options(&self, cache: Option<PackedCache>) -> LoadOptions {
        LoadOptions {
            dense_dtype: self.dense,
            num_layers: self.layers,
            packed_cache: cache,
            ..LoadOptions::default()
        }
    }

    fn load_with(&self, cache: Option<PackedCache>) -> Model {
        let config = ModelConfig::from_folder(&self.dir.path().join("llama")).unwrap();
        Model::build(config, &self.source(), &self.options(cache), &mut |_| ()).unwrap()
    }

    /// Loads with the cache, holds it against a load without, and gives the notes.
    fn load(&self) -> LoadNotes {
        let (model, plain) = (self.load_with(Some(self.cache())), self.load_with(None));
        assert_eq!(*plain.load_notes(), LoadNotes::default());
        assert_eq!(model.weights_bytes(), plain.weights_bytes());
        assert_eq!(logits(&model), logits(&plain), "bit for bit");
        model.load_notes().clone()
    }

    /// The files of the cache.
    fn files(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.cache().folder) else { return Vec::new() };
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn file(&self) -> PathBuf {
        let [file] = self.files().try_into().unwrap();
        file
    }
}

fn logits(model: &Model) -> Vec<f32> {
    let mut sequence = model.sequence();
    let ids: &[&[u32]] = &[&[1, 2, 3, 400]];
    let logits = model.forward_all(&mut [&mut sequence], ids, 4, &mut Hooks::none()).unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

/// Writes one byte at `at` from the end, another than there was, and puts the time of modification back.
fn poke(path: &Path, from_end: i64) {
    let byte = {
        let bytes = fs::read(path).unwrap();
        bytes[bytes.len() - from_end as usize]
    };
    let mut file = File::options().write(true).open(path).unwrap();
    let before = file.metadata().unwrap().modified().unwrap();
    file.seek(SeekFrom::End(-from_end)).unwrap();
    file.write_all(&[byte ^ 1]).unwrap();
    file.set_modified(before).unwrap();
}

#[track_caller]
fn check_quantized(notes: &LoadNotes) {
    let how = notes.packed.as_deref().unwrap();
    assert!(how.starts_with(&format!("{MATRICES} of {MATRICES} matrices quantized to ")), "{how}");
    assert!(how.contains(", kept in llama-"), "{how}");
}

#[track_caller]
fn check_read(notes: &LoadNotes) {
    let how = notes.packed.as_deref().unwrap();
    assert!(how.starts_with(&format!("{MATRICES} of {MATRICES} matrices in ")), "{how}");
    assert!(how.contains(" from llama-") && notes.warnings.is_empty(), "{notes:?}");
}

#[test]
fn a_second_load_reads_what_the_first_kept() {
    let mut case = Case::new();
    for dense in [DenseDtype::Q8_0, DenseDtype::Q6_0] {
        case.dense = dense;
        let first = case.load();
        check_quantized(&first);
        assert!(first.warnings.is_empty(), "{first:?}");
        check_read(&case.load());
    }
    let names: Vec<_> = case.files().iter().map(|f| f.extension().unwrap().to_owned()).collect();
    assert_eq!(names, ["packed", "packed"], "one for each format, and nothing beside them");
    let bytes: Vec<_> = case.files().iter().map(|f| f.metadata().unwrap().len()).collect();
    assert!(bytes[0] < bytes[1], "q6_0 takes less than q8_0: {bytes:?}");
    // Without quantized matrices there is nothing to keep.
    case.dense = DenseDtype::Native;
    assert_eq!(case.load(), LoadNotes::default());
    assert_eq!(case.files().len(), 2);
}

#[test]
fn a_fast_load_keeps_nothing_and_a_generated_model_never() {
    let case = Case::new();
    let slow_only = PackedCache { at_least: Duration::from_hours(1), ..case.cache() };
    assert_eq!(*case.load_with(Some(slow_only)).load_notes(), LoadNotes::default());
    let dummy = Dummy::new("dense-tiny", 1, None).unwrap();
    let options = case.options(Some(case.cache()));
    let model = Model::build(dummy.config().clone(), &dummy, &options, &mut |_| ()).unwrap();
    assert_eq!(*model.load_notes(), LoadNotes::default());
    assert!(!case.cache().folder.exists(), "nothing is made before it is needed");
}

#[test]
fn a_changed_checkpoint_is_quantized_again_and_replaces_what_was_kept() {
    let mut case = Case::new();
    for dense in [DenseDtype::Q6_0, DenseDtype::Q8_0] {
        case.dense = dense;
        check_quantized(&case.load());
    }
    let before = fs::metadata(case.weights()).unwrap();
    // The last byte of all: of the same size, at the same time.
    poke(&case.weights(), 1);
    let after = fs::metadata(case.weights()).unwrap();
    assert_eq!((before.len(), before.modified().unwrap()), (after.len(), after.modified().unwrap()));
    let notes = case.load();
    check_quantized(&notes);
    assert!(notes.warnings.is_empty(), "{notes:?}");
    // That of the other format was made of weights that are no more.
    assert!(case.file().to_str().unwrap().ends_with("-q8_0.packed"));
    check_read(&case.load());
    // A file that took the place of another.
    let copy = case.dir.path().join("copy");
    fs::copy(case.weights(), &copy).unwrap();
    fs::rename(&copy, case.weights()).unwrap();
    check_quantized(&case.load());
    check_read(&case.load());
}

/// What is done to the file, and what the warning says; nothing where there is none.
type Damage = (fn(&Path), &'static str);

fn truncate_to(path: &Path, bytes: u64) {
    File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

fn replace_by_link(path: &Path, to: &Path) {
    fs::remove_file(path).unwrap();
    symlink(to, path).unwrap();
}

#[test]
fn a_damaged_or_foreign_file_is_told_and_replaced() {
    let case = Case::new();
    check_quantized(&case.load());
    let file = case.file();
    let damages: [Damage; 13] = [
        (|file| truncate_to(file, file.metadata().unwrap().len() - 1), "bytes, its header tells of "),
        (|file| truncate_to(file, file.metadata().unwrap().len() + 1), "bytes, its header tells of "),
        (|file| truncate_to(file, 100), "claims a header of "),
        (|file| truncate_to(file, 0), "has 0 bytes, too few"),
        // The last scale, and a byte in the middle of the codes.
        (|file| poke(file, 1), "another checksum for \""),
        (|file| poke(file, file.metadata().unwrap().len() as i64 / 2), "another checksum for \""),
        (|file| overwrite(file, 0, b"GGUF"), "does not hold packed weights"),
        (|file| overwrite(file, 16, &[0xff; 8]), "claims a header of 18446744073709551615 bytes"),
        (|file| overwrite(file, 60, b"x"), "another checksum for its header"),
        // Of another version: no reason to worry.
        (|file| overwrite(file, 8, &[99]), ""),
        (|file| replace_by_link(file, Path::new("/dev/zero")), "is a link"),
        (|file| replace_by_link(file, Path::new("nowhere")), "is a link"),
        (
            |file| {
                fs::remove_file(file).unwrap();
                let mode = rustix::fs::Mode::from_raw_mode(0o600);
                rustix::fs::mknodat(rustix::fs::CWD, file, rustix::fs::FileType::Fifo, mode, 0).unwrap();
            },
            "is no file",
        ),
    ];
    for (damage, told) in damages {
        damage(&file);
        let notes = case.load();
        let is_told = notes.warnings.iter().any(|w| w.contains(told) && w.contains(" is not used: it "));
        assert!(is_told || (told.is_empty() && notes.warnings.is_empty()), "{told}: {notes:?}");
        assert!(notes.packed.as_deref().unwrap().contains(", kept in "), "{told}: {notes:?}");
        check_read(&case.load());
    }
    assert_eq!(case.file(), file, "nothing is left beside it");
}

/// Checksums are right and the header is sound: only a program writes this, and it is refused all the same.
#[test]
fn a_matrix_of_another_shape_or_a_second_one_of_a_name_is_refused() {
    let case = Case::new();
    check_quantized(&case.load());
    let (path, exec) = (case.file(), Exec::shared());
    let key = Key::new("q8_0", case.source().identity().unwrap().unwrap());
    let matrix = |name: &str, rows, cols| {
        let bytes = |n: usize| {
            let buffer = Arc::new(AlignedBytes::zeroed(n).unwrap());
            let bytes = crate::weights::HostBytes::Owned { buffer, start: 0, end: n };
            HostTensor::new(name.into(), "test".into(), TensorDtype::U8, vec![n], bytes).unwrap()
        };
        let (codes, scales) = PackedFormat::Q8_0.bytes(rows, cols);
        let (codes, scales) = (bytes(codes), bytes(scales));
        Kept { name: name.into(), dtype: TensorDtype::Bf16, rows, cols, codes, scales }
    };
    let name = "model.layers.1.mlp.up_proj.weight";
    for (matrices, told) in [
        (vec![matrix(name, 16, 32)], "as [16, 32] of BF16, the checkpoint as [320, 224] of BF16"),
        (vec![matrix(name, 320, 224), matrix(name, 320, 224)], "up_proj.weight\" twice"),
    ] {
        file::write(&exec, &path, &key, &matrices, file::create).unwrap();
        let notes = case.load();
        assert!(matches!(&notes.warnings[..], [only] if only.contains(told)), "{notes:?}");
        check_read(&case.load());
    }
}

#[test]
fn a_folder_that_cannot_be_written_costs_a_warning_and_nothing_else() {
    let case = Case::new();
    let file = case.dir.path().join("file");
    fs::write(&file, "").unwrap();
    for folder in [file.join("packed"), PathBuf::from("/proc/packed")] {
        let model = case.load_with(Some(PackedCache { folder, ..case.cache() }));
        let LoadNotes { packed, warnings } = model.load_notes();
        let how = packed.as_deref().unwrap();
        assert!(how.contains(" matrices quantized to q8_0 in ") && !how.contains("kept"), "{how}");
        assert!(warnings.last().unwrap().starts_with("quantized weights are not kept in "), "{warnings:?}");
        assert_eq!(logits(&model), logits(&case.load_with(None)));
    }
}

/// One load without a model: matrices of the first layer.
fn packing(case: &Case, source: &dyn WeightSource) -> Packing {
    let mut packing = Packing::new(&case.options(Some(case.cache())), source);
    for (name, rows, cols) in [("up", 320, 224), ("down", 224, 320)] {
        let tensor = source.tensor(&format!("model.layers.0.mlp.{name}_proj.weight"), &[rows, cols]).unwrap();
        packing.matrix(&tensor, PackedFormat::Q8_0).unwrap();
    }
    packing
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_nothing_behind() {
    let case = Case::new();
    let source = case.source();
    let begun = Cell::new(false);
    let notes = packing(&case, &source).finish_with(&source, |path, mode| {
        begun.set(file::create(path, mode).is_ok());
        File::options().write(true).open("/dev/full")
    });
    assert!(begun.get() && case.files().is_empty(), "what was begun is removed");
    assert!(notes.warnings[0].contains("No space left"), "{notes:?}");
    let how = notes.packed.unwrap();
    assert!(how.starts_with("2 of 2 matrices quantized to q8_0 in ") && how.ends_with(" s"), "{how}");
}

#[test]
fn a_checkpoint_that_changes_while_it_is_loaded_is_not_kept() {
    let case = Case::new();
    let source = case.source();
    let packing = packing(&case, &source);
    truncate_to(&case.weights(), fs::metadata(case.weights()).unwrap().len() + 1);
    let notes = packing.finish(&source);
    assert!(notes.warnings[0].contains("was changed after it was opened"), "{notes:?}");
    assert!(case.files().is_empty());
}

#[test]
fn left_overs_of_writers_that_ended_are_removed_and_others_stay() {
    let case = Case::new();
    fs::create_dir_all(case.cache().folder).unwrap();
    let [dead, alive, young, other] =
        ["a.packed.1-0.new", "b.packed.1-0.new", "c.packed.1-0.new", "d.packed"]
            .map(|name| case.cache().folder.join(name));
    for path in [&dead, &alive, &young, &other] {
        fs::write(path, "begun").unwrap();
    }
    for path in [&dead, &alive, &other] {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(std::time::SystemTime::now() - Duration::from_hours(1)).unwrap();
    }
    let writer = File::options().write(true).open(&alive).unwrap();
    match writer.try_lock() {
        // A file system without locks: nothing is removed.
        Err(TryLockError::Error(_)) => return,
        locked => locked.unwrap(),
    }
    check_quantized(&case.load());
    assert_eq!([&dead, &alive, &young, &other].map(|path| path.exists()), [false, true, true, true]);
}

#[test]
fn of_several_writers_each_succeeds_and_whole_files_remain() {
    let case = Case::new();
    let notes: Vec<_> = std::thread::scope(|scope| {
        let loads: Vec<_> = (0..4).map(|_| scope.spawn(|| case.load())).collect();
        loads.into_iter().map(|load| load.join().unwrap()).collect()
    });
    assert!(notes.iter().all(|notes| notes.packed.is_some() && notes.warnings.is_empty()), "{notes:?}");
    assert_eq!(case.files().len(), 1);
    check_read(&case.load());
}

#[test]
fn a_file_of_all_layers_serves_fewer_and_one_of_fewer_grows() {
    let mut case = Case::new();
    case.layers = Some(1);
    assert!(case.load().packed.unwrap().starts_with("8 of 8 matrices quantized to q8_0"));
    case.layers = None;
    let notes = case.load();
    assert!(notes.packed.unwrap().starts_with("14 of 22 matrices quantized to q8_0"));
    check_read(&case.load());
    let written = case.file().metadata().unwrap().ino();
    case.layers = Some(2);
    assert!(case.load().packed.unwrap().starts_with("15 of 15 matrices in q8_0 from "));
    assert_eq!(case.file().metadata().unwrap().ino(), written, "it holds more, and stays");
}

#[test]
fn variables_say_where_and_whether() {
    let of = |variables: &[(&str, &str)]| {
        PackedCache::from_variables(|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    };
    let usual = |folder: &str| Some(PackedCache { folder: folder.into(), at_least: Duration::from_secs(2) });
    assert_eq!(of(&[("HOME", "/h")]).unwrap(), usual("/h/.cache/ossbench/packed"));
    assert_eq!(of(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).unwrap(), usual("/x/ossbench/packed"));
    let own = ("OSSBENCH_CACHE", "/c");
    assert_eq!(of(&[("HOME", "/h"), own]).unwrap(), usual("/c/packed"));
    assert_eq!(of(&[own, (VARIABLE, " auto ")]).unwrap(), usual("/c/packed"));
    let always = of(&[own, (VARIABLE, "always")]).unwrap().unwrap();
    assert_eq!((always.folder.to_str(), always.at_least), (Some("/c/packed"), Duration::ZERO));
    assert_eq!(of(&[own, (VARIABLE, "off")]).unwrap(), None);
    assert_eq!(of(&[]).unwrap(), None, "no folder, no cache");
    assert!(of(&[(VARIABLE, "always")]).unwrap_err().to_string().contains("OSSBENCH_CACHE"));
    let error = of(&[own, (VARIABLE, "on")]).unwrap_err().to_string();
    assert!(error.contains("OSSBENCH_PACKED_CACHE: is \"on\", expected auto, always or off"), "{error}");
}

/// If this fails, quantizing gives other bytes than it did: raise `LAYOUT` in `file`, so that no file of before is
/// read, and put the new sums here.
#[test]
fn the_layout_stands_for_the_bytes_that_quantizing_gives() {
    let (rows, cols) = (48, 96);
    // Magnitudes of many scales, zeros and equal ones among them.
    let value = |i: usize| ((i * 7919 % 4001) as f32 - 2000.0) * 0.5_f32.powi((i / 32 % 40) as i32);
    let weights: Vec<f32> = (0..rows * cols).map(|i| if i % 13 == 0 { 0.0 } else { value(i) }).collect();
    let sum = |format: PackedFormat| {
        let (code_bytes, scale_bytes) = format.bytes(rows, cols);
        let (mut codes, mut scales) = (vec![0; code_bytes], vec![0; scale_bytes]);
        let exec = Exec::serial(Variant::Scalar);
        quantize(&exec, format, &weights, rows, cols, &mut codes, &mut scales).unwrap();
        format!("{:x}", Sha256::new().chain_update(codes).chain_update(scales).finalize())
    };
    let found = [sum(PackedFormat::Q8_0), sum(PackedFormat::Q6_0)].map(|sum| sum[..16].to_owned());
    assert_eq!(found, ["4fb01fee6894d69a", "91fe9fd233575d4f"]);
}
