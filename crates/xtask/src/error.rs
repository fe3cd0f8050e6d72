//! What can go wrong in the automation, as one enum. `main` turns it into a message and an exit code.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line is wrong; exit code 2.
    #[error("{0}")]
    Usage(String),
    #[error("{0} tidy finding(s), listed above; the rules stand in crates/xtask/src/tidy")]
    Tidy(usize),
    #[error("generated reference out of date: {}; `cargo xtask docs` writes it again", .0.join(", "))]
    Stale(Vec<String>),
    #[error("{0}")]
    Paper(String),
    #[error("{0}")]
    Cuda(String),
    #[error("{0}")]
    Gpu(String),
    #[error(
        "cannot build and run tests for 64-bit ARM without {0}; on Debian: apt-get install gcc-aarch64-linux-gnu \
         libc6-dev-arm64-cross qemu-user; rustup target add aarch64-unknown-linux-gnu"
    )]
    Cross(String),
    #[error("step {step:?} failed with {status}; run `{command}` to see it alone")]
    Step { step: &'static str, status: String, command: String },
    #[error("cannot start `{command}`: {source}; is the toolchain of rust-toolchain.toml installed?")]
    Start { command: String, source: std::io::Error },
    #[error("cannot {action} {path:?}: {source}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
}
