//! Where downloads lie on disk: one folder per commit, what is unfinished in `.part` files beside.
//!
//! A file gets its name only after size and hash were compared; a commit counts as complete only when its list of
//! files was written. Knows nothing of the network.
//!
//! ```text
//! <cache>/hub/<organization>--<name>/refs/<revision>     the commit that the revision meant
//!                                   /<commit>/...        the files, and ossbench-download.json, their list
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::RemoteFile;
use super::options::is_commit;
use crate::Error;

const LIST_FILE: &str = "ossbench-download.json";

/// What was downloaded, written last.
#[derive(Serialize, Deserialize)]
struct List {
    repo: String,
    revision: String,
    commit: String,
    files: Vec<RemoteFile>,
}

/// The downloads of one repository.
pub(super) struct Repo {
    name: String,
    root: PathBuf,
}

impl Repo {
    pub(super) fn new(cache_dir: &Path, name: &str) -> Self {
        let root = cache_dir.join("hub").join(name.replace('/', "--"));
        Self { name: name.to_owned(), root }
    }

    pub(super) fn folder(&self, commit: &str) -> PathBuf {
        self.root.join(commit)
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.root.join("refs").join(revision.replace('/', "%2F"))
    }

    /// The folder of a revision of which every file is there.
    pub(super) fn complete(&self, revision: &str) -> Option<PathBuf> {
        let commit = if is_commit(revision) {
            revision.to_owned()
        } else {
            fs::read_to_string(self.reference(revision)).ok().filter(|commit| is_commit(commit))?
        };
        let folder = self.folder(&commit);
        let list: List = serde_json::from_slice(&fs::read(folder.join(LIST_FILE)).ok()?).ok()?;
        let all = !list.files.is_empty() && list.files.iter().all(|file| self.is_finished(&commit, file));
        all.then_some(folder)
    }

    pub(super) fn is_finished(&self, commit: &str, file: &RemoteFile) -> bool {
        let path = self.folder(commit).join(&file.name);
        fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == file.bytes)
    }

    /// Held while files are written, so that two processes do not write the same part.
    pub(super) fn lock(&self) -> Result<File, Error> {
        fs::create_dir_all(&self.root).map_err(io(&self.root))?;
        let path = self.root.join(".lock");
        let file = File::create(&path).map_err(io(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(Error::HubBusy { folder: self.root.clone() }),
            Err(TryLockError::Error(source)) => Err(Error::Io { path, source }),
        }
    }

    /// Compares what is still to come with what the file system has left.
    pub(super) fn check_space(&self, commit: &str, files: &[RemoteFile]) -> Result<(), Error> {
        let folder = self.folder(commit);
        let missing = |file: &RemoteFile| {
            let part = fs::metadata(part_path(&folder, file)).map_or(0, |part| part.len());
            if self.is_finished(commit, file) { 0 } else { file.bytes.saturating_sub(part) }
        };
        let needed = files.iter().map(missing).fold(0, u64::saturating_add);
        let disk = rustix::fs::statvfs(&folder).map_err(|e| io(&folder)(e.into()))?;
        let available = disk.f_bavail.saturating_mul(disk.f_frsize);
        if needed > available { Err(Error::HubSpace { folder, needed, available }) } else { Ok(()) }
    }

    /// The unfinished part of a file, empty or with what an earlier run left.
    pub(super) fn part(&self, commit: &str, file: &RemoteFile) -> Result<Part, Error> {
        let folder = self.folder(commit);
        fs::create_dir_all(&folder).map_err(io(&folder))?;
        Part::open(&folder, file)
    }

    /// Writes down that `files` are all there are of `commit`, and what `revision` means.
    pub(super) fn finish(
        &self,
        revision: &str,
        commit: &str,
        files: &[RemoteFile],
    ) -> Result<PathBuf, Error> {
        let folder = self.folder(commit);
        let list = List {
            repo: self.name.clone(),
            revision: revision.to_owned(),
            commit: commit.to_owned(),
            files: files.to_vec(),
        };
        let path = folder.join(LIST_FILE);
        let text = serde_json::to_vec_pretty(&list).map_err(|e| io(&path)(e.into()))?;
        write_whole(&path, &text)?;
        write_whole(&self.reference(revision), commit.as_bytes())?;
        Ok(folder)
    }
}

/// A file that is being written.
pub(super) struct Part {
    path: PathBuf,
    whole: PathBuf,
    file: File,
    done: u64,
    bytes: u64,
    /// The hash that the hub gives, and that of what was written.
    sha256: Option<(String, Sha256)>,
}

impl Part {
    fn open(folder: &Path, remote: &RemoteFile) -> Result<Self, Error> {
        let path = part_path(folder, remote);
        let file = File::options().read(true).append(true).create(true).open(&path).map_err(io(&path))?;
        let sha256 = remote.sha256.clone().map(|expected| (expected, Sha256::new()));
        let done = file.metadata().map_err(io(&path))?.len();
        let whole = folder.join(&remote.name);
        if done > 0 && done <= remote.bytes {
            let mut part = Self { path, whole, file, done, bytes: remote.bytes, sha256 };
            part.hash_existing()?;
            return Ok(part);
        }
        file.set_len(0).map_err(io(&path))?;
        Ok(Self { path, whole, file, done: 0, bytes: remote.bytes, sha256 })
    }

    fn hash_existing(&mut self) -> Result<(), Error> {
        let Some((_, hash)) = &mut self.sha256 else { return Ok(()) };
        let mut buffer = vec![0; 1 << 20];
        loop {
            match self.file.read(&mut buffer).map_err(io(&self.path))? {
                0 => return Ok(()),
                n => hash.update(&buffer[..n]),
            }
        }
    }

    /// Bytes that are on disk.
    pub(super) fn done(&self) -> u64 {
        self.done
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(io(&self.path))?;
        self.done += bytes.len() as u64;
        if let Some((_, hash)) = &mut self.sha256 {
            hash.update(bytes);
        }
        Ok(())
    }

    /// Forgets what is there.
    pub(super) fn restart(&mut self) -> Result<(), Error> {
        self.file.set_len(0).map_err(io(&self.path))?;
        self.done = 0;
        if let Some((_, hash)) = &mut self.sha256 {
            *hash = Sha256::new();
        }
        Ok(())
    }

    /// Compares the hash and gives the file its name; a file with another hash is deleted.
    pub(super) fn finish(self) -> Result<(), Error> {
        debug_assert_eq!(self.done, self.bytes, "the client delivers whole files");
        if let Some((expected, hash)) = self.sha256 {
            let found = format!("{:x}", hash.finalize());
            if found != expected {
                fs::remove_file(&self.path).map_err(io(&self.path))?;
                return Err(Error::HubHash { file: self.whole.display().to_string(), expected, found });
            }
        }
        self.file.sync_all().map_err(io(&self.path))?;
        fs::rename(&self.path, &self.whole).map_err(io(&self.whole))
    }
}

fn part_path(folder: &Path, file: &RemoteFile) -> PathBuf {
    folder.join(format!("{}.part", file.name))
}

/// A small file that is there whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(io(folder))?;
    }
    let part = path.with_extension("part");
    fs::write(&part, bytes).map_err(io(&part))?;
    fs::rename(&part, path).map_err(io(path))
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io { path: path.clone(), source }
}
