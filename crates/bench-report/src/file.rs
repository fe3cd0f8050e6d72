//! Files that are either wholly written or not at all.

use crate::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Writes `path` through a temporary file beside it, so that a reader never sees half of it and a failure
/// leaves the old one in place. Missing folders are made.
pub(crate) fn write_atomic(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), Error>,
) -> Result<(), Error> {
    let failed = |source| Error::Write { path: path.to_owned(), source };
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let temporary = temporary_name(path);
    let result =
        write_all(&temporary, path, fill).and_then(|()| fs::rename(&temporary, path).map_err(failed));
    if result.is_err() {
        // The first error is the one to tell; a leftover temporary file harms nothing.
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Writes `bytes` to `path`, wholly or not at all.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write_atomic(path, |file| {
        file.write_all(bytes).map_err(|source| Error::Write { path: path.to_owned(), source })
    })
}

fn write_all(
    temporary: &Path,
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), Error>,
) -> Result<(), Error> {
    let failed = |source| Error::Write { path: path.to_owned(), source };
    let mut file = BufWriter::new(File::create(temporary).map_err(failed)?);
    fill(&mut file)?;
    let file = file.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)
}

fn temporary_name(path: &Path) -> PathBuf {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}-{number}.tmp", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b.csv");
        write_bytes(&path, b"old").unwrap();
        let error = write_atomic(&path, |file| {
            file.write_all(b"half of the new").unwrap();
            Err(Error::Write { path: path.clone(), source: std::io::ErrorKind::StorageFull.into() })
        })
        .unwrap_err()
        .to_string();
        assert!(error.contains("b.csv") && error.contains("disk is full"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path().join("a")).unwrap().count(), 1);
    }

    #[test]
    fn a_file_in_place_of_the_folder_is_told() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("results"), "").unwrap();
        let error = write_bytes(&folder.path().join("results/x.csv"), b"").unwrap_err().to_string();
        assert!(error.contains("a file stands where a folder is needed"), "{error}");
    }
}
