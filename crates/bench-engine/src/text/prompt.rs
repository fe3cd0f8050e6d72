//! Prompts of exactly N tokens, the chat format included.
//!
//! The body is cut or grown, never the frame around it. Each prompt is other text, decided by seed, split and
//! index alone: no two begin alike, and warm-up and measurement share no sentence, so that no cache of
//! prefixes can help.

use std::ops::Range;
use std::sync::OnceLock;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

use super::corpus::{UNITS, Unit};
use super::error::{Result, TextError};
use super::format::{ChatFormat, Frame};
use super::tokenizer::Tokenizer;

/// What prompts are for; the two never share a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    Warmup,
    Measured,
}

/// A prompt as it is given to the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    pub ids: Vec<u32>,
    /// Where the text lies in `ids`.
    pub body: Range<usize>,
    /// Length of `body`.
    pub body_tokens: usize,
    /// The text, for targets that take text.
    pub text: String,
    /// SHA-256 of the text, in hex.
    pub text_hash: String,
    /// Whether encoding `text` gives the body's ids again; a body of one or two tokens may fail to.
    pub retokenizes: bool,
}

/// Makes prompts for one tokenizer and chat format.
#[derive(Debug)]
pub struct PromptBuilder {
    tokenizer: Tokenizer,
    frame: Frame,
    format: &'static str,
    seed: u64,
    split: Split,
    units: Vec<EncodedUnit>,
    fillers: Vec<(&'static str, u32)>,
}

/// A unit's ids, by whether a space precedes it and a paragraph's end follows; encoded when first used.
#[derive(Debug)]
struct EncodedUnit {
    unit: Unit,
    ids: [OnceLock<Vec<u32>>; 4],
}

/// A unit at its place in a prompt.
#[derive(Debug, Clone, Copy)]
struct Step<'a> {
    unit: &'a EncodedUnit,
    /// A space precedes it.
    space: bool,
    /// A paragraph ends with it.
    ends: bool,
}

impl Step<'_> {
    fn text(self) -> String {
        let (before, after) = (if self.space { " " } else { "" }, if self.ends { BREAK } else { "" });
        format!("{before}{}{after}", self.unit.unit.text)
    }
}

/// Of four units, one is for warm-up.
const WARMUP_SHARE: usize = 4;
/// How many tokens before a bad cut are tried for a better one.
const CUT_WINDOW: usize = 24;
/// Words that fill the gap between a good cut and the length asked for, where the tokenizer has them whole.
const FILLERS: [&str; 17] = [
    " and", " then", " so", " yet", " too", " now", " here", " once", " more", " the", " of", " a", " it",
    " I", "s", "e", ".",
];
const BREAK: &str = "\n\n";

impl PromptBuilder {
    /// Fails if the tokenizer lacks the format's tokens or the template does not show the text.
    pub fn new(tokenizer: &Tokenizer, format: &ChatFormat, seed: u64, split: Split) -> Result<Self> {
        let mine = |index: usize| index.is_multiple_of(WARMUP_SHARE) == (split == Split::Warmup);
        let units = UNITS
            .iter()
            .enumerate()
            .filter(|(index, _)| mine(*index))
            .map(|(_, unit)| EncodedUnit { unit: *unit, ids: [const { OnceLock::new() }; 4] });
        let filler = |text: &'static str| match tokenizer.encode(text).as_deref() {
            Ok([id]) => Some((text, *id)),
            _ => None,
        };
        Ok(Self {
            tokenizer: tokenizer.clone(),
            frame: format.frame(tokenizer)?,
            format: format.name(),
            seed,
            split,
            units: units.collect(),
            fillers: FILLERS.into_iter().filter_map(filler).collect(),
        })
    }

    /// Tokens of the format around the text.
    pub fn overhead(&self) -> usize {
        self.frame.prefix.len() + self.frame.suffix.len()
    }

    /// The `index`-th prompt, of exactly `n` tokens.
    pub fn build(&self, index: u64, n: usize) -> Result<Prompt> {
        let overhead = self.overhead();
        if n <= overhead {
            let minimum = overhead + 1;
            return Err(TextError::PromptTooShort { asked: n, minimum, format: self.format });
        }
        let (body, retokenizes) = self.body(index, n - overhead)?;
        let text = self.tokenizer.decode(&body);
        let text_hash = format!("{:x}", Sha256::digest(text.as_bytes()));
        let range = self.frame.prefix.len()..self.frame.prefix.len() + body.len();
        let ids = [self.frame.prefix.as_slice(), &body, &self.frame.suffix].concat();
        Ok(Prompt { ids, body: range, body_tokens: body.len(), text, text_hash, retokenizes })
    }

    /// Exactly `n` ids of text: a number that no other prompt has, then sentences in this prompt's own order.
    /// Also whether they are the ids of their own text.
    fn body(&self, index: u64, n: usize) -> Result<(Vec<u32>, bool)> {
        let ids = self.body_of_units(index, n)?;
        if self.is_stable(&ids)? {
            return Ok((ids, true));
        }
        let ids = self.body_of_text(index, n)?;
        let stable = self.is_stable(&ids)?;
        Ok((ids, stable))
    }

    fn opening(&self, index: u64) -> String {
        format!("{:09}.", self.number(index))
    }

    /// From the ids of whole sentences. Right wherever a tokenizer cuts between sentences, as byte-level ones
    /// do.
    fn body_of_units(&self, index: u64, n: usize) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode(&self.opening(index))?;
        let mut unit_start = 0;
        for step in self.walk(index) {
            if ids.len() >= n {
                break;
            }
            unit_start = ids.len();
            ids.extend_from_slice(self.unit_ids(step)?);
        }
        if ids.len() > n {
            let tail = self.cut(&ids[unit_start..], n.saturating_sub(unit_start))?;
            ids.truncate(n.min(unit_start));
            ids.extend(tail);
        }
        Ok(ids)
    }

    /// From the text as a whole: slower, and right for tokenizers that look across sentences.
    fn body_of_text(&self, index: u64, n: usize) -> Result<Vec<u32>> {
        let mut text = self.opening(index);
        let mut ids = Vec::new();
        // A guess at the length of the text, corrected by what it gave.
        let mut enough = n * 5;
        for step in self.walk(index) {
            text.push_str(&step.text());
            if text.len() < enough {
                continue;
            }
            ids = self.tokenizer.encode(&text)?;
            if ids.len() > n {
                break;
            }
            enough = text.len() * (n + 16) / ids.len().max(1);
        }
        self.cut(&ids, n)
    }

    /// Units in the order of prompt `index`, without end, and where its paragraphs end.
    fn walk(&self, index: u64) -> impl Iterator<Item = Step<'_>> {
        let mut order = Order::new(self.seed, self.split, index, self.units.len());
        let mut space = true;
        let mut left_in_paragraph = order.paragraph();
        std::iter::repeat_with(move || {
            let (unit, next) = (&self.units[order.current()], &self.units[order.following()]);
            left_in_paragraph -= 1;
            let ends = unit.unit.block || next.unit.block || left_in_paragraph == 0;
            if ends {
                left_in_paragraph = order.paragraph();
            }
            order.advance();
            let step = Step { unit, space, ends };
            space = !ends;
            step
        })
    }

    /// Nine digits, unlike those of any other index below 5e8 and of the other split. Steps of the golden
    /// ratio make neighbours differ in the first digits already.
    fn number(&self, index: u64) -> u64 {
        const RANGE: u64 = 1_000_000_000;
        // 0.618 of the range, and prime to it.
        const STEP: u64 = 618_033_989;
        let position = (index % (RANGE / 2)) * 2 + u64::from(self.split == Split::Warmup);
        (position * STEP + self.seed % RANGE) % RANGE
    }

    fn unit_ids<'a>(&self, step: Step<'a>) -> Result<&'a [u32]> {
        let cell = &step.unit.ids[usize::from(step.space) * 2 + usize::from(step.ends)];
        if let Some(ids) = cell.get() {
            return Ok(ids);
        }
        let ids = self.tokenizer.encode(&step.text())?;
        Ok(cell.get_or_init(|| ids))
    }

    /// `n` ids that begin as `ids` and encode to themselves: cut between words, the gap filled with short
    /// words.
    fn cut(&self, ids: &[u32], n: usize) -> Result<Vec<u32>> {
        for length in (n.saturating_sub(CUT_WINDOW)..=n).rev() {
            let mut candidate = ids[..length].to_vec();
            let fillers = self.fillers.iter().cycle().skip(length % self.fillers.len().max(1));
            candidate.extend(fillers.take(n - length).map(|(_, id)| *id));
            if candidate.len() == n && self.is_stable(&candidate)? {
                return Ok(candidate);
            }
        }
        Ok(ids[..n].to_vec())
    }

    /// Whether the ids are those of their own text.
    fn is_stable(&self, ids: &[u32]) -> Result<bool> {
        Ok(self.tokenizer.encode(&self.tokenizer.decode(ids))? == ids)
    }
}

/// An endless walk through the units: every unit once, then all again in another order.
struct Order {
    random: ChaCha8Rng,
    now: Vec<usize>,
    then: Vec<usize>,
    at: usize,
}

impl Order {
    fn new(seed: u64, split: Split, index: u64, units: usize) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"ossbench prompt order 1");
        hash.update(seed.to_le_bytes());
        hash.update([u8::from(split == Split::Warmup)]);
        hash.update(index.to_le_bytes());
        let mut random = ChaCha8Rng::from_seed(hash.finalize().into());
        let now = shuffled(&mut random, units);
        let then = shuffled(&mut random, units);
        Self { random, now, then, at: 0 }
    }

    fn current(&self) -> usize {
        self.now[self.at]
    }

    fn following(&self) -> usize {
        *self.now.get(self.at + 1).unwrap_or(&self.then[0])
    }

    fn advance(&mut self) {
        self.at += 1;
        if self.at == self.now.len() {
            let fresh = shuffled(&mut self.random, self.now.len());
            self.now = std::mem::replace(&mut self.then, fresh);
            self.at = 0;
        }
    }

    /// Sentences of the next paragraph.
    fn paragraph(&mut self) -> usize {
        4 + below(&mut self.random, 4)
    }
}

/// Fisher and Yates, written out so that no release of a random library changes the prompts.
fn shuffled(random: &mut ChaCha8Rng, length: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..length).collect();
    for last in (1..length).rev() {
        order.swap(last, below(random, last + 1));
    }
    order
}

/// A number below `bound`, by the high bits of a product: biased by less than 2^-50 here.
fn below(random: &mut ChaCha8Rng, bound: usize) -> usize {
    ((u128::from(random.next_u64()) * bound as u128) >> 64) as usize
}
