//! Which runs a side is, which cells of both sides match, and in what else the sides differ.
//!
//! Reads plans and provenance alone; no event.

use crate::CliError;
use bench_core::plan::Cell;
use bench_core::provenance::{Build, Provenance};
use bench_report::CellKey;
use bench_runner::store::{RunFolder, list_runs};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One side: its runs, in the order in which they were named.
pub(super) struct Side {
    pub(super) name: &'static str,
    pub(super) runs: Vec<RunFolder>,
    /// Labels of models as they are called in the other side.
    renames: BTreeMap<String, String>,
}

/// A cell of a side: in which of its runs, and under which id.
pub(super) type Places = Vec<(usize, String)>;

/// Cells by key.
pub(super) struct Matched {
    pub(super) pairs: Vec<(CellKey, Places, Places)>,
    pub(super) only_a: Vec<CellKey>,
    pub(super) only_b: Vec<CellKey>,
}

impl Side {
    pub(super) fn open(results: &Path, text: &str, name: &'static str) -> Result<Self, CliError> {
        let paths = find(results, text)?;
        let mut runs = Vec::<RunFolder>::new();
        for path in &paths {
            let run = RunFolder::open(path)?;
            if runs.iter().any(|r| r.run_id() == run.run_id()) {
                let problem = "is given twice: one run is not two measurements; name other runs of it";
                return Err(CliError::Usage(format!("{name}: run {} {problem}", run.run_id())));
            }
            runs.push(run);
        }
        Ok(Self { name, runs, renames: BTreeMap::new() })
    }

    pub(super) fn run_ids(&self) -> Vec<String> {
        self.runs.iter().map(|r| r.run_id().to_owned()).collect()
    }

    /// Labels of the models, as planned.
    pub(super) fn labels(&self) -> Vec<String> {
        let mut labels: Vec<_> =
            self.runs.iter().flat_map(|r| &r.plan().models).map(|m| m.label.clone()).collect();
        labels.sort();
        labels.dedup();
        labels
    }

    pub(super) fn rename(&mut self, renames: &[(String, String)]) -> Result<(), CliError> {
        let labels = self.labels();
        for (from, to) in renames {
            if !labels.contains(from) {
                let valid = labels.join(", ");
                let name = self.name;
                return Err(CliError::Usage(format!(
                    "--map: {name} has no model \"{from}\"; valid: {valid}"
                )));
            }
            self.renames.insert(from.clone(), to.clone());
        }
        let mut renamed: Vec<_> = labels.iter().map(|l| self.renamed(l)).collect();
        renamed.sort_unstable();
        match renamed.windows(2).find(|w| w[0] == w[1]) {
            Some(twice) => {
                Err(CliError::Usage(format!("--map: two models of A are called \"{}\" then", twice[0])))
            }
            None => Ok(()),
        }
    }

    fn renamed<'a>(&'a self, label: &'a str) -> &'a str {
        self.renames.get(label).map_or(label, String::as_str)
    }

    /// Its cells in the order of the plans.
    fn cells(&self) -> Vec<(CellKey, Places)> {
        let mut cells: Vec<(CellKey, Places)> = Vec::new();
        for (index, run) in self.runs.iter().enumerate() {
            for cell in &run.plan().cells {
                let key = self.key(cell);
                match cells.iter_mut().find(|c| c.0 == key) {
                    Some((_, places)) => places.push((index, cell.id.clone())),
                    None => cells.push((key, vec![(index, cell.id.clone())])),
                }
            }
        }
        cells
    }

    fn key(&self, cell: &Cell) -> CellKey {
        CellKey { model: self.renamed(&cell.model).to_owned(), ..CellKey::of(cell) }
    }
}

/// The folders that `text` names: the whole of it, or its parts between commas.
fn find(results: &Path, text: &str) -> Result<Vec<PathBuf>, CliError> {
    if Path::new(text).join("plan.json").is_file() {
        return Ok(vec![PathBuf::from(text)]);
    }
    let runs = list_runs(results)?;
    text.split(',').map(|part| find_one(results, &runs, part.trim())).collect()
}

fn find_one(results: &Path, runs: &[PathBuf], wanted: &str) -> Result<PathBuf, CliError> {
    let name_of =
        |path: &PathBuf| path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if let Some(run) = runs.iter().find(|p| name_of(p) == wanted) {
        return Ok(run.clone());
    }
    // A folder without a plan is named as well: what is wrong with it is then said.
    if wanted.contains(['/', '\\']) && Path::new(wanted).is_dir() {
        return Ok(PathBuf::from(wanted));
    }
    let of_study = runs.iter().filter(|p| wanted == "latest" || study_and_stamp(&name_of(p)).0 == wanted);
    let age = |path: &&PathBuf| (study_and_stamp(&name_of(path)).1.to_owned(), name_of(path));
    of_study.max_by_key(age).cloned().ok_or_else(|| {
        let known: Vec<_> = runs.iter().map(name_of).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        CliError::Usage(format!(
            "no run \"{wanted}\" in {}; give a run id, a run's folder, a study's name or `latest`; runs there: \
             {known}",
            results.display()
        ))
    })
}

/// Study and time stamp of a run id, which is `<study>-<time>-<hash>`, with a number behind where several
/// began in one second.
fn study_and_stamp(run_id: &str) -> (&str, &str) {
    let is_stamp = |part: &str| {
        let (bytes, digits) = (part.as_bytes(), part.bytes().filter(u8::is_ascii_digit).count());
        (bytes.len(), digits, bytes.get(8), bytes.last()) == (16, 14, Some(&b'T'), Some(&b'Z'))
    };
    let stamp = run_id.rsplit('-').find(|part| is_stamp(part)).unwrap_or_default();
    let study = run_id.rsplit_once(&format!("-{stamp}-")).map_or(run_id, |(study, _)| study);
    (study, stamp)
}

pub(super) fn matched(a: &Side, b: &Side) -> Matched {
    let mut of_b = b.cells();
    let (mut pairs, mut only_a) = (Vec::new(), Vec::new());
    for (key, places) in a.cells() {
        match of_b.iter().position(|c| c.0 == key) {
            Some(at) => {
                let (_, places_b) = of_b.remove(at);
                pairs.push((key, places, places_b));
            }
            None => only_a.push(key),
        }
    }
    Matched { pairs, only_a, only_b: of_b.into_iter().map(|c| c.0).collect() }
}

/// In what the sides differ besides what is compared.
pub(super) fn notes(a: &Side, b: &Side) -> Vec<String> {
    let mut notes = Vec::new();
    let (ids_a, ids_b) = (a.run_ids(), b.run_ids());
    let both: Vec<_> = ids_a.iter().filter(|id| ids_b.contains(id)).cloned().collect();
    if !both.is_empty() {
        notes.push(format!("on both sides: {}; a run does not differ from itself", both.join(", ")));
    }
    let mut differ = |what: &str, of: &dyn Fn(&Provenance) -> String| {
        let texts = [a, b].map(|side| {
            let mut texts: Vec<_> = side.runs.iter().map(|r| of(r.provenance())).collect();
            texts.sort();
            texts.dedup();
            texts.join(" and ")
        });
        if texts[0] != texts[1] {
            notes.push(format!("{what} of A: {}; of B: {}", texts[0], texts[1]));
        }
    };
    differ("machine", &|p| super::super::analyze::describe(&p.machine));
    differ("build", &|p| build(&p.build));
    let plans = a.runs.iter().zip(&b.runs).filter_map(|(a, b)| match a.check_plan(b.plan()) {
        Err(bench_runner::Error::PlanChanged { difference, .. }) => Some(difference),
        _ => None,
    });
    notes.extend(plans.take(1).map(|d| format!("the plans differ (A before, B now): {d}")));
    notes
}

fn build(build: &Build) -> String {
    let commit = build.commit.as_deref().map_or("no commit", |c| c.get(..12).unwrap_or(c));
    let dirty = if build.dirty == Some(true) { " with changes" } else { "" };
    let debug = if build.debug { ", debug" } else { "" };
    format!("{} ({commit}{dirty}, {}{debug})", build.version, build.rustc)
}
