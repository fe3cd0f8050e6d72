//! Lines of a file with their numbers, and with a bound on their length.
//!
//! A trace or dataset comes from elsewhere; a file without a newline must end in an error, not in all of
//! the memory.

use super::shown;
use crate::{Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Non-blank lines of a text, one at a time.
pub(super) struct Lines<R> {
    reader: R,
    path: PathBuf,
    /// Number of the line read last, from 1.
    number: u64,
    longest_bytes: usize,
    buffer: Vec<u8>,
}

impl Lines<BufReader<File>> {
    pub(super) fn open(path: &Path, longest_bytes: usize) -> Result<Self> {
        Ok(Self::new(open(path)?, path, longest_bytes))
    }
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R, path: &Path, longest_bytes: usize) -> Self {
        Self { reader, path: path.to_owned(), number: 0, longest_bytes, buffer: vec![] }
    }

    /// The next line that is not blank, without its end and without a byte order mark.
    pub(super) fn next(&mut self) -> Result<Option<&str>> {
        loop {
            self.buffer.clear();
            let most = self.longest_bytes as u64 + 1;
            let read = (&mut self.reader).take(most).read_until(b'\n', &mut self.buffer);
            let count = read.map_err(|source| Error::Read { path: self.path.clone(), source })?;
            if count == 0 {
                return Ok(None);
            }
            self.number += 1;
            if self.number == 1 {
                check_not_compressed(&self.buffer).map_err(|problem| self.corrupt(problem))?;
            }
            if self.buffer.len() > self.longest_bytes {
                return Err(self.corrupt(format!("expected a line of at most {} bytes", self.longest_bytes)));
            }
            if !self.buffer.trim_ascii().is_empty() {
                break;
            }
        }
        let text =
            std::str::from_utf8(&self.buffer).map_err(|_| self.corrupt("expected UTF-8".to_owned()))?;
        Ok(Some(text.trim_start_matches('\u{feff}').trim()))
    }

    /// What is wrong with the line read last.
    pub(super) fn corrupt(&self, problem: String) -> Error {
        Error::Corrupt { path: self.path.clone(), line: self.number, problem }
    }
}

pub(super) fn open(path: &Path) -> Result<BufReader<File>> {
    let file = File::open(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    Ok(BufReader::with_capacity(1 << 16, file))
}

/// Traces and datasets are often handed out packed (gzip: RFC 1952, zstd: RFC 8878).
pub(super) fn check_not_compressed(start: &[u8]) -> Result<(), String> {
    let kind = match start {
        [0x1f, 0x8b, ..] => "gzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [b'P', b'K', 3, 4, ..] => "zip",
        _ => return Ok(()),
    };
    Err(format!("the file is compressed ({kind}): expected text, unpack it first"))
}

/// A decimal number of units of `10^-digits` nanoseconds' worth, exactly: `decimal_ns("1.5", 9)` takes
/// seconds, `decimal_ns("1.5", 6)` milliseconds. Digits below a nanosecond are cut off. `None` for anything
/// else, a sign and an exponent too, and for what goes beyond 64 bits.
pub(super) fn decimal_ns(text: &str, digits: usize) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let kept = &fraction[..fraction.len().min(digits)];
    let missing = u32::try_from(digits - kept.len()).ok()?;
    let below = if kept.is_empty() { 0 } else { kept.parse::<i64>().ok()? };
    let unit = 10_i64.checked_pow(u32::try_from(digits).ok()?)?;
    let whole = whole.parse::<i64>().ok()?.checked_mul(unit)?;
    whole.checked_add(below.checked_mul(10_i64.checked_pow(missing)?)?)
}

/// More tokens than any model's context holds; beyond it a number is a mistake and would only cost memory.
const MOST_TOKENS: u64 = 1 << 24;

/// A number of tokens, or what is wrong with it.
pub(super) fn tokens(name: &str, text: &str) -> Result<u32, String> {
    let refuse = || format!("{name} is {}: expected a number of tokens from 0 to {MOST_TOKENS}", shown(text));
    // Tables that passed through floating point carry whole numbers as `12.0`.
    let whole = text.strip_suffix(".0").unwrap_or(text);
    let count = whole.parse::<u64>().map_err(|_| refuse())?;
    if count > MOST_TOKENS { Err(refuse()) } else { Ok(count as u32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Lines<&[u8]> {
        Lines::new(bytes, Path::new("x.txt"), 10)
    }

    fn message(bytes: &[u8]) -> String {
        let mut lines = lines(bytes);
        loop {
            match lines.next() {
                Ok(Some(_)) => {}
                Ok(None) => return "no error".to_owned(),
                Err(error) => return error.to_string(),
            }
        }
    }

    #[test]
    fn blank_lines_are_skipped_and_counted() {
        let mut lines = lines(b"\xef\xbb\xbfa\r\n\n  \nb");
        assert_eq!(lines.next().unwrap(), Some("a"));
        assert_eq!(lines.next().unwrap(), Some("b"));
        assert_eq!(lines.corrupt("?".to_owned()).to_string(), "x.txt, line 4: ?");
        assert_eq!(lines.next().unwrap(), None);
    }

    #[test]
    fn a_bad_line_is_named() {
        assert_eq!(message(b"ok\n0123456789a\n"), "x.txt, line 2: expected a line of at most 10 bytes");
        assert_eq!(message(b"ok\n012345678\n"), "no error");
        assert_eq!(message(b"ok\n\xff\n"), "x.txt, line 2: expected UTF-8");
        assert!(message(b"\x1f\x8b\x08 and no line end").contains("compressed (gzip)"));
    }

    #[test]
    fn an_endless_line_is_read_only_to_its_bound() {
        let mut lines = Lines::new(BufReader::new(std::io::repeat(b'x')), Path::new("x"), 1_000);
        assert!(lines.next().is_err());
        assert_eq!(lines.buffer.len(), 1_001);
    }

    #[test]
    fn decimals_are_exact() {
        assert_eq!(decimal_ns("1700000000123.25", 6), Some(1_700_000_000_123_250_000));
        assert_eq!(decimal_ns("12", 9), Some(12_000_000_000));
        assert_eq!(decimal_ns("0.1234567891", 9), Some(123_456_789));
        assert_eq!(decimal_ns("5.", 9), Some(5_000_000_000));
        for bad in ["", ".5", "-1", "+1", "1e3", "nan", "1.2.3", "1. 5", "99999999999999999999"] {
            assert_eq!(decimal_ns(bad, 9), None, "{bad}");
        }
        assert_eq!(decimal_ns("9999999999999", 9), None, "beyond 64 bits");
    }

    #[test]
    fn token_counts_are_bounded() {
        assert_eq!(tokens("n", "12.0"), Ok(12));
        assert_eq!(tokens("n", "16777216"), Ok(1 << 24));
        for bad in ["16777217", "-1", "1.5", "", "x"] {
            assert!(tokens("n", bad).unwrap_err().starts_with("n is "), "{bad}");
        }
    }
}
