//! One trial as JSON lines: a header, one line per request, a footer with their number and SHA-256.
//!
//! Requests go to disk as they end; the events of a whole trial are never held here.

use super::files::{Medium, Opener, Version, sync_folder, temporary};
use super::sums::{self, hex};
use crate::{Error, Result};
use bench_core::client::{ClientHealth, Scrape};
use bench_core::memory::MemoryTrace;
use bench_core::power::PowerTrace;
use bench_core::shape::ExpertUse;
use bench_core::trace::{RequestTrace, TrialTrace};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
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
    Client(ClientHealth),
    Scrape(Scrape),
    Memory(MemoryTrace),
    Experts(ExpertUse),
    Power(Cow<'a, PowerTrace>),
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

    pub fn client(&mut self, health: ClientHealth) -> Result<()> {
        self.line(&Line::Client(health))
    }

    pub fn scrape(&mut self, scrape: Scrape) -> Result<()> {
        self.line(&Line::Scrape(scrape))
    }

    pub fn memory(&mut self, memory: MemoryTrace) -> Result<()> {
        self.line(&Line::Memory(memory))
    }

    pub fn experts(&mut self, experts: ExpertUse) -> Result<()> {
        self.line(&Line::Experts(experts))
    }

    pub fn power(&mut self, power: &PowerTrace) -> Result<()> {
        self.line(&Line::Power(Cow::Borrowed(power)))
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
        let whole = hex(&self.out.get_ref().hasher.clone().finalize());
        let kept = self.path.exists().then(|| free_partial_name(&self.path));
        if let Some(kept) = &kept {
            fs::rename(&self.path, kept)?;
        }
        fs::rename(&self.temp, &self.path)?;
        self.renamed = true;
        self.path.parent().map_or(Ok(()), sync_folder)?;
        match kept {
            Some(kept) => sums::note_moved(&self.folder, &self.path, &kept, whole),
            None => sums::note(&self.folder, &self.path, whole),
        }
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

/// The name under which a kept part stood before: `a/round-000.jsonl` of `a/round-000.partial-0.jsonl`;
/// `None` for any other file.
pub(super) fn kept_from(path: &str) -> Option<String> {
    let (stem, number) = path.strip_suffix(".jsonl")?.rsplit_once(".partial-")?;
    number.bytes().all(|b| b.is_ascii_digit()).then(|| format!("{stem}.jsonl"))
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

/// What a trial file holds, line by line.
#[derive(Debug)]
pub enum Stored {
    Header(TrialHeader),
    Warmup(RequestTrace),
    Request(RequestTrace),
    Client(ClientHealth),
    Scrape(Scrape),
    Memory(MemoryTrace),
    Experts(ExpertUse),
    Power(PowerTrace),
    /// The footer, after number and hash of the lines above were found right.
    End {
        complete: bool,
    },
}

/// One trial file, read one line at a time: first the header, last the footer. Errors name the file and the line;
/// after one there is nothing more. What comes before the footer is not yet known to be whole.
pub struct TrialReader {
    path: PathBuf,
    reader: BufReader<File>,
    bytes: Vec<u8>,
    lines: u64,
    hasher: Sha256,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Inside,
    /// The footer was read.
    Footer,
    Over,
}

impl TrialReader {
    pub fn open(path: &Path) -> Result<Self> {
        let io_error = |source| Error::Read { path: path.to_owned(), source };
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::new(File::open(path).map_err(io_error)?),
            bytes: Vec::new(),
            lines: 0,
            hasher: Sha256::new(),
            state: State::Start,
        })
    }

    fn read(&mut self) -> Result<Option<Stored>> {
        self.bytes.clear();
        let read = self.reader.read_until(b'\n', &mut self.bytes);
        let read = read.map_err(|source| Error::Read { path: self.path.clone(), source })?;
        if read == 0 {
            if self.state == State::Footer {
                return Ok(None);
            }
            let problem = "the file ends without its footer: it was cut after the run".to_owned();
            return Err(Error::Corrupt { path: self.path.clone(), line: self.lines, problem });
        }
        let bytes = std::mem::take(&mut self.bytes);
        let taken = self.take(&bytes);
        self.bytes = bytes;
        let line = self.lines + 1;
        let stored = taken.map_err(|problem| Error::Corrupt { path: self.path.clone(), line, problem })?;
        self.lines = line;
        Ok(Some(stored))
    }

    fn take(&mut self, bytes: &[u8]) -> Result<Stored, String> {
        if self.state == State::Footer {
            return Err("there is text after the footer: the file was edited after the run".to_owned());
        }
        if self.lines == 0 {
            check_version(bytes)?;
        }
        let line = serde_json::from_slice(bytes).map_err(|e| unreadable(&e))?;
        let stored = match (line, self.state) {
            (Line::Header(header), State::Start) => Stored::Header(header),
            (Line::Header(_), _) => return Err("a second header: two files were joined".to_owned()),
            (_, State::Start) => {
                return Err("expected the trial's header first: the file was edited".to_owned());
            }
            (Line::Warmup(request), _) => Stored::Warmup(request.into_owned()),
            (Line::Request(request), _) => Stored::Request(request.into_owned()),
            (Line::Client(health), _) => Stored::Client(health),
            (Line::Scrape(scrape), _) => Stored::Scrape(scrape),
            (Line::Memory(memory), _) => Stored::Memory(memory),
            (Line::Experts(experts), _) => Stored::Experts(experts),
            (Line::Power(power), _) => Stored::Power(power.into_owned()),
            (Line::Footer(footer), _) => {
                self.state = State::Footer;
                self.verify(&footer)?;
                return Ok(Stored::End { complete: footer.complete });
            }
        };
        self.state = State::Inside;
        self.hasher.update(bytes);
        Ok(stored)
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

impl Iterator for TrialReader {
    type Item = Result<Stored>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Over {
            return None;
        }
        let next = self.read().transpose();
        if !matches!(next, Some(Ok(_))) {
            self.state = State::Over;
        }
        next
    }
}

/// Reads one trial file whole and checks its footer; for trials that fit in memory.
pub fn read_trial(path: &Path) -> Result<TrialTrace> {
    collect(TrialReader::open(path)?)
}

pub(super) fn collect(reader: TrialReader) -> Result<TrialTrace> {
    let path = reader.path.clone();
    let mut found = None;
    for stored in reader {
        match (stored?, &mut found) {
            (Stored::Header(header), _) => found = Some(empty_trace(header)),
            (Stored::Warmup(request), Some(trace)) => trace.warmup.push(request),
            (Stored::Request(request), Some(trace)) => trace.requests.push(request),
            (Stored::Client(health), Some(trace)) => trace.client = Some(health),
            (Stored::Scrape(scrape), Some(trace)) => trace.scrapes.push(scrape),
            (Stored::Memory(memory), Some(trace)) => trace.memory.push(memory),
            (Stored::Experts(experts), Some(trace)) => trace.experts.push(experts),
            (Stored::Power(power), Some(trace)) => trace.power = Some(power),
            (Stored::End { complete }, Some(trace)) => trace.complete = complete,
            // The reader gives the header first.
            (_, None) => {}
        }
    }
    let problem = "expected the trial's header first: the file was edited".to_owned();
    found.ok_or(Error::Corrupt { path, line: 1, problem })
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
        started_at_unix_ms: header.started_at_unix_ms,
        ..TrialTrace::default()
    }
}
