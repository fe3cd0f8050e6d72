//! Common words as prompts, for servers whose tokenizer is not at hand, and as salt where it is.
//!
//! With a space before it, each is one token in every large vocabulary in use; where it is not, the server's
//! own counts correct the number of words.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Lower-case English words, each once.
pub(super) const WORDS: [&str; 314] = [
    "the",
    "and",
    "that",
    "have",
    "for",
    "not",
    "with",
    "you",
    "this",
    "but",
    "his",
    "from",
    "they",
    "say",
    "her",
    "she",
    "will",
    "one",
    "all",
    "would",
    "there",
    "their",
    "what",
    "out",
    "about",
    "who",
    "get",
    "which",
    "when",
    "make",
    "can",
    "like",
    "time",
    "just",
    "him",
    "know",
    "take",
    "people",
    "into",
    "year",
    "your",
    "good",
    "some",
    "could",
    "them",
    "see",
    "other",
    "than",
    "then",
    "now",
    "look",
    "only",
    "come",
    "its",
    "over",
    "think",
    "also",
    "back",
    "after",
    "use",
    "two",
    "how",
    "our",
    "work",
    "first",
    "well",
    "way",
    "even",
    "new",
    "want",
    "because",
    "any",
    "these",
    "give",
    "day",
    "most",
    "are",
    "was",
    "were",
    "been",
    "has",
    "had",
    "did",
    "more",
    "very",
    "much",
    "many",
    "such",
    "where",
    "here",
    "own",
    "while",
    "should",
    "still",
    "between",
    "must",
    "life",
    "being",
    "under",
    "never",
    "same",
    "another",
    "last",
    "might",
    "great",
    "old",
    "off",
    "since",
    "against",
    "right",
    "came",
    "used",
    "three",
    "state",
    "place",
    "without",
    "again",
    "home",
    "around",
    "small",
    "found",
    "however",
    "part",
    "school",
    "every",
    "thought",
    "went",
    "once",
    "upon",
    "high",
    "left",
    "number",
    "course",
    "until",
    "always",
    "away",
    "public",
    "something",
    "fact",
    "water",
    "less",
    "though",
    "far",
    "put",
    "head",
    "called",
    "set",
    "enough",
    "end",
    "took",
    "night",
    "eyes",
    "face",
    "system",
    "better",
    "told",
    "nothing",
    "going",
    "point",
    "city",
    "large",
    "young",
    "often",
    "line",
    "side",
    "light",
    "hand",
    "door",
    "white",
    "road",
    "best",
    "turned",
    "important",
    "almost",
    "power",
    "country",
    "name",
    "later",
    "possible",
    "feet",
    "others",
    "given",
    "social",
    "perhaps",
    "several",
    "history",
    "second",
    "order",
    "body",
    "half",
    "along",
    "human",
    "form",
    "mind",
    "book",
    "among",
    "word",
    "example",
    "action",
    "early",
    "kind",
    "free",
    "full",
    "within",
    "family",
    "death",
    "house",
    "money",
    "field",
    "period",
    "table",
    "reason",
    "voice",
    "center",
    "known",
    "land",
    "sense",
    "story",
    "music",
    "river",
    "stone",
    "paper",
    "north",
    "south",
    "east",
    "west",
    "summer",
    "winter",
    "morning",
    "evening",
    "window",
    "garden",
    "letter",
    "village",
    "market",
    "bridge",
    "horse",
    "ship",
    "bread",
    "green",
    "black",
    "blue",
    "red",
    "gold",
    "silver",
    "iron",
    "glass",
    "wood",
    "fire",
    "cold",
    "warm",
    "deep",
    "short",
    "long",
    "strong",
    "quiet",
    "simple",
    "clear",
    "sharp",
    "slow",
    "quick",
    "rich",
    "poor",
    "heavy",
    "dark",
    "bright",
    "wide",
    "narrow",
    "round",
    "flat",
    "hard",
    "soft",
    "sweet",
    "fresh",
    "clean",
    "safe",
    "rare",
    "common",
    "proper",
    "fair",
    "brave",
    "calm",
    "wild",
    "near",
    "late",
    "soon",
    "plan",
    "move",
    "turn",
    "walk",
    "read",
    "write",
    "speak",
    "hear",
    "feel",
    "hold",
    "keep",
    "bring",
    "build",
    "send",
    "start",
    "stop",
    "open",
    "close",
    "learn",
    "teach",
    "change",
    "follow",
    "answer",
    "question",
    "measure",
    "record",
    "watch",
    "wait",
];

/// Seeded numbers that no release of a random library changes.
pub(super) struct Draw(ChaCha8Rng);

impl Draw {
    pub(super) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A number below `bound`, by the high bits of a product: biased by less than 2^-40 for the bounds here.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.0.next_u64()) * bound as u128) >> 64) as usize
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// `number` words, the same ones for every seed, in an order of the seed's own: all texts of one length have
/// the same number of tokens wherever words are counted apart. Each word follows a space.
pub(super) fn shuffled(from: usize, number: usize, seed: u64) -> String {
    let mut words: Vec<&str> = (from..from + number).map(|at| WORDS[at % WORDS.len()]).collect();
    Draw::new(seed).shuffle(&mut words);
    words.iter().fold(String::with_capacity(number * 6), |mut text, word| {
        text.push(' ');
        text.push_str(word);
        text
    })
}

/// How words become tokens at the server: `fixed + per_word * words`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Line {
    /// The server's template, its begin token.
    pub(super) fixed: f64,
    pub(super) per_word: f64,
}

impl Line {
    /// Through two counts; one token per word if they say nothing else.
    pub(super) fn through(a: (u32, u32), b: (u32, u32)) -> Self {
        let slope = (f64::from(b.1) - f64::from(a.1)) / (f64::from(b.0) - f64::from(a.0));
        let per_word = if slope.is_finite() && slope > 0.1 { slope } else { 1.0 };
        Self { fixed: f64::from(b.1) - per_word * f64::from(b.0), per_word }
    }

    /// Words for `tokens` at the server; at least 1.
    pub(super) fn words(self, tokens: u32) -> u32 {
        ((f64::from(tokens) - self.fixed) / self.per_word).round().clamp(1.0, f64::from(u32::MAX)) as u32
    }

    pub(super) fn tokens(self, words: u32) -> u32 {
        (self.fixed + self.per_word * f64::from(words)).round().max(0.0) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn words_stand_once_and_are_plain() {
        assert_eq!(WORDS.iter().collect::<HashSet<_>>().len(), WORDS.len());
        assert!(WORDS.iter().all(|w| w.bytes().all(|b| b.is_ascii_lowercase())));
    }

    #[test]
    fn texts_of_one_length_hold_the_same_words_in_other_orders() {
        let sorted = |text: &str| {
            let mut words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
            words.sort();
            words
        };
        let (one, two) = (shuffled(5, 700, 1), shuffled(5, 700, 2));
        assert_eq!(one, shuffled(5, 700, 1));
        assert_eq!((sorted(&one), sorted(&one).len()), (sorted(&two), 700));
        // Twelve words of 700 are 113 bits.
        let head = |text: &str| text.split_whitespace().take(12).map(str::to_owned).collect::<Vec<_>>();
        let heads: HashSet<_> = (0..5_000).map(|seed| head(&shuffled(5, 700, seed))).collect();
        assert_eq!(heads.len(), 5_000);
    }

    #[test]
    fn words_for_a_number_of_tokens_follow_from_two_counts() {
        // 7 tokens of template, 1.25 per word.
        let line = Line::through((100, 132), (200, 257));
        assert_eq!((line.words(257), line.tokens(200), line.words(132)), (200, 257, 100));
        assert_eq!(Line::through((100, 120), (200, 220)).words(512), 492);
        // Counts that say nothing: one token per word, and the last count holds.
        assert_eq!(Line::through((5, 9), (5, 9)), Line { fixed: 4.0, per_word: 1.0 });
        assert_eq!(Line::through((5, 9), (6, 9)).words(20), 17);
        assert_eq!(Line { fixed: 70.0, per_word: 1.0 }.words(3), 1);
    }
}
