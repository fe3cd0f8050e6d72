//! `ossbench parity`: tiny models on any device against what another implementation computed for them.
//!
//! What is compared, and with which bounds, stands in `bench_engine::parity`; here is the table, and the exit code.

use crate::args::ParityArgs;
use crate::{CliError, Io};
use bench_core::SCHEMA_VERSION;
use bench_core::provenance::{Build, Machine};
use bench_engine::ActivationDtype;
use bench_engine::parity::{self, Findings, MODELS, Measure, Options, Row};
use bench_engine::place::Place;
use bench_runner::provenance;
use serde::Serialize;
use std::io::Write;

/// What `--json` holds.
#[derive(Serialize)]
struct Report {
    schema_version: u32,
    build: Build,
    machine: Machine,
    device: String,
    kernels: String,
    holds: bool,
    #[serde(flatten)]
    findings: Findings,
}

pub(crate) fn run(args: &ParityArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    let models = models(args)?;
    let activations = match args.activation_dtype {
        None => vec![ActivationDtype::F32, ActivationDtype::Bf16],
        Some(bench_core::spec::ActivationDtype::F32) => vec![ActivationDtype::F32],
        Some(bench_core::spec::ActivationDtype::Bf16) => vec![ActivationDtype::Bf16],
    };
    let place = Place::open(&args.device)?;
    let kernels = place.title().unwrap_or_else(|| bench_engine::system::kernel_variant().to_owned());
    writeln!(io.out, "{} on {} ({kernels})\n", args.golden.display(), args.device)?;
    tell_head(io.out)?;
    let options = Options { golden: &args.golden, models: &models, activations: &activations, place };
    let mut written = Ok(());
    let findings = parity::compare(&options, |row| {
        if written.is_ok() {
            written = tell(row, io.out);
        }
    })?;
    written?;
    for failure in &findings.failures {
        let parity::Failure { model, activation_dtype, error } = failure;
        writeln!(io.out, "{model}, {activation_dtype}: not run to its end: {error}")?;
    }
    let verdict = verdict(&findings);
    writeln!(io.out, "\n{verdict}")?;
    let report = Report {
        schema_version: SCHEMA_VERSION,
        build: provenance::build(),
        machine: provenance::machine(),
        device: args.device.clone(),
        kernels,
        holds: findings.hold(),
        findings,
    };
    if let Some(path) = &args.json {
        super::write_json(path, &report)?;
    }
    if report.holds { Ok(()) } else { Err(CliError::Gate(verdict)) }
}

/// # Errors
/// A model that no folder of references has.
fn models(args: &ParityArgs) -> Result<Vec<&'static str>, CliError> {
    let Some(wanted) = &args.model else { return Ok(MODELS.to_vec()) };
    let found = MODELS.iter().find(|model| *model == wanted);
    found
        .map(|model| vec![*model])
        .ok_or_else(|| CliError::Usage(format!("--model {wanted}: expected one of {}", MODELS.join(", "))))
}

fn tell_head(out: &mut dyn Write) -> Result<(), CliError> {
    writeln!(
        out,
        "{:<17} {:<5} {:<6} {:<25} {:>9} {:>9} {:>9} {:>8}  {:<44} holds",
        "model", "dtype", "prompt", "what", "max diff", "mean diff", "mean KL", "same %", "bound"
    )?;
    Ok(())
}

fn tell(row: &Row, out: &mut dyn Write) -> Result<(), CliError> {
    let Row { model, activation_dtype, prompt, what, difference, agreement, bounds, holds } = row;
    let number =
        |of: fn(parity::Difference) -> f64| difference.map_or("-".to_owned(), |d| format!("{:.2e}", of(d)));
    let same = difference.map(|d| d.top1_agreement).or(*agreement);
    let bounds: Vec<String> = bounds
        .iter()
        .map(|b| {
            let (word, least) = match b.of {
                Measure::MaxAbs => ("max", false),
                Measure::MeanAbs => ("mean", false),
                Measure::KlMean => ("KL", false),
                Measure::Top1Agreement => ("top-1", true),
                Measure::Agreement => ("same", true),
            };
            format!("{word} {} {}", if least { ">=" } else { "<=" }, b.limit)
        })
        .collect();
    writeln!(
        out,
        "{model:<17} {activation_dtype:<5} {prompt:<6} {what:<25} {:>9} {:>9} {:>9} {:>8}  {:<44} {}",
        number(|d| d.max_abs),
        number(|d| d.mean_abs),
        number(|d| d.kl_mean),
        same.map_or("-".to_owned(), |s| format!("{:.1}", 100.0 * s)),
        bounds.join(", "),
        if *holds { "yes" } else { "NO" }
    )?;
    Ok(())
}

fn verdict(findings: &Findings) -> String {
    let (all, wrong) = (findings.rows.len(), findings.rows.iter().filter(|row| !row.holds).count());
    let failed = match findings.failures.len() {
        0 => String::new(),
        n => format!("; {n} model(s) were not run to their end"),
    };
    if wrong == 0 {
        format!("parity: all {all} comparisons hold{failed}")
    } else {
        let first = findings.rows.iter().find(|row| !row.holds);
        let first = first.map_or(String::new(), |r| {
            format!(", the first {} {} {} {}", r.model, r.activation_dtype, r.prompt, r.what)
        });
        format!("parity: {wrong} of {all} comparisons are beyond their bounds{first}{failed}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn parsed(flags: &str) -> Result<ParityArgs, clap::Error> {
        let line = format!("ossbench parity {flags}");
        let Command::Parity(args) = Cli::try_parse_from(line.split_whitespace())?.command else {
            panic!("parity")
        };
        Ok(args)
    }

    #[test]
    fn one_model_or_all() {
        assert_eq!(models(&parsed("").unwrap()).unwrap(), MODELS);
        assert_eq!(models(&parsed("-m llama-tiny").unwrap()).unwrap(), ["llama-tiny"]);
        let error = models(&parsed("-m other").unwrap()).unwrap_err();
        assert!(error.to_string().contains("qwen3-tiny") && error.exit_code() == 2);
        assert!(parsed("--device gpu").is_err() && parsed("--activation-dtype f16").is_err());
    }

    #[test]
    fn a_model_that_stopped_early_is_in_the_verdict() {
        let failure =
            parity::Failure { model: "llama-tiny", activation_dtype: "f32", error: "lost".to_owned() };
        let findings = Findings { rows: Vec::new(), failures: vec![failure] };
        assert!(!findings.hold() && verdict(&findings).contains("1 model(s) were not run"));
    }
}
