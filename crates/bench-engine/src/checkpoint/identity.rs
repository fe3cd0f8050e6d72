//! Which checkpoint this is, told without reading it whole: for what is made of its weights and kept elsewhere.
//!
//! Two checkpoints count as one only if folder, files, sizes, times of modification and of change, headers and the
//! sampled pages are the same. The time of change (ctime) is set by the system at every write, rename and change of
//! times, and by nobody else: a file that was written to is another one even if its size and its time of modification
//! were put back. Where a file system does not keep that time, a change of bytes outside of header and samples, with
//! size and time of modification put back, is not seen; nothing short of reading all of it would.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bench_kernels::host::MappedFile;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Error;

/// Pages of each file that are compared, the first and the last among them, beside its header. Each may cost a cold
/// disk a seek.
const SAMPLES: usize = 16;
const PAGE: usize = 4096;

/// What tells a checkpoint from all others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Without links, for people.
    folder: String,
    /// SHA-256 of the folder's path, byte by byte.
    folder_sha256: String,
    files: Vec<FileIdentity>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileIdentity {
    /// Without links.
    path: String,
    stamp: Stamp,
    /// SHA-256 of the header and of the samples.
    sampled_sha256: String,
}

/// What the file system says of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    bytes: u64,
    /// Type and permissions.
    mode: u32,
    /// Seconds and nanoseconds, as the next.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self {
            bytes: found.len(),
            mode: found.mode(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

impl Identity {
    /// Of a folder and its mapped files, each with the stamp of before it was mapped.
    pub(super) fn of<'a>(
        folder: &Path,
        files: impl Iterator<Item = (&'a Path, &'a Stamp, &'a MappedFile)>,
    ) -> Result<Self, Error> {
        let real = real(folder)?;
        let files = files.map(|(path, stamp, file)| FileIdentity::of(path, stamp, file));
        Ok(Self {
            folder_sha256: format!("{:x}", Sha256::digest(real.as_os_str().as_bytes())),
            folder: real.display().to_string(),
            files: files.collect::<Result<_, _>>()?,
        })
    }

    /// Permissions of what is made of these files: whoever may read all of them may read it.
    pub(crate) fn mode(&self) -> u32 {
        self.files.iter().fold(0o644, |mode, file| mode & file.stamp.mode) | 0o600
    }

    /// A short name for files of this folder, whatever lies in it: that of the folder, and a hash of its path.
    pub(crate) fn folder_name(&self) -> String {
        let name = Path::new(&self.folder).file_name().map(|name| name.to_string_lossy());
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
        let name: String = name.unwrap_or_default().chars().take(64).map(plain).collect();
        format!("{name}-{}", &self.folder_sha256[..self.folder_sha256.len().min(16)])
    }
}

impl FileIdentity {
    fn of(path: &Path, stamp: &Stamp, file: &MappedFile) -> Result<Self, Error> {
        let now = Stamp::of(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        if now != *stamp || now.bytes != file.len() as u64 {
            let problem = "was changed after it was opened".to_owned();
            return Err(Error::BadFile { path: path.to_owned(), problem });
        }
        Ok(Self { path: real(path)?.display().to_string(), stamp: now, sampled_sha256: sampled_sha256(file) })
    }
}

fn real(path: &Path) -> Result<PathBuf, Error> {
    fs::canonicalize(path).map_err(|source| Error::Io { path: path.to_owned(), source })
}

fn sampled_sha256(file: &MappedFile) -> String {
    let bytes = file.as_bytes();
    let mut hash = Sha256::new();
    if bytes.len() <= SAMPLES * PAGE {
        hash.update(bytes);
        return format!("{:x}", hash.finalize());
    }
    let header = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    let header = usize::try_from(header).unwrap_or(usize::MAX).saturating_add(8).min(bytes.len());
    hash.update(&bytes[..header]);
    for i in 0..SAMPLES {
        let start = (bytes.len() - PAGE) / (SAMPLES - 1) * i;
        let start = if i + 1 == SAMPLES { bytes.len() - PAGE } else { start };
        hash.update(&bytes[start..start + PAGE]);
    }
    // Nothing of it is needed soon.
    file.release(0..bytes.len());
    format!("{:x}", hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Seek, SeekFrom, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};

    /// A file of 100 pages with a header of 100 bytes.
    fn checkpoint(folder: &Path) -> PathBuf {
        let path = folder.join("a.safetensors");
        let mut bytes = 92_u64.to_le_bytes().to_vec();
        bytes.resize(100 * PAGE, 7);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn identity(path: &Path) -> Result<Identity, Error> {
        let stamp = Stamp::of(path).unwrap();
        let file = MappedFile::open(path).unwrap();
        Identity::of(path.parent().unwrap(), [(path, &stamp, &file)].into_iter())
    }

    /// Writes one byte at `at`, and puts the time of modification back.
    fn poke(path: &Path, at: u64) {
        let mut file = File::options().write(true).open(path).unwrap();
        let before = file.metadata().unwrap().modified().unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&[1]).unwrap();
        file.set_modified(before).unwrap();
    }

    /// The same without what only the system sets.
    fn without_change_times(mut identity: Identity) -> Identity {
        identity.files.iter_mut().for_each(|file| file.stamp.changed = (0, 0));
        identity
    }

    #[test]
    fn header_and_samples_tell_files_of_equal_size_and_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = checkpoint(dir.path());
        let first = without_change_times(identity(&path).unwrap());
        // In the header behind the first bytes, in the first page, in the middle sample, at the very end.
        let samples = (99 * PAGE / 15) as u64;
        for at in [50, 3000, 7 * samples + 5, 100 * PAGE as u64 - 1] {
            checkpoint(dir.path());
            let before = fs::metadata(&path).unwrap().modified().unwrap();
            poke(&path, at);
            assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
            let mut changed = without_change_times(identity(&path).unwrap());
            changed.files[0].stamp.modified = first.files[0].stamp.modified;
            assert_ne!(changed, first, "byte {at}");
        }
        checkpoint(dir.path());
        let mut same = without_change_times(identity(&path).unwrap());
        same.files[0].stamp.modified = first.files[0].stamp.modified;
        assert_eq!(same, first);
    }

    /// What no sample sees is told by the time of change. Its steps may be some milliseconds, so that the test
    /// writes until it moves.
    #[test]
    fn a_write_outside_of_all_samples_is_told_by_the_time_of_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = checkpoint(dir.path());
        let first = identity(&path).unwrap();
        assert_eq!(identity(&path).unwrap(), first);
        let last = SystemTime::now() + Duration::from_secs(5);
        let changed = loop {
            poke(&path, 3 * PAGE as u64);
            let changed = identity(&path).unwrap();
            if changed != first || SystemTime::now() > last {
                break changed;
            }
        };
        assert_eq!(without_change_times(changed.clone()), without_change_times(first.clone()));
        assert_ne!(changed, first);
    }

    #[test]
    fn a_file_that_was_changed_after_it_was_opened_has_no_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = checkpoint(dir.path());
        let stamp = Stamp::of(&path).unwrap();
        let file = MappedFile::open(&path).unwrap();
        fs::write(dir.path().join("b"), [0; 10]).unwrap();
        fs::rename(dir.path().join("b"), &path).unwrap();
        let error = Identity::of(dir.path(), [(path.as_path(), &stamp, &file)].into_iter()).unwrap_err();
        assert!(error.to_string().contains("was changed after it was opened"), "{error}");
    }

    #[test]
    fn permissions_are_no_wider_than_those_of_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = checkpoint(dir.path());
        for (mode, expected) in [(0o444, 0o644), (0o660, 0o640), (0o600, 0o600), (0o777, 0o644)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(identity(&path).unwrap().mode(), expected, "{mode:o}");
        }
    }

    #[test]
    fn names_are_those_of_folders_and_differ_by_path() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["a/gpt oss", "b/gpt oss"].map(|name| {
            let folder = dir.path().join(name);
            fs::create_dir_all(&folder).unwrap();
            identity(&checkpoint(&folder)).unwrap().folder_name()
        });
        assert!(names.iter().all(|name| name.starts_with("gpt_oss-") && name.len() == 24), "{names:?}");
        assert_ne!(names[0], names[1]);
        // A link leads to the same files.
        std::os::unix::fs::symlink(dir.path().join("a/gpt oss"), dir.path().join("link")).unwrap();
        let linked = identity(&dir.path().join("link/a.safetensors")).unwrap();
        assert_eq!(linked.folder_name(), names[0]);
    }
}
