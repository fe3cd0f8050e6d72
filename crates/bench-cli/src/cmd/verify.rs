//! `ossbench verify`: raw files against their sums, rows against raw, derived files against rows.
//!
//! It changes nothing: what a report would write now goes to a folder of its own and is compared there.
//! Files that lie beside the derived ones and are none are left alone.

mod findings;
mod scratch;

use super::analyze::{analyze_run, left_out, report_paths};
use crate::args::VerifyArgs;
use crate::{CliError, Io};
use bench_report::verify::{RowsCompared, first_difference, rows};
use bench_report::{ReportInputs, ReportPaths};
use bench_runner::store::{check_sums, list_folders};
use findings::{Checked, Finding, Findings};
use scratch::Scratch;
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const UNIFIED: &str = "unified.csv";

pub(crate) fn run(args: &VerifyArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    let all = list_folders(&args.paths.results)?;
    let chosen = chosen(&all, args)?;
    let mut found = Findings::default();
    for path in &chosen {
        found.runs.push(raw(path, &mut found.all)?);
    }
    let mut inputs = ReportInputs::default();
    let mut ids = BTreeSet::new();
    for path in &all {
        match analyze_run(path) {
            Ok((run, _)) => {
                if chosen.contains(path) {
                    ids.insert(run.run_id.clone());
                }
                inputs.runs.push(run);
            }
            Err(error) => {
                inputs.left_out.push(left_out(path, &error));
                if chosen.contains(path) {
                    found.all.push(Finding::run(path, &error));
                } else {
                    writeln!(io.err, "ossbench: {} is left out: {error}", path.display())?;
                }
            }
        }
    }
    let scratch = Scratch::new()?;
    let made = ReportPaths::under(scratch.path());
    bench_report::rebuild(&inputs, &made)?;
    let places = report_paths(&args.paths);
    let wanted = (!args.runs.is_empty()).then_some(&ids);
    found.rows = table(&made.results.join(UNIFIED), &places.results.join(UNIFIED), wanted, &mut found.all)?;
    found.files = derived(&scratch, &made, &places, &mut found.all)?;
    found.print(args.output, io)?;
    match found.all.len() {
        0 => Ok(()),
        1 => Err(CliError::Gate("1 finding".to_owned())),
        n => Err(CliError::Gate(format!("{n} findings"))),
    }
}

/// The folders that were asked for; all of them if none was.
fn chosen(all: &[PathBuf], args: &VerifyArgs) -> Result<Vec<PathBuf>, CliError> {
    let raw = args.paths.results.join("raw");
    if all.is_empty() {
        let hint = "make one with `ossbench run`, or name another folder with --results";
        return Err(CliError::Failed(format!("no run in {}: {hint}", raw.display())));
    }
    if args.runs.is_empty() {
        return Ok(all.to_vec());
    }
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let find = |wanted: &String| {
        let same = |path: &&PathBuf| match (fs::canonicalize(path), fs::canonicalize(wanted)) {
            (Ok(a), Ok(b)) => a == b,
            _ => false,
        };
        let found = all.iter().find(|path| name(path) == *wanted).or_else(|| all.iter().find(same));
        found.cloned().ok_or_else(|| {
            let known = all.iter().map(|path| name(path)).collect::<Vec<_>>().join(", ");
            CliError::Failed(format!(
                "no run \"{wanted}\" in {}: runs there are {known}; name another folder with --results",
                raw.display()
            ))
        })
    };
    args.runs.iter().map(find).collect()
}

/// The raw files of one run against their sums.
fn raw(path: &Path, findings: &mut Vec<Finding>) -> Result<Checked, CliError> {
    let run = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let check = check_sums(path)?;
    if let Some(check) = &check {
        findings.extend(check.findings.iter().map(|finding| Finding::raw(&run, finding)));
    }
    Ok(Checked { run, sums: check.map(|check| (check.files, check.bytes)) })
}

/// The rows of the stored table against those of the table made again; returns how many there are.
fn table(
    made: &Path,
    stored: &Path,
    runs: Option<&BTreeSet<String>>,
    findings: &mut Vec<Finding>,
) -> Result<u64, CliError> {
    // That it is missing is told with the other derived files.
    let Some(old) = read(stored)? else { return Ok(0) };
    let Some(new) = read(made)? else { return Ok(0) };
    match rows(&old, &new, runs) {
        RowsCompared::Rows { recomputed, differences } => {
            findings.extend(differences.into_iter().map(Finding::row));
            Ok(recomputed)
        }
        RowsCompared::Unreadable(problem) => {
            let remedy = "write it anew with `ossbench report`, or verify with the version that wrote it";
            findings.push(Finding::table(stored, format!("{problem}: {remedy}")));
            Ok(0)
        }
    }
}

/// Every file that a report writes now against the one that lies in its place; returns how many there are.
fn derived(
    scratch: &Scratch,
    made: &ReportPaths,
    places: &ReportPaths,
    findings: &mut Vec<Finding>,
) -> Result<u64, CliError> {
    let homes =
        [(&made.results, &places.results), (&made.figs, &places.figs), (&made.tables, &places.tables)];
    let files = scratch.files()?;
    for file in &files {
        let place =
            homes.iter().find_map(|(from, to)| file.strip_prefix(from).ok().map(|name| to.join(name)));
        let place = place.ok_or_else(|| {
            CliError::Failed(format!("{}: a report wrote it outside of its folders", file.display()))
        })?;
        let Some(new) = read(file)? else { continue };
        match read(&place)? {
            None => findings.push(Finding::absent(&place)),
            Some(old) => {
                findings.extend(first_difference(&old, &new).map(|at| Finding::file(&place, at)));
            }
        }
    }
    Ok(files.len() as u64)
}

/// `None` where there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>, CliError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(CliError::Failed(format!("cannot read {}: {e}", path.display()))),
    }
}
