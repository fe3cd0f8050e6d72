//! From a model's name to something that answers: weights, preflight, model, tokenizer, chat format.
//!
//! The one place where these are put together; whoever runs a model opens it here.

use std::path::Path;

use bench_kernels::heap;

use crate::Result;
use crate::config::{Architecture, ModelConfig};
use crate::model::{LoadOptions, Model, Progress};
use crate::preflight::{self, Need};
use crate::source::{ModelRef, Source};
use crate::text::harmony::ReasoningEffort;
use crate::text::{ChatFormat, ChatTemplate, Date, Tokenizer};

/// How a model is to be opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    pub load: LoadOptions,
    /// Seed of generated weights.
    pub seed: u64,
    /// Context and batch that must fit.
    pub context_tokens: usize,
    pub batch: usize,
    pub prefill_chunk: usize,
    /// `None`: no chat format, whatever the model has.
    pub chat: Option<ChatOptions>,
}

/// What a chat format leaves open.
#[derive(Debug, Clone, Copy)]
pub struct ChatOptions {
    /// Date in system prompts.
    pub date: Date,
    pub reasoning_effort: ReasoningEffort,
}

/// A model with its text side.
pub struct Session {
    pub model: Model,
    pub tokenizer: Tokenizer,
    pub format: ChatFormat,
    /// Ids at which an answer ends.
    pub stop_ids: Vec<u32>,
}

/// Opens `model`: a name as [`ModelRef::parse`] reads it.
///
/// # Errors
/// A model that is unknown, broken, or does not fit in memory; a tokenizer that is missing.
pub fn open(model: &str, options: &OpenOptions, progress: &mut dyn FnMut(Progress)) -> Result<Session> {
    let source = ModelRef::parse(model)?.open(options.seed, options.load.num_layers, progress)?;
    let load = fitting(model, &source, options)?;
    let tokenizer = tokenizer(&source)?;
    let format = chat_format(source.folder.as_deref(), &source.config, options)?;
    let stop_ids = format.stop_ids(&tokenizer, &source.config.eos_token_ids);
    // Making a tokenizer leaves several times its size behind.
    heap::trim();
    let model = Model::build(source.config, source.weights.as_ref(), &load, progress)?;
    Ok(Session { model, tokenizer, format, stop_ids })
}

/// Opens `model` without tokenizer and chat format, for callers that bring token ids.
///
/// # Errors
/// As [`open`].
pub fn open_model(model: &str, options: &OpenOptions, progress: &mut dyn FnMut(Progress)) -> Result<Model> {
    let source = ModelRef::parse(model)?.open(options.seed, options.load.num_layers, progress)?;
    let load = fitting(model, &source, options)?;
    Model::build(source.config, source.weights.as_ref(), &load, progress)
}

/// The tokenizer alone, as [`open`] loads it.
///
/// # Errors
/// A tokenizer that is missing or broken, a hub name that is not downloaded.
pub fn open_tokenizer(model: &ModelRef) -> Result<Tokenizer> {
    let tokenizer = match model.folder()? {
        Some(folder) => Tokenizer::from_folder(&folder)?,
        None => Tokenizer::o200k_truncated(model.config()?.vocab_size)?,
    };
    heap::trim();
    Ok(tokenizer)
}

/// The options with passes that fit. What can be refused before weights are read: an ablation that the model does not
/// have, and what does not fit.
fn fitting(model: &str, source: &Source, options: &OpenOptions) -> Result<LoadOptions> {
    options.load.expert_mode.check(&source.config)?;
    let need = options.need(source.folder.is_some());
    let need = preflight::require_at(model, &source.config, &need, &options.load.place)?;
    Ok(LoadOptions { pass_rows: need.pass_rows, ..options.load.clone() })
}

impl OpenOptions {
    /// What preflight is asked; `mapped` for weights that lie in files.
    pub fn need(&self, mapped: bool) -> Need {
        Need {
            context_tokens: self.context_tokens,
            batch: self.batch,
            prefill_chunk: self.prefill_chunk,
            mapped,
            ..Need::of(&self.load)
        }
    }
}

/// The checkpoint's own tokenizer; for generated models o200k, cut to the vocabulary.
fn tokenizer(source: &Source) -> Result<Tokenizer> {
    Ok(match &source.folder {
        Some(folder) => Tokenizer::from_folder(folder)?,
        None => Tokenizer::o200k_truncated(source.config.vocab_size)?,
    })
}

fn chat_format(folder: Option<&Path>, config: &ModelConfig, options: &OpenOptions) -> Result<ChatFormat> {
    let Some(chat) = options.chat else { return Ok(ChatFormat::Plain) };
    let template = match folder {
        Some(folder) => ChatTemplate::from_folder(folder, chat.date)?,
        None => None,
    };
    let is_gpt_oss = config.architecture == Architecture::GptOss;
    Ok(ChatFormat::for_model(is_gpt_oss, template, chat.reasoning_effort, chat.date))
}
