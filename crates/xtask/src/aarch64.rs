//! `cargo xtask aarch64`: the tests of bench-kernels as 64-bit ARM, run by an emulator of its processors.
//!
//! Twice: on a processor with all extensions that the emulator has, and, but for one long test, on one without dot
//! products of bytes. What passes is right; how fast it is, an emulator cannot tell.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::ci::{self, Totals};
use crate::error::Error;

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64";
/// Where Debian's cross compiler has the C library.
const SYSROOT: &str = "/usr/aarch64-linux-gnu";
/// Processors, and what is left out there: each kernel at the shapes of a benchmark, which takes as long as all else.
const CPUS: [(&str, &[&str]); 2] =
    [("max", &[]), ("cortex-a57", &["--", "--skip", "every_kernel_is_measured_or_says_why_not"])];
const TEST: &[&str] = &["test", "--release", "-p", "bench-kernels", "--target", TARGET];

/// What the system lacks, in words.
fn missing() -> Vec<String> {
    let runs = |program: &str| {
        let mut command = Command::new(program);
        let status = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let library = Path::new(SYSROOT).join("lib/libc.so.6");
    [
        (runs(LINKER), format!("`{LINKER}`")),
        (runs(EMULATOR), format!("`{EMULATOR}`")),
        (library.exists(), library.display().to_string()),
        (has_target(), format!("Rust's library for {TARGET}")),
    ]
    .into_iter()
    .filter_map(|(is_there, what)| (!is_there).then_some(what))
    .collect()
}

fn has_target() -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    output.is_ok_and(|o| Path::new(String::from_utf8_lossy(&o.stdout).trim()).is_dir())
}

/// Whether the system has what builds and runs the tests.
pub(crate) fn is_possible() -> bool {
    missing().is_empty()
}

/// Builds the tests once, runs them on each processor, and prints the sum of their results.
pub(crate) fn run(root: &Path) -> Result<(), Error> {
    let missing = missing();
    if !missing.is_empty() {
        return Err(Error::Cross(missing.join(", ")));
    }
    let mut totals = Totals::default();
    for (cpu, left_out) in CPUS {
        println!("aarch64: {cpu}");
        let mut command = ci::command(root, &[TEST, left_out].concat());
        let upper = TARGET.to_uppercase().replace('-', "_");
        command.env(format!("CARGO_TARGET_{upper}_LINKER"), LINKER);
        command.env(format!("CARGO_TARGET_{upper}_RUNNER"), format!("{EMULATOR} -L {SYSROOT} -cpu {cpu}"));
        ci::test("aarch64", command, "cargo xtask aarch64", &mut totals)?;
    }
    println!("aarch64 {}", totals.line());
    Ok(())
}
