//! One file of quantized matrices: what it was made of, checksums, codes and scales.
//!
//! Format: 8 bytes of magic, layout and length of the header (64 bits each, little-endian), SHA-256 of the header, the
//! header in JSON, zeros up to a page; then codes and scales of each matrix in the header's order, without holes. A
//! file appears whole or not at all, and is read by one that checks every claim: places follow from shapes, sizes are
//! compared with the file's, and nothing is used before its checksum was compared.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bench_kernels::Exec;
use bench_kernels::host::AlignedBytes;
use bench_kernels::packed::{PackedFormat, is_packable};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use sha2::digest::Output;
use sha2::{Digest, Sha256};

use crate::checkpoint::Identity;
use crate::error::Result;
use crate::model::pack::each;
use crate::preflight::gib;
use crate::system::free_disk;
use crate::weights::{HostTensor, TensorDtype};

const MAGIC: [u8; 8] = *b"ossbpack";
/// Of this file and of what quantizing writes: raised with every change of either. Files of another layout are
/// replaced.
const LAYOUT: u64 = 1;
/// Magic, layout, length and checksum.
const PREAMBLE: usize = 8 + 8 + 8 + 32;
/// A matrix takes some 300 bytes of it; the largest models have a thousand.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Matrices begin on one.
const PAGE: u64 = 4096;
/// What one thread reads and checks at a time: it stays in its cache.
const PART: usize = 256 << 10;
/// Ending of what is not finished.
const UNFINISHED: &str = ".new";

type Sum = Output<Sha256>;

/// What must be equal for matrices to be those that quantizing would give now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key {
    pub(super) format: String,
    /// Results are equal on all instruction sets of one architecture, which tests hold; beyond that nobody looked.
    arch: String,
    pub(super) identity: Identity,
}

impl Key {
    pub(super) fn new(format: &str, identity: Identity) -> Self {
        Self { format: format.to_owned(), arch: std::env::consts::ARCH.to_owned(), identity }
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    key: Key,
    matrices: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    /// Of the checkpoint's tensor, as its header spells it.
    dtype: String,
    rows: usize,
    cols: usize,
    /// SHA-256 of the SHA-256 of all parts, as the next.
    codes_sha256: String,
    scales_sha256: String,
}

impl Entry {
    /// Bytes of codes and scales; `None` for a size that nothing has.
    fn bytes(&self, format: PackedFormat) -> Option<(usize, usize)> {
        /// More weights than any machine has room for; products below do not overflow.
        const MOST: usize = 1 << 44;
        let weights = self.rows.checked_mul(self.cols).filter(|weights| *weights < MOST);
        (weights.is_some() && is_packable(self.rows, self.cols)).then(|| format.bytes(self.rows, self.cols))
    }
}

/// A matrix to be written.
pub(super) struct Kept {
    pub(super) name: Arc<str>,
    pub(super) dtype: TensorDtype,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) codes: HostTensor,
    pub(super) scales: HostTensor,
}

/// A file that is open, its header checked.
pub(super) struct Packed {
    file: File,
    format: PackedFormat,
    /// By name: what is said of a matrix, and where it begins.
    entries: HashMap<String, (Entry, u64)>,
}

/// What was found of a matrix.
pub(super) enum Taken {
    /// Codes and scales, as they were written.
    Matrix(AlignedBytes, AlignedBytes),
    Absent,
    /// What is wrong, as the end of a sentence that begins with the file's name; so for the functions below.
    Damaged(String),
}

impl Packed {
    /// The file at `path`; `None` where there is none, or it was made of something else or by another layout.
    pub(super) fn open(
        path: &Path,
        key: &Key,
        format: PackedFormat,
    ) -> std::result::Result<Option<Self>, String> {
        let Some(Begun { file, header, begin: mut at }) = read_header(path)? else { return Ok(None) };
        if header.key != *key {
            return Ok(None);
        }
        let mut entries = HashMap::with_capacity(header.matrices.len());
        for entry in header.matrices {
            let Some((codes, scales)) = entry.bytes(format) else {
                return Err(format!("has {:?} with shape [{}, {}]", entry.name, entry.rows, entry.cols));
            };
            let begin = at;
            at = at.saturating_add((codes + scales) as u64);
            if let Some((twice, _)) = entries.insert(entry.name.clone(), (entry, begin)) {
                return Err(format!("has {:?} twice", twice.name));
            }
        }
        let bytes = file.metadata().map_err(|e| unreadable(&e))?.len();
        if bytes != at {
            return Err(format!("has {bytes} bytes, its header tells of {at}"));
        }
        Ok(Some(Self { file, format, entries }))
    }

    /// The matrix of `tensor`, if it is there and whole.
    ///
    /// # Errors
    /// No memory for it.
    pub(super) fn take(&self, exec: &Exec, tensor: &HostTensor) -> Result<Taken> {
        let Some((entry, at)) = self.entries.get(&*tensor.name) else { return Ok(Taken::Absent) };
        let name = &entry.name;
        let bytes = entry.bytes(self.format);
        let Some((code_bytes, scale_bytes)) =
            bytes.filter(|_| tensor.shape == [entry.rows, entry.cols] && tensor.dtype.name() == entry.dtype)
        else {
            let (dtype, shape) = (tensor.dtype.name(), &tensor.shape);
            let problem = format!("has {name:?} as [{}, {}] of {}", entry.rows, entry.cols, entry.dtype);
            return Ok(Taken::Damaged(format!("{problem}, the checkpoint as {shape:?} of {dtype}")));
        };
        let mut codes = AlignedBytes::zeroed(code_bytes)?;
        let mut scales = AlignedBytes::zeroed(scale_bytes)?;
        let places = [
            (&mut codes, *at, &entry.codes_sha256),
            (&mut scales, *at + code_bytes as u64, &entry.scales_sha256),
        ];
        for (to, at, expected) in places {
            match read(exec, &self.file, at, to.as_bytes_mut()) {
                Ok(found) if found == *expected => {}
                Ok(_) => {
                    return Ok(Taken::Damaged(format!("has another checksum for {name:?} than it says")));
                }
                Err(error) => return Ok(Taken::Damaged(unreadable(&error))),
            }
        }
        Ok(Taken::Matrix(codes, scales))
    }
}

fn unreadable(error: &io::Error) -> String {
    format!("cannot be read: {error}")
}

/// Whether there is a sound file at `path`, and it was made of another checkpoint than `identity`.
pub(super) fn is_of_another(path: &Path, identity: &Identity) -> bool {
    matches!(read_header(path), Ok(Some(begun)) if begun.header.key.identity != *identity)
}

/// Opens what stands at `path` itself: no links, which may lead anywhere, and no waiting for the other end of a pipe.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    File::options().read(true).custom_flags(flags.bits() as i32).open(path)
}

fn is_older_than_a_minute(file: &fs::Metadata) -> bool {
    let age = file.modified().ok().and_then(|modified| modified.elapsed().ok());
    age.is_some_and(|age| age > Duration::from_mins(1))
}

/// A file of which the header was read.
struct Begun {
    file: File,
    header: Header,
    /// Where its matrices begin.
    begin: u64,
}

/// `None` where there is no file, or one of another layout.
fn read_header(path: &Path) -> std::result::Result<Option<Begun>, String> {
    let mut file = match open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(_) if path.is_symlink() => return Err("is a link, expected a file".to_owned()),
        Err(error) => return Err(unreadable(&error)),
    };
    let found = file.metadata().map_err(|e| unreadable(&e))?;
    if !found.is_file() {
        return Err("is no file".to_owned());
    }
    let mut preamble = [0; PREAMBLE];
    if found.len() < PREAMBLE as u64 {
        return Err(format!("has {} bytes, too few", found.len()));
    }
    file.read_exact(&mut preamble).map_err(|e| unreadable(&e))?;
    let number = |at: usize| preamble[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    if preamble[..8] != MAGIC {
        return Err("does not hold packed weights".to_owned());
    }
    let (layout, length) = (number(8), number(16));
    if layout != LAYOUT {
        return Ok(None);
    }
    let begin = matrices_begin(length);
    if length > MAX_HEADER_BYTES || begin > found.len() {
        return Err(format!("claims a header of {length} bytes, but has only {} bytes in all", found.len()));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(|e| unreadable(&e))?;
    if preamble[24..] != *Sha256::digest(&header) {
        return Err("has another checksum for its header than it says".to_owned());
    }
    let header = serde_json::from_slice(&header).map_err(|e| format!("has an unknown header: {e}"))?;
    Ok(Some(Begun { file, header, begin }))
}

fn matrices_begin(header_bytes: u64) -> u64 {
    header_bytes.saturating_add(PREAMBLE as u64).checked_next_multiple_of(PAGE).unwrap_or(u64::MAX)
}

/// Reads into `to` what stands at `at`, on all threads; its checksum.
fn read(exec: &Exec, file: &File, at: u64, to: &mut [u8]) -> io::Result<String> {
    let mut sums = vec![Sum::default(); to.len().div_ceil(PART)];
    each(exec, to.chunks_mut(PART).zip(&mut sums), |i, (part, sum)| {
        file.read_exact_at(part, at + (i * PART) as u64)?;
        *sum = Sha256::digest(&*part);
        Ok::<_, io::Error>(())
    })?;
    Ok(joined(&sums))
}

/// The checksum of what is in memory.
fn checksum(exec: &Exec, bytes: &[u8]) -> String {
    let mut sums = vec![Sum::default(); bytes.len().div_ceil(PART)];
    let Ok(()) = each(exec, bytes.chunks(PART).zip(&mut sums), |_, (part, sum)| {
        *sum = Sha256::digest(part);
        Ok::<_, Infallible>(())
    });
    joined(&sums)
}

fn joined(sums: &[Sum]) -> String {
    let mut all = Sha256::new();
    for sum in sums {
        all.update(sum);
    }
    format!("{:x}", all.finalize())
}

/// A new file that nothing has opened yet.
pub(super) fn create(path: &Path, mode: u32) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(mode).open(path)
}

/// Writes `matrices` to `path`, in place of what is there. Whoever reads meanwhile sees the file of before or the whole
/// new one; of several who write the last one wins. Waits until the disk has it all: what is written later would
/// disturb what is measured.
///
/// # Errors
/// A folder that cannot be written, too little space; what was begun is removed.
pub(super) fn write(
    exec: &Exec,
    path: &Path,
    key: &Key,
    matrices: &[Kept],
    create: impl FnOnce(&Path, u32) -> io::Result<File>,
) -> io::Result<()> {
    static WRITES: AtomicU32 = AtomicU32::new(0);
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    remove_left_overs(folder);
    let (preamble, header, zeros) = head(exec, key, matrices)?;
    let data = matrices.iter().flat_map(|matrix| [&matrix.codes, &matrix.scales]).map(HostTensor::as_bytes);
    let parts = || [&preamble[..], &header, &zeros].into_iter().chain(data.clone());
    let needed: u64 = parts().map(|part| part.len() as u64).sum();
    if let Some(free) = free_disk(folder).filter(|free| *free < needed) {
        let problem = format!("{} of disk space are free, {} are needed", gib(free), gib(needed));
        return Err(io::Error::new(io::ErrorKind::StorageFull, problem));
    }
    let number = WRITES.fetch_add(1, Ordering::Relaxed);
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}-{number}{UNFINISHED}", std::process::id()));
    let beside = Path::new(&beside);
    let written = create(beside, key.identity.mode()).and_then(|mut file| {
        // Says that somebody is at work, until the file is closed, however this process ends. A file system without
        // locks has no left-overs removed.
        let _ = file.try_lock();
        for part in parts() {
            file.write_all(part)?;
        }
        file.sync_all()?;
        fs::rename(beside, path)
    });
    if written.is_err() {
        // The first error is the one that tells.
        let _ = fs::remove_file(beside);
    }
    written
}

/// What stands before the matrices.
fn head(exec: &Exec, key: &Key, matrices: &[Kept]) -> io::Result<([u8; PREAMBLE], Vec<u8>, Vec<u8>)> {
    let entry = |matrix: &Kept| Entry {
        name: matrix.name.to_string(),
        dtype: matrix.dtype.name().to_owned(),
        rows: matrix.rows,
        cols: matrix.cols,
        codes_sha256: checksum(exec, matrix.codes.as_bytes()),
        scales_sha256: checksum(exec, matrix.scales.as_bytes()),
    };
    let header = Header { key: key.clone(), matrices: matrices.iter().map(entry).collect() };
    let header = serde_json::to_vec(&header)?;
    let length = header.len() as u64;
    let mut preamble = [0; PREAMBLE];
    preamble[..8].copy_from_slice(&MAGIC);
    preamble[8..16].copy_from_slice(&LAYOUT.to_le_bytes());
    preamble[16..24].copy_from_slice(&length.to_le_bytes());
    preamble[24..].copy_from_slice(&Sha256::digest(&header));
    let zeros = vec![0; (matrices_begin(length) - PREAMBLE as u64 - length) as usize];
    Ok((preamble, header, zeros))
}

/// Removes what writers left that came to an end in the middle: files that nobody holds locked. One that was written to
/// in the last minute may be about to be.
fn remove_left_overs(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let is_unfinished = path.to_str().is_some_and(|name| name.ends_with(UNFINISHED));
        if is_unfinished
            && let Ok(file) = open(&path)
            && file.metadata().is_ok_and(|found| found.is_file() && is_older_than_a_minute(&found))
            && file.try_lock().is_ok()
        {
            // What cannot be removed only takes space.
            let _ = fs::remove_file(&path);
        }
    }
}
