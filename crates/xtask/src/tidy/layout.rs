//! What a reader finds on the way in: a README in every top-level folder, a doc at the head of every module.

use std::collections::BTreeSet;

use super::Finding;
use crate::tree::Tree;

/// A crate's head says its place and what it does not do: more than a title, less than a page.
const CRATE_DOC_LINES: std::ops::RangeInclusive<usize> = 2..=15;

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = readmes(tree);
    // Unit tests in a file of their own need no introduction beyond their parent's.
    for (path, text) in tree.texts_ending(".rs").filter(|(path, _)| !path.ends_with("/tests.rs")) {
        findings.extend(head(path, text));
    }
    findings
}

fn readmes(tree: &Tree) -> Vec<Finding> {
    let paths: BTreeSet<&str> = tree.entries.iter().map(|e| e.path.as_str()).collect();
    let folders: BTreeSet<&str> = paths.iter().filter_map(|p| Some(p.split_once('/')?.0)).collect();
    let mut findings = Vec::new();
    for folder in folders.into_iter().filter(|f| !f.starts_with('.')) {
        if !paths.contains(format!("{folder}/README.md").as_str()) {
            findings.push(Finding::error(folder, 0, "has no README.md; say in it what lies here"));
        }
    }
    findings
}

fn head(path: &str, text: &str) -> Option<Finding> {
    let lines = text.lines().take_while(|l| l.starts_with("//!")).filter(|l| l.len() > 3).count();
    if lines == 0 {
        return Some(Finding::error(path, 1, "does not begin with `//!`: its place and what it does not do"));
    }
    let crate_root = path.ends_with("/src/lib.rs") || path.ends_with("/src/main.rs");
    if crate_root && !CRATE_DOC_LINES.contains(&lines) {
        let (low, high) = (CRATE_DOC_LINES.start(), CRATE_DOC_LINES.end());
        let message = format!("the crate's doc has {lines} lines of text; {low} to {high} are expected");
        return Some(Finding::error(path, 1, message));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn top_level_folders_need_a_readme() {
        let tree =
            Tree::fixture(&[("figs/a.svg", ""), (".ci/run", ""), ("paper/README.md", ""), ("x.md", "")]);
        assert_eq!(check(&tree).iter().map(|f| f.path.as_str()).collect::<Vec<_>>(), ["figs"]);
    }

    #[test]
    fn modules_begin_with_a_doc_and_crates_with_more_than_a_title() {
        assert!(head("crates/a/src/x.rs", "use std::fs;\n").is_some());
        assert!(head("crates/a/src/x.rs", "//! Words.\n\nuse std::fs;\n").is_none());
        assert!(head("crates/a/src/lib.rs", "//! Words.\n").is_some());
        assert!(head("crates/a/src/lib.rs", "//! Words.\n//!\n//! No I/O.\n").is_none());
        assert!(head("crates/a/src/lib.rs", &"//! Words.\n".repeat(16)).is_some());
    }
}
