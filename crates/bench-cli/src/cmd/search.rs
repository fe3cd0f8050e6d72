//! `ossbench search`: the highest rate or concurrency that meets the limits of `[slo]`, and the knee.
//!
//! Each level is a run of its own under `raw/`, the same plan but for the load, so that a search can be cut
//! and taken up again, and every point can be looked at. What to measure next is decided in `decide`, whether
//! a level passes in `point`; nothing is measured here.

mod decide;
mod point;
mod table;

use super::analyze::{analyze_run, analyzed_runs, print_files, print_page, report_paths, study_of};
use super::probes::Meters;
use super::read_spec;
use super::study::{self, Study};
use crate::args::{Over, SearchArgs};
use crate::progress::Mode;
use crate::{CliError, Io};
use bench_core::plan::{Plan, Slo};
use bench_core::spec::{ArrivalKind, LoadTable, RunSpec};
use bench_latency::Attainment;
use bench_report::{Format, ReportFiles};
use bench_runner::run::RunOutcome;
use bench_runner::store::{RunFolder, TrialStatus, list_runs};
use decide::{Answer, Bounds, Next, Tested};
use point::{Decision, Point};
use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

/// How a search ended.
#[derive(Debug, Clone, PartialEq)]
enum End {
    Answer(Answer),
    /// A run that may not be believed: beyond it nothing can be said.
    NoClaim {
        level: f64,
        reason: String,
    },
}

const UNFINISHED: End = End::Answer(Answer::Unfinished { pass: None, fail: None });

/// Everything that a search has measured.
#[derive(Debug, Clone, PartialEq)]
struct Found {
    over: Over,
    threshold: f64,
    /// In the order in which they were measured.
    points: Vec<Point>,
    end: End,
}

impl Found {
    fn by_level(&self) -> Vec<&Point> {
        let mut points: Vec<_> = self.points.iter().collect();
        points.sort_by(|a, b| a.level.total_cmp(&b.level));
        points
    }

    fn tested(&self) -> Vec<Tested> {
        self.points.iter().filter_map(Point::tested).collect()
    }

    /// The highest level that meets the limits, where one was found.
    fn level(&self) -> Option<f64> {
        match self.end {
            End::Answer(Answer::Between { pass, .. } | Answer::AtMax { pass }) => Some(pass),
            _ => None,
        }
    }
}

/// Measures level after level until there is an answer, or a level of which nothing can be claimed.
fn search<E>(
    bounds: &Bounds,
    threshold: f64,
    mut measure: impl FnMut(f64) -> Result<Point, E>,
) -> Result<Found, E> {
    let mut found = Found { over: bounds.over, threshold, points: Vec::new(), end: UNFINISHED };
    loop {
        let level = match decide::next(bounds, &found.tested()) {
            Next::Measure(level) => level,
            Next::Done(answer) => {
                found.end = End::Answer(answer);
                return Ok(found);
            }
        };
        let point = measure(level)?;
        let nothing_yet = found.points.iter().all(|p| p.success_rate == Some(0.0));
        let reason = match point.decision {
            Decision::NoClaim => Some(point.reason.clone()),
            // Where nothing ever succeeded it is not the load that fails.
            Decision::Fail if nothing_yet && point.success_rate == Some(0.0) => {
                Some(format!("no request has succeeded: {}", point.reason))
            }
            _ => None,
        };
        found.points.push(point);
        if let Some(reason) = reason {
            found.end = End::NoClaim { level, reason };
            return Ok(found);
        }
    }
}

pub(crate) fn run(args: &SearchArgs, command: &[String], io: &mut Io<'_>) -> Result<(), CliError> {
    study::refuse_debug_build(bench_runner::provenance::build().debug, args.common.allow_debug)?;
    let (mut spec, _) = read_spec(&args.config)?;
    for note in bench_runner::load::complete::complete(&mut spec)? {
        writeln!(io.err, "note: {note}")?;
    }
    let over = args.over.map_or_else(|| usual(&spec), Ok)?;
    let bounds = bounds(args, &spec, over)?;
    let slo = check(&at(&spec, over, bounds.min).resolve()?)?;
    for key in ignored(&spec, over) {
        writeln!(io.err, "ossbench: {key} of the study does not apply to a search over {}", over.key())?;
    }
    let searcher = Searcher {
        args,
        command,
        spec,
        over,
        slo,
        mode: study::view(&args.common)?,
        meters: RefCell::default(),
    };
    let name = searcher.spec.run.name.clone().unwrap_or_else(|| "study".to_owned());
    let csv = args.common.paths.results.join(format!("search_{name}.csv"));
    let mut so_far = Found { over, threshold: args.attainment, points: vec![], end: UNFINISHED };
    let found = search(&bounds, args.attainment, |level| {
        let point = searcher.measure(level, io)?;
        writeln!(io.err, "{}", told(over, &point))?;
        so_far.points.push(point.clone());
        // Written after each point: a search that is cut has what it measured.
        write_whole(&csv, &table::csv(&so_far))?;
        Ok::<_, CliError>(point)
    })?;
    conclude(args, &found, &csv, io)
}

fn told(over: Over, point: &Point) -> String {
    let attainment = point.attainment;
    format!(
        "{} {}: {} of {} requests within [slo], {}{}",
        over.key(),
        point.level,
        attainment.met,
        attainment.started,
        point.decision.key(),
        if point.is_clear() { "" } else { " (not statistically clear)" }
    )
}

/// Reports of all runs, the table of the points, and what it comes to.
fn conclude(args: &SearchArgs, found: &Found, csv: &Path, io: &mut Io<'_>) -> Result<(), CliError> {
    let paths = &args.common.paths;
    let runs = analyzed_runs(&paths.results, io)?;
    let files = bench_report::rebuild(&runs, &report_paths(paths))?;
    let format = args.common.output;
    write!(io.out, "{}", table::render(format, found))?;
    let to_read = matches!(format, Format::Table | Format::Md);
    for sentence in table::sentences(found) {
        if to_read { writeln!(io.out, "{sentence}")? } else { writeln!(io.err, "{sentence}")? }
    }
    // Figures and tables of every level would be a page of names.
    let results = files.results.into_iter().chain([csv.to_owned()]).collect();
    let listed = ReportFiles { results, page: files.page, ..ReportFiles::default() };
    print_files(&listed, format, io)?;
    print_page(&listed, format, io)?;
    match &found.end {
        End::Answer(_) => Ok(()),
        End::NoClaim { level, reason } => {
            Err(CliError::Gate(format!("no answer: the run at {} {level}: {reason}", found.over.key())))
        }
    }
}

/// Runs and reads the levels.
struct Searcher<'a> {
    args: &'a SearchArgs,
    command: &'a [String],
    spec: RunSpec,
    over: Over,
    slo: Slo,
    mode: Mode,
    meters: RefCell<Meters>,
}

impl Searcher<'_> {
    /// The run of `level`: a finished one with the same plan, one that was cut and goes on, or a new one.
    fn measure(&self, level: f64, io: &mut Io<'_>) -> Result<Point, CliError> {
        let spec = at(&self.spec, self.over, level);
        let (plan, spec_toml) = (spec.resolve()?, spec.to_toml()?);
        let results = &self.args.common.paths.results;
        let known = known_run(results, &plan)?;
        if let Some((path, true)) = &known {
            let point = self.point(level, path)?;
            // Where nothing succeeded the server may have been away.
            if point.success_rate != Some(0.0) {
                writeln!(io.err, "{} {level} was measured before: {}", self.over.key(), path.display())?;
                return Ok(point);
            }
        }
        let resume = known.filter(|(_, complete)| !complete).map(|(path, _)| path.display().to_string());
        let secrets = self.args.secrets.clone();
        let study = Study { resume, secrets, ..Study::new(plan, spec_toml, &self.args.common, self.command) };
        let (path, outcome) = self.run(&study, io)?;
        if outcome.interrupted {
            let how = "the same command goes on where this one ended";
            return Err(CliError::Interrupted(format!("stopped at {} {level}; {how}", self.over.key())));
        }
        for (cell, why) in &outcome.cells_failed {
            writeln!(io.err, "ossbench: cell {cell} failed: {why}")?;
        }
        self.point(level, &path)
    }

    fn run(&self, study: &Study, io: &mut Io<'_>) -> Result<(PathBuf, RunOutcome), CliError> {
        let env = |name: &str| std::env::var(name).ok();
        let secrets = crate::secrets::gather(&study.secrets, &study.plan, env)?;
        let mut meters = self.meters.borrow_mut();
        meters.open(&study.plan, io)?;
        let mut folder = study::open_folder(study)?;
        writeln!(io.err, "results go to {}", folder.path().display())?;
        let outcome = study::measure(study, secrets, self.mode, &mut meters, &mut folder, io)?;
        study::lost(&outcome, "the same command goes on where this one ended")?;
        Ok((folder.path().to_owned(), outcome))
    }

    fn point(&self, level: f64, path: &Path) -> Result<Point, CliError> {
        point_of(path, level, &self.slo, self.args.attainment)
    }
}

/// The point that a finished run makes.
fn point_of(path: &Path, level: f64, slo: &Slo, threshold: f64) -> Result<Point, CliError> {
    let folder = RunFolder::open(path)?;
    let cell = only_cell(folder.plan())?;
    let mut attainment = Attainment::default();
    for request in folder.read_trials()?.iter().flat_map(|t| &t.requests) {
        attainment.add(folder.plan(), slo, &cell.id, request)?;
    }
    let (run, _) = analyze_run(path)?;
    Ok(Point::new(level, &run.run_id, &run.rows, attainment, threshold))
}

/// The latest run of this very plan, and whether it is finished. A run that cannot be read is none.
pub(super) fn known_run(results: &Path, plan: &Plan) -> Result<Option<(PathBuf, bool)>, CliError> {
    let hash = plan.hash();
    let of_plan = |path: &PathBuf| {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        study_of(&name) == plan.name && RunFolder::open(path).is_ok_and(|f| f.provenance().plan_hash == hash)
    };
    let Some(path) = list_runs(results)?.into_iter().rev().find(of_plan) else { return Ok(None) };
    let folder = RunFolder::open(&path)?;
    for trial in &folder.plan().trials {
        if folder.status(trial)? != TrialStatus::Complete {
            return Ok(Some((path, false)));
        }
    }
    Ok(Some((path, true)))
}

fn write_whole(path: &Path, text: &str) -> Result<(), CliError> {
    let failed = |e: std::io::Error| CliError::Failed(format!("cannot write {}: {e}", path.display()));
    let draft = path.with_extension("csv.tmp");
    fs::write(&draft, text).and_then(|()| fs::rename(&draft, path)).map_err(failed)
}

/// What the study's own load can raise.
fn usual(spec: &RunSpec) -> Result<Over, CliError> {
    match spec.load.as_ref().and_then(|l| l.arrival).unwrap_or(ArrivalKind::Closed) {
        ArrivalKind::Closed => Ok(Over::Concurrency),
        ArrivalKind::Constant | ArrivalKind::Poisson | ArrivalKind::Gamma => Ok(Over::Rate),
        ArrivalKind::Ramp | ArrivalKind::Burst | ArrivalKind::Replay => Err(CliError::Usage(
            "the load of this study has no single level to raise: say --over rate or --over concurrency"
                .to_owned(),
        )),
    }
}

fn bounds(args: &SearchArgs, spec: &RunSpec, over: Over) -> Result<Bounds, CliError> {
    let load = spec.load.clone().unwrap_or_default();
    let written: Vec<f64> = match over {
        Over::Concurrency => load.concurrency.unwrap_or_default().into_iter().map(f64::from).collect(),
        Over::Rate => load.rate.unwrap_or_default(),
    };
    let lowest = written.into_iter().min_by(f64::total_cmp).unwrap_or(1.0);
    let min = args.min.unwrap_or(lowest);
    let max = args.max.unwrap_or(min * 1024.0);
    let usage = |message: String| Err(CliError::Usage(message));
    if !(min.is_finite() && min > 0.0 && max.is_finite()) {
        return usage(format!("--min {min} --max {max}: expected finite numbers above 0"));
    }
    if over == Over::Concurrency && (min < 1.0 || min.fract() != 0.0 || max > f64::from(u32::MAX)) {
        return usage(format!("--min {min} --max {max}: a concurrency is a whole number from 1 on"));
    }
    if max < min {
        return usage(format!("--max {max} is below --min {min}"));
    }
    Ok(Bounds { over, min, max, tolerance: args.tolerance, steps: args.steps })
}

/// A search needs one cell and limits.
fn check(plan: &Plan) -> Result<Slo, CliError> {
    only_cell(plan)?;
    let usage = |message: &str| Err(CliError::Usage(message.to_owned()));
    let streams = plan.server.as_ref().is_none_or(|s| s.stream);
    match &plan.slo {
        None => usage(
            "a search needs limits that requests are to meet; add to the study e.g.\n[slo]\nttft_ms = 200\n\
             tpot_ms = 50",
        ),
        Some(slo) if !streams && (slo.ttft_ms.is_some() || slo.tpot_ms.is_some()) => {
            usage("without a stream there is one instant for all tokens: the only limit can be slo.e2el_ms")
        }
        Some(slo) => Ok(slo.clone()),
    }
}

fn only_cell(plan: &Plan) -> Result<&bench_core::plan::Cell, CliError> {
    match plan.cells.as_slice() {
        [cell] => Ok(cell),
        cells => Err(CliError::Usage(format!(
            "a search raises the load of one cell, this study has {}: name one model, one prompt length and one \
             output length",
            cells.len()
        ))),
    }
}

/// The study with this level as its only load, named after it.
fn at(spec: &RunSpec, over: Over, level: f64) -> RunSpec {
    let mut spec = spec.clone();
    let name = spec.run.name.as_deref().unwrap_or("study");
    let letter = if over == Over::Rate { "r" } else { "c" };
    spec.run.name = Some(format!("{name}-search-{letter}{level}"));
    let load = spec.load.take().unwrap_or_default();
    spec.load = Some(match over {
        Over::Concurrency => LoadTable {
            arrival: Some(ArrivalKind::Closed),
            concurrency: Some(vec![level as u32]),
            requests: load.requests,
            ..LoadTable::default()
        },
        Over::Rate => {
            let open = [ArrivalKind::Constant, ArrivalKind::Poisson, ArrivalKind::Gamma];
            let arrival = load.arrival.filter(|a| open.contains(a)).unwrap_or(ArrivalKind::Poisson);
            LoadTable {
                arrival: Some(arrival),
                rate: Some(vec![level]),
                burstiness: load.burstiness.filter(|_| arrival == ArrivalKind::Gamma),
                max_concurrency: load.max_concurrency,
                requests: load.requests,
                duration_s: load.duration_s,
                ..LoadTable::default()
            }
        }
    });
    spec
}

/// Keys of the study's load that its levels do not have, so that nothing is left out in silence.
fn ignored(spec: &RunSpec, over: Over) -> Vec<String> {
    let keys = |spec: &RunSpec| match serde_json::to_value(&spec.load) {
        Ok(serde_json::Value::Object(table)) => table.keys().cloned().collect::<Vec<_>>(),
        _ => Vec::new(),
    };
    let kept = keys(&at(spec, over, 1.0));
    keys(spec).into_iter().filter(|key| !kept.contains(key)).map(|key| format!("load.{key}")).collect()
}

#[cfg(test)]
mod tests;
