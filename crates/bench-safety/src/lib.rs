//! What a model answers to benign and borderline prompts, counted; and who is responsible for it, with sources.
//!
//! Beside the line of measurements: prompts in, classified transcripts and counts out. Nothing is read, asked or
//! written here, and nothing is judged beyond the counts: there is no score.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod counts;
mod error;
mod governance;
mod prompts;
mod record;
mod rows;
mod rule;
mod transcript;

pub use counts::{COUNT_COLUMNS, Count, counts, counts_csv};
pub use error::Error;
pub use governance::{FACTS, Governance, ModelEntry, SOURCED};
pub use prompts::{Prompt, PromptFormat, PromptSet};
pub use record::{RunRecord, Settings};
pub use rule::{Answer, Class, Finish, Judged, Rule};
pub use transcript::{Stored, Transcript, read_transcripts};

pub type Result<T> = std::result::Result<T, Error>;
