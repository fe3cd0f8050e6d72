//! Text of the paper types no number: every one comes from a generated table or macro.
//!
//! Arguments that are names (of files, macros, labels, packages, lengths) may hold digits; prose may not.

use super::Finding;
use crate::tree::Tree;
use std::path::Path;

/// Commands whose arguments are names or lengths, never text that is read.
const NAMES: &[&str] = &[
    "ossb",
    "qs",
    "stat",
    "input",
    "label",
    "ref",
    "cite",
    "bibitem",
    "url",
    "includegraphics",
    "IfFileExists",
    "documentclass",
    "usepackage",
    "studyfigure",
    "studytable",
];
/// Definitions of commands; their parameters are `#1`.
const DEFINING: &[&str] = &["newcommand", "renewcommand", "providecommand"];

/// Every digit in the prose of `paper/*.tex`.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.texts() {
        let own = path.strip_prefix("paper/").is_some_and(|name| {
            !name.contains('/') && Path::new(name).extension().is_some_and(|e| e == "tex")
        });
        if own {
            findings.extend(typed(text).into_iter().map(|(line, word)| {
                let message = format!(
                    "the number in {word:?} is typed; take it from tables/ by \\ossb, or \\input the table"
                );
                Finding::error(path, line, message)
            }));
        }
    }
    findings
}

/// Lines and words with a typed digit.
fn typed(text: &str) -> Vec<(usize, String)> {
    let prose = without_names(text);
    let lines = prose.lines().enumerate();
    lines
        .flat_map(|(i, line)| line.split_whitespace().map(move |word| (i + 1, word)))
        .filter(|(_, word)| word.bytes().any(|b| b.is_ascii_digit()))
        .map(|(line, word)| (line, word.to_owned()))
        .collect()
}

/// The text with blanks in place of comments and of what is no prose; lines stay where they are.
fn without_names(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut kept = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        match chars[at] {
            '%' => {
                while at < chars.len() && chars[at] != '\n' {
                    at += 1;
                }
            }
            '\\' => {
                let end =
                    (at + 1..chars.len()).find(|&i| !chars[i].is_ascii_alphabetic()).unwrap_or(chars.len());
                let command: String = chars[at + 1..end].iter().collect();
                // `\%` and the like are one character behind the backslash.
                at = end.max((at + 2).min(chars.len()));
                if DEFINING.contains(&command.as_str()) || NAMES.contains(&command.as_str()) {
                    // Of a figure of the paper's own, the last argument is its caption: prose.
                    let names = match command.as_str() {
                        "studyfigure" | "studytable" | "ossb" => 2,
                        "IfFileExists" => 1,
                        _ if DEFINING.contains(&command.as_str()) => 2,
                        _ => 1,
                    };
                    at = skip_arguments(&chars, at, names, &mut kept);
                }
            }
            c => {
                kept.push(c);
                at += 1;
            }
        }
    }
    kept
}

/// Behind `count` arguments in braces, and those in brackets between them; their line breaks are kept.
fn skip_arguments(chars: &[char], mut at: usize, count: usize, kept: &mut String) -> usize {
    let mut left = count;
    while let Some(&open) = chars.get(at) {
        let close = match open {
            '[' => ']',
            '{' if left > 0 => '}',
            _ => break,
        };
        left -= usize::from(open == '{');
        let mut depth = 0;
        while let Some(&c) = chars.get(at) {
            depth += i32::from(c == open) - i32::from(c == close);
            if c == '\n' {
                kept.push('\n');
            }
            at += 1;
            if depth == 0 {
                break;
            }
        }
    }
    kept.push(' ');
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_has_no_digits_and_names_may() {
        for (text, expected) in [
            ("It decodes 40 tok/s.", "1:40"),
            ("a\n\\ossb{s}{m-p128/ttft} of \\input{tables/x2}\nand 3x", "3:3x"),
            ("% 12 in a comment\n50\\% of it", "2:50"),
            ("\\documentclass[11pt]{article}\\usepackage[a4paper,margin=19mm]{geometry}", ""),
            ("\\studyfigure{s2}{ttft}{At 128 tokens.}", "1:128"),
            ("\\newcommand{\\f}[3]{\\includegraphics{#1_#2.pdf}} #1", "1:#1"),
            ("\\textbf{17} and \\emph{\\qs{a1}}", "1:{17}"),
            ("unclosed \\ossb{s}{m1", ""),
            ("backslash at the end \\", ""),
        ] {
            let found: Vec<String> =
                typed(text).iter().map(|(line, word)| format!("{line}:{word}")).collect();
            assert_eq!(found.join(" "), expected, "{text}");
        }
    }
}
