//! The text that prompts are made of, in sentences.
//!
//! Splits the bundled corpus once; who gets which sentence in which order is decided in `prompt`.

use std::collections::HashSet;
use std::sync::LazyLock;

/// A sentence, or a block of code that stays whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unit {
    pub text: &'static str,
    /// Stands in a paragraph of its own.
    pub block: bool,
}

/// All units in the order of the file; what stands twice (`"Quite so."`) is taken once.
pub(super) static UNITS: LazyLock<Vec<Unit>> = LazyLock::new(|| units(include_str!("corpus.txt")));

fn units(corpus: &'static str) -> Vec<Unit> {
    let mut units = Vec::new();
    for (index, part) in corpus.split("```\n").enumerate() {
        // Odd parts lie between fences.
        if index % 2 == 1 {
            units.push(Unit { text: part.trim_end(), block: true });
            continue;
        }
        let paragraphs = part.lines().filter(|line| !line.is_empty() && !line.starts_with("== "));
        units.extend(paragraphs.flat_map(sentences).map(|text| Unit { text, block: false }));
    }
    let mut seen = HashSet::new();
    units.retain(|unit: &Unit| seen.insert(unit.text));
    units
}

/// Cuts a paragraph after each full stop, question or exclamation mark (and the quotes that close with it)
/// that precedes a space and a capital letter or a quote.
fn sentences(paragraph: &'static str) -> Vec<&'static str> {
    let mut sentences = Vec::new();
    let mut start = 0;
    for (at, _) in paragraph.match_indices(' ') {
        let (before, after) = (&paragraph[start..at], &paragraph[at + 1..]);
        let stem = before.trim_end_matches(['"', '\'', ')']);
        let opens = after.starts_with(|c: char| c.is_uppercase() || matches!(c, '"' | '\'' | '`' | '('));
        if stem.ends_with(['.', '!', '?']) && opens && !abbreviates(stem) {
            sentences.push(before);
            start = at + 1;
        }
    }
    sentences.push(&paragraph[start..]);
    sentences
}

/// Whether the full stop belongs to a title or an initial.
fn abbreviates(stem: &str) -> bool {
    let word = stem.rsplit([' ', '"', '\'', '`', '(', '-']).next().unwrap_or(stem);
    word.len() <= 2 || ["Mr.", "Mrs.", "Dr.", "St."].contains(&word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_where_they_should() {
        let expected = ["\"Is it, Mr. Long?\"", "He went.", "`Oh!'", "It was (3. May) 4.5 m. long."];
        assert_eq!(sentences("\"Is it, Mr. Long?\" He went. `Oh!' It was (3. May) 4.5 m. long."), expected);
    }

    #[test]
    fn the_corpus_is_large_and_varied() {
        let bytes: usize = UNITS.iter().map(|unit| unit.text.len()).sum();
        let blocks = UNITS.iter().filter(|unit| unit.block).count();
        assert!(bytes > 200_000 && blocks >= 10, "{bytes} bytes, {blocks} blocks");
        assert!(UNITS.len() > 1_500, "{} units", UNITS.len());
        assert!(UNITS.iter().all(|unit| !unit.text.is_empty() && unit.text == unit.text.trim()));
        assert!(UNITS.iter().all(|unit| !unit.text.contains("<|")));
    }
}
