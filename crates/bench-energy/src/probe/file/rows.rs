//! The rows of a recorded power trace, each device's in the order of the file, and notes on those that are
//! wrong.
//!
//! A row without an instant or a device cannot be placed and is left out; every other stays, its value
//! missing where it is no number or cannot be meant.

use super::columns::{Columns, EXPECTED, columns};

use crate::probe::plausible::plausible;
use bench_core::power::{PowerDevice, PowerReading, PowerSample, PowerScope};
use std::collections::HashSet;

/// What the instants of a trace are counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    Run,
    Unix,
}

pub(super) struct Row {
    pub(super) at_ns: i128,
    /// Its `at` is not set.
    pub(super) sample: PowerSample,
}

/// Rows of one device.
pub(super) struct Track {
    pub(super) device: PowerDevice,
    pub(super) rows: Vec<Row>,
    latest_ns: i128,
    seen: HashSet<i128>,
}

pub(super) struct Recording {
    pub(super) axis: Axis,
    pub(super) tracks: Vec<Track>,
    pub(super) notes: Vec<String>,
}

/// How often something was wrong, and where first.
#[derive(Default)]
struct Count {
    rows: u64,
    first: Option<(u64, String)>,
}

impl Count {
    fn add(&mut self, line: u64, reason: impl Into<String>) {
        self.rows += 1;
        self.first.get_or_insert_with(|| (line, reason.into()));
    }

    fn note(&self, of: &str, what: &str) -> Option<String> {
        let (line, reason) = self.first.as_ref()?;
        let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        let rows = if self.rows == 1 { "1 row".to_owned() } else { format!("{} rows", self.rows) };
        Some(format!("power trace {of}: {rows} {what}, first on line {line}{reason}"))
    }
}

#[derive(Default)]
struct Wrong {
    unplaced: Count,
    valueless: Count,
    backwards: Count,
    duplicate: Count,
}

/// Reads the text of `file`. `Err` says why it is no power trace.
pub(super) fn parse(text: &[u8], file: &str) -> Result<Recording, String> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .comment(Some(b'#'))
        .from_reader(text);
    let mut records = reader.byte_records();
    let header = match records.next() {
        Some(Ok(record)) => record.iter().map(|name| text_of(name).to_lowercase()).collect::<Vec<_>>(),
        Some(Err(error)) => return Err(format!("{error}; {EXPECTED}")),
        None => return Err(format!("the file is empty; {EXPECTED}")),
    };
    let columns = columns(&header)?;
    let (mut tracks, mut wrong) = (Vec::new(), Wrong::default());
    for record in records {
        match record {
            Ok(record) => add(&mut tracks, &record, &columns, file, &mut wrong),
            Err(error) => {
                let line = error.position().map_or(0, csv::Position::line);
                wrong.unplaced.add(line, error.to_string());
            }
        }
    }
    if tracks.is_empty() {
        let notes = wrong.notes(file, &columns);
        return Err(format!("no row can be read; {EXPECTED} ({})", notes.join("; ")));
    }
    let notes = wrong.notes(file, &columns);
    Ok(Recording { axis: if columns.is_unix { Axis::Unix } else { Axis::Run }, tracks, notes })
}

impl Wrong {
    fn notes(&self, file: &str, columns: &Columns) -> Vec<String> {
        let mut notes: Vec<String> = [
            self.unplaced.note(file, "without an instant or a device left out"),
            self.valueless.note(file, "with values that are missing now"),
            self.backwards.note(file, "back in time"),
            self.duplicate.note(file, "with an instant that was there before"),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !columns.unknown.is_empty() {
            notes.push(format!(
                "power trace {file}: columns without a meaning here: {}",
                columns.unknown.join(", ")
            ));
        }
        notes
    }
}

fn text_of(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

fn add(tracks: &mut Vec<Track>, record: &csv::ByteRecord, columns: &Columns, file: &str, wrong: &mut Wrong) {
    let line = record.position().map_or(0, csv::Position::line);
    let (at_ns, scope, index) = match place(record, columns) {
        Ok(place) => place,
        Err(reason) => return wrong.unplaced.add(line, reason),
    };
    let sample = plausible(sample(record, columns));
    if let Some(reason) = &sample.error {
        wrong.valueless.add(line, reason.as_str());
    }
    let track = track_of(tracks, scope, index, columns, file);
    if !track.seen.insert(at_ns) {
        wrong.duplicate.add(line, "");
    } else if at_ns < track.latest_ns {
        wrong.backwards.add(line, "");
    }
    track.latest_ns = track.latest_ns.max(at_ns);
    track.rows.push(Row { at_ns, sample });
}

/// Instant, scope and index of a row.
fn place(record: &csv::ByteRecord, columns: &Columns) -> Result<(i128, PowerScope, u32), String> {
    let field = |column: usize| record.get(column).map(text_of).unwrap_or_default();
    let time = field(columns.time);
    let at_ns = nanoseconds(&time).ok_or_else(|| format!("time \"{time}\" is no number of seconds"))?;
    let scope = match columns.scope.map(field).filter(|scope| !scope.is_empty()) {
        None => PowerScope::GpuBoard,
        Some(key) => PowerScope::from_key(&key).ok_or_else(|| {
            let valid = PowerScope::ALL.map(PowerScope::key).join(", ");
            format!("unknown scope \"{key}\"; valid: {valid}")
        })?,
    };
    let index = match columns.device.map(field).filter(|index| !index.is_empty()) {
        None => 0,
        Some(index) => index.parse().map_err(|_| format!("device \"{index}\" is no index"))?,
    };
    Ok((at_ns, scope, index))
}

/// Whole seconds and their fraction apart: a wall-clock time has more digits than a float.
fn nanoseconds(text: &str) -> Option<i128> {
    let number: f64 = text.parse().ok().filter(|number: &f64| number.is_finite() && number.abs() < 1e12)?;
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    match text.split_once('.') {
        Some((whole, fraction)) if !whole.is_empty() && plain(whole) && plain(fraction) => {
            let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
            Some(whole.parse::<i128>().ok()? * 1_000_000_000 + digits.parse::<i128>().ok()?)
        }
        _ => Some((number * 1e9).round() as i128),
    }
}

fn sample(record: &csv::ByteRecord, columns: &Columns) -> PowerSample {
    let (mut sample, mut errors) = (PowerSample::default(), Vec::new());
    for (column, name, set) in &columns.values {
        let field = record.get(*column).map(text_of).unwrap_or_default();
        match field.parse::<f64>() {
            Ok(value) if value.is_finite() && set(&mut sample, value) => {}
            // As nvidia-smi and meters write what they do not know.
            _ if ["", "n/a", "[n/a]", "nan", "null", "-"].contains(&field.to_lowercase().as_str()) => {}
            _ => errors.push(format!("{name} \"{field}\" is no such number")),
        }
    }
    sample.error = (!errors.is_empty()).then(|| errors.join("; "));
    sample
}

fn track_of<'a>(
    tracks: &'a mut Vec<Track>,
    scope: PowerScope,
    index: u32,
    columns: &Columns,
    file: &str,
) -> &'a mut Track {
    let known = |track: &Track| (track.device.scope, track.device.index) == (scope, index);
    let position = tracks.iter().position(known).unwrap_or_else(|| {
        let reading = if columns.has_power { PowerReading::Instant } else { PowerReading::FromCounter };
        let device = PowerDevice {
            scope,
            index,
            name: file.to_owned(),
            id: format!("{}.{index}", scope.key()),
            source: "file".to_owned(),
            reading,
            counter_range_j: None,
            power_limit_w: None,
            driver: None,
        };
        tracks.push(Track { device, rows: Vec::new(), latest_ns: i128::MIN, seen: HashSet::new() });
        tracks.len() - 1
    });
    &mut tracks[position]
}
