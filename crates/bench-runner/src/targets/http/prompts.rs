//! The prompts of a server's requests, of the length that is asked for as the server counts it.
//!
//! A prompt follows from the plan, its cell and its number alone. With a tokenizer it is exact before it is
//! sent; without one it is made of common words, whose number the server's own counts have corrected (`fit`).
//! What is sent when, and how it is written as JSON, stands elsewhere.

mod fit;
#[cfg(feature = "engine")]
mod vocabulary;
#[cfg(not(feature = "engine"))]
#[path = "prompts/no_vocabulary.rs"]
mod vocabulary;
mod words;

use super::probe::Served;
use crate::load::complete::{estimate, mean, output_tokens, sample_options};
use crate::load::dataset::{Dataset, Pick};
use crate::load::replay::Replay;
use bench_core::load::{Arrival, Load};
use bench_core::plan::{Cell, ModelPlan, Plan, PromptPlan, derive_seed, short_hash};
use bench_core::spec;
use bench_core::target::TargetError;
use bench_core::trace::Lengths;
use bench_http::discover::Questions;
use bench_http::{Api, Message};
use std::collections::BTreeMap;
use std::sync::Arc;
pub(crate) use vocabulary::Vocabulary;
pub(super) use vocabulary::is_gpt_oss;
use words::{Draw, Line};

/// What is sent as the prompt.
pub use bench_http::Prompt as PromptBody;

/// From how many words on their order alone tells prompts apart: 24 words have 79 bits of order.
const ORDERED_WORDS: usize = 24;
/// Words of a prompt that carry its number where there are too few for their order to do so.
const NUMBERED_WORDS: usize = 8;
/// Numbers of the prompts that only find out how the server counts; warm-up prompts have lower ones.
const FIT_NUMBER: u64 = 1 << 40;
/// How often a text is cut anew until its tokens are as many as asked.
const CUTS: usize = 6;

/// One request, ready to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct PreparedRequest {
    pub prompt: PromptBody,
    /// What it asks for. The prompt of a later turn counts what was said before, as far as that is known.
    pub lengths: Lengths,
    /// Whether the server is expected to count exactly `lengths.prompt_tokens`; otherwise it is an estimate.
    pub prompt_is_known: bool,
    /// First 16 hex digits of the SHA-256 of the token ids, or of the text.
    pub hash: String,
    /// What the user says in this turn, for the history of the next; `None` outside of conversations.
    pub said: Option<Arc<str>>,
}

/// A turn that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// [`PreparedRequest::said`].
    pub said: Arc<str>,
    /// The answer's text, without reasoning.
    pub answer: Arc<str>,
    /// Prompt and answer as the server counted them, where it did.
    pub total_tokens: Option<u32>,
}

/// Makes the prompts of one model's cells.
pub struct PromptSource {
    seed: u64,
    api: Api,
    as_ids: bool,
    prompts: PromptPlan,
    /// Where texts come from; `None`: common words.
    vocabulary: Option<Arc<Vocabulary>>,
    /// By length that was asked for: what the server makes of what is sent. With a vocabulary one token is
    /// one token, and the rest is what the server adds.
    lines: BTreeMap<u32, Line>,
    /// Whether any count of the server was seen.
    counted: bool,
    /// First ids of every prompt of a cell, by its id; and the cell's place in the plan.
    shared: BTreeMap<String, (u64, Vec<u32>)>,
    given: Given,
}

/// Prompts or lengths that come from a file.
enum Given {
    Nothing,
    Replay(Replay),
    Dataset(Picks),
}

/// The requests of a dataset, in their order.
struct Picks {
    list: Vec<Picked>,
    mean_output_tokens: u32,
}

struct Picked {
    text: Arc<str>,
    /// Tokens of the text alone, by the tokenizer.
    prompt_tokens: Option<u32>,
    /// As the dataset has it; estimated where there is no tokenizer to count an answer.
    output_tokens: u32,
}

/// Which prompt of a cell.
#[derive(Clone, Copy)]
struct Which<'a> {
    cell: &'a Cell,
    /// Unique among the cell's prompts of its kind.
    number: u64,
    /// Turn of a conversation.
    turn: u32,
    warmup: bool,
}

impl PromptSource {
    /// Makes the source of `model`'s prompts and has the server count one of each length. Also what is to be
    /// said about the lengths.
    ///
    /// # Errors
    /// A file that cannot be read or is another one than planned, a length that is too short for the chat
    /// format or too long for the model, a server that is gone.
    pub async fn open(
        questions: &Questions<'_>,
        plan: &Plan,
        model: &ModelPlan,
        served: &Served,
    ) -> Result<(Self, Vec<String>), TargetError> {
        let vocabulary = served.vocabulary.clone();
        let mut source = Self::new(plan, model, served, vocabulary)?;
        let mut notes = source.remarks();
        source.fit(questions, plan, model, served, &mut notes).await?;
        source.check_context(plan, model, served)?;
        Ok((source, notes))
    }

    fn new(
        plan: &Plan,
        model: &ModelPlan,
        served: &Served,
        vocabulary: Option<Arc<Vocabulary>>,
    ) -> Result<Self, TargetError> {
        let server = plan.server.as_ref();
        let server = server.ok_or_else(|| TargetError("the plan has no server".to_owned()))?;
        let own = || plan.cells.iter().filter(|cell| cell.model == model.label);
        let replays = own().any(|c| matches!(&c.load, Load::Open { arrival: Arrival::Replay { .. }, .. }));
        let mut source = Self {
            seed: derive_seed(plan.seed, &format!("prompts/{}", model.label)),
            api: served.api,
            as_ids: served.api == Api::Completions && served.capabilities.prompt_ids && vocabulary.is_some(),
            prompts: server.prompts.clone(),
            vocabulary,
            lines: BTreeMap::new(),
            counted: false,
            shared: BTreeMap::new(),
            given: Given::Nothing,
        };
        if let (true, Some(trace)) = (replays, &server.trace) {
            source.given = Given::Replay(Replay::open_planned(trace).map_err(failed)?);
        } else if server.prompts.dataset != spec::Dataset::Random {
            let most = own().map(Cell::requests).max().unwrap_or(1);
            source.given = Given::Dataset(source.pick(plan, model, most)?);
        }
        for (place, cell) in (0..).zip(own()) {
            let seed = source.seed_of(cell, "shared");
            let tokens = server.prompts.shared_prefix_tokens as usize;
            let prefix = match &source.vocabulary {
                // A number of its own among warm-up's: no measured prompt begins with it by chance.
                Some(vocabulary) => vocabulary.prose(seed >> 8, tokens, true)?,
                None => Vec::new(),
            };
            source.shared.insert(cell.id.clone(), (place, prefix));
        }
        Ok(source)
    }

    /// The requests of a dataset, the same ones for every model: the first model's tokenizer decides which
    /// prompts are short enough and how long the answers are.
    fn pick(&self, plan: &Plan, model: &ModelPlan, requests: u32) -> Result<Picks, TargetError> {
        let dataset = Dataset::open_planned(&self.prompts).map_err(failed)?;
        let dataset = dataset.ok_or_else(|| failed("the plan names no dataset"))?;
        let first = plan.models.first().filter(|first| first.label != model.label);
        let of_first = match first {
            Some(first) => Vocabulary::open(plan, first)?.map(Arc::new),
            None => self.vocabulary.clone(),
        };
        let count = |text: &str| of_first.as_ref().map(|v| v.count(text)).transpose();
        let options = sample_options(self.prompts.dataset, requests, plan.seed);
        let sample =
            dataset.sample(&options, |text| count(text).map_err(crate::Error::from)).map_err(failed)?;
        let picked = |pick: &Pick| {
            let prompt = &dataset.prompts[pick.prompt];
            let own = self.vocabulary.as_ref().map(|v| v.count(&prompt.text)).transpose()?;
            Ok(Picked {
                text: prompt.text.as_ref().into(),
                prompt_tokens: own,
                output_tokens: output_tokens(prompt, pick),
            })
        };
        let list: Vec<Picked> = sample.picks.iter().map(picked).collect::<Result<_, TargetError>>()?;
        Ok(Picks { mean_output_tokens: mean(list.iter().map(|p| p.output_tokens)), list })
    }

    fn remarks(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if matches!(self.given, Given::Dataset(_)) && self.prompts.salt {
            notes.push(
                "the dataset's prompts are sent as they are, without salt: a prefix cache may answer them \
                from the second cell on"
                    .to_owned(),
            );
        }
        match &self.vocabulary {
            Some(v) if self.as_ids && !v.frame().0.is_empty() => notes.push(format!(
                "the first {} tokens of every prompt are the {} format's and the same: a prefix cache may \
                hold them",
                v.frame().0.len(),
                v.format_name()
            )),
            _ => {}
        }
        notes
    }

    /// Tokens that the chat format puts before every prompt, where prompts are rendered here.
    pub fn common_prefix_tokens(&self) -> u32 {
        match &self.vocabulary {
            Some(v) if self.api == Api::Completions => v.frame().0.len() as u32,
            _ => 0,
        }
    }

    /// Request `index` of `cell` (a conversation where there are turns), in turn `turn` after `history`.
    /// Warm-up prompts are numbered apart and share no salt with measured ones.
    ///
    /// # Errors
    /// A prompt that is too short for the chat format.
    pub fn request(
        &self,
        cell: &Cell,
        index: u64,
        turn: u32,
        warmup: bool,
        history: &[Turn],
    ) -> Result<PreparedRequest, TargetError> {
        let number = index * u64::from(self.prompts.turns.max(1)) + u64::from(turn);
        let which = Which { cell, number, turn, warmup };
        let lengths = self.lengths(which);
        let content = self.content(which, lengths.prompt_tokens)?;
        let before = history.last().and_then(|turn| turn.total_tokens);
        let counted = match (&self.given, warmup) {
            (Given::Dataset(picks), false) => picks.of(number).is_some_and(|p| p.prompt_tokens.is_some()),
            _ => true,
        };
        let said = (self.prompts.turns > 1).then(|| Arc::from(self.text_of(&content)));
        let prompt = self.wrap(content, history)?;
        Ok(PreparedRequest {
            hash: hash(&prompt),
            prompt,
            prompt_is_known: counted && self.counted_here() && history.is_empty(),
            lengths: Lengths {
                prompt_tokens: lengths.prompt_tokens.saturating_add(before.unwrap_or(0)),
                output_tokens: lengths.output_tokens,
            },
            said,
        })
    }

    /// Whether lengths are known at all: from the server, or because ids are what they are.
    fn counted_here(&self) -> bool {
        self.counted || self.as_ids
    }

    /// Lengths of measured request `index` of `cell`, in its first turn.
    pub fn lengths_of(&self, cell: &Cell, index: u64) -> Lengths {
        let number = index * u64::from(self.prompts.turns.max(1));
        self.lengths(Which { cell, number, turn: 0, warmup: false })
    }

    /// What the request asks for; for a prompt of a dataset what it is.
    fn lengths(&self, which: Which<'_>) -> Lengths {
        let Which { cell, number, warmup, .. } = which;
        let (prompt_tokens, output_tokens) = (cell.prompt_tokens, cell.output_tokens);
        match &self.given {
            Given::Replay(replay) if !replay.requests.is_empty() => {
                let request = &replay.requests[(number % replay.requests.len() as u64) as usize];
                Lengths { prompt_tokens: request.prompt_tokens, output_tokens: request.output_tokens }
            }
            Given::Dataset(picks) => match picks.of(number) {
                Some(one) => Lengths {
                    prompt_tokens: self.at_server(one.prompt_tokens.unwrap_or(estimate(&one.text))),
                    output_tokens: picks.answer_length(one, cell),
                },
                None => Lengths { prompt_tokens, output_tokens },
            },
            _ => {
                // The same requests in every cell of these lengths.
                let purpose = if warmup { "lengths/warmup" } else { "lengths" };
                let mut draw = Draw::new(derive_seed(self.seed, purpose) ^ mixed(number));
                let range = self.prompts.length_range;
                let prompt_tokens = around(&mut draw, prompt_tokens, range);
                Lengths { prompt_tokens, output_tokens: around(&mut draw, output_tokens, range) }
            }
        }
    }

    /// What the server makes of a user's text of so many tokens.
    fn at_server(&self, tokens: u32) -> u32 {
        self.line(tokens).tokens(tokens) + self.rendered() as u32
    }

    /// Tokens of the chat format that are rendered here.
    fn rendered(&self) -> usize {
        match &self.vocabulary {
            Some(v) if self.api == Api::Completions => v.frame().0.len() + v.frame().1.len(),
            _ => 0,
        }
    }

    /// What is known of prompts of this length: from the nearest that the server counted.
    fn line(&self, tokens: u32) -> Line {
        let nearest = self.lines.iter().min_by_key(|(asked, _)| asked.abs_diff(tokens));
        nearest.map_or_else(|| self.first_guess(), |(_, line)| *line)
    }

    /// Before the server has counted anything: the chat's frame, where it is known.
    fn first_guess(&self) -> Line {
        let fixed = match &self.vocabulary {
            Some(v) if self.api == Api::Chat => v.frame().0.len() + v.frame().1.len(),
            _ => 0,
        };
        Line { fixed: fixed as f64, per_word: 1.0 }
    }

    /// What the user says: `tokens` of the server's, less what is around it.
    fn content(&self, which: Which<'_>, tokens: u32) -> Result<Content, TargetError> {
        if let (Given::Dataset(picks), false) = (&self.given, which.warmup)
            && let Some(one) = picks.of(which.number)
        {
            return match &self.vocabulary {
                Some(vocabulary) if self.as_ids => Ok(Content::Ids(vocabulary.encode(&one.text)?)),
                _ => Ok(Content::Text(one.text.to_string())),
            };
        }
        let line = self.line(tokens);
        let Some(vocabulary) = &self.vocabulary else {
            return Ok(Content::Text(self.words(which, line.words(tokens) as usize)));
        };
        let around = self.rendered();
        let minimum = around as f64 + line.fixed + 1.0;
        if f64::from(tokens) < minimum {
            let format = vocabulary.format_name();
            return Err(TargetError(format!(
                "cell {}: a prompt of {tokens} tokens is too short, with what the {format} format and the \
                server add it has at least {minimum}: ask for more, or set workload.chat = \"plain\"",
                which.cell.id
            )));
        }
        let own = (f64::from(tokens) - line.fixed) as usize - around;
        if self.as_ids {
            return Ok(Content::Ids(self.ids(vocabulary, which, own)?));
        }
        self.exact_text(vocabulary, which, own).map(Content::Text)
    }

    /// Text that encodes to `tokens` ids: what was cut at the seams of its parts is cut anew.
    fn exact_text(
        &self,
        vocabulary: &Vocabulary,
        which: Which<'_>,
        tokens: usize,
    ) -> Result<String, TargetError> {
        let mut ask = tokens;
        let mut text = String::new();
        for _ in 0..CUTS {
            text = vocabulary.decode(&self.ids(vocabulary, which, ask)?);
            let counted = vocabulary.count(&text)? as usize;
            if counted == tokens {
                break;
            }
            ask = (ask + tokens).saturating_sub(counted).max(1);
        }
        Ok(text)
    }

    /// Exactly `tokens` ids: what the cell shares, the salt, then text of the request's own.
    fn ids(&self, vocabulary: &Vocabulary, which: Which<'_>, tokens: usize) -> Result<Vec<u32>, TargetError> {
        let Which { cell, number, warmup, turn } = which;
        if let (Given::Replay(replay), false) = (&self.given, warmup) {
            return self.blocks(vocabulary, replay, which, tokens);
        }
        let (place, shared) = self.shared.get(&cell.id).map_or((0, &[][..]), |(p, s)| (*p, s.as_slice()));
        // A later turn goes on from what no other conversation has said.
        let mut ids = if turn == 0 { shared[..shared.len().min(tokens)].to_vec() } else { Vec::new() };
        if self.prompts.salt {
            ids.extend(vocabulary.salt(self.salt(which))?);
        }
        ids.truncate(tokens);
        let place = place.wrapping_mul(1 << 20).wrapping_add(number);
        ids.extend(vocabulary.prose(place, tokens - ids.len(), warmup)?);
        Ok(ids)
    }

    /// The recorded blocks of a replayed request, cut to `tokens` or filled up to them.
    fn blocks(
        &self,
        vocabulary: &Vocabulary,
        replay: &Replay,
        which: Which<'_>,
        tokens: usize,
    ) -> Result<Vec<u32>, TargetError> {
        let index = (which.number % replay.requests.len().max(1) as u64) as usize;
        let pieces = replay.prompt_pieces(index, self.seed_of(which.cell, "blocks")).unwrap_or_default();
        let mut ids = Vec::with_capacity(tokens);
        for piece in pieces {
            ids.extend(vocabulary.block(piece.seed, piece.tokens as usize)?);
        }
        if ids.len() < tokens {
            ids.extend(vocabulary.block(self.salt(which), tokens - ids.len())?);
        }
        ids.truncate(tokens);
        Ok(ids)
    }

    /// `number` words without a vocabulary.
    fn words(&self, which: Which<'_>, number: usize) -> String {
        if let (Given::Replay(replay), false) = (&self.given, which.warmup) {
            return self.worded_blocks(replay, which, number);
        }
        let shared = if which.turn == 0 { self.prompts.shared_prefix_tokens as usize } else { 0 };
        let shared = shared.min(number);
        let mut text = words::shuffled(0, shared, self.seed_of(which.cell, "shared"));
        let mut own = number - shared;
        if own < ORDERED_WORDS && self.prompts.salt {
            let salt = self.salt(which).to_le_bytes();
            for byte in salt.iter().take(own.min(NUMBERED_WORDS)) {
                text.push(' ');
                text.push_str(words::WORDS[usize::from(*byte)]);
            }
            own -= own.min(NUMBERED_WORDS);
        }
        text.push_str(&words::shuffled(shared, own, self.salt(which)));
        text
    }

    fn worded_blocks(&self, replay: &Replay, which: Which<'_>, number: usize) -> String {
        let index = (which.number % replay.requests.len().max(1) as u64) as usize;
        let pieces = replay.prompt_pieces(index, self.seed_of(which.cell, "blocks")).unwrap_or_default();
        let total: u32 = pieces.iter().map(|piece| piece.tokens).sum();
        // A block has the same number of words wherever it stands.
        let per_token = number as f64 / f64::from(total.max(1));
        let mut left = number;
        let mut text = String::new();
        for (at, piece) in pieces.iter().enumerate() {
            let last = at + 1 == pieces.len();
            let wanted = if last { left } else { (f64::from(piece.tokens) * per_token).round() as usize };
            let words = wanted.min(left);
            text.push_str(&words::shuffled(0, words, piece.seed));
            left -= words;
        }
        text
    }

    /// 64 bits that no other prompt of the cell has: a bijection of its number and kind.
    fn salt(&self, which: Which<'_>) -> u64 {
        let kind = u64::from(which.warmup) << 63;
        mixed(self.seed_of(which.cell, "salt").wrapping_add(which.number | kind))
    }

    fn seed_of(&self, cell: &Cell, purpose: &str) -> u64 {
        derive_seed(self.seed, &format!("{purpose}/{}", cell.id))
    }

    fn text_of(&self, content: &Content) -> String {
        match (content, &self.vocabulary) {
            (Content::Text(text), _) => text.clone(),
            (Content::Ids(ids), Some(vocabulary)) => vocabulary.decode(ids),
            (Content::Ids(_), None) => String::new(),
        }
    }

    /// The content as the API takes it, with what was said before.
    fn wrap(&self, content: Content, history: &[Turn]) -> Result<PromptBody, TargetError> {
        if self.api == Api::Chat {
            let text = self.text_of(&content);
            if self.prompts.turns <= 1 {
                return Ok(PromptBody::Text(text));
            }
            let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
            let said = history
                .iter()
                .flat_map(|turn| [message("user", &turn.said), message("assistant", &turn.answer)]);
            return Ok(PromptBody::Messages(said.chain([message("user", &text)]).collect()));
        }
        let Some(vocabulary) = &self.vocabulary else {
            let mut text: String =
                history.iter().flat_map(|turn| [&*turn.said, &*turn.answer, "\n\n"]).collect();
            text.push_str(&self.text_of(&content));
            return Ok(PromptBody::Text(text));
        };
        let ids = if history.is_empty() {
            let (before, after) = vocabulary.frame();
            match content {
                Content::Ids(ids) => [before, &ids, after].concat(),
                // The text is sent as it was cut, not as its ids spell it.
                Content::Text(text) => {
                    let around = (vocabulary.decode(before), vocabulary.decode(after));
                    return Ok(PromptBody::Text(format!("{}{text}{}", around.0, around.1)));
                }
            }
        } else {
            let text = self.text_of(&content);
            let mut turns: Vec<(bool, &str)> =
                history.iter().flat_map(|turn| [(true, &*turn.said), (false, &*turn.answer)]).collect();
            turns.push((true, &text));
            vocabulary.conversation(&turns)?
        };
        Ok(if self.as_ids { PromptBody::Tokens(ids) } else { PromptBody::Text(vocabulary.decode(&ids)) })
    }
}

impl Picks {
    /// The `number`-th, from the beginning again after the last.
    fn of(&self, number: u64) -> Option<&Picked> {
        (!self.list.is_empty()).then(|| &self.list[(number % self.list.len() as u64) as usize])
    }

    /// The dataset's own length where the cell has the dataset's mean; else the cell's, for every answer.
    fn answer_length(&self, one: &Picked, cell: &Cell) -> u32 {
        if cell.output_tokens == self.mean_output_tokens { one.output_tokens } else { cell.output_tokens }
    }
}

/// What the user says.
enum Content {
    Ids(Vec<u32>),
    Text(String),
}

/// Even in `[(1 - range) * length, (1 + range) * length]`.
fn around(draw: &mut Draw, length: u32, range: f64) -> u32 {
    let low = (f64::from(length) * (1.0 - range)).ceil().max(1.0) as u32;
    let high = (f64::from(length) * (1.0 + range)).floor() as u32;
    low + draw.below((high.saturating_sub(low) + 1) as usize) as u32
}

/// A bijection of 64 bits in which neighbours have nothing in common (the finalizer of `SplitMix64`).
fn mixed(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

fn hash(prompt: &PromptBody) -> String {
    match prompt {
        PromptBody::Text(text) => short_hash(text.as_bytes()),
        PromptBody::Tokens(ids) => {
            short_hash(&ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>())
        }
        PromptBody::Messages(messages) => {
            // Strings always have a JSON form.
            short_hash(serde_json::to_string(messages).unwrap_or_default().as_bytes())
        }
    }
}

fn failed(error: impl std::fmt::Display) -> TargetError {
    TargetError(error.to_string())
}

#[cfg(all(test, feature = "engine"))]
mod tests;
