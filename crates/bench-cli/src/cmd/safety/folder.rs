//! The folder of a run: transcripts that are only ever added to, and where they came from.
//!
//! ```text
//! results/safety/<run_id>/transcripts.jsonl  counts.csv  provenance.json
//! ```

use super::super::sheet::write_whole;
use super::GENERATED;
use crate::CliError;
use crate::args::SafetyArgs;
use bench_core::SCHEMA_VERSION;
use bench_core::plan::short_hash;
use bench_core::provenance::Resumption;
use bench_runner::provenance;
use bench_runner::time::Utc;
use bench_safety::{RunRecord, Settings, Transcript, read_transcripts};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const TRANSCRIPTS: &str = "transcripts.jsonl";
const PROVENANCE: &str = "provenance.json";

/// A run that is written.
pub(super) struct Folder {
    path: PathBuf,
    record: RunRecord,
    /// Locked for this process, at its end.
    file: File,
    transcripts: Vec<Transcript>,
    notes: Vec<String>,
}

/// A new run, or the one that `--resume` names.
pub(super) fn open(
    args: &SafetyArgs,
    settings: Settings,
    generated: bool,
    command: &[String],
) -> Result<Folder, CliError> {
    let root = args.results.join("safety");
    match &args.resume {
        None => Folder::create(&root, settings, generated, command),
        Some(wanted) => Folder::resume(&find(&root, wanted, &settings.model)?, &settings, command),
    }
}

impl Folder {
    fn create(
        root: &Path,
        settings: Settings,
        generated: bool,
        command: &[String],
    ) -> Result<Self, CliError> {
        let now = Utc::now();
        let json = serde_json::to_string(&settings).unwrap_or_default();
        let hash = short_hash(json.as_bytes());
        let base = format!("{}-{}-{}", label(&settings.model), now.compact(), &hash[..8]);
        fs::create_dir_all(root).map_err(|e| cannot("make", root, &e))?;
        let (run_id, path) = free_folder(root, &base)?;
        let record = RunRecord {
            schema_version: SCHEMA_VERSION,
            run_id,
            started_at: now.rfc3339(),
            command: provenance::redact(command),
            settings,
            generated_weights: generated,
            build: provenance::build(),
            machine: provenance::machine(),
            notes: if generated { vec![GENERATED.to_owned()] } else { Vec::new() },
            resumptions: Vec::new(),
        };
        let file = lock(&path.join(TRANSCRIPTS))?;
        let folder = Self { path, record, file, transcripts: Vec::new(), notes: Vec::new() };
        folder.write_record()?;
        Ok(folder)
    }

    fn resume(path: &Path, settings: &Settings, command: &[String]) -> Result<Self, CliError> {
        let record = read_record(path)?;
        record.check(settings)?;
        let file = lock(&path.join(TRANSCRIPTS))?;
        let place = path.join(TRANSCRIPTS);
        let text = fs::read(&place).map_err(|e| cannot("read", &place, &e))?;
        let stored = read_transcripts(&String::from_utf8_lossy(&text))?;
        let mut notes = vec![format!("{} prompts were answered before", stored.transcripts.len())];
        if stored.whole_bytes < text.len() as u64 {
            file.set_len(stored.whole_bytes).map_err(|e| cannot("write", &place, &e))?;
            notes.push("the last transcript was cut while it was written: it is asked again".to_owned());
        }
        let mut folder = Self { path: path.to_owned(), record, file, transcripts: stored.transcripts, notes };
        folder.record.resumptions.push(Resumption {
            started_at: Utc::now().rfc3339(),
            command: provenance::redact(command),
            build: provenance::build(),
            machine: provenance::machine(),
        });
        folder.write_record()?;
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn run_id(&self) -> &str {
        &self.record.run_id
    }

    pub(super) fn transcripts(&self) -> &[Transcript] {
        &self.transcripts
    }

    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Adds one line, and makes sure that it stays.
    pub(super) fn append(&mut self, transcript: Transcript) -> Result<(), CliError> {
        let mut line = serde_json::to_string(&transcript).map_err(|e| CliError::Failed(e.to_string()))?;
        line.push('\n');
        let write = || {
            (&self.file).write_all(line.as_bytes())?;
            self.file.sync_data()
        };
        write().map_err(|e| cannot("write", &self.path.join(TRANSCRIPTS), &e))?;
        self.transcripts.push(transcript);
        Ok(())
    }

    fn write_record(&self) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(&self.record).map_err(|e| CliError::Failed(e.to_string()))?;
        write_whole(&self.path.join(PROVENANCE), &(text + "\n"))
    }
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> CliError {
    CliError::Failed(format!("cannot {what} {}: {error}", path.display()))
}

/// A folder that was not there: two runs may begin in one second.
fn free_folder(root: &Path, base: &str) -> Result<(String, PathBuf), CliError> {
    let mut number = 1;
    loop {
        let run_id = if number == 1 { base.to_owned() } else { format!("{base}-{number}") };
        let path = root.join(&run_id);
        match fs::create_dir(&path) {
            Ok(()) => return Ok((run_id, path)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(e) => return Err(cannot("make", &path, &e)),
        }
    }
}

/// The file, open at its end, for this process alone.
fn lock(path: &Path) -> Result<File, CliError> {
    let file = File::options().append(true).create(true).open(path).map_err(|e| cannot("open", path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(CliError::Failed(format!(
            "{} is being written by another process; wait for it, or begin a new run",
            path.display()
        ))),
        Err(TryLockError::Error(e)) => Err(cannot("lock", path, &e)),
    }
}

fn read_record(folder: &Path) -> Result<RunRecord, CliError> {
    let path = folder.join(PROVENANCE);
    let text = fs::read_to_string(&path).map_err(|e| cannot("read", &path, &e))?;
    let damaged = |problem: String| CliError::Failed(format!("{}: {problem}", path.display()));
    let record: RunRecord = serde_json::from_str(&text)
        .map_err(|e| damaged(format!("{e}: the file was cut or edited after the run")))?;
    if record.schema_version != SCHEMA_VERSION {
        let (found, known) = (record.schema_version, SCHEMA_VERSION);
        return Err(damaged(format!("schema version {found}, but this build reads {known}")));
    }
    Ok(record)
}

/// Run `wanted` (an id or a path), or the latest of `model`.
fn find(root: &Path, wanted: &str, model: &str) -> Result<PathBuf, CliError> {
    if Path::new(wanted).join(PROVENANCE).is_file() {
        return Ok(PathBuf::from(wanted));
    }
    let mut runs: Vec<PathBuf> = fs::read_dir(root)
        .map(|entries| entries.filter_map(|e| e.ok().map(|e| e.path())).collect())
        .unwrap_or_default();
    runs.retain(|path| path.join(PROVENANCE).is_file());
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let found = if wanted == "latest" {
        let records = runs.iter().filter_map(|path| Some((path, read_record(path).ok()?)));
        let own = records.filter(|(_, record)| record.settings.model == model);
        own.max_by_key(|(path, record)| (record.started_at.clone(), name(path))).map(|(path, _)| path.clone())
    } else {
        runs.iter().find(|path| name(path) == wanted).cloned()
    };
    runs.sort();
    found.ok_or_else(|| {
        let known: Vec<_> = runs.iter().map(|path| name(path)).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        CliError::Usage(format!("no run to resume (\"{wanted}\") in {}; runs there: {known}", root.display()))
    })
}

/// The last part of a model's name, as part of a folder's name.
fn label(model: &str) -> String {
    let last = model.trim_end_matches('/').rsplit(['/', ':']).next().unwrap_or(model);
    let keep = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    last.trim_start_matches('.').chars().map(keep).take(48).collect()
}
