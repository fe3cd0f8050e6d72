//! A checkpoint on disk as a `WeightSource`: safetensors files, memory-mapped, found through the index.
//!
//! Every claim of the files is checked at opening; afterwards a tensor is a slice. Nothing is converted, and no
//! tensor is read before the model asks for it.

mod header;
mod identity;
pub(crate) mod index;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bench_kernels::host::MappedFile;

use crate::Error;
use crate::config::{ModelConfig, read_small_text};
use crate::error::excerpt;
use crate::layout::{self, Role, TensorSpec};
use crate::weights::{HostBytes, HostTensor, TensorDtype, WeightSource};
use header::Entry;
pub use identity::Identity;
use identity::Stamp;
use index::{INDEX_FILE, Index, MAX_INDEX_BYTES, SINGLE_FILE};

const DOWNLOAD_AGAIN: &str = "delete the file and download it again";

struct Shard {
    path: PathBuf,
    /// Of before it was mapped.
    stamp: Stamp,
    origin: Arc<str>,
    file: Arc<MappedFile>,
}

/// A folder in Hugging Face layout.
pub struct Folder {
    path: PathBuf,
    shards: Vec<Shard>,
    /// By tensor name: index of the shard, and where in it.
    tensors: HashMap<String, (usize, Entry)>,
}

impl Folder {
    /// Maps the safetensors files of `folder`: those that `model.safetensors.index.json` names, or
    /// `model.safetensors`. Reads headers only.
    ///
    /// # Errors
    /// [`Error::NotACheckpoint`] without either; [`Error::BadFile`] for a missing, truncated or malformed file.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let index_path = folder.join(INDEX_FILE);
        if index_path.exists() {
            return Self::open_sharded(folder, &index_path);
        }
        let single = folder.join(SINGLE_FILE);
        if !single.exists() {
            let problem = format!("has neither {INDEX_FILE} nor {SINGLE_FILE}; other formats are not read");
            return Err(Error::NotACheckpoint { folder: folder.to_owned(), problem });
        }
        let (shard, entries) = open_shard(single)?;
        let tensors = entries.into_iter().map(|(name, entry)| (name, (0, entry))).collect();
        Ok(Self { path: folder.to_owned(), shards: vec![shard], tensors })
    }

    fn open_sharded(folder: &Path, index_path: &Path) -> Result<Self, Error> {
        let index = Index::parse(&read_small_text(index_path, MAX_INDEX_BYTES)?)
            .map_err(|problem| Error::BadFile { path: index_path.to_owned(), problem: excerpt(problem) })?;
        let mut shards = Vec::new();
        let mut opened: BTreeMap<&str, (usize, HashMap<String, Entry>)> = BTreeMap::new();
        for file in index.files() {
            let path = folder.join(file);
            if !path.exists() {
                let n = index.weight_map.values().filter(|f| *f == file).count();
                let problem = format!("is missing, {INDEX_FILE} expects {n} tensors in it; download it");
                return Err(Error::BadFile { path, problem });
            }
            let (shard, entries) = open_shard(path)?;
            opened.insert(file, (shards.len(), entries));
            shards.push(shard);
        }
        let mut tensors = HashMap::with_capacity(index.weight_map.len());
        for (name, file) in &index.weight_map {
            let entry =
                opened.get_mut(file.as_str()).and_then(|(at, entries)| Some((*at, entries.remove(name)?)));
            let Some(entry) = entry else {
                let file = folder.join(file).display().to_string();
                let hint =
                    format!(", where {INDEX_FILE} says that it is: index and file are not of one version");
                return Err(Error::MissingTensor { tensor: excerpt(name.clone()), file, hint });
            };
            tensors.insert(name.clone(), entry);
        }
        Ok(Self { path: folder.to_owned(), shards, tensors })
    }

    /// The folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Bytes of all tensors on disk.
    pub fn data_bytes(&self) -> u64 {
        self.tensors.values().map(|(_, entry)| entry.range.len() as u64).sum()
    }

    /// Checks that every tensor that `config` needs is there, in shape and kind, without reading any.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] or [`Error::BadTensor`] for the first that is not.
    pub fn check(&self, config: &ModelConfig) -> Result<(), Error> {
        for spec in layout::tensors(config) {
            let (shard, entry) = self.find(&spec.name)?;
            self.check_shape(&spec.name, shard, entry, &spec.shape)?;
            let dtype = supported_dtype(&spec.name, shard, entry)?;
            if !dtype_serves(&spec, dtype) {
                let problem = format!("has dtype {}, expected {}", dtype.name(), spec.dtype.name());
                return Err(bad_tensor(&spec.name, shard, problem));
            }
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<(&Shard, &Entry), Error> {
        match self.tensors.get(name) {
            Some((shard, entry)) => Ok((&self.shards[*shard], entry)),
            None => Err(Error::MissingTensor {
                tensor: name.to_owned(),
                file: match self.shards.as_slice() {
                    [only] => only.path.display().to_string(),
                    _ => self.path.display().to_string(),
                },
                hint: self.hint(name),
            }),
        }
    }

    /// Why a tensor may be missing.
    fn hint(&self, name: &str) -> String {
        let sibling = |from: &str, to: &str| {
            name.strip_suffix(from).map(|stem| format!("{stem}{to}")).filter(|n| self.tensors.contains_key(n))
        };
        if let Some(blocks) = sibling("_scales", "_blocks") {
            return format!(
                ": {blocks:?} is there, but MXFP4 blocks mean nothing without their scales; {DOWNLOAD_AGAIN}"
            );
        }
        if let Some(matrix) = sibling("_blocks", "") {
            return format!(": {matrix:?} is there, so the experts are bf16, but config.json says mxfp4");
        }
        let blocks = format!("{name}_blocks");
        if self.tensors.contains_key(&blocks) {
            return format!(
                ": {blocks:?} is there, so the experts are MXFP4, but config.json does not say so"
            );
        }
        ": config.json and the safetensors files do not belong together, or the download is incomplete"
            .to_owned()
    }

    fn check_shape(&self, name: &str, shard: &Shard, entry: &Entry, shape: &[usize]) -> Result<(), Error> {
        if entry.shape == shape {
            return Ok(());
        }
        let folder = self.path.display();
        let problem = format!("has shape {:?}, {folder}/config.json asks for {shape:?}", entry.shape);
        Err(bad_tensor(name, shard, problem))
    }
}

impl WeightSource for Folder {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<HostTensor, Error> {
        let (shard, entry) = self.find(name)?;
        self.check_shape(name, shard, entry, shape)?;
        let dtype = supported_dtype(name, shard, entry)?;
        let (start, end) = (entry.range.start, entry.range.end);
        let bytes = HostBytes::Mapped { file: Arc::clone(&shard.file), start, end };
        HostTensor::new(name.into(), Arc::clone(&shard.origin), dtype, entry.shape.clone(), bytes)
    }

    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn identity(&self) -> Result<Option<Identity>, Error> {
        let files = self.shards.iter().map(|shard| (shard.path.as_path(), &shard.stamp, shard.file.as_ref()));
        Identity::of(&self.path, files).map(Some)
    }
}

fn open_shard(path: PathBuf) -> Result<(Shard, HashMap<String, Entry>), Error> {
    let io = |source| Error::Io { path: path.clone(), source };
    let stamp = Stamp::of(&path).map_err(io)?;
    let file = MappedFile::open(&path).map_err(io)?;
    let entries = header::parse(file.as_bytes()).map_err(|problem| {
        let problem = format!("{}; {DOWNLOAD_AGAIN}", excerpt(problem));
        Error::BadFile { path: path.clone(), problem }
    })?;
    let origin = path.display().to_string().into();
    Ok((Shard { path, stamp, origin, file: Arc::new(file) }, entries))
}

fn supported_dtype(name: &str, shard: &Shard, entry: &Entry) -> Result<TensorDtype, Error> {
    TensorDtype::from_name(entry.dtype).ok_or_else(|| {
        bad_tensor(name, shard, format!("has dtype {}, expected BF16, F16, F32 or U8", entry.dtype))
    })
}

/// Codes and scales must be bytes; everything else may come in any floating-point dtype.
fn dtype_serves(spec: &TensorSpec, dtype: TensorDtype) -> bool {
    let bytes = matches!(spec.role, Role::ExpertBlocks | Role::ExpertScales);
    bytes == (dtype == TensorDtype::U8)
}

fn bad_tensor(name: &str, shard: &Shard, problem: String) -> Error {
    Error::BadTensor { tensor: name.to_owned(), file: shard.path.display().to_string(), problem }
}
