//! Raw results on disk: one folder per run, one immutable file per finished trial.
//!
//! ```text
//! results/raw/<run_id>/spec.toml  plan.json  provenance.json  calibration.json  idle.json  .lock
//!                      bandwidth.json  accuracy/<model>.json  SHA256SUMS
//!                      cells/<cell_id>/round-000.jsonl
//! ```
//! A trial file is there whole or not at all. Nothing here looks into the events.

mod files;
mod sums;
mod trial;

pub use files::Medium;
pub use sums::{SumCheck, SumFinding, check_sums};
pub use trial::{Stored, TrialHeader, TrialReader, TrialWriter, read_trial};

use crate::plan_diff;
use crate::{Error, Result};
use bench_core::client::{Calibration, ServerFacts};
use bench_core::plan::{Plan, Trial};
use bench_core::power::PowerTrace;
use bench_core::provenance::{Build, Provenance, Resumption};
use bench_core::shape::{Bandwidth, ModelFacts};
use bench_core::trace::TrialTrace;
use files::{Opener, create_file, read_text, sync_folder, write_whole};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const PLAN: &str = "plan.json";
const SPEC: &str = "spec.toml";
const PROVENANCE: &str = "provenance.json";
const CALIBRATION: &str = "calibration.json";
const IDLE: &str = "idle.json";
const BANDWIDTH: &str = "bandwidth.json";
const LOCK: &str = ".lock";
const CELLS: &str = "cells";

/// The content of `calibration.json`: by cell.
#[derive(Serialize, Deserialize)]
struct Calibrations {
    schema_version: u32,
    cells: BTreeMap<String, Calibration>,
}

/// The content of `idle.json`.
#[derive(Serialize, Deserialize)]
struct Idle {
    schema_version: u32,
    power: PowerTrace,
}

/// Where a trial of the plan stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrialStatus {
    Missing,
    /// Its run was stopped inside the trial.
    Incomplete,
    Complete,
}

/// The folder of one run.
pub struct RunFolder {
    path: PathBuf,
    plan: Plan,
    provenance: Provenance,
    /// Held while this process may write; `None` for a folder that was opened for reading.
    lock: Option<File>,
    notes: Vec<String>,
    opener: Opener,
}

impl RunFolder {
    /// Makes `<results_dir>/raw/<run_id>` with spec, plan and provenance in it, locked for this process.
    /// A run id that is taken (two runs in one second) gets a number at its end.
    pub fn create(results_dir: &Path, spec_toml: &str, plan: &Plan, provenance: &Provenance) -> Result<Self> {
        let raw = results_dir.join("raw");
        let run_id = provenance.run_id.clone();
        let failed = |source| Error::Create { path: raw.join(&run_id), source };
        fs::create_dir_all(&raw).map_err(failed)?;
        let draft = raw.join(format!(".{run_id}.{}.tmp", std::process::id()));
        let made = fs::create_dir(&draft)
            .and_then(|()| fill(&draft, &raw, spec_toml, plan, provenance))
            .inspect_err(|_| _ = fs::remove_dir_all(&draft));
        let (path, lock, provenance) = made.map_err(failed)?;
        Ok(Self {
            path,
            plan: plan.clone(),
            provenance,
            lock: Some(lock),
            notes: vec![],
            opener: create_file,
        })
    }

    /// Opens a run for reading; a run in progress may be read.
    pub fn open(path: &Path) -> Result<Self> {
        let not_a_run = |problem: String| Error::NotARun { path: path.to_owned(), problem };
        if !path.join(PLAN).is_file() {
            return Err(not_a_run(format!("there is no {PLAN} in it")));
        }
        let plan: Plan = read_json(&path.join(PLAN))?;
        let provenance: Provenance = read_json(&path.join(PROVENANCE))?;
        if plan.hash() != provenance.plan_hash {
            return Err(Error::PlanChanged {
                path: path.to_owned(),
                stored: provenance.plan_hash,
                given: plan.hash(),
                difference: format!("{PLAN} was edited after the run began"),
            });
        }
        Ok(Self { path: path.to_owned(), plan, provenance, lock: None, notes: vec![], opener: create_file })
    }

    /// Opens a run to go on with it: locks it, refuses another plan than the stored one, removes what a
    /// killed process left half-written, and notes this process in the provenance.
    pub fn resume(path: &Path, plan: &Plan, provenance: &Provenance) -> Result<Self> {
        let mut folder = Self::open(path)?;
        folder.check_plan(plan)?;
        folder.lock = Some(acquire(path)?);
        folder.remove_leftovers()?;
        if !sums::heal(path)? {
            let sums = sums::SUMS;
            folder.notes.push(format!(
                "the run began with a version that wrote no {sums}: its sums are those of the files as they are now"
            ));
        }
        folder.notes.extend(build_note(&folder.provenance.build, &provenance.build));
        folder.provenance.resumptions.push(Resumption {
            started_at: provenance.started_at.clone(),
            command: provenance.command.clone(),
            build: provenance.build.clone(),
            machine: provenance.machine.clone(),
        });
        folder.write_provenance()?;
        Ok(folder)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn run_id(&self) -> &str {
        &self.provenance.run_id
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// What the observer of a resumed run should be told.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The study as it was written.
    pub fn spec_toml(&self) -> Result<String> {
        read_text(&self.path.join(SPEC))
    }

    /// Refuses any plan but the stored one, and says what differs.
    pub fn check_plan(&self, plan: &Plan) -> Result<()> {
        if plan.hash() == self.plan.hash() {
            return Ok(());
        }
        Err(Error::PlanChanged {
            path: self.path.clone(),
            stored: self.plan.hash(),
            given: plan.hash(),
            difference: plan_diff::describe(&self.plan, plan),
        })
    }

    /// Where the trial's file is, or will be.
    pub fn trial_path(&self, trial: &Trial) -> PathBuf {
        self.path.join(CELLS).join(&trial.cell).join(format!("round-{:03}.jsonl", trial.round))
    }

    /// The files of cell `id`'s trials that are there, relative to the run's folder, rounds ascending.
    pub fn trial_files(&self, id: &str) -> Vec<String> {
        let mut own: Vec<_> = self.plan.trials.iter().filter(|t| t.cell == id).collect();
        own.sort_by_key(|t| t.round);
        let paths = own.into_iter().map(|trial| self.trial_path(trial)).filter(|path| path.exists());
        let relative = |path: PathBuf| path.strip_prefix(&self.path).map(|p| p.display().to_string());
        paths.filter_map(|path| relative(path).ok()).collect()
    }

    /// Reads the trial's file to its end: a damaged one is an error, not a trial to run again.
    pub fn status(&self, trial: &Trial) -> Result<TrialStatus> {
        let Some(stored) = self.stream(trial)? else { return Ok(TrialStatus::Missing) };
        let mut status = TrialStatus::Incomplete;
        for line in stored {
            if let Stored::End { complete: true } = line? {
                status = TrialStatus::Complete;
            }
        }
        Ok(status)
    }

    /// All stored trials, those of one cell together: cells in the plan's order, rounds ascending; for runs that
    /// fit in memory.
    pub fn read_trials(&self) -> Result<Vec<TrialTrace>> {
        let mut traces = Vec::with_capacity(self.plan.trials.len());
        for cell in &self.plan.cells {
            for stored in self.streams(&cell.id) {
                traces.push(trial::collect(stored?)?);
            }
        }
        Ok(traces)
    }

    /// The stored trials of cell `id`, rounds ascending, to be read line by line.
    pub fn streams(&self, id: &str) -> impl Iterator<Item = Result<TrialReader>> {
        let mut own: Vec<_> = self.plan.trials.iter().filter(|t| t.cell == id).collect();
        own.sort_by_key(|t| t.round);
        own.into_iter().filter_map(|trial| self.stream(trial).transpose())
    }

    /// The trial's file; `None` where there is none. It is checked to be this trial's.
    fn stream(&self, trial: &Trial) -> Result<Option<TrialReader>> {
        let path = self.trial_path(trial);
        if !path.exists() {
            return Ok(None);
        }
        let mut first = TrialReader::open(&path)?;
        if let Some(Stored::Header(found)) = first.next().transpose()?
            && (found.trial, &found.cell, found.round) != (trial.index, &trial.cell, trial.round)
        {
            let problem = format!(
                "this is trial {} (cell {}, round {}), expected trial {} of the plan: the file was moved",
                found.trial, found.cell, found.round, trial.index
            );
            return Err(Error::Corrupt { path, line: 1, problem });
        }
        TrialReader::open(&path).map(Some)
    }

    /// Starts the file of one trial. It appears under its name when the writer is finished; an incomplete
    /// trial that stands there is then kept beside it as `round-000.partial-N.jsonl`.
    pub fn begin_trial(&self, trial: &Trial, header: &TrialHeader) -> Result<TrialWriter> {
        if self.lock.is_none() {
            return Err(Error::ReadOnly { path: self.path.clone() });
        }
        if self.status(trial)? == TrialStatus::Complete {
            return Err(Error::Finished { path: self.trial_path(trial) });
        }
        TrialWriter::create(&self.path, &self.trial_path(trial), header, self.opener)
    }

    /// Adds what the target says of a model to the provenance.
    pub fn record_model(&mut self, label: &str, facts: &ModelFacts) -> Result<()> {
        if self.provenance.models.get(label) == Some(facts) {
            return Ok(());
        }
        self.provenance.models.insert(label.to_owned(), facts.clone());
        self.write_provenance()
    }

    /// Adds how a model was loaded to the provenance; `false` if that stands there.
    pub fn record_load(&mut self, label: &str, how: &str) -> Result<bool> {
        let ways = self.provenance.loads.entry(label.to_owned()).or_default();
        if ways.iter().any(|way| way == how) {
            return Ok(false);
        }
        ways.push(how.to_owned());
        self.write_provenance().map(|()| true)
    }

    /// Adds what was found out about a model's server to the provenance.
    pub fn record_server(&mut self, label: &str, facts: &ServerFacts) -> Result<()> {
        if self.provenance.servers.get(label) == Some(facts) {
            return Ok(());
        }
        self.provenance.servers.insert(label.to_owned(), facts.clone());
        self.write_provenance()
    }

    /// Stores a file beside the trial's; one that stands there from an attempt that was cut is replaced.
    pub fn write_beside(&self, trial: &Trial, name: &str, bytes: &[u8]) -> Result<()> {
        self.put(&self.trial_path(trial).with_file_name(name), bytes)
    }

    /// What the load generator adds at the load of cell `id`; `None` where it was not measured.
    pub fn calibration(&self, id: &str) -> Result<Option<Calibration>> {
        Ok(self.calibrations()?.cells.remove(id))
    }

    /// Adds what was measured before the first trial of cell `id`; one that stands there stays.
    pub fn record_calibration(&self, id: &str, calibration: &Calibration) -> Result<()> {
        let mut known = self.calibrations()?;
        known.cells.entry(id.to_owned()).or_insert_with(|| calibration.clone());
        self.put(&self.path.join(CALIBRATION), &pretty(&known))
    }

    /// What power was drawn before the first trial; `None` where it was not read.
    pub fn idle(&self) -> Result<Option<PowerTrace>> {
        let path = self.path.join(IDLE);
        if !path.exists() {
            return Ok(None);
        }
        read_json::<Idle>(&path).map(|idle| Some(idle.power))
    }

    pub fn record_idle(&self, power: &PowerTrace) -> Result<()> {
        let idle = Idle { schema_version: bench_core::SCHEMA_VERSION, power: power.clone() };
        self.put(&self.path.join(IDLE), &pretty(&idle))
    }

    /// Memory bandwidth of the machine; `None` where it was not measured.
    pub fn bandwidth(&self) -> Result<Option<Bandwidth>> {
        let path = self.path.join(BANDWIDTH);
        if path.exists() { read_json(&path).map(Some) } else { Ok(None) }
    }

    pub fn record_bandwidth(&self, bandwidth: &Bandwidth) -> Result<()> {
        self.put(&self.path.join(BANDWIDTH), &pretty(bandwidth))
    }

    /// The file of accuracies of model `label`, as it was given; `None` where there is none.
    pub fn accuracy(&self, label: &str) -> Result<Option<String>> {
        let path = self.accuracy_path(label);
        if path.exists() { read_text(&path).map(Some) } else { Ok(None) }
    }

    pub fn record_accuracy(&self, label: &str, json: &[u8]) -> Result<()> {
        self.put(&self.accuracy_path(label), json)
    }

    fn accuracy_path(&self, label: &str) -> PathBuf {
        self.path.join("accuracy").join(format!("{label}.json"))
    }

    /// Writes a file of this run whole and notes its sum.
    fn put(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let write = || {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            write_whole(path, bytes)?;
            sums::note(&self.path, path, sums::of_bytes(bytes))
        };
        write().map_err(|source| Error::Write { path: path.to_owned(), folder: self.path.clone(), source })
    }

    fn calibrations(&self) -> Result<Calibrations> {
        let path = self.path.join(CALIBRATION);
        if path.exists() {
            return read_json(&path);
        }
        Ok(Calibrations { schema_version: bench_core::SCHEMA_VERSION, cells: BTreeMap::new() })
    }

    fn write_provenance(&self) -> Result<()> {
        self.put(&self.path.join(PROVENANCE), &pretty(&self.provenance))
    }

    /// Files under temporary names are unfinished: their trial runs again.
    fn remove_leftovers(&self) -> Result<()> {
        let failed =
            |path: &Path, source| Error::Write { path: path.to_owned(), folder: self.path.clone(), source };
        let cells = subfolders(&self.path.join(CELLS))?;
        for folder in cells.iter().chain([&self.path]) {
            for path in entries(folder)? {
                if path.extension().is_some_and(|e| e == "tmp") {
                    fs::remove_file(&path).map_err(|e| failed(&path, e))?;
                }
            }
        }
        Ok(())
    }

    /// Lets a test put a failing medium under the trial files.
    #[cfg(test)]
    fn with_opener(mut self, opener: Opener) -> Self {
        self.opener = opener;
        self
    }
}

/// The runs below `results_dir/raw`, sorted by name; none if there is no such folder.
pub fn list_runs(results_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut runs = list_folders(results_dir)?;
    runs.retain(|p| p.join(PLAN).is_file());
    Ok(runs)
}

/// Every folder below `results_dir/raw`, those that cannot be opened as a run too: a report says why it
/// leaves them out.
pub fn list_folders(results_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = subfolders(&results_dir.join("raw"))?;
    folders.retain(|p| !file_name(p).starts_with('.'));
    Ok(folders)
}

/// Writes the three files into `draft`, locks it, and gives it its final name.
fn fill(
    draft: &Path,
    raw: &Path,
    spec_toml: &str,
    plan: &Plan,
    provenance: &Provenance,
) -> io::Result<(PathBuf, File, Provenance)> {
    let mut provenance = provenance.clone();
    let first = provenance.run_id.clone();
    fs::create_dir(draft.join(CELLS))?;
    write_whole(&draft.join(SPEC), spec_toml.as_bytes())?;
    write_whole(&draft.join(PLAN), &pretty(plan))?;
    let lock = open_lock(draft)?;
    lock.try_lock()?;
    name_holder(&lock)?;
    for number in 1.. {
        provenance.run_id = if number == 1 { first.clone() } else { format!("{first}-{number}") };
        let path = raw.join(&provenance.run_id);
        if path.exists() {
            continue;
        }
        write_whole(&draft.join(PROVENANCE), &pretty(&provenance))?;
        sums::list_all(draft).map_err(io::Error::other)?;
        match fs::rename(draft, &path) {
            // Another process took the name between the look and the rename.
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            done => {
                done?;
                sync_folder(raw)?;
                return Ok((path, lock, provenance));
            }
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Takes the run's lock for as long as the file lives; the system releases it when the process dies.
fn acquire(folder: &Path) -> Result<File> {
    let failed = |source| Error::Write { path: folder.join(LOCK), folder: folder.to_owned(), source };
    let lock = open_lock(folder).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => name_holder(&lock).map_err(failed).map(|()| lock),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = (&lock).read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another process".to_owned(),
                pid => format!("process {pid}"),
            };
            Err(Error::Locked { path: folder.to_owned(), holder })
        }
        Err(TryLockError::Error(e)) => Err(failed(e)),
    }
}

fn open_lock(folder: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(folder.join(LOCK))
}

fn name_holder(mut lock: &File) -> io::Result<()> {
    lock.set_len(0)?;
    writeln!(lock, "{}", std::process::id())
}

fn build_note(first: &Build, now: &Build) -> Option<String> {
    let text = |b: &Build| {
        let commit = b.commit.as_deref().unwrap_or("unknown commit");
        let dirty = if b.dirty == Some(true) { ", with changes" } else { "" };
        format!(
            "{} ({commit}{dirty}, {}, opt {})",
            b.version,
            b.rustc,
            if b.debug { "debug" } else { "release" }
        )
    };
    (first != now).then(|| {
        format!(
            "the run began with build {}, this is {}: compare its trials with care; both are in {PROVENANCE}",
            text(first),
            text(now)
        )
    })
}

/// Reads a JSON file of this schema version.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read_text(path)?;
    let corrupt = |e: serde_json::Error| Error::Corrupt {
        path: path.to_owned(),
        line: e.line() as u64,
        problem: format!("{e}: the file was cut or edited after the run"),
    };
    let version: files::Version = serde_json::from_str(&text).map_err(corrupt)?;
    version.check().map_err(|problem| Error::Corrupt { path: path.to_owned(), line: 1, problem })?;
    serde_json::from_str(&text).map_err(corrupt)
}

/// Plans and provenance hold strings, numbers and maps with text keys: they always have a JSON form.
fn pretty(value: &impl serde::Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text
}

fn subfolders(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = entries(folder)?;
    found.retain(|p| p.is_dir());
    found.sort();
    Ok(found)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = || fs::read_dir(folder)?.map(|e| e.map(|e| e.path())).collect::<io::Result<_>>();
    list().map_err(|source| Error::Read { path: folder.to_owned(), source })
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|n| n.to_str()).unwrap_or("")
}

#[cfg(test)]
mod tests;
