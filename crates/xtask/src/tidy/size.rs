//! How long a file, a function and a line may be.
//!
//! Errors stand at the hard limits only. Between the aim (functions 40 lines, files 500) and the limit the
//! author decides; tests may have long functions, since a table of cases is easier to read in one piece.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::Finding;
use super::source::Source;

const FILE_LINES: usize = 700;
const FUNCTION_LINES: usize = 100;
/// The width of rustfmt.toml; rustfmt itself leaves long strings and comments alone.
const LINE_COLUMNS: usize = 110;

pub(super) fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let lines = source.text.lines().count();
    if lines > FILE_LINES {
        let message = format!("{lines} lines; the limit is {FILE_LINES}, split it by responsibility");
        findings.push(Finding::error(&source.path, 0, message));
    }
    let wide = |line: &&str| line.chars().count() > LINE_COLUMNS;
    if let Some(first) = source.text.lines().position(|line| wide(&line)) {
        let count = source.text.lines().filter(wide).count();
        let message = format!("{count} line(s) wider than {LINE_COLUMNS} columns, the first of them here");
        findings.push(Finding::warning(&source.path, first + 1, message));
    }
    let mut functions = Functions(Vec::new());
    functions.visit_file(&source.ast);
    for (name, line, lines) in functions.0 {
        if lines > FUNCTION_LINES && !source.is_test(line) {
            let message = format!("function `{name}` has {lines} lines; the limit is {FUNCTION_LINES}");
            findings.push(Finding::error(&source.path, line, message));
        }
    }
    findings
}

/// Name, first line and length of every function, from its signature to its closing brace.
struct Functions(Vec<(String, usize, usize)>);

impl Functions {
    fn push(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let first = signature.span().start().line;
        let last = block.brace_token.span.close().end().line;
        self.0.push((signature.ident.to_string(), first, last + 1 - first));
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.push(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.push(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.push(&item.sig, block);
        }
        visit::visit_trait_item_fn(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<Finding> {
        check(&Source::parse(path, text).unwrap())
    }

    /// A function of exactly `lines` lines.
    fn function(name: &str, lines: usize) -> String {
        format!("fn {name}() {{\n{}}}\n", "    g();\n".repeat(lines - 2))
    }

    #[test]
    fn functions_at_the_limit_pass_and_one_line_more_fails() {
        assert_eq!(findings("crates/a/src/x.rs", &function("f", 100)), []);
        let found = findings("crates/a/src/x.rs", &format!("/// Doc.\n{}", function("f", 101)));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].line, 2);
        assert!(found[0].message.contains("`f` has 101 lines"), "{found:?}");
    }

    #[test]
    fn methods_and_default_methods_count_and_tests_do_not() {
        let long = function("f", 101);
        assert_eq!(findings("crates/a/src/x.rs", &format!("impl A {{\n{long}}}")).len(), 1);
        assert_eq!(findings("crates/a/src/x.rs", &format!("trait A {{\n{long}}}")).len(), 1);
        assert_eq!(findings("crates/a/src/x.rs", &format!("#[cfg(test)]\nmod tests {{\n{long}}}")), []);
        assert_eq!(findings("tests/integration/x.rs", &long), []);
    }

    #[test]
    fn long_files_fail_and_long_lines_warn() {
        assert_eq!(findings("crates/a/src/x.rs", &"// a\n".repeat(700)), []);
        assert_eq!(findings("tests/integration/x.rs", &"// a\n".repeat(701)).len(), 1);
        let line = |columns: usize| format!("// {}\n", "ä".repeat(columns - 3));
        assert_eq!(findings("crates/a/src/x.rs", &line(110)), []);
        let found = findings("crates/a/src/x.rs", &format!("{}{}{}", line(110), line(111), line(130)));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].line, found[0].severity), (2, super::super::Severity::Warning));
        assert!(found[0].message.starts_with("2 line(s)"), "{found:?}");
    }
}
