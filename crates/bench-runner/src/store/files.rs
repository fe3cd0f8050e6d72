//! Writing so that a file is there whole or not at all, and reading it back with errors that name it.

use crate::{Error, Result};
use bench_core::SCHEMA_VERSION;
use serde::Deserialize;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What a trial file is written to: a file; in tests something that fails.
pub trait Medium: Write + Send {
    /// Returns when the bytes would survive a power cut.
    fn sync(&self) -> io::Result<()>;
}

impl Medium for File {
    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
}

pub(super) type Opener = fn(&Path) -> io::Result<Box<dyn Medium>>;

pub(super) fn create_file(path: &Path) -> io::Result<Box<dyn Medium>> {
    Ok(Box::new(File::create(path)?))
}

/// The name under which a file is written until it is whole.
pub(super) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

/// Replaces `path` by `bytes` in one step.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temp = temporary(path);
    let write = || {
        let mut file = File::create(&temp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temp, path)?;
        path.parent().map_or(Ok(()), sync_folder)
    };
    write().inspect_err(|_| _ = fs::remove_file(&temp))
}

/// Makes the names in `folder` durable; elsewhere than on Unix a folder cannot be opened, nor needs to be.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

pub(super) fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// The one field that is read before the format is known.
#[derive(Deserialize)]
pub(super) struct Version {
    pub(super) schema_version: u32,
}

impl Version {
    pub(super) fn check(&self) -> Result<(), String> {
        let found = self.schema_version;
        if found == SCHEMA_VERSION {
            return Ok(());
        }
        Err(format!(
            "schema version {found}, expected {SCHEMA_VERSION}: measure again, or read it with the version of ossbench \
             that wrote it"
        ))
    }
}
