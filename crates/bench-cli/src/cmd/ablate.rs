//! `ossbench ablate`: one thing varied at a time, each ablation an ordinary study.
//!
//! Variants and what is refused stand in `variants`, figures in `figures`, tables and CSVs in `table`. Nothing is
//! measured here; runs lie under `raw/` like any other.

mod figures;
mod table;
mod variants;

use super::analyze::{analyze_run, analyzed_runs, report_paths};
use super::probes::Meters;
use super::search::known_run;
use super::sheet::{self, Sheet, write_whole};
use super::study::{self, Study};
use super::{effective, say};
use crate::args::{AblateArgs, Ablation};
use crate::progress::Mode;
use crate::{CliError, Io};
use bench_core::spec::RunSpec;
use bench_report::Format;
use bench_runner::run::RunOutcome;
use bench_runner::store::RunFolder;
use figures::Measured;
use std::cell::RefCell;
use std::path::PathBuf;
use variants::Ablated;

pub(crate) fn run(args: &AblateArgs, command: &[String], io: &mut Io<'_>) -> Result<(), CliError> {
    let ablated: Vec<Ablated> =
        args.ablations().into_iter().map(|a| variants::ablate(args, a)).collect::<Result<_, _>>()?;
    if args.print_study {
        return print_studies(&ablated, io);
    }
    study::refuse_debug_build(bench_runner::provenance::build().debug, args.common.allow_debug)?;
    let runner = Runner { args, command, mode: study::view(&args.common)?, meters: RefCell::default() };
    let (mut sheets, mut ended) = (Vec::new(), Ended::default());
    for ablated in &ablated {
        let measured = runner.measure(ablated, &mut ended, io)?;
        sheets.push(write_csvs(args, ablated, &measured, io)?);
        if ended.interrupted {
            break;
        }
    }
    conclude(args, &sheets, &ended, io)
}

/// What went wrong, over all ablations.
#[derive(Default)]
struct Ended {
    interrupted: bool,
    invalid: bool,
    cells: usize,
    failed: usize,
}

fn print_studies(ablated: &[Ablated], io: &mut Io<'_>) -> Result<(), CliError> {
    for ablated in ablated {
        for spec in &ablated.specs {
            spec.resolve()?;
            writeln!(io.out, "# ablation: {}\n{}", ablated.ablation.key(), spec.to_toml()?)?;
        }
        for refused in &ablated.refused {
            writeln!(io.err, "{}: {} is left out: {}", ablated.ablation.key(), refused.name, refused.reason)?;
        }
        say(&ablated.notes, io)?;
    }
    Ok(())
}

struct Runner<'a> {
    args: &'a AblateArgs,
    command: &'a [String],
    mode: Mode,
    meters: RefCell<Meters>,
}

impl Runner<'_> {
    /// Runs the studies of one ablation; a figure for each variant that was begun.
    fn measure(
        &self,
        ablated: &Ablated,
        ended: &mut Ended,
        io: &mut Io<'_>,
    ) -> Result<Vec<Measured>, CliError> {
        for refused in &ablated.refused {
            writeln!(io.err, "{}: {} is left out: {}", ablated.ablation.key(), refused.name, refused.reason)?;
        }
        let mut measured = Vec::new();
        for (index, spec) in ablated.specs.iter().enumerate() {
            let (path, outcome) = self.run(spec, io)?;
            let (run, _) = analyze_run(&path)?;
            let folder = RunFolder::open(&path)?;
            let own = ablated.variants.iter().filter(|v| v.spec == index);
            for variant in own {
                measured.push(figures::measured(variant, &folder, &run)?);
            }
            ended.cells += folder.plan().cells.len();
            ended.failed += outcome.cells_failed.len();
            ended.invalid |= run.rows.iter().any(|row| row.verdict != "VALID");
            ended.interrupted |= outcome.interrupted;
            if ended.interrupted {
                break;
            }
        }
        Ok(measured)
    }

    /// A new run, or the one of this very study that was cut.
    fn run(&self, spec: &RunSpec, io: &mut Io<'_>) -> Result<(PathBuf, RunOutcome), CliError> {
        let (plan, spec_toml) = effective(spec.clone(), None, &[], io)?;
        let known = known_run(&self.args.common.paths.results, &plan)?;
        let resume = known.filter(|(_, complete)| !complete).map(|(path, _)| path.display().to_string());
        let secrets = if plan.server.is_some() {
            self.args.secrets.clone()
        } else {
            crate::args::SecretArgs::default()
        };
        let study = Study { resume, secrets, ..Study::new(plan, spec_toml, &self.args.common, self.command) };
        let env = |name: &str| std::env::var(name).ok();
        let secrets = crate::secrets::gather(&study.secrets, &study.plan, env)?;
        let mut meters = self.meters.borrow_mut();
        meters.open(&study.plan, io)?;
        let mut folder = study::open_folder(&study)?;
        writeln!(io.err, "results go to {}", folder.path().display())?;
        let outcome = study::measure(&study, secrets, self.mode, &mut meters, &mut folder, io)?;
        for (cell, why) in &outcome.cells_failed {
            writeln!(io.err, "ossbench: cell {cell} failed: {why}")?;
        }
        study::lost(&outcome, "the same command goes on with the run that was cut")?;
        Ok((folder.path().to_owned(), outcome))
    }
}

/// The ablation in our columns and in the study's; a view of the raw results, like every CSV.
fn write_csvs(
    args: &AblateArgs,
    ablated: &Ablated,
    measured: &[Measured],
    io: &mut Io<'_>,
) -> Result<Sheet, CliError> {
    let sheet = table::sheet(ablated, measured);
    if !ablated.variants.is_empty() || !ablated.refused.is_empty() {
        let results = &args.common.paths.results;
        let ours = results.join(format!("ablation_{}.csv", ablated.ablation.key()));
        write_whole(&ours, &sheet::csv(&sheet))?;
        let theirs = results.join(format!("study_ablation_{}.csv", table::study_name(ablated.ablation)));
        write_whole(&theirs, &table::study_csv(args, ablated, measured))?;
        for path in [ours, theirs] {
            writeln!(io.err, "csv     {}", path.display())?;
        }
    }
    Ok(sheet)
}

/// Reports of all runs, the tables, and how it ended.
fn conclude(args: &AblateArgs, sheets: &[Sheet], ended: &Ended, io: &mut Io<'_>) -> Result<(), CliError> {
    let runs = analyzed_runs(&args.common.paths.results, io)?;
    if !runs.runs.is_empty() {
        bench_report::rebuild(&runs, &report_paths(&args.common.paths))?;
    }
    write!(io.out, "{}", sheet::render(args.common.output, sheets))?;
    if !matches!(args.common.output, Format::Table | Format::Md | Format::Latex) {
        let notes: Vec<String> = sheets.iter().flat_map(|s| s.notes.clone()).collect();
        say(&notes, io)?;
    }
    if ended.interrupted {
        let how = "what was finished is kept; the same command goes on with the run that was cut";
        return Err(CliError::Interrupted(format!("stopped by Ctrl-C, {how}")));
    }
    let nothing_to_compare = args.ablations() == [Ablation::Server] && args.base_url.is_empty();
    if ended.cells == 0 && !nothing_to_compare {
        return Err(CliError::Gate("no variant can be run here, see above".to_owned()));
    }
    if ended.cells > 0 && ended.failed == ended.cells {
        return Err(CliError::Failed("every cell failed, see above".to_owned()));
    }
    if args.common.fail_on_invalid && ended.invalid {
        return Err(CliError::Gate("a cell is INVALID, see the remarks".to_owned()));
    }
    Ok(())
}
