//! Automation of the workspace: `cargo xtask ci` is the one gate, `tidy` and `docs` are two of its steps.
//!
//! It reads the sources and calls cargo; it knows nothing of models or measurements beyond the two reference
//! tables that it writes out, and it never touches the network itself: pip does, for the compiler of `cuda`.
#![allow(clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod aarch64;
mod ci;
mod cuda;
mod docs;
mod error;
mod gpu;
mod paper;
mod tidy;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;

use error::Error;

const HELP: &str = "\
usage: cargo xtask COMMAND

commands:
  ci              format, tidy, generated references, clippy, tests for ARM, all tests; stops at the first failure
  tidy            architecture and style rules that the compiler does not know
  docs [--check]  write the generated references, or say which of them is stale
  cuda [--check]  compiles the CUDA kernels, without a GPU, and builds the binary that holds them; or only compiles
  aarch64         the kernels' tests as 64-bit ARM, on two emulated processors
  gpu [--out FOLDER] [--check]
                  prepares a folder that checks and measures a GPU elsewhere; or only validates it
  paper           paper/main.tex to target/paper/main.pdf
  help            this text

exit codes: 0 ok, 1 a check failed, 2 usage
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let root = workspace_root();
    let outcome = match args.as_slice() {
        ["ci"] => ci::run(&root),
        ["tidy"] => tidy::run(&root),
        ["docs"] => docs::write(&root),
        ["docs", "--check"] => docs::check(&root),
        ["cuda"] => cuda::run(&root, false),
        ["cuda", "--check"] => cuda::run(&root, true),
        ["gpu", rest @ ..] => gpu::run(&root, rest),
        ["aarch64"] => aarch64::run(&root),
        ["paper"] => paper::run(&root),
        ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        [] => Err(Error::Usage("no command given".into())),
        other => Err(Error::Usage(format!("unknown command {:?}", other.join(" ")))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Usage(what)) => {
            eprint!("error: {what}\n\n{HELP}");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The folder of the workspace manifest: two above this crate, wherever the checkout lies.
fn workspace_root() -> PathBuf {
    // cargo sets the variable at run time too, so that a moved checkout still finds itself.
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let manifest = PathBuf::from(manifest);
    manifest.ancestors().nth(2).map_or(manifest.clone(), PathBuf::from)
}
