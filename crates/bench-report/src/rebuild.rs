//! Everything that `ossbench report` writes, in one call.

use crate::figure::{self, Drawn};
use crate::file::write_bytes;
use crate::view::{self, VIEWS};
use crate::{Error, file_stem, latex, order, study, table, unified, wide};
use bench_core::metric::Metric;
use bench_core::row::{Row, StudyLatencyRow};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What there is to report.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ReportInputs {
    pub runs: Vec<RunInput>,
}

/// One finished run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunInput {
    /// Holds the time stamp by which runs of a study sort by age.
    pub run_id: String,
    pub study_name: String,
    /// For captions: processor, cores, memory, GPU if any.
    pub machine: String,
    pub plan_hash: String,
    pub rows: Vec<Row>,
    /// The same run by the formulas of the original study.
    pub study_rows: Vec<StudyLatencyRow>,
}

/// Where the files go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportPaths {
    pub results: PathBuf,
    pub figs: PathBuf,
    pub tables: PathBuf,
}

impl ReportPaths {
    /// `results/`, `figs/` and `paper/tables/` under `root`.
    pub fn under(root: &Path) -> Self {
        Self { results: root.join("results"), figs: root.join("figs"), tables: root.join("paper/tables") }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReportFiles {
    /// `unified.csv`, `unified.parquet`, `study_unified_latency.csv`, `wide_<view>.csv`.
    pub results: Vec<PathBuf>,
    /// Per study `<study>_ttft` and `<study>_decode_rate`, each `.svg` and `.png`.
    pub figures: Vec<PathBuf>,
    /// Per study `<study>_latency.tex`, and one for each other view that has figures.
    pub tables: Vec<PathBuf>,
}

/// Writes the CSVs of all runs, and of each study's latest run the figures and the table.
pub fn rebuild(inputs: &ReportInputs, out: &ReportPaths) -> Result<ReportFiles, Error> {
    let mut files = ReportFiles { results: tables_of_all(inputs, &out.results)?, ..ReportFiles::default() };
    for (study, run) in latest_runs(inputs) {
        let sorted = order::sorted(&run.rows)?;
        let cells = wide::cells(&sorted, &view::LATENCY);
        for (metric, name) in [(Metric::Ttft, "ttft"), (Metric::DecodeRate, "decode_rate")] {
            let Drawn { svg, png } = figure::draw(metric, run, &cells)?;
            for (bytes, kind) in [(svg.as_bytes(), "svg"), (png.as_slice(), "png")] {
                let path = out.figs.join(format!("{study}_{name}.{kind}"));
                write_bytes(&path, bytes)?;
                files.figures.push(path);
            }
        }
        for grid in table::grids(&sorted) {
            let path = out.tables.join(format!("{study}_{}.tex", grid.view.name));
            write_bytes(&path, latex::table(run, &grid).as_bytes())?;
            files.tables.push(path);
        }
    }
    Ok(files)
}

/// Writes the CSVs of all runs, and neither figures nor tables.
pub fn write_csv(inputs: &ReportInputs, out: &ReportPaths) -> Result<ReportFiles, Error> {
    Ok(ReportFiles { results: tables_of_all(inputs, &out.results)?, ..ReportFiles::default() })
}

/// The latest run of each study, in order of name.
pub fn latest(inputs: &ReportInputs) -> impl Iterator<Item = &RunInput> {
    latest_runs(inputs).into_values()
}

fn tables_of_all(inputs: &ReportInputs, results: &Path) -> Result<Vec<PathBuf>, Error> {
    let [unified_csv, parquet, study_csv] =
        ["unified.csv", "unified.parquet", "study_unified_latency.csv"].map(|name| results.join(name));
    let sorted = order::sorted(inputs.runs.iter().flat_map(|r| &r.rows))?;
    let mut frame = unified::frame(&unified_csv, &sorted)?;
    unified::write_csv(&unified_csv, &mut frame)?;
    unified::write_parquet_frame(&parquet, &mut frame)?;
    write_bytes(&study_csv, study::csv(&inputs.runs).as_bytes())?;
    let mut paths = vec![unified_csv, parquet, study_csv];
    for view in VIEWS {
        let path = results.join(format!("wide_{}.csv", view.name));
        write_bytes(&path, wide::csv(view, &wide::cells(&sorted, view)).as_bytes())?;
        paths.push(path);
    }
    Ok(paths)
}

/// By file name of the study, its run with the latest time stamp.
fn latest_runs(inputs: &ReportInputs) -> BTreeMap<String, &RunInput> {
    let mut latest: BTreeMap<String, &RunInput> = BTreeMap::new();
    for run in &inputs.runs {
        latest
            .entry(file_stem(&run.study_name))
            .and_modify(|kept| {
                if age_key(run) > age_key(kept) {
                    *kept = run;
                }
            })
            .or_insert(run);
    }
    latest
}

/// The time stamp in `<study>-20250628T134501Z-<plan hash>`, then the id itself.
fn age_key(run: &RunInput) -> (&str, &str) {
    let is_stamp = |part: &&str| {
        part.split_once('T').is_some_and(|(date, time)| date.len() == 8 && time.len() >= 6)
            && part.bytes().filter(u8::is_ascii_digit).count() >= 14
    };
    (run.run_id.rsplit('-').find(is_stamp).unwrap_or_default(), &run.run_id)
}
