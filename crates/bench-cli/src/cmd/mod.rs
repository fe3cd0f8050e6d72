//! One file per subcommand, and the few steps that several of them share.

pub(crate) mod ablate;
pub(crate) mod analyze;
pub(crate) mod ape;
pub(crate) mod audit;
pub(crate) mod bandwidth;
pub(crate) mod bench_kernels;
pub(crate) mod calibrate;
pub(crate) mod chat;
pub(crate) mod compare;
pub(crate) mod doctor;
pub(crate) mod engine_process;
pub(crate) mod fidelity;
pub(crate) mod fit;
pub(crate) mod generate;
mod join;
pub(crate) mod latency;
pub(crate) mod logits;
pub(crate) mod memory;
pub(crate) mod mock_server;
mod model;
pub(crate) mod parity;
pub(crate) mod plan;
mod probes;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod safety;
mod save_result;
pub(crate) mod search;
mod sheet;
mod study;
pub(crate) mod synth;
pub(crate) mod verify;
mod vllm;

use crate::{CliError, Io};
use bench_core::plan::Plan;
use bench_core::spec::RunSpec;
use std::path::Path;

/// Reads a study; its text goes into the results folder as it was written.
fn read_spec(path: &Path) -> Result<(RunSpec, String), CliError> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        CliError::Usage(format!("cannot read study {}: {e}; examples are in bench-configs/", path.display()))
    })?;
    Ok((RunSpec::from_toml(&path.display().to_string(), &text)?, text))
}

/// The plan of `spec`, and the study as it is stored: `text` where the study is still as it was written. Says the
/// `notes` of how it was understood.
///
/// What has to be read from files before a study can be planned is read here and nowhere else, so that every
/// command resolves a study alike.
fn effective(
    mut spec: RunSpec,
    text: Option<String>,
    notes: &[String],
    io: &mut Io<'_>,
) -> Result<(Plan, String), CliError> {
    say(notes, io)?;
    let written = spec.clone();
    say(&bench_runner::load::complete::complete(&mut spec)?, io)?;
    let plan = spec.resolve()?;
    let stored = match text.filter(|_| spec == written) {
        Some(text) => text,
        None => spec.to_toml()?,
    };
    Ok((plan, stored))
}

/// Prints a study that flags make, as a file for `ossbench run`; one that cannot be planned is an error.
fn print_study(spec: &RunSpec, notes: &[String], io: &mut Io<'_>) -> Result<(), CliError> {
    say(notes, io)?;
    spec.resolve()?;
    write!(io.out, "{}", spec.to_toml()?)?;
    Ok(())
}

/// Writes `value` as JSON for people and programs.
fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| CliError::Failed(e.to_string()))?;
    std::fs::write(path, text + "\n")
        .map_err(|e| CliError::Failed(format!("cannot write {}: {e}", path.display())))
}

fn say(notes: &[String], io: &mut Io<'_>) -> Result<(), CliError> {
    for note in notes {
        writeln!(io.err, "note: {note}")?;
    }
    Ok(())
}
