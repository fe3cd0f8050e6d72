//! A CSV text as lines and fields, and fields as numbers: nothing is guessed, what cannot be read is said.

use super::Error;

/// A table as it was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub file: String,
    pub header: Vec<String>,
    pub records: Vec<Record>,
    /// Rows that were left out, with line and reason.
    pub problems: Vec<String>,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub line: u64,
    pub fields: Vec<String>,
}

impl Table {
    /// # Errors
    /// Bytes that are no table of comma-separated fields under distinct names.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Table { file: file.to_owned(), reason };
        let text = std::str::from_utf8(bytes)
            .map_err(|e| wrong(format!("not UTF-8 text from byte {} on; expected a CSV", e.valid_up_to())))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let first = text.lines().next().unwrap_or_default();
        if text.trim().is_empty() {
            return Err(wrong("empty; expected a header and rows".to_owned()));
        }
        for (separator, name) in [(';', "semicolons"), ('\t', "tabs")] {
            if first.contains(separator) && !first.contains(',') {
                return Err(wrong(format!(
                    "fields are separated by {name}; expected commas, and a point in decimals: convert it"
                )));
            }
        }
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text.as_bytes());
        let header = reader.headers().map_err(|e| wrong(format!("header: {e}")))?;
        let header: Vec<String> = header.iter().map(|name| name.trim().to_owned()).collect();
        if let Some(twice) = header.iter().enumerate().find(|(i, name)| header[..*i].contains(name)) {
            return Err(wrong(format!("column \"{}\" stands there twice; names must be distinct", twice.1)));
        }
        let mut table = Self { file: file.to_owned(), header, records: Vec::new(), problems: Vec::new() };
        let mut lines = Lines { text, at: 0, line: 1 };
        for record in reader.records() {
            table.push(record, &mut lines);
        }
        if table.records.is_empty() {
            table.problems.push("no rows under the header".to_owned());
        }
        Ok(table)
    }

    fn push(&mut self, record: csv::Result<csv::StringRecord>, lines: &mut Lines<'_>) {
        match record {
            Err(e) => self.problems.push(format!("row left out: {e}")),
            Ok(record) => {
                let line = lines.of(record.position().map_or(0, |position| position.byte() as usize));
                let (has, needs) = (record.len(), self.header.len());
                if has == needs {
                    let fields = record.iter().map(|field| field.trim().to_owned()).collect();
                    self.records.push(Record { line, fields });
                } else {
                    self.problems.push(format!("line {line} left out: {has} fields under {needs} columns"));
                }
            }
        }
    }

    pub fn column(&self, name: &str) -> Option<usize> {
        self.header.iter().position(|column| column == name)
    }
}

/// Counts lines up to growing offsets; a record may begin with the line break of the one before.
struct Lines<'a> {
    text: &'a str,
    at: usize,
    line: u64,
}

impl Lines<'_> {
    fn of(&mut self, byte: usize) -> u64 {
        let bytes = self.text.as_bytes();
        let breaks = bytes.iter().skip(byte).take_while(|b| matches!(b, b'\r' | b'\n')).count();
        let end = (byte + breaks).min(bytes.len());
        if end > self.at {
            self.line += self.text[self.at..end].matches('\n').count() as u64;
            self.at = end;
        }
        self.line
    }
}

/// A number as it was printed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Number {
    pub(super) value: f64,
    /// Half a unit of the last printed digit: what rounding may have hidden.
    pub(super) half_digit: f64,
    /// Significant digits as printed.
    pub(super) digits: usize,
}

/// `None` for an empty field.
///
/// # Errors
/// What the field holds instead of a finite number.
pub(super) fn number(text: &str) -> Result<Option<Number>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let value: f64 = text.parse().map_err(|_| format!("\"{}\" is not a number", shortened(text)))?;
    if !value.is_finite() {
        return Err(format!("\"{}\" is not a finite number", shortened(text)));
    }
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let decimals = mantissa.split_once('.').map_or(0, |(_, after)| after.len() as i32);
    let digits = mantissa.chars().filter(char::is_ascii_digit).collect::<String>();
    Ok(Some(Number {
        value,
        half_digit: 0.5 * 10_f64.powi(exponent - decimals),
        digits: digits.trim_start_matches('0').len(),
    }))
}

fn shortened(text: &str) -> String {
    let mut short: String = text.chars().filter(|c| !c.is_control()).take(40).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
