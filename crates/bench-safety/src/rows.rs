//! Rows of a file that people write, read so that each bad one is named with its line.
//!
//! Where the text is read from, and what a row means, is not known here.

use crate::{Error, Result};
use serde::de::DeserializeOwned;
use std::collections::HashMap;

/// A row and the line where it begins, from 1.
#[derive(Debug)]
pub(crate) struct Row<T> {
    pub(crate) line: usize,
    pub(crate) value: T,
}

/// The tables `[[name]]` of a TOML text. Keys beside them are errors.
pub(crate) fn toml_rows<T: DeserializeOwned>(
    origin: &str,
    text: &str,
    name: &'static str,
    problems: &mut Vec<String>,
) -> Result<Vec<Row<T>>> {
    let parse = |e: toml::de::Error| Error::Parse {
        origin: origin.to_owned(),
        format: "TOML",
        problem: e.to_string().trim_end().to_owned(),
    };
    let mut file: HashMap<String, toml::Value> = toml::from_str(text).map_err(parse)?;
    let tables = file.remove(name);
    if let Some(other) = file.keys().min() {
        problems.push(format!("unknown key `{other}`; valid: [[{name}]] tables"));
    }
    let entries = match tables {
        None => Vec::new(),
        Some(toml::Value::Array(entries)) => entries,
        Some(_) => {
            problems.push(format!("`{name}` is no list of tables; write [[{name}]] before each"));
            Vec::new()
        }
    };
    let lines = header_lines(text, name);
    let mut rows = Vec::with_capacity(entries.len());
    for (index, entry) in entries.into_iter().enumerate() {
        let line = lines.get(index).copied().unwrap_or(1);
        match entry.try_into::<T>() {
            Ok(value) => rows.push(Row { line, value }),
            Err(e) => problems.push(format!("line {line}: {}", e.to_string().trim())),
        }
    }
    Ok(rows)
}

/// Lines of the headers `[[name]]`. Within a text of several lines there may be more of them than tables; then
/// the count differs and lines are those of the first ones, which is good enough to find a row.
fn header_lines(text: &str, name: &str) -> Vec<usize> {
    let is_header = |line: &str| {
        let inner = line.trim().strip_prefix("[[").and_then(|rest| rest.split_once("]]"));
        inner.is_some_and(|(inner, _)| inner.trim() == name)
    };
    text.lines().zip(1..).filter(|(line, _)| is_header(line)).map(|(_, number)| number).collect()
}

/// The lines of a JSONL text; empty ones are left out.
pub(crate) fn jsonl_rows<T: DeserializeOwned>(text: &str, problems: &mut Vec<String>) -> Vec<Row<T>> {
    let mut rows = Vec::new();
    for (content, line) in text.lines().zip(1..).filter(|(content, _)| !content.trim().is_empty()) {
        match serde_json::from_str(content) {
            Ok(value) => rows.push(Row { line, value }),
            Err(e) => {
                let text = e.to_string();
                // serde_json counts lines of its own text, which is always the first.
                let text = text.split(" at line ").next().unwrap_or(&text).to_owned();
                problems.push(format!("line {line}: {text}"));
            }
        }
    }
    rows
}

/// Names ids that are empty or stand twice.
pub(crate) fn check_ids<'a>(ids: impl Iterator<Item = (usize, &'a str)>, problems: &mut Vec<String>) {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for (line, id) in ids {
        if id.trim().is_empty() {
            problems.push(format!("line {line}: `id` is empty"));
        } else if let Some(first) = seen.get(id) {
            problems.push(format!("line {line}: id \"{id}\" stands there twice, first in line {first}"));
        } else {
            seen.insert(id, line);
        }
    }
}

/// The rows, if nothing is wrong and there are any.
pub(crate) fn accept<T>(
    origin: &str,
    what: &'static str,
    rows: Vec<T>,
    problems: Vec<String>,
) -> Result<Vec<T>> {
    if !problems.is_empty() {
        return Err(Error::Rows { origin: origin.to_owned(), problems });
    }
    if rows.is_empty() {
        return Err(Error::Nothing { origin: origin.to_owned(), what });
    }
    Ok(rows)
}
