//! What can go wrong between rows and files.

use std::path::{Path, PathBuf};

/// Errors of this crate; each names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot write {path}: {source}; {}", remedy(.source))]
    Write { path: PathBuf, source: std::io::Error },
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a table that can be read: {message}; rebuild it with `ossbench report`")]
    Table { path: PathBuf, message: String },
    #[error("{path}: no column `{column}`, the columns are {found}; rebuild it with `ossbench report`")]
    Column { path: PathBuf, column: &'static str, found: String },
    #[error(
        "{path}, line {line}, column `{column}`: \"{value}\" is not {expected}; \
         rebuild the file with `ossbench report`"
    )]
    Value { path: PathBuf, line: usize, column: &'static str, value: String, expected: String },
    #[error(
        "two rows for {metric} {stat} of model {model}, {prompt_tokens} prompt and {output_tokens} output tokens, \
         {load} in run {run_id}; each may stand there once"
    )]
    Duplicate {
        run_id: String,
        model: String,
        prompt_tokens: u32,
        output_tokens: u32,
        load: String,
        metric: &'static str,
        stat: String,
    },
    #[error("cannot draw figure of {metric}: {message}")]
    Figure { metric: &'static str, message: String },
    #[error("cannot make report.html: {0}")]
    Page(String),
    #[error("cannot write the comparison as CSV: {message}")]
    Comparison { message: String },
    #[error("unknown format \"{given}\"; valid: {valid}")]
    Format { given: String, valid: String },
}

impl Error {
    /// A polars error while writing: the I/O error inside where there is one.
    pub(crate) fn polars_write(path: &Path, error: &polars::error::PolarsError) -> Self {
        let source = match error {
            polars::error::PolarsError::IO { error, .. } => {
                std::io::Error::new(error.kind(), error.to_string())
            }
            other => std::io::Error::other(other.to_string()),
        };
        Self::Write { path: path.to_owned(), source }
    }
}

fn remedy(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "the disk is full: free space or choose another folder; the file that was there is untouched"
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "the folder is not writable: change its permissions or choose another one"
        }
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            "a file stands where a folder is needed: move it away or choose another folder"
        }
        ErrorKind::IsADirectory => "a folder stands where the file should go: move it away",
        _ => "choose another folder; the file that was there is untouched",
    }
}
