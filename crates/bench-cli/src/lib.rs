//! The `ossbench` command line: parses arguments, joins the crates, prints, and chooses the exit code.
//!
//! Each subcommand is one file in `cmd`. Nothing is measured here, and no figure is computed here.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod args;
mod cmd;
mod error;
pub mod program;
mod progress;
mod secrets;
pub mod signal;

use args::{Cli, Command};
use bench_engine::PackedCache;
use clap::Parser;
pub use error::CliError;
use std::ffi::OsString;
use std::io::Write;

/// The two streams of a command.
pub(crate) struct Io<'a> {
    pub(crate) out: &'a mut dyn Write,
    /// A view of a run writes to it from a thread of its own.
    pub(crate) err: &'a mut (dyn Write + Send),
}

/// Runs one command. `args` begin with the program's name. Returns the exit code: 0 ok, 1 failed, 2 usage,
/// 3 a gate or verdict failed, 130 interrupted with what was finished written.
pub fn run(
    args: impl IntoIterator<Item = OsString>,
    out: &mut dyn Write,
    err: &mut (dyn Write + Send),
) -> u8 {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(e) => return usage(&e, out, err),
    };
    let command: Vec<String> = args.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let io = &mut Io { out, err };
    // A variable that says something unknown is told at once, whatever the command.
    let variables = bench_engine::system::check_kernel_variant().and_then(|()| PackedCache::from_env());
    if let Err(e) = variables {
        return finish(Err(CliError::Usage(e.to_string())), io);
    }
    let result = match &cli.command {
        Command::Plan(a) => cmd::plan::run(a, io),
        Command::Run(a) => cmd::run::run(a, &command, io),
        Command::Search(a) => cmd::search::run(a, &command, io),
        Command::Calibrate(a) => cmd::calibrate::run(a, io),
        Command::MockServer(a) => cmd::mock_server::run(a, io),
        Command::Memory(a) => cmd::memory::run(a, &command, io),
        Command::Latency(a) => cmd::latency::run(a, &command, io),
        Command::Analyze(a) => cmd::analyze::run(a, io),
        Command::Report(a) => cmd::report::run(a, io),
        Command::Verify(a) => cmd::verify::run(a, io),
        Command::Compare(a) => cmd::compare::run(a, io),
        Command::Bandwidth(a) => cmd::bandwidth::run(a, io),
        Command::BenchKernels(a) => cmd::bench_kernels::run(a, io),
        Command::Ape(a) => cmd::ape::run(a, io),
        Command::Audit(a) => cmd::audit::run(a, io),
        Command::Doctor(a) => cmd::doctor::run(a, io),
        Command::Fidelity(a) => cmd::fidelity::run(a, io),
        Command::Parity(a) => cmd::parity::run(a, io),
        Command::Fit(a) => cmd::fit::run(a, io),
        Command::FitAttempt(a) => cmd::fit::attempt(a, io),
        Command::Synth(a) => cmd::synth::run(a, io),
        Command::Ablate(a) => cmd::ablate::run(a, &command, io),
        Command::Safety(a) => cmd::safety::run(a, &command, io),
        Command::Generate(a) => cmd::generate::run(a, io),
        Command::Chat(a) => cmd::chat::run(a, io),
        Command::Logits(a) => cmd::logits::run(a, io),
        Command::EngineProcess => cmd::engine_process::run(io),
    };
    finish(result, io)
}

fn finish(result: Result<(), CliError>, io: &mut Io<'_>) -> u8 {
    let flushed = io.out.flush().map_err(CliError::from);
    match result.and(flushed) {
        Ok(()) | Err(CliError::ClosedPipe) => 0,
        Err(error) => {
            // Nobody is left to tell if standard error is gone as well.
            let _ = writeln!(io.err, "ossbench: {error}");
            error.exit_code()
        }
    }
}

/// Help and version are answers, everything else is a usage error.
fn usage(error: &clap::Error, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let text = error.render();
    let _ = if error.use_stderr() { write!(err, "{text}") } else { write!(out, "{text}") };
    if error.use_stderr() { 2 } else { 0 }
}
