//! One file per subcommand, and the few steps that several of them share.

pub(crate) mod analyze;
pub(crate) mod chat;
pub(crate) mod doctor;
pub(crate) mod generate;
pub(crate) mod latency;
pub(crate) mod logits;
mod model;
pub(crate) mod plan;
pub(crate) mod report;
pub(crate) mod run;
mod study;
pub(crate) mod synth;

use crate::CliError;
use bench_core::spec::RunSpec;
use std::path::Path;

/// Reads a study; its text goes into the results folder as it was written.
fn read_spec(path: &Path) -> Result<(RunSpec, String), CliError> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        CliError::Usage(format!("cannot read study {}: {e}; examples are in bench-configs/", path.display()))
    })?;
    Ok((RunSpec::from_toml(&path.display().to_string(), &text)?, text))
}
