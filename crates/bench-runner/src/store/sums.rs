//! `SHA256SUMS` of a run: one line for each of its files, as `sha256sum` writes and checks them.
//!
//! A sum is noted when its file is written, from the bytes that went there. What a killed process left
//! without one gets it when the run is resumed; nothing here decides what a difference means.

use super::files::write_whole;
use super::{CALIBRATION, LOCK, entries, file_name, read_text, trial};
use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::path::Path;

pub(super) const SUMS: &str = "SHA256SUMS";

/// SHA-256 in lower-case hex by path, relative to the run's folder with `/` between its parts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sums(BTreeMap<String, String>);

/// What a run's files say against its sums.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SumCheck {
    /// Files that were read.
    pub files: u64,
    pub bytes: u64,
    /// By path.
    pub findings: Vec<SumFinding>,
}

/// One file that is not as it was written; paths are relative to the run's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SumFinding {
    Changed {
        path: String,
        listed: String,
        found: String,
    },
    Missing {
        path: String,
    },
    Unlisted {
        path: String,
    },
    /// A line of `SHA256SUMS` (from 1) that is not a sum and a path, or lists a path again.
    Unreadable {
        line: u64,
        text: String,
    },
}

/// Holds every file of the run at `folder` against its sums; `None` where an earlier version wrote the run,
/// without sums. Files under temporary names are of a trial that runs, or was killed: they are not looked
/// at.
pub fn check_sums(folder: &Path) -> Result<Option<SumCheck>> {
    let path = folder.join(SUMS);
    if !path.exists() {
        return Ok(None);
    }
    let (Sums(mut listed), mut findings) = parse(&read_text(&path)?);
    let mut check = SumCheck::default();
    for path in files(folder)? {
        let (found, bytes) = hash(&folder.join(&path))?;
        check.files += 1;
        check.bytes += bytes;
        match listed.remove(&path) {
            Some(sum) if sum == found => {}
            Some(listed) => findings.push(SumFinding::Changed { path, listed, found }),
            None => findings.push(SumFinding::Unlisted { path }),
        }
    }
    findings.extend(listed.into_keys().map(|path| SumFinding::Missing { path }));
    findings.sort_by(|a, b| a.path().cmp(b.path()));
    check.findings = findings;
    Ok(Some(check))
}

impl SumFinding {
    /// The file that it is about.
    pub fn path(&self) -> &str {
        match self {
            Self::Changed { path, .. } | Self::Missing { path } | Self::Unlisted { path } => path,
            Self::Unreadable { .. } => SUMS,
        }
    }
}

/// Notes the sum of one file in the run's list, in one step.
pub(super) fn note(folder: &Path, path: &Path, sha256: String) -> io::Result<()> {
    change(folder, |sums| _ = sums.0.insert(relative(folder, path), sha256))
}

/// The same when the file that stood under this name was moved to `kept`, with its sum.
pub(super) fn note_moved(folder: &Path, path: &Path, kept: &Path, sha256: String) -> io::Result<()> {
    change(folder, |sums| {
        let name = relative(folder, path);
        if let Some(old) = sums.0.remove(&name) {
            sums.0.insert(relative(folder, kept), old);
        }
        sums.0.insert(name, sha256);
    })
}

/// Lists every file of a new folder.
pub(super) fn list_all(folder: &Path) -> Result<()> {
    let mut sums = Sums::default();
    for path in files(folder)? {
        let (sha256, _) = hash(&folder.join(&path))?;
        sums.0.insert(path, sha256);
    }
    store(folder, &sums)
}

/// Lists what a killed process wrote and did not come to list; `false` where there was no list. A sum that
/// is there stays, but for `calibration.json`, which a killed process may have rewritten.
pub(super) fn heal(folder: &Path) -> Result<bool> {
    let path = folder.join(SUMS);
    if !path.exists() {
        return list_all(folder).map(|()| false);
    }
    let (mut sums, _) = parse(&read_text(&path)?);
    let mut unlisted = files(folder)?;
    unlisted.retain(|path| !sums.0.contains_key(path) || path == CALIBRATION);
    // A part that was kept took its sum from the name under which it stood until then.
    unlisted.sort_by_key(|path| trial::kept_from(path).is_none());
    let mut moved = Vec::new();
    for path in unlisted {
        let (sha256, _) = hash(&folder.join(&path))?;
        if let Some(name) = trial::kept_from(&path)
            && sums.0.get(&name) == Some(&sha256)
        {
            sums.0.remove(&name);
            moved.push(name);
        }
        sums.0.insert(path, sha256);
    }
    for name in moved.into_iter().filter(|name| folder.join(name).exists()) {
        let (sha256, _) = hash(&folder.join(&name))?;
        sums.0.insert(name, sha256);
    }
    store(folder, &sums).map(|()| true)
}

/// SHA-256 of bytes in hex.
pub(super) fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn change(folder: &Path, edit: impl FnOnce(&mut Sums)) -> io::Result<()> {
    let path = folder.join(SUMS);
    let text = if path.exists() { std::fs::read_to_string(&path)? } else { String::new() };
    let (mut sums, _) = parse(&text);
    edit(&mut sums);
    write_whole(&path, print(&sums).as_bytes())
}

fn store(folder: &Path, sums: &Sums) -> Result<()> {
    let path = folder.join(SUMS);
    let written = write_whole(&path, print(sums).as_bytes());
    written.map_err(|source| Error::Write { path, folder: folder.to_owned(), source })
}

fn print(sums: &Sums) -> String {
    sums.0.iter().fold(String::new(), |mut text, (path, sha256)| {
        let _ = writeln!(text, "{sha256}  {path}");
        text
    })
}

/// The sums, and the lines that are none.
fn parse(text: &str) -> (Sums, Vec<SumFinding>) {
    let (mut sums, mut findings) = (Sums::default(), Vec::new());
    for (index, line) in text.lines().enumerate() {
        let is_sum = |sum: &str| sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit());
        match line.split_once("  ") {
            Some((sum, path)) if is_sum(sum) && !sums.0.contains_key(path) => {
                sums.0.insert(path.to_owned(), sum.to_owned());
            }
            _ => findings.push(SumFinding::Unreadable { line: index as u64 + 1, text: line.to_owned() }),
        }
    }
    (sums, findings)
}

/// Every file below the run's folder that has a sum, sorted by its relative path.
fn files(folder: &Path) -> Result<Vec<String>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for path in entries(&next)? {
            let name = file_name(&path);
            let unfinished = name.starts_with('.') && Path::new(name).extension().is_some_and(|e| e == "tmp");
            let outside = next == *folder && (name == LOCK || name == SUMS);
            if path.is_dir() {
                folders.push(path);
            } else if !unfinished && !outside {
                found.push(relative(folder, &path));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn relative(folder: &Path, path: &Path) -> String {
    let parts = path.strip_prefix(folder).unwrap_or(path).components();
    parts.map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// Sum and length of a file of any size.
fn hash(path: &Path) -> Result<(String, u64)> {
    let mut hasher = Sha256::new();
    let mut read = || io::copy(&mut File::open(path)?, &mut hasher);
    let bytes = read().map_err(|source| Error::Read { path: path.to_owned(), source })?;
    Ok((hex(&hasher.finalize()), bytes))
}
