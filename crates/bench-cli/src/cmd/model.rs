//! Opening a model for `generate`, `chat`, `logits` and `fidelity`: flags to options, progress to a bar.

use crate::args::{EngineArgs, LimitArgs};
use crate::progress::Waiting;
use crate::{CliError, Io};
use bench_core::plan::{Dtypes, derive_seed};
use bench_engine::place::Place;
use bench_engine::session::{ChatOptions, OpenOptions, Session};
use bench_engine::text::harmony::ReasoningEffort;
use bench_engine::{Exec, LoadOptions, Model, PackedCache};
use std::sync::Arc;

/// A model that answers.
pub(crate) struct Opened {
    pub(crate) session: Arc<Session>,
}

pub(crate) fn open(
    model: &str,
    engine: &EngineArgs,
    limits: &LimitArgs,
    io: &mut Io<'_>,
) -> Result<Opened, CliError> {
    let context = CONTEXT.max(2 * limits.max_tokens as usize);
    let options = OpenOptions {
        chat: if limits.plain { None } else { Some(chat_options(limits)?) },
        ..open_options(load_options(engine)?, limits.seed, context)
    };
    let mut bar = Waiting::new(&format!("loading {model}"), io.err);
    let session = bench_engine::session::open(model, &options, &mut |p| bar.set(p.done, p.total, p.unit))?;
    drop(bar);
    say(&session.model, &options.load.place, io)?;
    Ok(Opened { session: Arc::new(session) })
}

/// What loading `model` had to tell, and what is to be said of the place where it was loaded.
pub(crate) fn say(model: &Model, place: &Place, io: &mut Io<'_>) -> Result<(), CliError> {
    for note in model.load_notes().lines() {
        writeln!(io.err, "note: {note}")?;
    }
    warn(place, io)
}

/// What is to be said of the place where a model was loaded.
pub(crate) fn warn(place: &Place, io: &mut Io<'_>) -> Result<(), CliError> {
    match place.note() {
        Some(note) => Ok(writeln!(io.err, "warning: {note}")?),
        None => Ok(()),
    }
}

/// Prompt tokens per forward pass.
pub(crate) const PREFILL_CHUNK: usize = 512;

fn chat_options(limits: &LimitArgs) -> Result<ChatOptions, CliError> {
    Ok(ChatOptions {
        date: limits.date.parse().map_err(bench_engine::Error::from)?,
        reasoning_effort: ReasoningEffort::from_name(&limits.reasoning_effort).unwrap_or_default(),
    })
}

/// Context that preflight makes sure of before a conversation begins.
const CONTEXT: usize = 4096;

/// Seed of generated weights: the same as in a study with this seed.
pub(crate) fn weights_seed(seed: u64) -> u64 {
    derive_seed(seed, "weights")
}

/// Options for one sequence of `context_tokens`, without a chat format.
pub(crate) fn open_options(load: LoadOptions, seed: u64, context_tokens: usize) -> OpenOptions {
    OpenOptions {
        load,
        seed: weights_seed(seed),
        context_tokens,
        batch: 1,
        prefill_chunk: PREFILL_CHUNK,
        chat: None,
    }
}

/// What the flags ask for, with threads of its own.
pub(crate) fn load_options(engine: &EngineArgs) -> Result<LoadOptions, CliError> {
    load_options_of(engine, engine.dtypes())
}

/// The same with other precisions.
pub(crate) fn load_options_of(engine: &EngineArgs, dtypes: Dtypes) -> Result<LoadOptions, CliError> {
    let options = bench_runner::shape::load_options(dtypes, engine.layers);
    Ok(LoadOptions {
        exec: exec(engine)?,
        place: Place::open(engine.device())?,
        packed_cache: PackedCache::from_env()?,
        ..options
    })
}

fn exec(engine: &EngineArgs) -> Result<Exec, CliError> {
    if engine.threads == Some(0) {
        return Err(CliError::Usage("--threads 0: at least 1".to_owned()));
    }
    Ok(bench_engine::system::exec(engine.threads.map(|n| n as usize), engine.pin)?)
}
