//! `ossbench fit`: the largest context and batch of a model in a given memory, predicted and, if asked, found by trial.
//!
//! What is predicted is the engine's own arithmetic; only what the program itself takes is measured, here. Attempts
//! run in processes of their own (`attempt`), the search among them stands in `verify`.

mod attempt;
mod verify;

pub(crate) use attempt::run as attempt;

use super::model::load_options;
use crate::args::FitArgs;
use crate::{CliError, Io};
use bench_engine::ExpertMode;
use bench_engine::config::ModelConfig;
use bench_engine::preflight::{self, Need, Parts};
use bench_engine::session;
use bench_engine::source::ModelRef;
use bench_engine::system::resident_memory;
use serde::Serialize;
use std::io::Write;
use verify::Verified;

/// Context at which the largest batch is sought when none is given.
const CONTEXT: usize = 4096;

/// Everything that fit found out.
#[derive(Serialize)]
struct Fit {
    model: String,
    /// `cpu`, `cuda:0`.
    device: String,
    memory_bytes: u64,
    activation_dtype: &'static str,
    expert_dtype: &'static str,
    expert_mode: &'static str,
    dense_dtype: &'static str,
    kv_dtype: &'static str,
    prefill_chunk: u32,
    max_context: Largest,
    max_batch: Largest,
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<Verified>,
}

/// A prediction: what is the largest, and what it takes.
#[derive(Debug, Clone, Copy, Serialize)]
struct Largest {
    context_tokens: usize,
    batch: usize,
    /// As many as the model or the search has, not as many as the memory.
    at_limit: bool,
    #[serde(flatten)]
    parts: Parts,
    total_bytes: u64,
}

/// What is asked, resolved.
struct Question<'a> {
    args: &'a FitArgs,
    config: ModelConfig,
    need: Need,
    memory_bytes: u64,
    /// Free where the model would run; `None` where nobody tells.
    available_bytes: Option<u64>,
    program_bytes: u64,
}

pub(crate) fn run(args: &FitArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    let question = Question::ask(args)?;
    let max_context = question.max_context()?;
    let max_batch = question.max_batch(&max_context)?;
    let verified = match args.verify {
        true if args.context.is_some() => Some(verify::batch(&question, &max_batch, io)?),
        true => Some(verify::context(&question, &max_context, io)?),
        false => None,
    };
    let fit = Fit {
        model: args.model.clone(),
        device: args.engine.device().to_owned(),
        memory_bytes: question.memory_bytes,
        activation_dtype: question.need.activation_dtype.name(),
        expert_dtype: question.need.expert_dtype.name(),
        expert_mode: question.need.expert_mode.name(),
        dense_dtype: question.need.dense_dtype.name(),
        kv_dtype: question.need.kv_dtype.name(),
        prefill_chunk: args.prefill_chunk,
        max_context,
        max_batch,
        verified,
    };
    if args.json {
        let json = serde_json::to_string_pretty(&fit).map_err(|e| CliError::Failed(e.to_string()))?;
        writeln!(io.out, "{json}")?;
    } else {
        print(&fit, io.out)?;
    }
    fit.verified.as_ref().map_or(Ok(()), Verified::check)
}

impl<'a> Question<'a> {
    fn ask(args: &'a FitArgs) -> Result<Self, CliError> {
        let model = ModelRef::parse(&args.model)?;
        let options = load_options(&args.engine)?;
        let mut config = model.config()?;
        if let Some(layers) = options.num_layers {
            config = config.with_layers(layers)?;
        }
        options.expert_mode.check(&config)?;
        let limit = config.max_position_embeddings;
        if args.context.is_some_and(|context| context as usize > limit) {
            let problem = format!("is beyond {limit}, the model's max_position_embeddings");
            return Err(CliError::Usage(format!("--context {} {problem}", args.context.unwrap_or(0))));
        }
        let available_bytes = preflight::available(&options.place);
        let memory_bytes = args.memory.or(available_bytes).ok_or_else(|| {
            CliError::Usage("the system does not say how much memory it has: give --memory".to_owned())
        })?;
        let need = Need {
            batch: args.batch as usize,
            prefill_chunk: args.prefill_chunk as usize,
            mapped: !matches!(model, ModelRef::Dummy(_)),
            ..Need::of(&options)
        };
        // On a GPU stands only what the driver takes beside.
        let program_bytes =
            if need.gpu.is_some() { preflight::PROGRAM_BYTES } else { program_bytes(&model)? };
        Ok(Self { args, config, need, memory_bytes, available_bytes, program_bytes })
    }

    fn largest(&self, context_tokens: usize, batch: usize, at_limit: bool) -> Largest {
        let need = Need { context_tokens, batch, ..self.need };
        let parts = preflight::parts(&self.config, &need, self.program_bytes);
        Largest { context_tokens, batch, at_limit, parts, total_bytes: parts.total_bytes() }
    }

    fn predicted_bytes(&self, context_tokens: usize, batch: usize) -> u64 {
        self.largest(context_tokens, batch, false).total_bytes
    }

    /// The largest context of the given batch.
    fn max_context(&self) -> Result<Largest, CliError> {
        let n = preflight::max_context(&self.config, &self.need, self.program_bytes, self.memory_bytes);
        if n == 0 {
            return Err(self.too_small(1, self.need.batch));
        }
        Ok(self.largest(n, self.need.batch, n == self.config.max_position_embeddings))
    }

    /// The largest batch of the given context; where none is given, of one that fits.
    fn max_batch(&self, max_context: &Largest) -> Result<Largest, CliError> {
        let context_tokens =
            self.args.context.map_or(CONTEXT.min(max_context.context_tokens), |context| context as usize);
        let need = Need { context_tokens, ..self.need };
        let n = preflight::max_batch(&self.config, &need, self.program_bytes, self.memory_bytes);
        if n == 0 {
            return Err(self.too_small(context_tokens, 1));
        }
        Ok(self.largest(context_tokens, n, n == preflight::MAX_BATCH))
    }

    fn too_small(&self, context_tokens: usize, batch: usize) -> CliError {
        let Largest { parts, total_bytes, .. } = self.largest(context_tokens, batch, false);
        CliError::Gate(format!(
            "{} does not fit in {} on {}: a context of {context_tokens} with batch {batch} needs {} ({} weights, {} \
             KV cache, {} activations, {} program); give more --memory, fewer --layers, or a smaller model",
            self.args.model,
            size(self.memory_bytes),
            self.args.engine.device(),
            size(total_bytes),
            size(parts.weights_bytes),
            size(parts.kv_bytes),
            size(parts.activation_bytes + parts.workspace_bytes),
            size(parts.program_bytes),
        ))
    }
}

/// What this process takes with the tokenizer loaded, and all code and threads of a forward pass in use.
fn program_bytes(model: &ModelRef) -> Result<u64, CliError> {
    let tokenizer = session::open_tokenizer(model)?;
    attempt::touch_everything(&model.config()?)?;
    let resident = resident_memory().ok_or_else(|| {
        CliError::Failed("the system does not say how much memory a process takes: no /proc".to_owned())
    })?;
    drop(tokenizer);
    Ok(resident.now_bytes + HOLES_BYTES)
}

/// What the system's allocator keeps back while a model runs, activations aside: resident peaks of the nano models
/// at small chunks are up to this much above what was in memory before and what was allocated since.
const HOLES_BYTES: u64 = 3 << 19;

/// Bytes with the digits that a search can tell apart.
fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.1} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

fn print(fit: &Fit, out: &mut dyn Write) -> Result<(), CliError> {
    let Fit { model, device, activation_dtype, expert_dtype, dense_dtype, kv_dtype, prefill_chunk, .. } = fit;
    let all = if fit.expert_mode == ExpertMode::DenseAll.name() { " (all computed)" } else { "" };
    writeln!(out, "{model} in {} on {device}, predicted", size(fit.memory_bytes))?;
    writeln!(
        out,
        "activations {activation_dtype}, KV cache {kv_dtype}, experts {expert_dtype}{all}, attention and \
         unembedding {dense_dtype}, prefill chunk {prefill_chunk}\n"
    )?;
    writeln!(
        out,
        "{:<16} {:>8} {:>7} {:>10} {:>10} {:>11} {:>10} {:>10}",
        "", "context", "batch", "weights", "KV cache", "activations", "program", "total"
    )?;
    for (name, largest) in [("largest context", &fit.max_context), ("largest batch", &fit.max_batch)] {
        let Largest { context_tokens, batch, parts, total_bytes, .. } = largest;
        writeln!(
            out,
            "{name:<16} {context_tokens:>8} {batch:>7} {:>10} {:>10} {:>11} {:>10} {:>10}",
            size(parts.weights_bytes),
            size(parts.kv_bytes),
            size(parts.activation_bytes + parts.workspace_bytes),
            size(parts.program_bytes),
            size(*total_bytes)
        )?;
    }
    if fit.max_context.at_limit {
        writeln!(out, "the largest context is the model's own limit, max_position_embeddings")?;
    }
    fit.verified.as_ref().map_or(Ok(()), |verified| verified.print(out))
}
