//! Which trace a file is, by its first line, and the parser for its lines.

use super::{ReplayOptions, azure, burstgpt, mooncake};
use crate::load::shown;
use bench_core::spec::TraceFormat;

/// One line of a trace, as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recorded {
    /// Since whatever the trace counts from.
    pub(super) at_ns: i64,
    pub(super) prompt_tokens: u32,
    pub(super) output_tokens: u32,
    pub(super) blocks: Vec<u64>,
}

pub(super) enum Parser {
    Mooncake { block_tokens: u32 },
    Azure(Columns<3>),
    BurstGpt(Columns<3>),
}

const EXPECTED: &str = concat!(
    r#"Mooncake JSON Lines ({"timestamp": .., "input_length": .., "output_length": .., "hash_ids": [..]}), "#,
    "Azure CSV (TIMESTAMP,ContextTokens,GeneratedTokens) or BurstGPT CSV (Timestamp,Model,Request tokens,",
    "Response tokens,Total tokens,Log Type)"
);

impl Parser {
    /// The parser for a file that begins with `line`; an error says what the format expects there.
    pub(super) fn for_first_line(line: &str, options: &ReplayOptions) -> Result<Self, String> {
        let format = match options.format {
            TraceFormat::Auto => detect(line)?,
            known => known,
        };
        Ok(match format {
            // Detection gives one of the others.
            TraceFormat::Auto | TraceFormat::Mooncake => {
                Self::Mooncake { block_tokens: options.block_tokens }
            }
            TraceFormat::Azure => Self::Azure(Columns::find(line, azure::COLUMNS)?),
            TraceFormat::Burstgpt => Self::BurstGpt(Columns::find(line, burstgpt::COLUMNS)?),
        })
    }

    pub(super) fn parse(&self, line: &str) -> Result<Recorded, String> {
        match self {
            Self::Mooncake { block_tokens } => mooncake::parse(line, *block_tokens),
            Self::Azure(columns) => azure::parse(columns.fields(line)?),
            Self::BurstGpt(columns) => burstgpt::parse(columns.fields(line)?),
        }
    }

    pub(super) fn first_line_is_a_header(&self) -> bool {
        !matches!(self, Self::Mooncake { .. })
    }

    pub(super) fn format(&self) -> TraceFormat {
        match self {
            Self::Mooncake { .. } => TraceFormat::Mooncake,
            Self::Azure(_) => TraceFormat::Azure,
            Self::BurstGpt(_) => TraceFormat::Burstgpt,
        }
    }
}

fn detect(line: &str) -> Result<TraceFormat, String> {
    if line.starts_with('{') && line.contains("\"input_length\"") {
        return Ok(TraceFormat::Mooncake);
    }
    let has = |names: [&str; 3]| names.iter().all(|name| split(line).any(|field| field == *name));
    if has(azure::COLUMNS) {
        return Ok(TraceFormat::Azure);
    }
    if has(burstgpt::COLUMNS) {
        return Ok(TraceFormat::Burstgpt);
    }
    Err(format!("not a known trace, it begins with {}: expected {EXPECTED}", shown(line)))
}

/// Where the columns that matter stand among those of a CSV file.
pub(super) struct Columns<const N: usize> {
    names: [&'static str; N],
    at: [usize; N],
    count: usize,
}

impl<const N: usize> Columns<N> {
    fn find(header: &str, names: [&'static str; N]) -> Result<Self, String> {
        let mut at = [0; N];
        for (at, name) in at.iter_mut().zip(names) {
            *at = split(header).position(|field| field == name).ok_or_else(|| {
                format!(
                    "no column {name:?}: expected a header with {}, found {}",
                    names.join(","),
                    shown(header)
                )
            })?;
        }
        Ok(Self { names, at, count: split(header).count() })
    }

    /// The fields of a line in the order of the names that were asked for.
    fn fields<'a>(&self, line: &'a str) -> Result<[&'a str; N], String> {
        let mut found = [""; N];
        let mut count = 0;
        for (i, field) in split(line).enumerate() {
            for (slot, at) in found.iter_mut().zip(self.at) {
                if at == i {
                    *slot = field;
                }
            }
            count = i + 1;
        }
        if count != self.count {
            let names = self.names.join(", ");
            return Err(format!("{count} fields: expected {} as in the header, with {names}", self.count));
        }
        Ok(found)
    }
}

/// Fields between commas, without blanks and quotes around them. No field of these traces holds a comma; one
/// that did would be found by the number of fields.
fn split(line: &str) -> impl Iterator<Item = &str> {
    line.split(',').map(|field| {
        let field = field.trim();
        field.strip_prefix('"').and_then(|inner| inner.strip_suffix('"')).unwrap_or(field)
    })
}
