//! Opening a model for `generate`, `chat` and `logits`: flags to options, progress to a bar.

use crate::args::{EngineArgs, LimitArgs};
use crate::progress::Waiting;
use crate::{CliError, Io};
use bench_core::plan::derive_seed;
use bench_engine::config::ExpertDtype;
use bench_engine::model::{ActivationDtype, LoadOptions};
use bench_engine::session::{ChatOptions, OpenOptions, Session};
use bench_engine::text::harmony::ReasoningEffort;
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
        ..open_options(engine, limits.seed, context)
    };
    set_threads(engine)?;
    let mut bar = Waiting::new(&format!("loading {model}"), io.err);
    let session = bench_engine::session::open(model, &options, &mut |p| bar.set(p.done, p.total, p.unit))?;
    drop(bar);
    Ok(Opened { session: Arc::new(session) })
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
pub(crate) fn open_options(engine: &EngineArgs, seed: u64, context_tokens: usize) -> OpenOptions {
    OpenOptions {
        load: load_options(engine),
        seed: weights_seed(seed),
        context_tokens,
        batch: 1,
        prefill_chunk: PREFILL_CHUNK,
        chat: None,
    }
}

pub(crate) fn load_options(engine: &EngineArgs) -> LoadOptions {
    LoadOptions {
        activation_dtype: match engine.activation_dtype.unwrap_or(bench_core::spec::ActivationDtype::F32) {
            bench_core::spec::ActivationDtype::F32 => ActivationDtype::F32,
            bench_core::spec::ActivationDtype::Bf16 => ActivationDtype::Bf16,
        },
        expert_dtype: match engine.expert_dtype.unwrap_or(bench_core::spec::ExpertDtype::Native) {
            bench_core::spec::ExpertDtype::Native => ExpertDtype::Native,
            bench_core::spec::ExpertDtype::Bf16 => ExpertDtype::Bf16,
        },
        num_layers: engine.layers.map(|n| n as usize),
    }
}

/// Bounds the compute threads of this process.
pub(crate) fn set_threads(engine: &EngineArgs) -> Result<(), CliError> {
    match engine.threads {
        Some(0) => return Err(CliError::Usage("--threads 0: at least 1".to_owned())),
        Some(n) => bench_engine::system::limit_threads(n as usize),
        None => {}
    }
    Ok(())
}
