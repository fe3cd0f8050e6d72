//! The one gate: every check in order, each with its name and duration, stopping at the first that fails.
//!
//! What passes here passes everywhere: `.ci/run` calls it and nothing else. It builds with the release
//! profile only, the one that `cargo run --release` uses, so that dependencies are compiled once.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::{aarch64, docs, paper, tidy};

const FORMAT: &[&str] = &["fmt", "--all", "--check"];
const CLIPPY: &[&str] = &["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"];
/// Shows what passing tests print: the largest differences from the reference belong into the log.
const TEST: &[&str] = &["test", "--release", "--workspace", "--", "--show-output"];

/// Runs all steps; the first failure is the result.
pub(crate) fn run(root: &Path) -> Result<(), Error> {
    let start = Instant::now();
    let mut totals = Totals::default();
    step("format", || cargo(root, "format", FORMAT))?;
    step("tidy", || tidy::run(root))?;
    step("generated references", || docs::check(root))?;
    if paper::is_possible() {
        step("paper", || paper::run(root))?;
    } else {
        println!("== paper: skipped, there is no TeX here; `cargo xtask paper` says how to get it");
    }
    step("clippy", || cargo(root, "clippy", CLIPPY))?;
    // Where everything can be installed, nothing is left out.
    if aarch64::is_possible() || std::env::var_os("CI").is_some_and(|ci| ci == "true") {
        step("aarch64", || aarch64::run(root))?;
    } else {
        println!(
            "== aarch64: skipped, there is no cross compiler or no emulator; `cargo xtask aarch64` says which"
        );
    }
    step("tests", || test("tests", command(root, TEST), &format!("cargo {}", TEST.join(" ")), &mut totals))?;
    println!("\n{}", totals.line());
    println!("ci: all steps passed in {}", seconds(start.elapsed()));
    Ok(())
}

fn step(name: &str, body: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
    println!("== {name}");
    let start = Instant::now();
    let outcome = body();
    let word = if outcome.is_ok() { "ok" } else { "FAILED" };
    println!("== {name}: {word} in {}", seconds(start.elapsed()));
    outcome
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// Runs cargo with its output passed through.
fn cargo(root: &Path, step: &'static str, args: &[&str]) -> Result<(), Error> {
    let alone = format!("cargo {}", args.join(" "));
    let start_error = |source| Error::Start { command: alone.clone(), source };
    let status = command(root, args).status().map_err(start_error)?;
    finish(step, &alone, status)
}

/// Runs tests, passes every line on, and adds up the runner's own result lines. `alone` is what runs this step alone.
pub(crate) fn test(
    step: &'static str,
    mut command: Command,
    alone: &str,
    totals: &mut Totals,
) -> Result<(), Error> {
    let start_error = |source| Error::Start { command: alone.to_owned(), source };
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(start_error)?;
    if let Some(stdout) = child.stdout.take() {
        // Test binaries may print bytes that are not UTF-8; those lines are passed on in replaced form.
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            totals.add(&line);
        }
    }
    let status = child.wait().map_err(start_error)?;
    finish(step, alone, status)
}

fn finish(step: &'static str, alone: &str, status: std::process::ExitStatus) -> Result<(), Error> {
    if status.success() {
        return Ok(());
    }
    Err(Error::Step { step, status: status.to_string(), command: alone.to_owned() })
}

/// cargo in the repository root, without the variables that `cargo run` set for this program: build scripts
/// that watch them would run again, and their crates be built again, on every change between the two.
pub(crate) fn command(root: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).args(args);
    for (name, _) in std::env::vars_os() {
        if set_by_cargo_run(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    command
}

fn set_by_cargo_run(name: &str) -> bool {
    let prefixes = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"];
    prefixes.iter().any(|p| name.starts_with(p)) || matches!(name, "CARGO_CRATE_NAME" | "OUT_DIR")
}

/// Sums of the lines `test result: ok. 3 passed; 0 failed; …` over all test binaries.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    binaries: u64,
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Totals {
    fn add(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        self.binaries += 1;
        let words: Vec<&str> = rest.split_whitespace().collect();
        for pair in words.windows(2) {
            let Ok(count) = pair[0].parse::<u64>() else { continue };
            match pair[1].trim_end_matches(';') {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }

    pub(crate) fn line(&self) -> String {
        let Self { binaries, passed, failed, ignored } = self;
        format!("tests: {passed} passed; {failed} failed; {ignored} ignored; in {binaries} binaries")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_added_up() {
        let mut totals = Totals::default();
        totals.add(
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s",
        );
        totals.add("test result: FAILED. 4 passed; 2 failed; 1 ignored; 0 measured; 9 filtered out");
        totals.add("test tidy::tests::x ... ok");
        assert_eq!(totals, Totals { binaries: 2, passed: 7, failed: 2, ignored: 1 });
        assert_eq!(totals.line(), "tests: 7 passed; 2 failed; 1 ignored; in 2 binaries");
    }

    #[test]
    fn only_what_cargo_run_sets_is_removed() {
        assert!(set_by_cargo_run("CARGO_PKG_NAME"));
        assert!(set_by_cargo_run("CARGO_MANIFEST_DIR"));
        assert!(!set_by_cargo_run("CARGO_TARGET_DIR"));
        assert!(!set_by_cargo_run("CARGO_HOME"));
    }

    #[test]
    fn a_failing_step_is_an_error_that_names_its_command() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let error = cargo(root, "format", &["no-such-subcommand"]).unwrap_err().to_string();
        assert!(error.contains("cargo no-such-subcommand"), "{error}");
    }
}
