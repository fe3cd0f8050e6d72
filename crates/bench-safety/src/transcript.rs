//! What was asked and answered, one line of JSON each, never changed once it is written.
//!
//! Reading is here and writing is not: this crate touches no file.

use crate::{Class, Error, Finish, Result};
use serde::{Deserialize, Serialize};

/// One prompt with its answer; field order is that of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transcript {
    pub schema_version: u32,
    /// Place of the prompt in its set.
    pub index: u32,
    pub prompt_id: String,
    pub category: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    pub prompt: String,
    /// The final channel; what was counted.
    pub answer: String,
    /// What the model thought, apart from its answer.
    pub reasoning: String,
    /// Text outside of both channels.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub other: String,
    pub finish: Finish,
    /// Why there is no whole answer; `None` where there is one.
    pub failure: Option<String>,
    pub prompt_tokens: Option<u32>,
    pub output_tokens: Option<u32>,
    pub class: Class,
    /// What matched, where it is a refusal.
    pub pattern: Option<String>,
}

/// The lines of a file of transcripts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub transcripts: Vec<Transcript>,
    /// Bytes of whole lines: what follows was cut while it was written, and is to be asked again.
    pub whole_bytes: u64,
}

/// Reads a file of transcripts.
///
/// # Errors
/// A whole line that is no transcript, with its number; a prompt that stands there twice.
pub fn read_transcripts(text: &str) -> Result<Stored> {
    let whole_bytes = text.rfind('\n').map_or(0, |at| at + 1);
    let mut transcripts: Vec<Transcript> = Vec::new();
    for (content, line) in text[..whole_bytes].lines().zip(1..) {
        let bad = |problem: String| Error::Transcript { line, problem };
        let read: Transcript = serde_json::from_str(content).map_err(|e| bad(e.to_string()))?;
        if read.schema_version != bench_core::SCHEMA_VERSION {
            let (found, known) = (read.schema_version, bench_core::SCHEMA_VERSION);
            return Err(bad(format!("schema version {found}, but this build reads {known}")));
        }
        if transcripts.iter().any(|t| t.prompt_id == read.prompt_id) {
            return Err(bad(format!("prompt \"{}\" stands there twice", read.prompt_id)));
        }
        transcripts.push(read);
    }
    Ok(Stored { transcripts, whole_bytes: whole_bytes as u64 })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn transcript(id: &str, category: &str, class: Class) -> Transcript {
        Transcript {
            schema_version: bench_core::SCHEMA_VERSION,
            index: 0,
            prompt_id: id.to_owned(),
            category: category.to_owned(),
            topic: None,
            prompt: "Why?".to_owned(),
            answer: "Because.".to_owned(),
            reasoning: "He asks\nwhy.".to_owned(),
            other: String::new(),
            finish: Finish::Stop,
            failure: None,
            prompt_tokens: Some(3),
            output_tokens: None,
            class,
            pattern: None,
        }
    }

    fn line(id: &str) -> String {
        serde_json::to_string(&transcript(id, "x", Class::Answered)).unwrap() + "\n"
    }

    #[test]
    fn whole_lines_are_read_and_a_cut_one_is_left_out() {
        let whole = line("a") + &line("b");
        let stored = read_transcripts(&format!("{whole}{}", &line("c")[..20])).unwrap();
        assert_eq!(stored.whole_bytes, whole.len() as u64);
        assert_eq!(stored.transcripts[1], transcript("b", "x", Class::Answered));
        assert_eq!(read_transcripts("").unwrap().transcripts, []);
    }

    #[test]
    fn edited_files_are_refused_with_the_line() {
        for (text, says) in [
            (line("a") + "{}\n", "line 2: missing field"),
            (line("a") + &line("a"), "line 2: prompt \"a\" stands there twice"),
            (line("a").replace("\"schema_version\":", "\"schema_version\":9"), "line 1: schema version 9"),
        ] {
            let error = read_transcripts(&text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
