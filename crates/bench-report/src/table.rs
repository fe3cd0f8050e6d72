//! The wide tables in every format that `-o` knows.

use crate::grid::{Grid, GridRow, footnote_sign};
use crate::round::Rounded;
use crate::view::{self, VIEWS};
use crate::{Error, RunInput, latex, order, wide};
use bench_core::row::Row;
use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::str::FromStr;

/// How a table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Aligned text for the terminal.
    #[default]
    Table,
    Md,
    Csv,
    Json,
    Jsonl,
    Latex,
}

impl Format {
    /// Every format with its name.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Table, "table"),
        (Self::Md, "md"),
        (Self::Csv, "csv"),
        (Self::Json, "json"),
        (Self::Jsonl, "jsonl"),
        (Self::Latex, "latex"),
    ];
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let known = Self::ALL.iter().find(|(_, name)| *name == text);
        known.map(|(format, _)| *format).ok_or_else(|| Error::Format {
            given: text.to_owned(),
            valid: Self::ALL.map(|(_, name)| name).join(", "),
        })
    }
}

/// The wide tables of one run, ending with a line break: latency, and what else was measured. CSV is latency
/// alone; JSON holds the others inside of each cell's object.
pub fn render(format: Format, run: &RunInput) -> Result<String, Error> {
    let sorted = order::sorted(&run.rows)?;
    Ok(match format {
        Format::Table => joined(&sorted, |title| format!("\n{title}\n"), plain),
        Format::Md => joined(&sorted, |title| format!("\n**{title}**\n\n"), markdown),
        Format::Latex => joined(&sorted, |_| "\n".to_owned(), |grid| latex::table(run, grid)),
        Format::Csv => wide::csv(&view::LATENCY, &wide::cells(&sorted, &view::LATENCY)),
        Format::Json => {
            format!("{:#}\n", Value::Array(objects(&sorted).into_iter().map(Value::Object).collect()))
        }
        Format::Jsonl => objects(&sorted).into_iter().fold(String::new(), |mut text, object| {
            let _ = writeln!(text, "{}", Value::Object(object));
            text
        }),
    })
}

/// The latency table, and each other that has a figure, under its title.
fn joined(sorted: &[&Row], title: impl Fn(&str) -> String, table: impl Fn(&Grid) -> String) -> String {
    let mut text = String::new();
    for grid in grids(sorted) {
        if grid.view.name != view::LATENCY.name {
            text.push_str(&title(grid.view.title));
        }
        text.push_str(&table(&grid));
    }
    text
}

/// The tables for reading: latency, and the others that have a figure.
pub(crate) fn grids<'a>(sorted: &[&'a Row]) -> Vec<Grid<'a>> {
    let grids = VIEWS.iter().map(|view| Grid::new(view, &wide::cells(sorted, view)));
    grids.enumerate().filter(|(i, grid)| *i == 0 || !grid.is_empty()).map(|(_, grid)| grid).collect()
}

/// Each cell with its latency, and under `memory`, `energy.<scope>` and `efficiency` what else was measured.
fn objects(sorted: &[&Row]) -> Vec<Map<String, Value>> {
    let of_cell = sorted.chunk_by(|a, b| order::by_cell(a, b).is_eq());
    of_cell.map(object).collect()
}

fn object(rows: &[&Row]) -> Map<String, Value> {
    let mut object = wide::cells(rows, &view::LATENCY).first().map(wide::object).unwrap_or_default();
    for view in &VIEWS[1..] {
        let cells = wide::cells(rows, view);
        let known = cells.iter().filter(|c| c.figures.iter().any(|f| f.value.is_some()));
        let mut figures: Vec<_> = known.map(|c| (c.scope, wide::figures_object(c))).collect();
        if view.by_scope && !figures.is_empty() {
            let scopes = figures.into_iter().map(|(scope, f)| (scope.to_owned(), Value::Object(f)));
            object.insert(view.name.to_owned(), Value::Object(scopes.collect()));
        } else if let Some((_, figures)) = figures.pop() {
            object.insert(view.name.to_owned(), Value::Object(figures));
        }
    }
    object
}

/// Columns as wide as their widest entry, numbers to the right.
fn plain(grid: &Grid) -> String {
    let head = grid.head();
    let head_line = |first: &str, rest: fn(&(String, String)) -> &String| {
        [first.to_owned()].into_iter().chain(head.iter().map(|h| rest(h).clone())).collect()
    };
    let mut lines: Vec<Vec<String>> = vec![head_line("Model", |h| &h.0), head_line("", |h| &h.1)];
    lines.extend(grid.rows.iter().map(|r| entries(r, &one_line(r.model))));
    let widths: Vec<usize> = (0..lines[0].len())
        .map(|i| lines.iter().map(|line| line[i].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in &lines {
        let padded = line.iter().zip(&widths).enumerate().map(|(i, (entry, width))| {
            if i == 0 { format!("{entry:<width$}") } else { format!("{entry:>width$}") }
        });
        text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text + &notes(grid, one_line)
}

fn markdown(grid: &Grid) -> String {
    let line = |entries: &[String]| format!("| {} |\n", entries.join(" | "));
    let names =
        grid.head().into_iter().map(|(name, rest)| escape_markdown(format!("{name} {rest}").trim_end()));
    let head: Vec<String> = ["Model".to_owned()].into_iter().chain(names).collect();
    let mut rule = vec!["---:".to_owned(); head.len()];
    ":---".clone_into(&mut rule[0]);
    let mut text = line(&head) + &line(&rule);
    for row in &grid.rows {
        text.push_str(&line(&entries(row, &escape_markdown(row.model))));
    }
    text + &notes(grid, escape_markdown)
}

fn entries(row: &GridRow, model: &str) -> Vec<String> {
    let model = match row.reason {
        Some(reason) => format!("{model} ({})", footnote_sign(reason)),
        None => model.to_owned(),
    };
    let figures = row.figures.iter().map(|f| f.as_ref().map_or_else(String::new, with_interval));
    [model].into_iter().chain(row.keys.iter().cloned()).chain(figures).collect()
}

fn with_interval(figure: &Rounded) -> String {
    let end = |end: &Option<String>| end.clone().unwrap_or_else(|| "-".to_owned());
    match &figure.interval {
        Some((low, high)) => format!("{} [{}, {}]", figure.value, end(low), end(high)),
        None => figure.value.clone(),
    }
}

fn notes(grid: &Grid, escape: impl Fn(&str) -> String) -> String {
    let mut text = String::new();
    for (index, reason) in grid.reasons.iter().enumerate() {
        let _ = writeln!(text, "\n({}) {}: {}", footnote_sign(index), reason.head, escape(reason.text));
    }
    text
}

/// Control characters, line breaks among them, become blanks.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

pub(crate) fn escape_markdown(text: &str) -> String {
    let mut escaped = String::new();
    for c in one_line(text).chars() {
        if matches!(c, '\\' | '|' | '*' | '_' | '`' | '<' | '>' | '[' | ']' | '~' | '#' | '&') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}
