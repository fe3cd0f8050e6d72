//! What can go wrong, in two kinds: what is refused before any request, and what is counted while they run.
//!
//! A failure of an exchange is no `Err`: it is the exchange's last event. No text here ever holds a key.

use crate::record::Failure;

/// Refused before the first request: the user's input is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    #[error("base URL '{url}': {reason}")]
    BaseUrl { url: String, reason: String },
    /// The value is left out on purpose: it may be a secret.
    #[error("header '{name}': {reason}")]
    Header { name: String, reason: String },
    #[error("API key: {0}")]
    ApiKey(String),
    #[error("CA file '{file}': {reason}")]
    CaFile { file: String, reason: String },
    #[error("TLS: {0}")]
    Tls(String),
    #[error("request body: {0}")]
    Body(String),
}

/// A connection or a plain request that did not succeed, in the words of an exchange's failures.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failed {
    pub failure: Failure,
    pub message: String,
}

impl Failed {
    pub(crate) fn new(failure: Failure, message: impl Into<String>) -> Self {
        Self { failure, message: message.into() }
    }
}

/// The whole chain of causes, since the outer ones often say little.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let words = inner.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = inner.source();
    }
    text
}

/// The text without the secrets that a server may have repeated.
pub(crate) fn redacted(secrets: &[String], text: &str) -> String {
    secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "***"))
}
