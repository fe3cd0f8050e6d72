//! The tokenizer and chat format of a served model, and texts of an exact number of its tokens.
//!
//! The corpus and its cutting belong to `bench-engine`; in a build without it there is no vocabulary, and the
//! server's own counts decide the lengths.

use super::words::{Draw, WORDS};
use bench_core::plan::{ModelPlan, Plan, derive_seed};
use bench_core::spec::Chat;
use bench_core::target::TargetError;
use bench_engine::config::{Architecture, ModelConfig};
use bench_engine::hub::{self, HubOptions};
use bench_engine::preset;
use bench_engine::source::ModelRef;
use bench_engine::text::harmony::{ReasoningEffort, Role};
use bench_engine::text::{self, ChatFormat, ChatTemplate, Frame, PromptBuilder, Split, Tokenizer};
use std::path::Path;
use std::sync::OnceLock;

/// Words of which one has 8 bits.
const SALT_WORDS: usize = 256;
/// 26^14 is more than 2^64.
const SALT_LETTERS: usize = 14;
/// Tokens of the texts that prose is cut from: about the corpus, of which warm-up has a quarter.
const MEASURED_POOL: usize = 24_000;
const WARMUP_POOL: usize = 8_000;
/// A longer prompt goes on elsewhere in the text.
const WINDOW: usize = 4_096;
/// The branch of a hub model.
const REVISION: &str = "main";

pub(super) type Result<T, E = TargetError> = std::result::Result<T, E>;

/// Tokenizer, format and prompts of one model.
pub(crate) struct Vocabulary {
    tokenizer: Tokenizer,
    format: ChatFormat,
    frame: Frame,
    measured: (PromptBuilder, OnceLock<Pool>),
    warmup: (PromptBuilder, OnceLock<Pool>),
    /// Words that are one token each; empty where the vocabulary has too few of them.
    words: Vec<u32>,
}

/// Text that prose is cut from: made once, so that a prompt costs no tokenizing.
struct Pool {
    ids: Vec<u32>,
    /// Places at which a word begins.
    starts: Vec<usize>,
}

fn fail(error: impl std::fmt::Display) -> TargetError {
    TargetError(format!("tokenizer: {error}"))
}

/// Whether a model of this name is one of gpt-oss.
pub(crate) fn is_gpt_oss(id: &str) -> bool {
    id.to_ascii_lowercase().contains("gpt-oss")
}

impl Vocabulary {
    /// The tokenizer that the plan names for `model`; else that of the model's id where it is a folder or
    /// gpt-oss. `None` where nothing names one.
    ///
    /// # Errors
    /// A tokenizer that was named and cannot be had.
    pub(crate) fn open(plan: &Plan, model: &ModelPlan) -> Result<Option<Self>> {
        let chat = plan.target.chat == Chat::Auto;
        let date = plan.target.date.parse().map_err(fail)?;
        let harmony = ChatFormat::Harmony { reasoning_effort: ReasoningEffort::Medium, date };
        let plain_unless = |format: ChatFormat| if chat { format } else { ChatFormat::Plain };
        let named = match &model.tokenizer {
            Some(name) => Some(ModelRef::parse(name).map_err(fail)?),
            None if Path::new(&model.id).join("tokenizer.json").is_file() => {
                Some(ModelRef::Folder(model.id.clone().into()))
            }
            None => None,
        };
        let (tokenizer, format) = match named {
            Some(ModelRef::Dummy(preset)) => {
                let config = preset::config(&preset).map_err(fail)?;
                let tokenizer = Tokenizer::o200k_truncated(config.vocab_size).map_err(fail)?;
                let is_gpt_oss = config.architecture == Architecture::GptOss;
                (tokenizer, if is_gpt_oss { harmony } else { ChatFormat::Plain })
            }
            Some(ModelRef::Folder(folder)) => of_folder(&folder, harmony, date)?,
            Some(ModelRef::Hub(repo)) => {
                let options = HubOptions::from_env().map_err(fail)?;
                match hub::cached(&repo, REVISION, &options) {
                    Some(folder) => of_folder(&folder, harmony, date)?,
                    // Every gpt-oss has the tokenizer that is embedded; others would come with their weights.
                    None if is_gpt_oss(&repo) => (Tokenizer::o200k_harmony().map_err(fail)?, harmony),
                    None => {
                        return Err(fail(format!(
                            "model \"{repo}\" is not downloaded: give models.tokenizer a folder with its \
                             tokenizer.json, or leave it out and the server's own counts decide"
                        )));
                    }
                }
            }
            None if is_gpt_oss(&model.id) => (Tokenizer::o200k_harmony().map_err(fail)?, harmony),
            None => return Ok(None),
        };
        Self::new(tokenizer, plain_unless(format), plan.seed).map(Some)
    }

    pub(super) fn new(tokenizer: Tokenizer, format: ChatFormat, seed: u64) -> Result<Self> {
        let seed = derive_seed(seed, "prompts");
        let builder = |split| PromptBuilder::new(&tokenizer, &ChatFormat::Plain, seed, split).map_err(fail);
        let single = WORDS.iter().filter_map(|word| {
            let ids = tokenizer.encode(&format!(" {word}")).ok()?;
            (ids.len() == 1).then(|| ids[0])
        });
        let words: Vec<u32> = single.collect();
        Ok(Self {
            frame: format.frame(&tokenizer).map_err(fail)?,
            measured: (builder(Split::Measured)?, OnceLock::new()),
            warmup: (builder(Split::Warmup)?, OnceLock::new()),
            words: if words.len() < SALT_WORDS { Vec::new() } else { words },
            format,
            tokenizer,
        })
    }

    /// Tokens of the chat format around a user's text, before and after it.
    pub(crate) fn frame(&self) -> (&[u32], &[u32]) {
        (&self.frame.prefix, &self.frame.suffix)
    }

    pub(super) fn format_name(&self) -> &'static str {
        self.format.name()
    }

    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode(text).map_err(fail)
    }

    /// Text of `ids`, specials spelled out.
    pub(super) fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids)
    }

    /// Tokens of `text`.
    pub(crate) fn count(&self, text: &str) -> Result<u32> {
        Ok(self.encode(text)?.len() as u32)
    }

    /// Exactly `tokens` ids of prose, from a place in the corpus that `number` decides; warm-up and measured
    /// ones have no sentence in common.
    pub(super) fn prose(&self, number: u64, tokens: usize, warmup: bool) -> Result<Vec<u32>> {
        let (builder, pool) = if warmup { &self.warmup } else { &self.measured };
        let pool = if let Some(pool) = pool.get() {
            pool
        } else {
            let made = self.pool(builder, if warmup { WARMUP_POOL } else { MEASURED_POOL })?;
            pool.get_or_init(|| made)
        };
        let mut draw = Draw::new(number);
        let mut ids = Vec::with_capacity(tokens);
        while ids.len() < tokens {
            let from = pool.starts[draw.below(pool.starts.len())];
            let window = &pool.ids[from..];
            ids.extend_from_slice(&window[..window.len().min(WINDOW).min(tokens - ids.len())]);
        }
        Ok(ids)
    }

    fn pool(&self, builder: &PromptBuilder, tokens: usize) -> Result<Pool> {
        let ids = builder.build(0, tokens).map_err(fail)?.ids;
        let begins = |at: &usize| self.tokenizer.token_bytes(ids[*at]).first() == Some(&b' ');
        let mut starts: Vec<usize> = (0..ids.len()).filter(begins).collect();
        if starts.is_empty() {
            starts.push(0);
        }
        Ok(Pool { ids, starts })
    }

    /// Exactly `tokens` ids that follow from `seed` alone, cheap enough for traces: a shorter one is the
    /// beginning of a longer one wherever the vocabulary has common words whole.
    pub(super) fn block(&self, seed: u64, tokens: usize) -> Result<Vec<u32>> {
        if self.words.is_empty() {
            return self.prose(seed, tokens, false);
        }
        let mut draw = Draw::new(seed);
        Ok((0..tokens).map(|_| self.words[draw.below(self.words.len())]).collect())
    }

    /// 64 bits as text, each value another one: eight words, or letters where words are cut to pieces.
    pub(super) fn salt(&self, bits: u64) -> Result<Vec<u32>> {
        if self.words.is_empty() {
            return self.encode(&letters(bits));
        }
        Ok(bits.to_le_bytes().iter().map(|byte| self.words[usize::from(*byte)]).collect())
    }

    /// A conversation in the model's own format, ready for the next answer.
    pub(super) fn conversation(&self, turns: &[(bool, &str)]) -> Result<Vec<u32>> {
        let turn = |(user, text): &(bool, &str)| {
            text::Turn::new(if *user { Role::User } else { Role::Assistant }, *text)
        };
        let turns: Vec<_> = turns.iter().map(turn).collect();
        self.format.render_chat(&self.tokenizer, &turns).map_err(fail)
    }
}

fn of_folder(folder: &Path, harmony: ChatFormat, date: text::Date) -> Result<(Tokenizer, ChatFormat)> {
    let tokenizer = Tokenizer::from_folder(folder).map_err(fail)?;
    // A folder with nothing but a tokenizer is enough.
    let config = ModelConfig::from_folder(folder).ok();
    let is_gpt_oss = config.is_some_and(|c| c.architecture == Architecture::GptOss);
    let template = ChatTemplate::from_folder(folder, date).map_err(fail)?;
    Ok(match (is_gpt_oss, template) {
        (true, _) => (tokenizer, harmony),
        (false, Some(template)) => (tokenizer, ChatFormat::Template(template)),
        (false, None) => (tokenizer, ChatFormat::Plain),
    })
}

fn letters(mut bits: u64) -> String {
    let letter = |_| {
        let letter = char::from(b'a' + (bits % 26) as u8);
        bits /= 26;
        letter
    };
    std::iter::once(' ').chain((0..SALT_LETTERS).map(letter)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn letters_tell_all_values_apart() {
        let values = [0, 1, 25, 26, u64::MAX, u64::MAX - 1, 1 << 63];
        let texts: HashSet<_> = values.map(letters).into_iter().collect();
        assert_eq!(texts.len(), values.len());
        assert_eq!(letters(27), " bbaaaaaaaaaaaa");
    }

    #[test]
    fn gpt_oss_has_its_words_whole_and_blocks_begin_alike() {
        let vocabulary = Vocabulary::new(Tokenizer::o200k_harmony().unwrap(), ChatFormat::Plain, 1).unwrap();
        assert_eq!(vocabulary.words.len(), WORDS.len());
        let (short, long) = (vocabulary.block(9, 40).unwrap(), vocabulary.block(9, 512).unwrap());
        assert_eq!((short.as_slice(), long.len()), (&long[..40], 512));
        assert_ne!(vocabulary.block(10, 40).unwrap(), short);
        let text = vocabulary.decode(&long);
        assert_eq!(vocabulary.encode(&text).unwrap(), long);
        let salts: HashSet<_> = [0, 1, 255, 256, u64::MAX].map(|bits| vocabulary.salt(bits).unwrap()).into();
        assert_eq!((salts.len(), salts.iter().all(|s| s.len() == 8)), (5, true));
    }
}
