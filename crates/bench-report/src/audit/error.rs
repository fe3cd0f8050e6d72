//! Why a table or a column map cannot be used.

/// Each names the file or map, what was found and what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{file}: {reason}")]
    Table { file: String, reason: String },
    #[error(
        "{file}: no column map has these columns: {found}; nearest is {nearest}; \
         write a map, `ossbench audit --print-map study-latency` prints one, and give it by --map"
    )]
    Unrecognised { file: String, found: String, nearest: String },
    #[error("{file}: map \"{map}\" names columns that are not there: {missing}; there are {found}")]
    Columns { file: String, map: String, missing: String, found: String },
    #[error("column map {map}: {reason}")]
    Map { map: String, reason: String },
    #[error("unknown column map \"{given}\"; valid: {valid}")]
    UnknownMap { given: String, valid: String },
}
