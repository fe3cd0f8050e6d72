//! `ShareGPT`: one JSON array of conversations, hundreds of megabytes long, often on one line.
//!
//! It is parsed as it is read; of each conversation the first two turns are kept, the rest is skipped.

use super::{Dataset, DatasetPrompt};
use crate::load::lines::{check_not_compressed, open as open_file};
use crate::{Error, Result};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use std::cell::Cell;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

/// The longest published conversation takes about 1 MB.
pub(super) const LONGEST_ENTRY_BYTES: u64 = 64 << 20;

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

pub(super) fn open(path: &Path) -> Result<Dataset> {
    read(open_file(path)?, path, LONGEST_ENTRY_BYTES)
}

pub(super) fn read(mut reader: impl BufRead, path: &Path, longest_entry_bytes: u64) -> Result<Dataset> {
    let corrupt = |line, problem| Error::Corrupt { path: path.to_owned(), line, problem };
    let start = reader.fill_buf().map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let mark = if start.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
    check_start(&start[mark..]).map_err(|problem| corrupt(1, problem))?;
    reader.consume(mark);
    let allowance = Rc::new(Cell::new(longest_entry_bytes));
    let metered = BufReader::new(Metered { reader, allowance: Rc::clone(&allowance) });
    let mut found = Found { prompts: vec![], too_few_turns: 0, allowance, longest_entry_bytes };
    let mut json = serde_json::Deserializer::from_reader(metered);
    let parsed = json.deserialize_seq(&mut found).and_then(|()| json.end());
    let Found { prompts, too_few_turns, .. } = found;
    let entries = prompts.len() + too_few_turns;
    if let Err(error) = parsed {
        return Err(corrupt(error.line() as u64, problem(&error, entries + 1)));
    }
    if prompts.is_empty() {
        let why = format!("none of its {entries} conversations has 2 turns");
        return Err(Error::NoRequests { path: path.to_owned(), why });
    }
    let notes = if too_few_turns > 0 {
        vec![format!("of {entries} conversations {too_few_turns} have fewer than 2 turns: left out")]
    } else {
        vec![]
    };
    Ok(Dataset { path: path.to_owned(), prompts, notes })
}

fn check_start(start: &[u8]) -> Result<(), String> {
    check_not_compressed(start)?;
    match start.trim_ascii_start().first() {
        Some(b'[') => Ok(()),
        Some(b'{') => {
            Err("expected a JSON array of conversations, found an object: is it a custom dataset (JSON \
                           Lines)?"
                .to_owned())
        }
        _ => Err("expected a JSON array of conversations".to_owned()),
    }
}

fn problem(error: &serde_json::Error, entry: usize) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or_default();
    format!(
        "entry {entry}, column {}: {text}; \
         expected {{\"conversations\": [{{\"from\": .., \"value\": \"..\"}}, ..]}}",
        error.column()
    )
}

/// Passes bytes on until an entry has taken more than its share.
struct Metered<R> {
    reader: R,
    allowance: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.allowance.get();
        if left == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the entry is too long"));
        }
        let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self.reader.read(&mut buffer[..most])?;
        self.allowance.set(left - count as u64);
        Ok(count)
    }
}

/// Collects the entries of the array.
struct Found {
    prompts: Vec<DatasetPrompt>,
    too_few_turns: usize,
    allowance: Rc<Cell<u64>>,
    longest_entry_bytes: u64,
}

impl<'de> Visitor<'de> for &mut Found {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an array of conversations")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(Entry { conversations: FirstTurns(turns) }) = entries.next_element()? {
            match turns {
                [Some(prompt), Some(answer)] => self.prompts.push(DatasetPrompt {
                    text: prompt.value,
                    answer: Some(answer.value),
                    output_tokens: None,
                }),
                _ => self.too_few_turns += 1,
            }
            self.allowance.set(self.longest_entry_bytes);
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Entry {
    conversations: FirstTurns,
}

#[derive(Deserialize)]
struct Turn {
    value: Box<str>,
}

/// The first two elements of an array; the others need not be turns.
struct FirstTurns([Option<Turn>; 2]);

impl<'de> Deserialize<'de> for FirstTurns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Turns;

        impl<'de> Visitor<'de> for Turns {
            type Value = FirstTurns;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an array of turns")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut turns: A) -> Result<FirstTurns, A::Error> {
                let first = turns.next_element()?;
                let second = turns.next_element()?;
                while turns.next_element::<IgnoredAny>()?.is_some() {}
                Ok(FirstTurns([first, second]))
            }
        }

        deserializer.deserialize_seq(Turns)
    }
}
