//! `ossbench run`: a study from its TOML file to tables.

use super::{read_spec, study};
use crate::args::RunArgs;
use crate::{CliError, Io};

pub(crate) fn run(args: &RunArgs, command: &[String], io: &mut Io<'_>) -> Result<(), CliError> {
    let (spec, text) = read_spec(&args.config)?;
    let request = study::Study {
        plan: spec.resolve()?,
        spec_toml: text,
        resume: args.resume.clone(),
        common: args.common.clone(),
        command: command.to_vec(),
    };
    study::run(&request, io)
}
