//! Words that mean "not finished": unfinished code, switched-off tests, and notes to oneself.
//!
//! A test that needs hardware returns early and says so; what is planned belongs in an issue, not in a
//! comment.

use super::Finding;
use super::source::Source;
use crate::tree::Tree;

const UNFINISHED: &[&str] = &["todo", "unimplemented"];
/// Split, so that this file does not find itself.
const NOTES: &[&str] = &[concat!("FIX", "ME"), concat!("XX", "X")];
const ENDINGS: &[&str] = &[".rs", ".toml", ".md", ".sh", ".yml", ".tex", "/run"];

/// Macros and attributes, in every Rust file, tests included.
pub(super) fn check_code(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in UNFINISHED {
        for line in source.lines_of(&[name, "!"]) {
            findings.push(Finding::error(&source.path, line, format!("`{name}!` in the code; finish it")));
        }
    }
    for line in source.lines_of(&["#", "[", "ignore"]) {
        let message =
            "an ignored test; put what needs hardware behind a variable and say that it was skipped";
        findings.push(Finding::error(&source.path, line, message));
    }
    findings
}

/// Notes in any text, comments included.
pub(super) fn check_comments(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.texts().filter(|(path, _)| ENDINGS.iter().any(|e| path.ends_with(e))) {
        for (i, line) in text.lines().enumerate() {
            for note in NOTES.iter().filter(|note| has_word(line, note)) {
                findings.push(Finding::error(path, i + 1, format!("{note:?}; do it or open an issue")));
            }
        }
    }
    findings
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric()).any(|w| w == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_code_and_ignored_tests_are_found() {
        for text in [
            "fn f() { todo!() }",
            "fn f() { unimplemented!(\"x\") }",
            "#[ignore]\nfn f() {}",
            "#[ignore = \"slow\"]\nfn f() {}",
        ] {
            let found = check_code(&Source::parse("tests/integration/x.rs", text).unwrap());
            assert_eq!(found.len(), 1, "{text}");
        }
        let fine = Source::parse("crates/a/src/x.rs", "// todo!()\nfn ignore() { let todo = 1; }").unwrap();
        assert_eq!(check_code(&fine), []);
    }

    #[test]
    fn notes_are_found_as_whole_words() {
        for note in NOTES {
            let tree = Tree::fixture(&[("crates/a/src/x.rs", &format!("// fine\n// {note}: later\n"))]);
            assert_eq!(check_comments(&tree).iter().map(|f| f.line).collect::<Vec<_>>(), [2]);
            let tree = Tree::fixture(&[("README.md", &format!("{note}L"))]);
            assert_eq!(check_comments(&tree), []);
        }
    }
}
