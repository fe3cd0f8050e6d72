//! Who may print or end the process: the command line and the automation, nobody else.
//!
//! Libraries return values and errors; a library that prints spoils the output of whoever uses it, and one
//! that exits loses the results of a run.

use super::Finding;
use super::source::Source;

const MAY_PRINT: &[&str] = &["bench-cli", "xtask", "tests"];
const MACROS: &[&str] = &["println", "eprintln", "print", "eprint", "dbg"];
const EXITS: &[&str] = &["exit", "abort"];

pub(super) fn check(source: &Source) -> Vec<Finding> {
    // A build script speaks to cargo through its output; a benchmark is a program of its own.
    let program = source.path.ends_with("/build.rs") || source.path.contains("/benches/");
    if program || MAY_PRINT.contains(&source.crate_name()) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for name in MACROS {
        for line in source.lines_of(&[name, "!"]).filter(|line| !source.is_test(*line)) {
            let message = format!("`{name}!` in a library; return the text, or leave it to bench-cli");
            findings.push(Finding::error(&source.path, line, message));
        }
    }
    for name in EXITS {
        for line in source.lines_of(&["process", ":", ":", name]).filter(|line| !source.is_test(*line)) {
            let message = format!("`process::{name}` in a library; return an error instead");
            findings.push(Finding::error(&source.path, line, message));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        check(&Source::parse(path, text).unwrap()).iter().map(|f| f.line).collect()
    }

    #[test]
    fn prints_and_exits_in_libraries_are_found() {
        for body in ["println!(\"x\")", "eprintln!()", "print!(\"\")", "dbg!(1)", "std::process::exit(1)"] {
            let text = format!("fn f() {{\n    {body};\n}}\n");
            assert_eq!(lines("crates/bench-core/src/x.rs", &text), [2], "{body}");
            assert_eq!(lines("crates/bench-cli/src/x.rs", &text), [0; 0], "{body}");
            assert_eq!(lines("tests/integration/x.rs", &text), [0; 0], "{body}");
            assert_eq!(lines("crates/bench-core/benches/x.rs", &text), [0; 0], "{body}");
        }
    }

    #[test]
    fn strings_comments_and_tests_are_left_alone() {
        let text = "// println!()\nfn f() -> &'static str { \"dbg!(1)\" }\n\
            #[cfg(test)]\nmod tests {\n    fn g() { println!(); }\n}\n";
        assert_eq!(lines("crates/bench-core/src/x.rs", text), [0; 0]);
    }
}
