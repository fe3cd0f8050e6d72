//! One trial as JSON lines: a header, one line per request, a footer with their number and SHA-256.
//!
//! Requests go to disk as they end; the events of a whole trial are never held here.

use super::files::{Medium, Opener, Version, sync_folder, temporary};
use crate::{Error, Result};
use bench_core::trace::{RequestTrace, TrialTrace};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

/// What is known of a trial before its first request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialHeader {
    pub schema_version: u32,
    /// Position in the plan's order.
    pub trial: u32,
    pub cell: String,
    pub round: u32,
    pub planned_requests: u32,
    /// Wall-clock time at the clock's zero, for people.
    pub started_at_unix_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct Footer {
    complete: bool,
    /// Lines above this one.
    lines: u64,
    /// Of all bytes above this line.
    sha256: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line<'a> {
    Header(TrialHeader),
    Warmup(Cow<'a, RequestTrace>),
    Request(Cow<'a, RequestTrace>),
    Footer(Footer),
}

/// Writes one trial under a temporary name; without `finish` nothing remains.
pub struct TrialWriter {
    folder: PathBuf,
    path: PathBuf,
    temp: PathBuf,
    out: BufWriter<Hashing>,
    lines: u64,
    renamed: bool,
}

impl TrialWriter {
    pub(super) fn create(folder: &Path, path: &Path, header: &TrialHeader, opener: Opener) -> Result<Self> {
        let temp = temporary(path);
        let open = || {
            let cell = path.parent().unwrap_or(folder);
            if !cell.exists() {
                fs::create_dir_all(cell)?;
                cell.parent().map_or(Ok(()), sync_folder)?;
            }
            opener(&temp)
        };
        let medium = open().map_err(|e| write_error(&temp, folder, e))?;
        let out = BufWriter::new(Hashing { medium, hasher: Sha256::new() });
        let (folder, path) = (folder.to_owned(), path.to_owned());
        let mut writer = Self { folder, path, temp, out, lines: 0, renamed: false };
        writer.line(&Line::Header(header.clone()))?;
        Ok(writer)
    }

    pub fn warmup(&mut self, request: &RequestTrace) -> Result<()> {
        self.line(&Line::Warmup(Cow::Borrowed(request)))
    }

    pub fn request(&mut self, request: &RequestTrace) -> Result<()> {
        self.line(&Line::Request(Cow::Borrowed(request)))
    }

    /// Writes the footer, makes the file durable and gives it its name; returns the path.
    pub fn finish(mut self, complete: bool) -> Result<PathBuf> {
        let temp = self.temp.clone();
        self.close(complete).map_err(|e| write_error(&temp, &self.folder, e))?;
        Ok(self.path.clone())
    }

    fn close(&mut self, complete: bool) -> io::Result<()> {
        self.out.flush()?;
        let sha256 = hex(&self.out.get_ref().hasher.clone().finalize());
        write_line(&mut self.out, &Line::Footer(Footer { complete, lines: self.lines, sha256 }))?;
        self.out.flush()?;
        self.out.get_ref().medium.sync()?;
        if self.path.exists() {
            fs::rename(&self.path, free_partial_name(&self.path))?;
        }
        fs::rename(&self.temp, &self.path)?;
        self.renamed = true;
        self.path.parent().map_or(Ok(()), sync_folder)
    }

    fn line(&mut self, line: &Line) -> Result<()> {
        self.lines += 1;
        write_line(&mut self.out, line).map_err(|e| write_error(&self.temp, &self.folder, e))
    }
}

impl Drop for TrialWriter {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = fs::remove_file(&self.temp);
        }
    }
}

/// `round-000.partial-0.jsonl`, or the next number that is free.
fn free_partial_name(path: &Path) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let named = |n: u32| path.with_file_name(format!("{stem}.partial-{n}.jsonl"));
    let mut number = 0;
    while named(number).exists() {
        number += 1;
    }
    named(number)
}

fn write_line(out: &mut impl Write, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

fn write_error(path: &Path, folder: &Path, source: io::Error) -> Error {
    Error::Write { path: path.to_owned(), folder: folder.to_owned(), source }
}

/// Hashes what the medium took.
struct Hashing {
    medium: Box<dyn Medium>,
    hasher: Sha256,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.medium.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.medium.flush()
    }
}

/// Reads one trial file and checks its footer; errors name the file and the line.
pub fn read_trial(path: &Path) -> Result<TrialTrace> {
    let io_error = |source| Error::Read { path: path.to_owned(), source };
    let mut reader = BufReader::new(File::open(path).map_err(io_error)?);
    let mut file = TrialReader { trace: None, footer: false, lines: 0, hasher: Sha256::new() };
    let mut bytes = Vec::new();
    let corrupt = |line, problem| Error::Corrupt { path: path.to_owned(), line, problem };
    while reader.read_until(b'\n', &mut bytes).map_err(io_error)? > 0 {
        file.take(&bytes).map_err(|problem| corrupt(file.lines + 1, problem))?;
        file.lines += 1;
        bytes.clear();
    }
    let cut = || corrupt(file.lines, "the file ends without its footer: it was cut after the run".to_owned());
    file.trace.take().filter(|_| file.footer).ok_or_else(cut)
}

struct TrialReader {
    trace: Option<TrialTrace>,
    footer: bool,
    lines: u64,
    hasher: Sha256,
}

impl TrialReader {
    fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        if self.footer {
            return Err("there is text after the footer: the file was edited after the run".to_owned());
        }
        if self.lines == 0 {
            check_version(bytes)?;
        }
        let line = serde_json::from_slice(bytes).map_err(|e| unreadable(&e))?;
        match (line, &mut self.trace) {
            (Line::Header(header), None) => self.trace = Some(empty_trace(header)),
            (Line::Warmup(request), Some(trace)) => trace.warmup.push(request.into_owned()),
            (Line::Request(request), Some(trace)) => trace.requests.push(request.into_owned()),
            (Line::Footer(footer), Some(trace)) => {
                trace.complete = footer.complete;
                self.footer = true;
                return self.verify(&footer);
            }
            (Line::Header(_), Some(_)) => return Err("a second header: two files were joined".to_owned()),
            (_, None) => return Err("expected the trial's header first: the file was edited".to_owned()),
        }
        self.hasher.update(bytes);
        Ok(())
    }

    fn verify(&mut self, footer: &Footer) -> Result<(), String> {
        let sha256 = hex(&self.hasher.finalize_reset());
        if footer.lines != self.lines || footer.sha256 != sha256 {
            return Err(format!(
                "the footer tells of {} lines with SHA-256 {}, but above stand {} with {sha256}: \
                 the file was edited after the run",
                footer.lines, footer.sha256, self.lines
            ));
        }
        Ok(())
    }
}

fn check_version(line: &[u8]) -> Result<(), String> {
    #[derive(Deserialize)]
    struct First {
        header: Version,
    }
    serde_json::from_slice::<First>(line).map_err(|e| unreadable(&e))?.header.check()
}

/// serde counts lines within the one line that it was given; the caller names the true one.
fn unreadable(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text).to_owned();
    format!("column {}: {what}: the file was cut or edited after the run", error.column())
}

fn empty_trace(header: TrialHeader) -> TrialTrace {
    TrialTrace {
        schema_version: header.schema_version,
        trial: header.trial,
        cell: header.cell,
        round: header.round,
        planned_requests: header.planned_requests,
        complete: false,
        started_at_unix_ms: header.started_at_unix_ms,
        warmup: Vec::new(),
        requests: Vec::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
