//! What is sent and when, settled before a run begins: schedules, recorded traces, prompt datasets.
//!
//! Everything here is a pure function of files, options and a seed. Nothing sends a request, looks at a
//! clock, or counts tokens: who runs the load hands in how tokens are counted.

pub mod complete;
pub mod dataset;
mod lines;
pub mod replay;
pub mod schedule;
pub mod stored;

pub use complete::complete;
pub use dataset::{Dataset, SampleOptions, TokenLimits};
pub use replay::{Replay, ReplayOptions, ReplayRequest};
pub use schedule::Schedule;
pub use stored::ScheduleRow;

use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;

/// `bench_core::plan::short_hash` of what is written to it, for contents that are not held as bytes.
#[derive(Default)]
struct ShortHash(Sha256);

impl ShortHash {
    fn finish(self) -> String {
        self.0.finalize().iter().take(8).fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

impl Write for ShortHash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Refuses a file whose contents are not those that a plan was made with.
fn check_hash(path: &Path, planned: Option<&str>, found: String) -> Result<()> {
    match planned {
        Some(planned) if planned != found => {
            Err(Error::DataChanged { path: path.to_owned(), planned: planned.to_owned(), found })
        }
        _ => Ok(()),
    }
}

/// A value as an error shows it: quoted, and cut where it is long.
fn shown(text: &str) -> String {
    const LONGEST: usize = 40;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?} ...", &text[..end]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_of_parts_is_the_hash_of_the_whole() {
        let mut hash = ShortHash::default();
        hash.write_all(b"one ").unwrap();
        hash.write_all(b"two").unwrap();
        assert_eq!(hash.finish(), bench_core::plan::short_hash(b"one two"));
    }

    #[test]
    fn a_long_value_is_cut_between_characters() {
        assert_eq!(shown("a\"b"), r#""a\"b""#);
        assert_eq!(shown(&"é".repeat(50)), format!("\"{}\" ...", "é".repeat(40)));
    }
}
