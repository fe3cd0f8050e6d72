//! Quantized matrices kept on disk between starts: to quantize those of gpt-oss-20b takes ten seconds, to read them
//! one.
//!
//! Stands between `load` and `pack`; what lies in a file, and when it counts as the same checkpoint's, is known to
//! `file` and `checkpoint::identity`. What is read goes into memory of the same kind as what is quantized, and is
//! compared with its checksum there: a measurement does not depend on how its weights came about, and a file that
//! somebody cuts or writes to later harms nobody. A cache that cannot be read or written never fails a load.

mod file;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bench_kernels::Exec;
use bench_kernels::packed::PackedFormat;

use crate::checkpoint::Identity;
use crate::error::{Error, Result};
use crate::hub::cache_dir;
use crate::model::{DenseDtype, LoadOptions, pack};
use crate::weights::{HostTensor, WeightSource};
use file::{Kept, Key, Packed, Taken};

/// What takes less is quantized at every start.
const AT_LEAST: Duration = Duration::from_secs(2);
const VARIABLE: &str = "OSSBENCH_PACKED_CACHE";

/// Where quantized matrices are kept, and from when on that is worth their bytes.
///
/// A file takes what its matrices take in memory: 1.3 GB for gpt-oss-20b in `q8_0`. There is one for each folder of a
/// checkpoint and each format; it is replaced when the checkpoint has changed, and may be deleted at any time.
/// Generated weights are not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedCache {
    /// Made when it is needed.
    pub folder: PathBuf,
    /// Matrices that took less to quantize, all together, are not kept.
    pub at_least: Duration,
}

impl PackedCache {
    /// The usual one, in `folder`.
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), at_least: AT_LEAST }
    }

    /// `packed` in `OSSBENCH_CACHE` or in `ossbench` of the user's cache folder. `OSSBENCH_PACKED_CACHE` may be `auto`
    /// (what took over two seconds is kept), `always` (whatever it took) or `off`. `None` when it is off, or there is
    /// no such folder.
    ///
    /// # Errors
    /// Another word in `OSSBENCH_PACKED_CACHE`; `always` without a folder.
    pub fn from_env() -> Result<Option<Self>> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// As [`Self::from_env`], with any source of variables. An empty variable counts as absent.
    ///
    /// # Errors
    /// As [`Self::from_env`].
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let folder = || cache_dir(&variable).map(|cache| cache.join("packed"));
        match variable(VARIABLE).unwrap_or_default().trim() {
            "" | "auto" => Ok(folder().ok().map(|folder| Self::at(&folder))),
            "always" => Ok(Some(Self { folder: folder()?, at_least: Duration::ZERO })),
            "off" => Ok(None),
            other => Err(Error::InvalidModel {
                what: format!("environment variable {VARIABLE}"),
                problem: format!("is {other:?}, expected auto, always or off"),
            }),
        }
    }
}

/// What a load has to tell beside the model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadNotes {
    /// How quantized matrices came into memory, where a cache had to do with it.
    pub packed: Option<String>,
    /// What went wrong and harmed nothing but the time of a start.
    pub warnings: Vec<String>,
}

impl LoadNotes {
    /// All of them, warnings last.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.packed.iter().chain(&self.warnings).map(String::as_str)
    }
}

/// Quantizes the matrices of one load, or reads them from the cache.
pub(crate) struct Packing {
    exec: Exec,
    /// `None`: nothing is kept.
    session: Option<Session>,
    notes: LoadNotes,
}

/// One load with a cache.
struct Session {
    cache: PackedCache,
    key: Key,
    format: PackedFormat,
    path: PathBuf,
    /// What is on disk, while it can be relied on.
    packed: Option<Packed>,
    damaged: bool,
    /// All matrices so far, for a file to be written; no copies.
    kept: Vec<Kept>,
    /// How many of them were read.
    read: usize,
    /// What quantizing the others took.
    took: Duration,
}

impl Packing {
    pub(crate) fn new(options: &LoadOptions, source: &dyn WeightSource) -> Self {
        let mut notes = LoadNotes::default();
        let session = match (&options.packed_cache, options.dense_dtype.packed()) {
            (Some(cache), Some(format)) => {
                Session::open(cache, format, options.dense_dtype, source, &mut notes.warnings)
            }
            _ => None,
        };
        Self { exec: options.exec.clone(), session, notes }
    }

    /// Codes and scales of `format` for f32 or bf16 `[rows, cols]`, of a size that can be packed.
    ///
    /// # Errors
    /// No memory for them.
    pub(crate) fn matrix(
        &mut self,
        tensor: &HostTensor,
        format: PackedFormat,
    ) -> Result<(HostTensor, HostTensor)> {
        match &mut self.session {
            Some(session) if session.format == format => {
                session.matrix(&self.exec, tensor, &mut self.notes.warnings)
            }
            _ => pack::quantized(&self.exec, tensor, format),
        }
    }

    /// Writes what is worth it, and tells how it went. Called once, with the source of all matrices.
    pub(crate) fn finish(self, source: &dyn WeightSource) -> LoadNotes {
        self.finish_with(source, file::create)
    }

    fn finish_with(
        self,
        source: &dyn WeightSource,
        create: impl FnOnce(&Path, u32) -> std::io::Result<File>,
    ) -> LoadNotes {
        let Self { exec, session, mut notes } = self;
        if let Some(session) = session {
            notes.packed = session.finish(&exec, source, create, &mut notes.warnings);
        }
        notes
    }
}

impl Session {
    fn open(
        cache: &PackedCache,
        format: PackedFormat,
        dtype: DenseDtype,
        source: &dyn WeightSource,
        warnings: &mut Vec<String>,
    ) -> Option<Self> {
        let identity = match source.identity() {
            Ok(identity) => identity?,
            Err(error) => {
                warnings.push(format!("quantized weights are neither kept nor read: {error}"));
                return None;
            }
        };
        let path = cache.folder.join(file_name(&identity, dtype));
        let key = Key::new(dtype.name(), identity);
        let (packed, damaged) = match Packed::open(&path, &key, format) {
            Ok(packed) => (packed, false),
            Err(problem) => {
                warnings.push(not_used(&path, &problem));
                (None, true)
            }
        };
        let (kept, took) = (Vec::new(), Duration::ZERO);
        Some(Self { cache: cache.clone(), key, format, path, packed, damaged, kept, read: 0, took })
    }

    fn matrix(
        &mut self,
        exec: &Exec,
        tensor: &HostTensor,
        warnings: &mut Vec<String>,
    ) -> Result<(HostTensor, HostTensor)> {
        let taken = self.packed.as_ref().map_or(Ok(Taken::Absent), |packed| packed.take(exec, tensor))?;
        let (codes, scales) = match taken {
            Taken::Matrix(codes, scales) => {
                self.read += 1;
                pack::in_place_of(tensor, codes, scales)?
            }
            taken => {
                if let Taken::Damaged(problem) = taken {
                    // One wrong byte says that nothing else in there can be relied on either.
                    (self.packed, self.damaged) = (None, true);
                    warnings.push(not_used(&self.path, &problem));
                }
                let began = Instant::now();
                let quantized = pack::quantized(exec, tensor, self.format)?;
                self.took += began.elapsed();
                quantized
            }
        };
        self.kept.push(Kept {
            name: Arc::clone(&tensor.name),
            dtype: tensor.dtype,
            rows: tensor.shape[0],
            cols: tensor.shape[1],
            codes: codes.clone(),
            scales: scales.clone(),
        });
        Ok((codes, scales))
    }

    /// How the matrices came into memory.
    fn finish(
        self,
        exec: &Exec,
        source: &dyn WeightSource,
        create: impl FnOnce(&Path, u32) -> std::io::Result<File>,
        warnings: &mut Vec<String>,
    ) -> Option<String> {
        let (all, made) = (self.kept.len(), self.kept.len() - self.read);
        let name = self.path.file_name().unwrap_or_default().display().to_string();
        let (dtype, took) = (&self.key.format, self.took.as_secs_f64());
        let worth_it = made > 0 && (self.damaged || self.took >= self.cache.at_least);
        if worth_it {
            let written = self.write(exec, source, create);
            let kept = written.is_ok();
            warnings.extend(written.err().map(|problem| {
                format!("quantized weights are not kept in {}: {problem}", self.path.display())
            }));
            let end = if kept { format!(", kept in {name}") } else { String::new() };
            return Some(format!("{made} of {all} matrices quantized to {dtype} in {took:.0} s{end}"));
        }
        (self.read > 0).then(|| format!("{} of {all} matrices in {dtype} from {name}", self.read))
    }

    fn write(
        &self,
        exec: &Exec,
        source: &dyn WeightSource,
        create: impl FnOnce(&Path, u32) -> std::io::Result<File>,
    ) -> std::result::Result<(), String> {
        match source.identity() {
            Ok(Some(identity)) if identity == self.key.identity => {}
            Ok(_) => return Err("the checkpoint was changed while it was loaded".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
        file::write(exec, &self.path, &self.key, &self.kept, create).map_err(|e| e.to_string())?;
        for dtype in [DenseDtype::Q8_0, DenseDtype::Q6_0] {
            let other = self.cache.folder.join(file_name(&self.key.identity, dtype));
            if other != self.path && file::is_of_another(&other, &self.key.identity) {
                // It is of no use to anybody; if it cannot be removed it only takes space.
                let _ = std::fs::remove_file(other);
            }
        }
        Ok(())
    }
}

fn file_name(identity: &Identity, dtype: DenseDtype) -> String {
    format!("{}-{}.packed", identity.folder_name(), dtype.name())
}

fn not_used(path: &Path, problem: &str) -> String {
    format!("{} is not used: it {problem}", path.display())
}
