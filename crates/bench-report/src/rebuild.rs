//! Everything that `ossbench report` writes, in one call.

use crate::file::write_bytes;
use crate::view::{self, VIEWS};
use crate::{Error, figure, file_stem, html, latex, numbers, order, study, table, unified, wide};
use bench_core::detail::CellDetail;
use bench_core::plan::Plan;
use bench_core::provenance::Provenance;
use bench_core::row::{Row, StudyCell, StudyLatencyRow};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What there is to report.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ReportInputs {
    pub runs: Vec<RunInput>,
    /// Runs that could not be read, with the reason.
    pub left_out: Vec<String>,
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
    /// What pictures need beyond the rows, in the plan's order; a cell without raw files is left out.
    pub cells: Vec<CellDetail>,
    /// What was planned and where it ran, for the page that tells the run's story.
    pub plan: Option<Plan>,
    pub provenance: Option<Provenance>,
    /// What could not be used of the run, and why.
    pub notes: Vec<String>,
    /// The same run by the formulas of the original study.
    pub study_rows: Vec<StudyLatencyRow>,
    /// Its cells, for the study's other tables.
    pub study_cells: Vec<StudyCell>,
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
    /// `unified.csv`, `unified.parquet`, the study's four tables `study_*.csv`, `wide_<view>.csv`.
    pub results: Vec<PathBuf>,
    /// Per study `<study>_ttft`, `<study>_decode_rate` and whatever else it has data for, each `.svg`,
    /// `.png` and `.pdf`.
    pub figures: Vec<PathBuf>,
    /// Per study `<study>_latency.tex`, one for each other view that has figures, `<study>_numbers.tex` with every
    /// number as a macro, `<study>_models.tex`; and `definitions.tex`
    /// and `constants.tex`.
    pub tables: Vec<PathBuf>,
    /// `report.html` beside the CSVs.
    pub page: Option<PathBuf>,
}

/// Writes the CSVs of all runs, of each study's latest run the figures and the tables, and the page of all.
pub fn rebuild(inputs: &ReportInputs, out: &ReportPaths) -> Result<ReportFiles, Error> {
    let mut files = ReportFiles { results: tables_of_all(inputs, &out.results)?, ..ReportFiles::default() };
    let mut studies = Vec::new();
    for (study, run) in latest_runs(inputs) {
        let sorted = order::sorted(&run.rows)?;
        let cells = wide::cells(&sorted, &view::LATENCY);
        let figures = figure::all(run, &cells)?;
        for figure in &figures {
            let formats: [(&[u8], &str); 3] =
                [(figure.svg.as_bytes(), "svg"), (&figure.png, "png"), (&figure.pdf, "pdf")];
            for (bytes, kind) in formats {
                let path = out.figs.join(format!("{study}_{}.{kind}", figure.name));
                write_bytes(&path, bytes)?;
                files.figures.push(path);
            }
        }
        for grid in table::grids(&sorted) {
            let path = out.tables.join(format!("{study}_{}.tex", grid.view.name));
            write_bytes(&path, latex::table(run, &grid).as_bytes())?;
            files.tables.push(path);
        }
        let numbers = Some(numbers::numbers(run, &sorted));
        for (text, name) in [(numbers, "numbers"), (numbers::models(run), "models")] {
            let Some(text) = text else { continue };
            let path = out.tables.join(format!("{study}_{name}.tex"));
            write_bytes(&path, text.as_bytes())?;
            files.tables.push(path);
        }
        let same = inputs.runs.iter().filter(|other| file_stem(&other.study_name) == study).count();
        studies.push(html::Study { run, sorted, figures, earlier: same - 1 });
    }
    for (name, text) in [("definitions", numbers::definitions()), ("constants", numbers::constants())] {
        let path = out.tables.join(format!("{name}.tex"));
        write_bytes(&path, text.as_bytes())?;
        files.tables.push(path);
    }
    let path = out.results.join("report.html");
    write_bytes(&path, html::page(&studies, &inputs.left_out)?.as_bytes())?;
    files.page = Some(path);
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
    let [unified_csv, parquet] = ["unified.csv", "unified.parquet"].map(|name| results.join(name));
    let sorted = order::sorted(inputs.runs.iter().flat_map(|r| &r.rows))?;
    let mut frame = unified::frame(&unified_csv, &sorted)?;
    unified::write_csv(&unified_csv, &mut frame)?;
    unified::write_parquet_frame(&parquet, &mut frame)?;
    let mut paths = vec![unified_csv, parquet];
    for (name, text) in study::csvs(&inputs.runs) {
        let path = results.join(name);
        write_bytes(&path, text.as_bytes())?;
        paths.push(path);
    }
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
