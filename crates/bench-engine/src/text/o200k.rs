//! The o200k vocabulary of gpt-oss, rebuilt from the ranks that `tiktoken-rs` embeds.
//!
//! tiktoken merges by rank of the merged bytes; `tokenizers` merges by a list of pairs. The list is every
//! split of every token into two tokens, in rank order, which is also what the published tokenizer.json
//! holds.

use std::collections::HashMap;
use std::sync::LazyLock;

use rayon::prelude::*;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::error::{Result, TextError};

/// Ordinary tokens of `o200k_base`; ids 0 to 199,997.
pub(super) const RANKS: usize = 199_998;
/// Special tokens that tokenizer.json names, ids 199,998 to 200,018.
pub(super) const SPECIALS: usize = 21;

/// The split pattern of o200k, from the published tokenizer.json.
const PATTERN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// Spelling of the special token with the real id `199_998 + offset`.
fn special_name(offset: usize) -> String {
    let name = match RANKS + offset {
        199_998 => "startoftext",
        199_999 => "endoftext",
        200_002 => "return",
        200_003 => "constrain",
        200_005 => "channel",
        200_006 => "start",
        200_007 => "end",
        200_008 => "message",
        200_012 => "call",
        200_018 => "endofprompt",
        id => return format!("<|reserved_{id}|>"),
    };
    format!("<|{name}|>")
}

/// Byte-level BPE over the first `ranks` tokens of o200k, the specials right after them.
pub(super) fn build(ranks: usize) -> Result<tokenizers::Tokenizer> {
    let failed = |error: tokenizers::Error| TextError::Vocabulary { message: error.to_string() };
    let tokens = tokens(ranks)?;
    let vocab: Vocab = tokens.iter().cloned().zip(0..).collect();
    let merges = merges(&tokens, &vocab);
    let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(true).build().map_err(failed)?;

    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let split = Split::new(SplitPattern::Regex(PATTERN.to_owned()), SplitDelimiterBehavior::Isolated, false)
        .map_err(failed)?;
    let pieces: Vec<PreTokenizerWrapper> = vec![split.into(), ByteLevel::new(false, true, false).into()];
    tokenizer.with_pre_tokenizer(Some(Sequence::new(pieces)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.with_post_processor(Some(ByteLevel::default().trim_offsets(false)));
    let specials = (0..SPECIALS).map(|offset| AddedToken::from(special_name(offset), true).normalized(false));
    tokenizer.add_special_tokens(specials).map_err(failed)?;
    Ok(tokenizer)
}

/// The first `ranks` tokens in printable characters.
fn tokens(ranks: usize) -> Result<Vec<String>> {
    let failed = |message: String| TextError::Vocabulary { message };
    let encoding = tiktoken_rs::o200k_base().map_err(|error| failed(error.to_string()))?;
    let token = |rank| encoding.decode_bytes(&[rank]).map(|bytes| visible_of_bytes(&bytes));
    (0..ranks as u32)
        .into_par_iter()
        .map(|rank| token(rank).map_err(|error| failed(error.to_string())))
        .collect()
}

/// Every split of every token into two tokens, in rank order of the token, then of its parts.
fn merges(tokens: &[String], vocab: &Vocab) -> Merges {
    let splits = |token: &String| {
        let parts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let pairs = parts.filter_map(|(left, right)| Some((*vocab.get(left)?, *vocab.get(right)?)));
        let mut pairs: Vec<(u32, u32)> = pairs.collect();
        pairs.sort_unstable();
        let token = |id: u32| tokens[id as usize].clone();
        pairs.into_iter().map(move |(left, right)| (token(left), token(right))).collect::<Vec<_>>()
    };
    tokens.par_iter().flat_map_iter(splits).collect()
}

/// The printable character that stands for each byte in byte-level vocabularies (GPT-2's table): printable
/// Latin-1 stands for itself, the others follow from U+0100 on.
static VISIBLE: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut table = ['\0'; 256];
    let mut next = 256;
    for byte in 0..=255_u8 {
        let printable = matches!(byte, 33..=126 | 161..=172 | 174..);
        table[usize::from(byte)] = if printable {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
        };
    }
    table
});

static BYTE: LazyLock<HashMap<char, u8>> = LazyLock::new(|| VISIBLE.iter().copied().zip(0..=255).collect());

fn visible_of_bytes(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| VISIBLE[usize::from(*byte)]).collect()
}

/// Bytes that a byte-level token's characters stand for; a character outside the table stands for itself.
pub(super) fn bytes_of_visible(token: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(token.len());
    for character in token.chars() {
        match BYTE.get(&character) {
            Some(byte) => bytes.push(*byte),
            None => bytes.extend(character.to_string().as_bytes()),
        }
    }
    bytes
}
