//! `report.html`: everything that a run says, in one file that needs no other and no network.
//!
//! Rows, plan and provenance become sentences, tables and figures here; the template escapes them. Links to raw
//! files are relative to the folder of results. The same input has the same bytes; the size is bounded.

mod headline;
mod notes;
mod picture;
mod raw;
mod sheet;
mod story;
mod words;

use crate::figure::Figure;
use crate::{Error, RunInput};
use bench_core::row::Row;
use minijinja::Environment;
use picture::{Album, Picture};
use raw::RawFiles;
use serde::Serialize;
use std::collections::BTreeSet;
use words::clean;

static TEMPLATE: &str = include_str!("../../assets/report.html");
static STYLE: &str = include_str!("../../assets/report.css");
static SCRIPT: &str = include_str!("../../assets/report.js");

/// Lines of one table, and of all of them together: the CSVs hold the rest.
const MAX_LINES: usize = 500;
const MAX_LINES_OF_PAGE: usize = 6000;
/// Pictures of all studies together.
const MAX_PICTURE_BYTES: usize = 12 << 20;
/// Runs that were left out and are listed.
const MAX_LEFT_OUT: usize = 50;

/// The latest run of a study, as `rebuild` has it.
pub(crate) struct Study<'a> {
    pub run: &'a RunInput,
    pub sorted: Vec<&'a Row>,
    pub figures: Vec<Figure>,
    /// Runs of this study that are not shown.
    pub earlier: usize,
}

#[derive(Serialize)]
struct Page {
    title: String,
    studies: Vec<Section>,
    left_out: Vec<String>,
    more_left_out: usize,
    style: &'static str,
    colors: String,
    script: &'static str,
}

#[derive(Serialize)]
struct Section {
    id: String,
    name: String,
    story: story::Story,
    notes: Vec<notes::Note>,
    headline: Option<headline::Headline>,
    pictures: Vec<Picture>,
    sheets: Vec<sheet::Sheet>,
}

/// The page of all studies; `left_out` says which runs could not be read, and why.
pub(crate) fn page(studies: &[Study], left_out: &[String]) -> Result<String, Error> {
    let mut album = Album { colors: BTreeSet::new(), room: MAX_PICTURE_BYTES };
    let most = (MAX_LINES_OF_PAGE / (4 * studies.len().max(1))).clamp(1, MAX_LINES);
    let numbered = studies.iter().enumerate();
    let sections: Vec<Section> =
        numbered.map(|(number, study)| section(study, number + 1, most, &mut album)).collect();
    let title = match sections.as_slice() {
        [one] => one.name.clone(),
        several => words::count(several.len(), "study").replace("studys", "studies"),
    };
    let page = Page {
        title,
        studies: sections,
        left_out: left_out.iter().take(MAX_LEFT_OUT).map(|text| clean(text)).collect(),
        more_left_out: left_out.len().saturating_sub(MAX_LEFT_OUT),
        style: STYLE,
        colors: picture::color_rules(&album.colors),
        script: SCRIPT,
    };
    let failed = |error: minijinja::Error| Error::Page(format!("{error:#}"));
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.add_template("report.html", TEMPLATE).map_err(failed)?;
    environment.get_template("report.html").and_then(|t| t.render(&page)).map_err(failed)
}

fn section(study: &Study, number: usize, most: usize, album: &mut Album) -> Section {
    let files = RawFiles::of(study.run);
    let cells = story::by_cells(&study.sorted);
    let figures = study.figures.iter().enumerate();
    let pictures = figures.map(|(index, figure)| {
        let id = format!("s{number}-fig{}", index + 1);
        picture::picture(figure, id, study.run, &files, album)
    });
    Section {
        id: format!("s{number}"),
        name: clean(&study.run.study_name),
        story: story::story(study.run, &cells),
        notes: notes::notes(study.run, &cells, study.earlier),
        headline: headline::headline(&study.sorted, &files),
        pictures: pictures.collect(),
        sheets: sheet::sheets(&study.sorted, &files, most),
    }
}
