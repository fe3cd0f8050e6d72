//! Text to token ids and back, over the `tokenizers` crate.
//!
//! Wraps one tokenizer.json (or a vocabulary built in memory by `o200k`) and gives every token as raw bytes,
//! so that streams can be cut at any token. Chat formats and prompts are elsewhere.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde::Serialize;
use tokenizers::DecoderWrapper;

use super::error::{Result, TextError};
use super::o200k;

/// A tokenizer; clones share the vocabulary.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    /// Reads special spellings as ordinary text.
    plain: tokenizers::Tokenizer,
    /// Reads special spellings as special tokens. Made when first needed: only chat templates need it.
    special: OnceLock<tokenizers::Tokenizer>,
    special_ids: HashMap<String, u32>,
    specials: HashMap<u32, String>,
    byte_level: bool,
    vocab_size: usize,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.inner.vocab_size)
            .field("specials", &self.inner.special_ids.len())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a tokenizer.json.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|source| TextError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
        Self::from_bytes(&bytes).map_err(|error| match error {
            TextError::BadTokenizer { message, .. } => {
                TextError::BadTokenizer { path: path.to_owned(), message }
            }
            other => other,
        })
    }

    /// Reads the content of a tokenizer.json.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        tokenizers::Tokenizer::from_bytes(bytes).map(Self::wrap).map_err(|error| TextError::BadTokenizer {
            path: PathBuf::from("tokenizer.json"),
            message: error.to_string(),
        })
    }

    /// Reads `tokenizer.json` of a checkpoint folder.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join("tokenizer.json");
        if !path.is_file() {
            return Err(TextError::NoTokenizer { path: folder.as_ref().to_owned() });
        }
        Self::from_file(path)
    }

    /// The tokenizer of gpt-oss, made from the embedded o200k ranks: 199,998 tokens and 21 specials with
    /// their real ids. Built once per process. Ids from 200,019 to the model's 201,088 rows have no spelling.
    pub fn o200k_harmony() -> Result<Self> {
        static BUILT: OnceLock<Tokenizer> = OnceLock::new();
        if let Some(built) = BUILT.get() {
            return Ok(built.clone());
        }
        let built = Self::wrap(o200k::build(o200k::RANKS)?);
        Ok(BUILT.get_or_init(|| built).clone())
    }

    /// The first o200k tokens that fit a vocabulary of `vocab_size` rows, with the Harmony specials, in their
    /// order, as its last rows. A size above the real one gives `o200k_harmony`.
    pub fn o200k_truncated(vocab_size: usize) -> Result<Self> {
        if vocab_size >= o200k::RANKS + o200k::SPECIALS {
            return Self::o200k_harmony();
        }
        let minimum = 256 + o200k::SPECIALS;
        if vocab_size < minimum {
            return Err(TextError::VocabularyTooSmall { asked: vocab_size, minimum });
        }
        o200k::build(vocab_size - o200k::SPECIALS).map(Self::wrap)
    }

    pub(super) fn wrap(mut plain: tokenizers::Tokenizer) -> Self {
        plain.set_encode_special_tokens(true);
        let added = plain.get_added_tokens_decoder();
        let specials: HashMap<u32, String> =
            added.iter().filter(|(_, token)| token.special).map(|(id, t)| (*id, t.content.clone())).collect();
        let special_ids = specials.iter().map(|(id, text)| (text.clone(), *id)).collect();
        let highest = added.keys().copied().max().map_or(0, |id| id as usize + 1);
        let byte_level = matches!(plain.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        let vocab_size = highest.max(plain.get_vocab_size(false));
        let inner = Inner { plain, special: OnceLock::new(), special_ids, specials, byte_level, vocab_size };
        Self { inner: Arc::new(inner) }
    }

    /// Rows that the vocabulary names: the highest id plus one. A model may have more.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// Ids of `text`, in which the spelling of a special token is ordinary text. Adds no special tokens.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        encode(&self.inner.plain, text)
    }

    /// Ids of `text`, in which the spelling of a special token is that token. Adds no special tokens. Never
    /// for text that came from a user.
    pub fn encode_with_specials(&self, text: &str) -> Result<Vec<u32>> {
        let special = self.inner.special.get_or_init(|| {
            let mut special = self.inner.plain.clone();
            special.set_encode_special_tokens(false);
            special
        });
        encode(special, text)
    }

    /// Text of `ids`, specials spelled out; bytes that are no UTF-8 become U+FFFD, ids without a spelling
    /// nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        if !self.inner.byte_level {
            // Sentence-piece decoders treat the first token apart.
            return self.inner.plain.decode(ids, false).unwrap_or_default();
        }
        String::from_utf8_lossy(&self.decode_bytes(ids)).into_owned()
    }

    /// Bytes of `ids`, one after the other.
    pub fn decode_bytes(&self, ids: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for id in ids {
            bytes.extend(self.token_bytes(*id));
        }
        bytes
    }

    /// Bytes of one token, which need not be UTF-8; empty for an id without a spelling (models pad their
    /// rows).
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.inner.plain.id_to_token(id) else {
            return Vec::new();
        };
        if self.inner.specials.contains_key(&id) {
            return token.into_bytes();
        }
        if self.inner.byte_level { o200k::bytes_of_visible(&token) } else { bytes_of_piece(&token) }
    }

    /// Id of a special token by its spelling, such as `<|start|>`.
    pub fn special_id(&self, name: &str) -> Option<u32> {
        self.inner.special_ids.get(name).copied()
    }

    /// Whether `id` is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.specials.contains_key(&id)
    }

    /// Writes tokenizer.json and `tokenizer_config.json` into `folder`, byte for byte those of the real
    /// gpt-oss-20b for `o200k_harmony`.
    pub fn write(&self, folder: impl AsRef<Path>) -> Result<()> {
        let json = self.to_json()?;
        write(&folder.as_ref().join("tokenizer.json"), json.as_bytes())?;
        write(&folder.as_ref().join("tokenizer_config.json"), self.config_json()?.as_bytes())
    }

    /// Content of tokenizer.json.
    pub fn to_json(&self) -> Result<String> {
        self.inner.plain.to_string(true).map_err(|error| TextError::Vocabulary { message: error.to_string() })
    }

    /// Content of `tokenizer_config.json`.
    fn config_json(&self) -> Result<String> {
        let mut ids: Vec<u32> = self.inner.specials.keys().copied().collect();
        ids.sort_unstable();
        let named = |name: &'static str| self.special_id(name).map(|_| name);
        let config = TokenizerConfig {
            added_tokens_decoder: ids
                .iter()
                .map(|id| (id.to_string(), AddedToken::special(&self.inner.specials[id])))
                .collect(),
            bos_token: named("<|startoftext|>"),
            clean_up_tokenization_spaces: false,
            eos_token: named("<|return|>"),
            extra_special_tokens: HashMap::new(),
            model_input_names: ["input_ids", "attention_mask"],
            model_max_length: NO_LIMIT,
            pad_token: named("<|endoftext|>"),
            tokenizer_class: "PreTrainedTokenizerFast",
        };
        serde_json::to_string_pretty(&config)
            .map(|json| json + "\n")
            .map_err(|error| TextError::Vocabulary { message: error.to_string() })
    }
}

/// `int(1e30)` as transformers writes it where a tokenizer has no limit of its own.
const NO_LIMIT: u128 = 1_000_000_000_000_000_019_884_624_838_656;

#[derive(Serialize)]
struct TokenizerConfig<'a> {
    #[serde(serialize_with = "in_order")]
    added_tokens_decoder: Vec<(String, AddedToken<'a>)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bos_token: Option<&'a str>,
    clean_up_tokenization_spaces: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    eos_token: Option<&'a str>,
    extra_special_tokens: HashMap<String, String>,
    model_input_names: [&'a str; 2],
    model_max_length: u128,
    #[serde(skip_serializing_if = "Option::is_none")]
    pad_token: Option<&'a str>,
    tokenizer_class: &'a str,
}

/// Flags of the file, not states of ours.
#[allow(clippy::struct_excessive_bools)]
#[derive(Serialize)]
struct AddedToken<'a> {
    content: &'a str,
    lstrip: bool,
    normalized: bool,
    rstrip: bool,
    single_word: bool,
    special: bool,
}

impl<'a> AddedToken<'a> {
    fn special(content: &'a str) -> Self {
        Self { content, lstrip: false, normalized: false, rstrip: false, single_word: false, special: true }
    }
}

fn in_order<S: serde::Serializer>(
    entries: &[(String, AddedToken)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(entries.iter().map(|(key, value)| (key, value)))
}

/// Writes the tokenizer's two files into a checkpoint folder.
pub fn write_tokenizer(tokenizer: &Tokenizer, folder: impl AsRef<Path>) -> Result<()> {
    tokenizer.write(folder)
}

fn encode(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
    match tokenizer.encode_fast(text, false) {
        Ok(encoding) => Ok(encoding.get_ids().to_vec()),
        Err(error) => {
            Err(TextError::Encode { text: text.chars().take(80).collect(), message: error.to_string() })
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|source| TextError::Io {
        action: "write",
        path: path.to_owned(),
        source,
    })
}

/// Bytes of a sentence-piece token: `▁` is a space, `<0x0A>` is a byte.
fn bytes_of_piece(token: &str) -> Vec<u8> {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    if let Some(byte) = hex.filter(|h| h.len() == 2).and_then(|h| u8::from_str_radix(h, 16).ok()) {
        return vec![byte];
    }
    token.replace('\u{2581}', " ").into_bytes()
}
