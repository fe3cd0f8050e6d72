//! The `ossbench` binary: arguments and streams go to the library, its exit code comes back.
//!
//! Only what belongs to the process stands here: the handler of Ctrl-C, and the exit.

use std::io::{stderr, stdout};
use std::process::ExitCode;

fn main() -> ExitCode {
    bench_cli::signal::install();
    ExitCode::from(bench_cli::run(std::env::args_os(), &mut stdout(), &mut stderr()))
}
