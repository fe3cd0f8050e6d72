//! `ossbench run`: a study from its TOML file to tables.

use super::{effective, read_spec, study};
use crate::args::RunArgs;
use crate::{CliError, Io};
use bench_core::spec::RunSpec;

pub(crate) fn run(args: &RunArgs, command: &[String], io: &mut Io<'_>) -> Result<(), CliError> {
    let (written, text) = read_spec(&args.config)?;
    let spec = overridden(written.clone(), args)?;
    // As it was written, comments and all, unless a flag changed it.
    let unchanged = spec == written;
    let (plan, spec_toml) = effective(spec, unchanged.then_some(text), &[], io)?;
    let request = study::Study {
        resume: args.resume.clone(),
        secrets: args.secrets.clone(),
        ..study::Study::new(plan, spec_toml, &args.common, command)
    };
    study::run(&request, io)
}

/// The study with the server and the model of the command line.
fn overridden(mut spec: RunSpec, args: &RunArgs) -> Result<RunSpec, CliError> {
    let one = "this study has several models; change them in the file";
    if let Some(model) = &args.model {
        let [table] = spec.models.as_mut_slice() else {
            return Err(CliError::Usage(format!("--model: {one}")));
        };
        table.id.clone_from(model);
    }
    if let Some(url) = &args.base_url {
        if spec.models.len() > 1 && spec.models.iter().any(|m| m.base_url.is_some()) {
            return Err(CliError::Usage(format!("--base-url: {one}")));
        }
        for model in &mut spec.models {
            model.base_url = None;
        }
        spec.server.get_or_insert_default().base_url = Some(url.clone());
    }
    args.power.apply(&mut spec);
    Ok(spec)
}
