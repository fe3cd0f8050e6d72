//! What can be wrong with a file of prompts, of metadata, or of transcripts.
//!
//! Every problem of a file is named at once, with its line, so that a file is corrected in one go.

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{origin} cannot be read as {format}: {problem}")]
    Parse { origin: String, format: &'static str, problem: String },
    #[error("{origin} cannot be used:\n  {}", problems.join("\n  "))]
    Rows { origin: String, problems: Vec<String> },
    #[error("{origin} holds no {what}: at least one is needed")]
    Nothing { origin: String, what: &'static str },
    #[error("prompt file {origin} has an unknown ending: expected .toml, .jsonl or .ndjson")]
    Format { origin: String },
    #[error("transcripts, line {line}: {problem}: the file was edited after the run")]
    Transcript { line: usize, problem: String },
    #[error("run {run_id} cannot go on: {what} was {was}, now it is {now}; begin a new run without --resume")]
    OtherRun { run_id: String, what: String, was: String, now: String },
}
