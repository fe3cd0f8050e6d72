//! `ossbench analyze`: raw traces to rows, rows to CSV. Also what `run` and `report` share of it.

use super::join::{Joined, Run};
use crate::args::{PathArgs, ReportArgs};
use crate::{CliError, Io};
use bench_core::provenance::Machine;
use bench_report::{Format, ReportFiles, ReportInputs, ReportPaths, RunInput};
use bench_runner::store::{RunFolder, list_folders};
use std::path::Path;

pub(crate) fn run(args: &ReportArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    let inputs = some_runs(&args.paths.results, io)?;
    let files = bench_report::write_csv(&inputs, &report_paths(&args.paths))?;
    print_latest(&inputs, args.output, io)?;
    print_files(&files, args.output, io)
}

/// The analyzed runs of `results`; none at all is an error that says how to make one.
pub(crate) fn some_runs(results: &Path, io: &mut Io<'_>) -> Result<ReportInputs, CliError> {
    let inputs = analyzed_runs(results, io)?;
    if inputs.runs.is_empty() {
        let raw = results.join("raw");
        let hint = "make one with `ossbench run bench-configs/quickstart.toml`, or name another folder with --results";
        return Err(CliError::Failed(format!("no readable run in {}: {hint}", raw.display())));
    }
    Ok(inputs)
}

/// Reads and analyzes every run under `results`. A run that cannot be read is said and left out.
pub(crate) fn analyzed_runs(results: &Path, io: &mut Io<'_>) -> Result<ReportInputs, CliError> {
    let (mut runs, mut left_out) = (Vec::new(), Vec::new());
    for path in list_folders(results)? {
        match analyze_run(&path) {
            Ok((run, notes)) => {
                for note in notes {
                    writeln!(io.err, "note: {}: {note}", run.run_id)?;
                }
                runs.push(run);
            }
            Err(error) => {
                writeln!(io.err, "ossbench: {} is left out: {error}", path.display())?;
                left_out.push(self::left_out(&path, &error));
            }
        }
    }
    Ok(ReportInputs { runs, left_out })
}

/// How a report tells of a run that it does not have: without the folder in which this machine keeps its runs.
pub(crate) fn left_out(path: &Path, error: &CliError) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!("{name}: {}", error.to_string().replace(&path.display().to_string(), &name))
}

/// The rows of one run, and what could not be used of it.
pub(crate) fn analyze_run(path: &Path) -> Result<(RunInput, Vec<String>), CliError> {
    let folder = RunFolder::open(path)?;
    let run = Run::new(&folder)?;
    let Joined { rows, cells, study_rows, study_cells } = run.join()?;
    let (plan, provenance) = (folder.plan(), folder.provenance());
    let input = RunInput {
        run_id: folder.run_id().to_owned(),
        study_name: plan.name.clone(),
        machine: describe(&provenance.machine),
        plan_hash: provenance.plan_hash.clone(),
        rows,
        cells,
        plan: Some(plan.clone()),
        provenance: Some(provenance.clone()),
        notes: run.notes.clone(),
        study_rows,
        study_cells,
    };
    Ok((input, run.notes.clone()))
}

/// A machine in one line, for captions.
pub(crate) fn describe(machine: &Machine) -> String {
    let memory = machine.memory_bytes.map(|bytes| format!("{:.0} GiB", bytes as f64 / f64::from(1 << 30)));
    let cores = format!("{} cores", machine.cores);
    let parts = [Some(machine.cpu.clone()), Some(cores), memory].into_iter().flatten();
    parts.chain(machine.gpus.iter().cloned()).collect::<Vec<_>>().join(", ")
}

pub(crate) fn report_paths(paths: &PathArgs) -> ReportPaths {
    ReportPaths { results: paths.results.clone(), figs: paths.figs.clone(), tables: paths.tables.clone() }
}

/// The study of a run id, which is `<study>-<time>-<hash>`.
pub(crate) fn study_of(run_id: &str) -> &str {
    run_id.rsplitn(3, '-').nth(2).unwrap_or(run_id)
}

pub(crate) fn any_invalid(inputs: &ReportInputs, run_id: &str) -> bool {
    inputs.runs.iter().filter(|r| r.run_id == run_id).flat_map(|r| &r.rows).any(|row| row.verdict != "VALID")
}

/// The table of one run.
pub(crate) fn print_run(
    inputs: &ReportInputs,
    run_id: &str,
    format: Format,
    io: &mut Io<'_>,
) -> Result<(), CliError> {
    if let Some(run) = inputs.runs.iter().find(|r| r.run_id == run_id) {
        write!(io.out, "{}", bench_report::render(format, run)?)?;
    }
    Ok(())
}

/// The table of the latest run of each study.
pub(crate) fn print_latest(inputs: &ReportInputs, format: Format, io: &mut Io<'_>) -> Result<(), CliError> {
    for run in bench_report::latest(inputs) {
        writeln!(io.err, "run     {}", run.run_id)?;
        write!(io.out, "{}", bench_report::render(format, run)?)?;
    }
    Ok(())
}

/// Where everything is; on standard error when output is for a machine.
pub(crate) fn print_files(files: &ReportFiles, format: Format, io: &mut Io<'_>) -> Result<(), CliError> {
    let stream: &mut dyn std::io::Write = if format == Format::Table { io.out } else { io.err };
    for (what, paths) in [("csv", &files.results), ("table", &files.tables)] {
        for path in paths {
            writeln!(stream, "{what:<7} {}", path.display())?;
        }
    }
    // The formats of a figure stand beside each other.
    for formats in files.figures.chunk_by(|a, b| a.with_extension("") == b.with_extension("")) {
        let kinds: Vec<_> = formats.iter().filter_map(|p| Some(p.extension()?.to_string_lossy())).collect();
        let figure = formats[0].with_extension("");
        writeln!(stream, "{:<7} {}.{{{}}}", "figure", figure.display(), kinds.join(","))?;
    }
    Ok(())
}

/// Where the page is that shows everything: said last, since it is what to open.
pub(crate) fn print_page(files: &ReportFiles, format: Format, io: &mut Io<'_>) -> Result<(), CliError> {
    let stream: &mut dyn std::io::Write = if format == Format::Table { io.out } else { io.err };
    if let Some(page) = &files.page {
        writeln!(stream, "{:<7} {}", "page", page.display())?;
    }
    Ok(())
}
