//! Errors of the kernels: sizes that do not fit together. Checked once at each entry, never inside a loop.

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("{what} has {found} elements, expected {expected}")]
    Length { what: &'static str, found: usize, expected: usize },

    #[error("{what} = {value}: expected {expected}")]
    Invalid { what: &'static str, value: usize, expected: &'static str },

    #[error("cpu variant \"{name}\": expected one of {available} on this machine")]
    UnknownVariant { name: String, available: String },
}

pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn check_len(what: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::Length { what, found, expected }) }
}
