//! What ends a command early, and with which exit code.

use std::io;

#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error("{0}")]
    Failed(String),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Gate(String),
    #[error("{0}")]
    Interrupted(String),
    /// The reader of our output went away: not an error of ours.
    #[error("output closed")]
    ClosedPipe,
}

impl CliError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Gate(_) => 3,
            Self::Interrupted(_) => 130,
            Self::ClosedPipe => 0,
        }
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::ClosedPipe
        } else {
            Self::Failed(format!("cannot write output: {error}"))
        }
    }
}

macro_rules! failed_from {
    ($($ty:ty),* $(,)?) => {
        $(impl From<$ty> for CliError {
            fn from(error: $ty) -> Self {
                Self::Failed(error.to_string())
            }
        })*
    };
}

failed_from!(
    bench_energy::Error,
    bench_engine::Error,
    bench_runner::Error,
    bench_latency::Error,
    bench_report::Error
);

/// What is wrong with a study is a matter of usage.
impl From<bench_core::Error> for CliError {
    fn from(error: bench_core::Error) -> Self {
        match error {
            bench_core::Error::Spec { .. } | bench_core::Error::Value { .. } => {
                Self::Usage(error.to_string())
            }
            other => Self::Failed(other.to_string()),
        }
    }
}

/// So is what is wrong with a file of prompts or metadata, or with a run to go on with.
impl From<bench_safety::Error> for CliError {
    fn from(error: bench_safety::Error) -> Self {
        Self::Usage(error.to_string())
    }
}
