//! Text and token ids: tokenizer, Harmony, chat templates, prompts of an exact length.
//!
//! Stands before the engine (prompts) and after it (streams of text); knows nothing of weights or devices.

mod corpus;
mod date;
mod error;
mod format;
pub mod harmony;
mod o200k;
mod prompt;
mod stream;
mod template;
mod tokenizer;
mod utf8;

pub use date::Date;
pub use error::TextError;
pub use format::{ChatFormat, Frame, RenderedPrompt, Turn};
pub use prompt::{Prompt, PromptBuilder, Split};
pub use stream::{Label, Piece, StreamText};
pub use template::ChatTemplate;
pub use tokenizer::{Tokenizer, write_tokenizer};
pub use utf8::Utf8Stream;

#[cfg(test)]
mod properties;
