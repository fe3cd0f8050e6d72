//! A schedule on disk: one CSV line per request, enough to send the same load again.
//!
//! What a request's text is does not stand here: it follows from the plan, the seed, and the blocks.

use crate::{Error, Result};
use csv::{ReaderBuilder, Writer, WriterBuilder};
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::path::Path;

/// One request as it was scheduled. An empty field is an unknown value.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScheduleRow {
    /// From 0, without gaps.
    pub index: u64,
    /// After t0.
    pub intended_ns: u64,
    pub prompt_tokens: Option<u32>,
    pub output_tokens: Option<u32>,
    /// Requests with one group share something, such as a conversation or a prefix; its hash or name.
    pub group: Option<String>,
    /// Ids of the prompt's leading blocks in a recorded trace; equal leading ids are an equal prefix.
    pub blocks: Vec<u64>,
}

/// A row as it stands in the file: the blocks are one field, with spaces between.
#[derive(Serialize, Deserialize)]
struct Line {
    index: u64,
    intended_ns: u64,
    prompt_tokens: Option<u32>,
    output_tokens: Option<u32>,
    group: Option<String>,
    blocks: String,
}

const COLUMNS: [&str; 6] = ["index", "intended_ns", "prompt_tokens", "output_tokens", "group", "blocks"];

/// `schedule-round-000.csv`
pub fn file_name(round: u32) -> String {
    format!("schedule-round-{round:03}.csv")
}

/// Writes the rows under a header; with none, the header alone.
pub fn write<'a>(out: impl Write, rows: impl IntoIterator<Item = &'a ScheduleRow>) -> io::Result<()> {
    let mut csv: Writer<_> = WriterBuilder::new().has_headers(false).from_writer(out);
    csv.write_record(COLUMNS)?;
    for row in rows {
        let blocks: Vec<String> = row.blocks.iter().map(u64::to_string).collect();
        csv.serialize(Line {
            index: row.index,
            intended_ns: row.intended_ns,
            prompt_tokens: row.prompt_tokens,
            output_tokens: row.output_tokens,
            group: row.group.clone(),
            blocks: blocks.join(" "),
        })?;
    }
    csv.flush()
}

/// Reads a stored schedule back, exactly as it was written. An index out of turn or an instant before its
/// predecessor's is an error: such a file was edited.
pub fn read(path: &Path) -> Result<Vec<ScheduleRow>> {
    let corrupt = |line, problem| Error::Corrupt { path: path.to_owned(), line, problem };
    let failed = |error: csv::Error| match error.kind() {
        csv::ErrorKind::Io(_) => Error::Read { path: path.to_owned(), source: error.into() },
        _ => corrupt(error.position().map_or(1, csv::Position::line), problem(&error)),
    };
    let mut csv = ReaderBuilder::new().from_path(path).map_err(failed)?;
    let header = csv.headers().map_err(failed)?;
    if *header != COLUMNS[..] {
        return Err(corrupt(1, format!("expected the columns {}", COLUMNS.join(","))));
    }
    let mut rows: Vec<ScheduleRow> = vec![];
    let mut record = csv::StringRecord::new();
    while csv.read_record(&mut record).map_err(failed)? {
        let number = record.position().map_or(0, csv::Position::line);
        let line: Line = record.deserialize(None).map_err(|error| corrupt(number, problem(&error)))?;
        let row = row(line).map_err(|problem| corrupt(number, problem))?;
        check_order(&rows, &row).map_err(|problem| corrupt(number, problem))?;
        rows.push(row);
    }
    Ok(rows)
}

fn row(line: Line) -> Result<ScheduleRow, String> {
    let block = |id: &str| id.parse().map_err(|_| format!("block id {id:?}: expected a whole number"));
    Ok(ScheduleRow {
        index: line.index,
        intended_ns: line.intended_ns,
        prompt_tokens: line.prompt_tokens,
        output_tokens: line.output_tokens,
        group: line.group,
        blocks: line.blocks.split_ascii_whitespace().map(block).collect::<Result<_, _>>()?,
    })
}

fn check_order(before: &[ScheduleRow], row: &ScheduleRow) -> Result<(), String> {
    if row.index != before.len() as u64 {
        return Err(format!("index is {}: expected {}", row.index, before.len()));
    }
    match before.last() {
        Some(last) if row.intended_ns < last.intended_ns => {
            Err(format!("intended_ns is {}: expected at least {}", row.intended_ns, last.intended_ns))
        }
        _ => Ok(()),
    }
}

/// What is wrong, with the column where it is known; the position is told by who wraps it.
fn problem(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Deserialize { err, .. } => {
            let column = err.field().and_then(|field| COLUMNS.get(field as usize));
            column.map_or_else(|| err.kind().to_string(), |name| format!("{name}: {}", err.kind()))
        }
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} fields: expected {expected_len}")
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Schedule;
    use bench_core::load::Arrival;
    use std::fs;

    fn rows() -> Vec<ScheduleRow> {
        let schedule = Schedule::draw(&Arrival::Poisson { rate: 5_000.0 }, 500, 11).unwrap();
        let numbered = (0_u64..).zip(schedule.intended_ns);
        let row = |(index, intended_ns): (u64, u64)| ScheduleRow {
            index,
            intended_ns,
            prompt_tokens: (index % 5 != 0).then_some(index as u32),
            output_tokens: (index % 3 != 0).then_some(7),
            group: (index % 2 == 0).then(|| format!("a \"b\", {index}")),
            blocks: (0..index % 4).map(|i| u64::MAX - i).collect(),
        };
        numbered.map(row).collect()
    }

    fn read_text(text: &str) -> Result<Vec<ScheduleRow>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.csv");
        fs::write(&path, text).unwrap();
        read(&path)
    }

    fn message(lines: &str) -> String {
        let text = format!("{}\n{lines}", COLUMNS.join(","));
        let error = read_text(&text).unwrap_err().to_string();
        error.split_once("s.csv, ").unwrap().1.to_owned()
    }

    #[test]
    fn what_was_written_is_read_back() {
        let mut text = vec![];
        write(&mut text, &rows()).unwrap();
        let back = read_text(std::str::from_utf8(&text).unwrap()).unwrap();
        assert_eq!(back, rows());
        let mut again = vec![];
        write(&mut again, &back).unwrap();
        assert!(text == again, "bit for bit");
    }

    #[test]
    fn no_request_is_a_header_alone() {
        let mut text = vec![];
        write(&mut text, &[]).unwrap();
        assert_eq!(text, b"index,intended_ns,prompt_tokens,output_tokens,group,blocks\n");
        assert_eq!(read_text(std::str::from_utf8(&text).unwrap()).unwrap(), []);
    }

    #[test]
    fn an_edited_file_is_refused_with_its_line() {
        assert_eq!(message("0,5,,,,\n2,6,,,,\n"), "line 3: index is 2: expected 1");
        assert_eq!(message("0,5,,,,\n1,4,,,,\n"), "line 3: intended_ns is 4: expected at least 5");
        assert_eq!(message("0,5,,,,1 x\n"), "line 2: block id \"x\": expected a whole number");
        assert_eq!(message("0,5,-1,,,\n"), "line 2: prompt_tokens: invalid digit found in string");
        assert_eq!(message("0,5\n"), "line 2: 2 fields: expected 6");
        let error = read_text("index,due\n0,1\n").unwrap_err().to_string();
        assert!(error.ends_with(
            "line 1: expected the columns index,intended_ns,prompt_tokens,output_tokens,group,blocks"
        ));
    }

    #[test]
    fn file_names_sort_by_round() {
        assert_eq!(file_name(7), "schedule-round-007.csv");
    }
}
