//! Where `unsafe` may stand and what has to stand beside it.
//!
//! The kernels are its only home in what is shipped; stubs of C libraries, which only tests load, are the others.
//! Every block and impl there says in a SAFETY comment why it is sound.

use super::Finding;
use super::source::Source;

const HOME: &str = "bench-kernels";
/// A C interface cannot be written without it.
const STUBS: [&str; 2] = ["nvml-stub", "cuda-stub"];
/// How many lines above the keyword the comment may begin.
const REACH: usize = 6;

pub(super) fn check(source: &Source) -> Vec<Finding> {
    let at_home = source.crate_name() == HOME || STUBS.contains(&source.crate_name());
    let lines: Vec<&str> = source.text.lines().collect();
    let mut findings = Vec::new();
    for pair in source.tokens.windows(2) {
        let [keyword, next] = pair else { continue };
        if keyword.text != "unsafe" {
            continue;
        }
        if !at_home {
            let message = format!("`unsafe` outside {HOME}; put the operation behind a safe function there");
            findings.push(Finding::error(&source.path, keyword.line, message));
        } else if matches!(next.text.as_str(), "{" | "impl") && !explained(&lines, keyword.line) {
            let message = format!("`unsafe` without a SAFETY: comment in the {REACH} lines above");
            findings.push(Finding::error(&source.path, keyword.line, message));
        }
    }
    findings
}

/// `line` is 1-based.
fn explained(lines: &[&str], line: usize) -> bool {
    let first = line.saturating_sub(REACH + 1);
    lines[first..line.min(lines.len())].iter().any(|l| l.contains("SAFETY:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        check(&Source::parse(path, text).unwrap()).iter().map(|f| f.line).collect()
    }

    #[test]
    fn unsafe_away_from_home_is_found_in_every_form() {
        for text in ["fn f() { unsafe { g() } }", "unsafe fn f() {}", "unsafe impl Send for A {}"] {
            assert_eq!(lines("crates/bench-engine/src/x.rs", text), [1], "{text}");
            assert_eq!(lines("tests/integration/x.rs", text), [1], "{text}");
        }
        assert_eq!(lines("crates/bench-engine/src/x.rs", "#![deny(unsafe_code)]\n// unsafe\n"), [0; 0]);
    }

    #[test]
    fn a_block_at_home_needs_its_sentence_near_by() {
        let near = format!(
            "fn f() {{\n    // SAFETY: in range.\n{}    unsafe {{ g() }}\n}}",
            "    h();\n".repeat(5)
        );
        let far = format!(
            "fn f() {{\n    // SAFETY: in range.\n{}    unsafe {{ g() }}\n}}",
            "    h();\n".repeat(6)
        );
        assert_eq!(lines("crates/bench-kernels/src/x.rs", &near), [0; 0]);
        assert_eq!(lines("crates/bench-kernels/src/x.rs", &far), [9]);
        assert_eq!(lines("crates/bench-kernels/src/x.rs", "unsafe impl Send for A {}"), [1]);
        assert_eq!(lines("crates/bench-kernels/src/x.rs", "unsafe fn f() {}"), [0; 0]);
        for stub in STUBS {
            let path = format!("crates/{stub}/src/x.rs");
            assert_eq!(lines(&path, "unsafe impl Send for A {}"), [1], "{stub}");
        }
    }
}
