//! What can go wrong between text and token ids.

use std::path::PathBuf;

/// Errors of the text layer. The crate's `Error` wraps it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{} cannot be read as a tokenizer: {message}; download the model again", path.display())]
    BadTokenizer { path: PathBuf, message: String },
    #[error("{} is not a tokenizer_config.json that can be read: {message}", path.display())]
    BadConfig { path: PathBuf, message: String },
    #[error("no tokenizer.json in {}, expected a hugging face folder", path.display())]
    NoTokenizer { path: PathBuf },
    #[error("the tokenizer cannot encode {text:?}: {message}")]
    Encode { text: String, message: String },
    #[error("cannot build the o200k vocabulary: {message}")]
    Vocabulary { message: String },
    #[error("a vocabulary of {asked} rows is too small, {minimum} hold the bytes and the special tokens")]
    VocabularyTooSmall { asked: usize, minimum: usize },
    #[error("the tokenizer has no {name} token, which harmony needs; use the chat template or plain text")]
    MissingSpecial { name: &'static str },
    #[error("{what} may stand in {expected} messages only, found in a message of {found}")]
    MisplacedContent { what: &'static str, expected: &'static str, found: &'static str },
    #[error("a tool message needs the tool's name as its author")]
    UnnamedTool,
    #[error("unexpected token {found} while expecting start token {expected}")]
    ExpectedStart { found: u32, expected: u32 },
    #[error("unexpected EOS while waiting for message header to complete")]
    EosInHeader,
    #[error("bad message header {header:?}: {message}")]
    BadHeader { header: String, message: &'static str },
    #[error("chat template: {message}")]
    Template { message: String },
    #[error("the chat template does not write the user's text once and unchanged, so the body has no place")]
    TemplateHidesBody,
    #[error("{text:?} is not a date, expected YYYY-MM-DD")]
    BadDate { text: String },
    #[error(
        "a prompt of {asked} tokens is too short, the {format} format with one token of text needs {minimum}"
    )]
    PromptTooShort { asked: usize, minimum: usize, format: &'static str },
}

/// Result of the text layer.
pub(super) type Result<T, E = TextError> = std::result::Result<T, E>;
