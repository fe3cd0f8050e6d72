//! `ossbench engine-process`: one trial in a process of its own, and the target of a run that wants that.
//!
//! Hidden: its input and output are for the run that started it.

use crate::{CliError, Io, program, signal};
use bench_core::plan::Plan;
use bench_runner::targets::{self, Opened, Secrets, isolated};
use std::io;

/// The target of `plan`, in processes of its own where the plan asks for them and this is the program.
pub(crate) fn open(plan: &Plan, secrets: Secrets, io: &mut Io<'_>) -> Result<Opened, CliError> {
    match program::path() {
        Some(program) if plan.isolate => Ok(targets::open_isolated(plan, program)?),
        None if plan.isolate => {
            let note = "each trial should have a process of its own, which needs the ossbench program; \
                        trials share this process";
            writeln!(io.err, "note: {note}")?;
            Ok(targets::open(plan, secrets)?)
        }
        _ => Ok(targets::open(plan, secrets)?),
    }
}

pub(crate) fn run(io: &mut Io<'_>) -> Result<(), CliError> {
    isolated::die_with_parent();
    let memory = super::probes::memory();
    let open = |plan: &Plan| targets::open(plan, Secrets::default()).map(|opened| opened.target);
    isolated::serve(io::stdin(), io.out, Some(&memory), signal::stop(), open).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => {
            CliError::Usage(format!("{e}; `ossbench run` starts this command itself"))
        }
        _ => e.into(),
    })
}
