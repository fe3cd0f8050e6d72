//! The `ossbench` binary: arguments and streams go to the library, its exit code comes back.
//!
//! Only what belongs to the process stands here: the handler of Ctrl-C, the
//! allocator, and the exit.

use bench_engine::heap::CountingAllocator;
use std::io::{stderr, stdout};
use std::process::ExitCode;

/// Counts the bytes of the heap, for whoever measures memory.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    bench_cli::signal::install();
    bench_cli::program::install();
    ExitCode::from(bench_cli::run(std::env::args_os(), &mut stdout(), &mut stderr()))
}
