//! A Rust file ready for the rules: its syntax tree, its tokens in order, and which lines are test code.
//!
//! Rules on code look at tokens, never at text, so that strings and comments cannot trip them.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::Finding;
use crate::tree::Tree;

/// One token, flattened: groups appear as their opening and closing delimiters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub text: String,
    pub line: usize,
}

pub(super) struct Source {
    pub path: String,
    pub text: String,
    pub ast: syn::File,
    pub tokens: Vec<Token>,
    /// True for integration tests, and for files that only a `#[cfg(test)] mod x;` reaches.
    pub is_test_file: bool,
    test_lines: Vec<RangeInclusive<usize>>,
}

impl Source {
    /// All Rust files of the tree; a file that does not parse becomes a finding.
    pub(super) fn parse_all(tree: &Tree) -> (Vec<Self>, Vec<Finding>) {
        let mut sources = Vec::new();
        let mut findings = Vec::new();
        for (path, text) in tree.texts_ending(".rs") {
            match Self::parse(path, text) {
                Ok(source) => sources.push(source),
                Err(e) => {
                    let line = e.span().start().line;
                    findings.push(Finding::error(path, line, format!("does not parse: {e}")));
                }
            }
        }
        let test_modules: BTreeSet<String> = sources.iter().flat_map(Self::test_module_files).collect();
        for source in &mut sources {
            source.is_test_file |= test_modules.contains(&source.path);
        }
        (sources, findings)
    }

    pub(super) fn parse(path: &str, text: &str) -> Result<Self, syn::Error> {
        let ast = syn::parse_file(text)?;
        let mut tokens = Vec::new();
        // A shebang is the one thing that is a file but not a token stream; no file here has one.
        flatten(text.parse::<TokenStream>().unwrap_or_default(), &mut tokens);
        let mut spans = TestSpans(Vec::new());
        spans.visit_file(&ast);
        let is_test_file =
            path.starts_with("tests/") || path.contains("/tests/") || path.contains("/benches/");
        Ok(Self { path: path.into(), text: text.into(), ast, tokens, is_test_file, test_lines: spans.0 })
    }

    /// Whether the line belongs to test code.
    pub(super) fn is_test(&self, line: usize) -> bool {
        self.is_test_file || self.test_lines.iter().any(|lines| lines.contains(&line))
    }

    /// `crates/<name>/…` → `<name>`; `tests` for the integration tests.
    pub(super) fn crate_name(&self) -> &str {
        let mut parts = self.path.split('/');
        match parts.next() {
            Some("crates") => parts.next().unwrap_or_default(),
            Some(first) => first,
            None => "",
        }
    }

    /// Lines on which the tokens `pattern` stand in a row.
    pub(super) fn lines_of<'a>(&'a self, pattern: &'a [&str]) -> impl Iterator<Item = usize> + 'a {
        let matches = move |w: &&[Token]| w.iter().zip(pattern).all(|(token, want)| token.text == *want);
        self.tokens.windows(pattern.len()).filter(matches).map(|w| w[0].line)
    }

    /// Paths that a `#[cfg(test)] mod x;` of this file may load.
    fn test_module_files(&self) -> Vec<String> {
        let (folder, file) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        let base = match file {
            "lib.rs" | "main.rs" | "mod.rs" => folder.to_owned(),
            _ => format!("{folder}/{}", file.trim_end_matches(".rs")),
        };
        let mut paths = Vec::new();
        for item in &self.ast.items {
            if let syn::Item::Mod(module) = item
                && module.content.is_none()
                && is_cfg_test(&module.attrs)
            {
                let name = &module.ident;
                paths.push(format!("{base}/{name}.rs"));
                paths.push(format!("{base}/{name}/mod.rs"));
            }
        }
        paths
    }
}

/// Collects the line ranges of items behind `#[cfg(test)]` or `#[test]`.
struct TestSpans(Vec<RangeInclusive<usize>>);

impl TestSpans {
    fn push(&mut self, item: &impl Spanned) {
        let span = item.span();
        self.0.push(span.start().line..=span.end().line);
    }
}

impl<'ast> Visit<'ast> for TestSpans {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if is_cfg_test(&item.attrs) {
            self.push(item);
        } else {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if is_cfg_test(&item.attrs) || item.attrs.iter().any(|a| a.path().is_ident("test")) {
            self.push(item);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if is_cfg_test(&item.attrs) {
            self.push(item);
        } else {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if is_cfg_test(&item.attrs) {
            self.push(item);
        }
    }
}

fn is_cfg_test(attrs: &[syn::Attribute]) -> bool {
    attrs.iter().any(|a| {
        a.path().is_ident("cfg")
            && matches!(&a.meta, syn::Meta::List(list) if list.tokens.to_string() == "test")
    })
}

fn flatten(stream: TokenStream, out: &mut Vec<Token>) {
    for tree in stream {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                out.push(Token { text: open.into(), line });
                flatten(group.stream(), out);
                out.push(Token { text: close.into(), line: group.span_close().start().line });
            }
            other => out.push(Token { text: other.to_string(), line }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "//! a\nfn f() { let s = \"g ! ()\"; g!(); }\n\
        #[cfg(test)]\nmod tests {\n    fn h() { g!(); }\n}\n#[cfg(test)]\nmod fixtures;\n";

    #[test]
    fn tokens_are_found_outside_strings_and_test_lines_are_known() {
        let source = Source::parse("crates/bench-core/src/lib.rs", TEXT).unwrap();
        assert_eq!(source.lines_of(&["g", "!"]).collect::<Vec<_>>(), [2, 5]);
        assert!(!source.is_test(2));
        assert!(source.is_test(5));
        assert_eq!(source.crate_name(), "bench-core");
    }

    #[test]
    fn a_file_behind_a_test_module_is_a_test_file() {
        let tree = Tree::fixture(&[
            ("crates/a/src/lib.rs", TEXT),
            ("crates/a/src/fixtures.rs", "fn f() {}"),
            ("crates/a/src/other.rs", "fn f() {}"),
        ]);
        let (sources, findings) = Source::parse_all(&tree);
        assert_eq!(findings, []);
        assert_eq!(sources.iter().map(|s| s.is_test_file).collect::<Vec<_>>(), [false, true, false]);
    }
}
