//! `custom`: JSON Lines with a prompt on each.

use super::{Dataset, DatasetPrompt};
use crate::load::lines::{Lines, tokens};
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::Number;
use std::io::BufRead;
use std::path::Path;

/// Room for a prompt of several million tokens.
pub(super) const LONGEST_LINE_BYTES: usize = 64 << 20;

#[derive(Deserialize)]
struct Line {
    prompt: Box<str>,
    output_tokens: Option<Number>,
    output_len: Option<Number>,
}

pub(super) fn open(path: &Path) -> Result<Dataset> {
    read(Lines::open(path, LONGEST_LINE_BYTES)?, path)
}

pub(super) fn read<R: BufRead>(mut lines: Lines<R>, path: &Path) -> Result<Dataset> {
    let mut prompts = vec![];
    while let Some(line) = lines.next()? {
        prompts.push(parse(line).map_err(|problem| lines.corrupt(problem))?);
    }
    if prompts.is_empty() {
        return Err(Error::NoRequests { path: path.to_owned(), why: "the file is empty".to_owned() });
    }
    Ok(Dataset { path: path.to_owned(), prompts, notes: vec![] })
}

fn parse(line: &str) -> Result<DatasetPrompt, String> {
    if line.starts_with('[') {
        return Err(
            "expected one JSON object on each line, found an array: is it a sharegpt dataset?".to_owned()
        );
    }
    let line: Line = serde_json::from_str(line).map_err(|error| {
        let problem = error.to_string();
        let problem = problem.split(" at line ").next().unwrap_or_default();
        format!(
            "{problem} (column {}): expected an object with prompt, and output_tokens if the length is known",
            error.column()
        )
    })?;
    let length =
        |name, given: Option<Number>| given.map(|number| tokens(name, &number.to_string())).transpose();
    let output_tokens =
        match (length("output_tokens", line.output_tokens)?, length("output_len", line.output_len)?) {
            (Some(a), Some(b)) if a != b => {
                return Err(format!("output_tokens is {a} and output_len {b}: expected one of them"));
            }
            (a, b) => a.or(b),
        };
    if output_tokens == Some(0) {
        return Err("output_tokens is 0: expected at least 1".to_owned());
    }
    Ok(DatasetPrompt { text: line.prompt, answer: None, output_tokens })
}
