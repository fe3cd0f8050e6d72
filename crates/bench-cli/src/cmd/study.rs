//! The steps of a run, from plan to tables: folder, target, trials, analysis, report.

use super::analyze::{self, analyzed_runs};
use super::probes::{self, Meters};
use super::{engine_process, save_result};
use crate::args::{RunCommon, SecretArgs};
use crate::progress::{self, Mode};
use crate::{CliError, Io, secrets, signal};
use bench_core::plan::Plan;
use bench_core::probe::{MemoryProbe, Probes};
use bench_core::spec::TargetKind;
use bench_runner::provenance;
use bench_runner::run::{RunContext, RunOutcome};
use bench_runner::store::{RunFolder, list_runs};
use bench_runner::targets::Secrets;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// A study, ready to run.
pub(crate) struct Study {
    pub(crate) plan: Plan,
    /// As it was written; stored with the results.
    pub(crate) spec_toml: String,
    pub(crate) resume: Option<String>,
    pub(crate) common: RunCommon,
    pub(crate) command: Vec<String>,
    /// For the target alone; `command` is stored without them.
    pub(crate) secrets: SecretArgs,
    /// The JSON file with vLLM's keys, and its summary.
    pub(crate) save: Option<save_result::Options>,
    /// Whether to show how far the run is.
    pub(crate) progress: bool,
}

impl Study {
    /// A new run that shows its progress, without secrets and without a file beside the results.
    pub(crate) fn new(plan: Plan, spec_toml: String, common: &RunCommon, command: &[String]) -> Self {
        Self {
            plan,
            spec_toml,
            resume: None,
            common: common.clone(),
            command: command.to_vec(),
            secrets: SecretArgs::default(),
            save: None,
            progress: true,
        }
    }
}

pub(crate) fn run(study: &Study, io: &mut Io<'_>) -> Result<(), CliError> {
    refuse_debug_build(provenance::build().debug, study.common.allow_debug)?;
    let secrets = secrets::gather(&study.secrets, &study.plan, |name| std::env::var(name).ok())?;
    let mode = if study.progress { view(&study.common)? } else { Mode::None };
    let mut meters = Meters::default();
    meters.open(&study.plan, io)?;
    let mut folder = open_folder(study)?;
    writeln!(io.err, "results go to {}", folder.path().display())?;
    let outcome = measure(study, secrets, mode, &mut meters, &mut folder, io)?;
    let run_id = folder.run_id().to_owned();
    drop(folder);
    conclude(study, &run_id, &outcome, io)
}

pub(crate) fn refuse_debug_build(debug: bool, allowed: bool) -> Result<(), CliError> {
    if debug && !allowed {
        return Err(CliError::Gate(
            "this is a debug build, its figures mean nothing: build with --release, or pass --allow-debug and \
             have every row marked INVALID"
                .to_owned(),
        ));
    }
    Ok(())
}

pub(crate) fn open_folder(study: &Study) -> Result<RunFolder, CliError> {
    if study.plan.target.kind == TargetKind::Engine {
        // A device that is not there leaves no folder behind.
        bench_engine::place::check(&study.plan.target.device)?;
    }
    let provenance = provenance::gather(&study.plan, &study.command);
    let results = &study.common.paths.results;
    match &study.resume {
        None => Ok(RunFolder::create(results, &study.spec_toml, &study.plan, &provenance)?),
        Some(wanted) => {
            let path = find_run(results, wanted, &study.plan.name)?;
            Ok(RunFolder::resume(&path, &study.plan, &provenance)?)
        }
    }
}

/// The folder of run `wanted` (an id or a path), or of the latest run of the study.
fn find_run(results: &Path, wanted: &str, study: &str) -> Result<PathBuf, CliError> {
    if Path::new(wanted).join("plan.json").is_file() {
        return Ok(PathBuf::from(wanted));
    }
    let runs = list_runs(results)?;
    let name_of =
        |path: &PathBuf| path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let found = if wanted == "latest" {
        runs.iter().filter(|p| analyze::study_of(&name_of(p)) == study).max_by_key(|p| name_of(p))
    } else {
        runs.iter().find(|p| name_of(p) == wanted)
    };
    found.cloned().ok_or_else(|| {
        let known: Vec<_> = runs.iter().map(name_of).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        CliError::Usage(format!(
            "no run to resume (\"{wanted}\") in {}; runs there: {known}",
            results.display()
        ))
    })
}

/// How the run is shown; decided before anything is written.
pub(crate) fn view(common: &RunCommon) -> Result<Mode, CliError> {
    Mode::of(common.ui, std::io::stderr().is_terminal())
}

pub(crate) fn measure(
    study: &Study,
    secrets: Secrets,
    mode: Mode,
    meters: &mut Meters,
    folder: &mut RunFolder,
    io: &mut Io<'_>,
) -> Result<RunOutcome, CliError> {
    let mut opened = engine_process::open(&study.plan, secrets, io)?;
    probes::before(&study.plan, folder, io)?;
    let memory = probes::memory();
    let watched = (study.plan.target.kind == TargetKind::Engine).then_some(&memory as &dyn MemoryProbe);
    let outcome = progress::watch(mode, &study.plan, io.err, signal::stop(), |observer| {
        bench_runner::run::run(RunContext {
            plan: &study.plan,
            folder,
            target: opened.target.as_mut(),
            clock: &opened.clock,
            stop: signal::stop(),
            observer,
            probes: Probes { memory: watched, power: meters.probe() },
        })
    })?;
    Ok(outcome?)
}

/// Whether a run ended because its target could not go on; `how` it may be gone on with.
///
/// # Errors
/// It did.
pub(crate) fn lost(outcome: &RunOutcome, how: &str) -> Result<(), CliError> {
    let Some(why) = &outcome.lost else { return Ok(()) };
    let done = outcome.trials_done + outcome.trials_skipped;
    Err(CliError::Failed(format!(
        "the run ended early: {why}; what was finished is kept ({done} trials); {how}"
    )))
}

/// Analyzes and reports what there is, then says how the run ended.
fn conclude(study: &Study, run_id: &str, outcome: &RunOutcome, io: &mut Io<'_>) -> Result<(), CliError> {
    let paths = &study.common.paths;
    let runs = analyzed_runs(&paths.results, io)?;
    let files = bench_report::rebuild(&runs, &analyze::report_paths(paths))?;
    analyze::print_run(&runs, run_id, study.common.output, io)?;
    analyze::print_files(&files, study.common.output, io)?;
    if let Some(options) = &study.save {
        save_result::write(options, &paths.results.join("raw").join(run_id), study.common.output, io)?;
    }
    analyze::print_page(&files, study.common.output, io)?;
    if outcome.interrupted {
        let how = "what was finished is kept; go on with --resume";
        return Err(CliError::Interrupted(format!("stopped by Ctrl-C, {how} {run_id}")));
    }
    // What ended the run is told once, at its end.
    for (cell, why) in outcome.cells_failed.iter().filter(|(_, why)| Some(*why) != outcome.lost.as_ref()) {
        writeln!(io.err, "ossbench: cell {cell} failed: {why}")?;
    }
    lost(outcome, &format!("go on with --resume {run_id}"))?;
    if outcome.cells_failed.len() == study.plan.cells.len() {
        return Err(CliError::Failed("every cell failed, see above".to_owned()));
    }
    if study.common.fail_on_invalid && analyze::any_invalid(&runs, run_id) {
        return Err(CliError::Gate("a cell is INVALID, see the verdict_reason column".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debug_build_measures_only_when_told_to() {
        let error = refuse_debug_build(true, false).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("--release") && error.to_string().contains("--allow-debug"));
        assert!(refuse_debug_build(true, true).is_ok() && refuse_debug_build(false, false).is_ok());
    }
}
