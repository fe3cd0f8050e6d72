//! Rules of architecture and style that the compiler and clippy do not know; each lives in a file of its own.
//!
//! A rule is a pure function from the repository's files to findings, so that every rule is tested on
//! strings. Printing and the exit code are decided here alone.

mod direction;
mod layout;
mod paper;
mod places;
mod prints;
mod safety;
mod size;
mod source;
mod words;

use std::path::Path;

use self::source::Source;
use crate::error::Error;
use crate::tree::Tree;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Severity {
    Warning,
    Error,
}

/// One place that breaks one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    path: String,
    /// 1-based; 0 when the finding is about the whole file or folder.
    line: usize,
    severity: Severity,
    message: String,
}

impl Finding {
    fn error(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, severity: Severity::Error, message: message.into() }
    }

    fn warning(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(path, line, message) }
    }
}

/// Applies all rules, prints what they find, and fails if there is an error among it.
pub(crate) fn run(root: &Path) -> Result<(), Error> {
    let tree = Tree::read(root)?;
    let findings = check(&tree);
    for Finding { path, line, severity, message } in &findings {
        let word = if *severity == Severity::Error { "error" } else { "warning" };
        let place = if *line == 0 { path.clone() } else { format!("{path}:{line}") };
        println!("{word}: {place}: {message}");
    }
    let errors = findings.iter().filter(|f| f.severity == Severity::Error).count();
    println!("tidy: {} files, {errors} errors, {} warnings", tree.entries.len(), findings.len() - errors);
    if errors == 0 { Ok(()) } else { Err(Error::Tidy(errors)) }
}

/// All findings of all rules, by path and line; errors last, where they are seen.
fn check(tree: &Tree) -> Vec<Finding> {
    let (sources, mut findings) = Source::parse_all(tree);
    findings.extend(direction::check(tree));
    findings.extend(layout::check(tree));
    findings.extend(paper::check(tree));
    findings.extend(places::check(tree));
    findings.extend(words::check_comments(tree));
    for source in &sources {
        findings.extend(size::check(source));
        findings.extend(prints::check(source));
        findings.extend(safety::check(source));
        findings.extend(words::check_code(source));
    }
    findings.sort_by(|a, b| (a.severity, &a.path, a.line).cmp(&(b.severity, &b.path, b.line)));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_tree_has_no_findings_and_a_broken_file_has_one() {
        let lib = "//! The words.\n//! No I/O.\n\npub fn f() {}\n";
        let clean = Tree::fixture(&[("crates/README.md", "map"), ("crates/bench-core/src/lib.rs", lib)]);
        assert_eq!(check(&clean), []);
        let broken = Tree::fixture(&[
            ("crates/README.md", "map"),
            ("crates/bench-core/src/lib.rs", "//! The words.\n//! No I/O.\n\nfn f( {}\n"),
        ]);
        let found = check(&broken);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].message.contains("does not parse"), "{found:?}");
    }
}
