//! One attempt: loads the model, fills its context, and says what that took. Runs in a process of its own, so that
//! its peak is that of nothing else.

use super::super::model::{load_options, weights_seed};
use crate::args::FitAttemptArgs;
use crate::{CliError, Io};
use bench_engine::config::{Architecture, ModelConfig};
use bench_engine::sampling::{Sampler, SamplingParams};
use bench_engine::session::{OpenOptions, Session};
use bench_engine::system::{end_with_parent, resident_memory};
use bench_engine::{Hooks, LoadOptions, Model, Sequence, heap, session};
use serde::{Deserialize, Serialize};

/// Tokens that are decoded one by one at the end of the context.
const DECODE_STEPS: usize = 4;

/// What an attempt prints.
// Names end in their unit.
#[allow(clippy::struct_field_names)]
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Taken {
    pub(super) rss_peak_bytes: u64,
    /// Most bytes allocated at once, generated weights included.
    pub(super) heap_peak_bytes: u64,
    /// Most bytes held on a GPU at once, by the engine's own counters; `None` on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) device_peak_bytes: Option<u64>,
    pub(super) weights_bytes: u64,
    /// Of all sequences, at the end.
    pub(super) kv_bytes: u64,
}

pub(crate) fn run(args: &FitAttemptArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    end_with_parent();
    let options = OpenOptions {
        load: load_options(&args.engine)?,
        seed: weights_seed(SEED),
        // Whether it fits is what is found out here.
        context_tokens: 1,
        batch: 1,
        prefill_chunk: 1,
        chat: None,
    };
    let Session { model, tokenizer, .. } = session::open(&args.model, &options, &mut |_| ())?;
    let (context, batch) = (args.context as usize, args.batch as usize);
    let sequences = fill(&model, context, batch, args.prefill_chunk as usize)?;
    let resident = resident_memory()
        .ok_or_else(|| CliError::Failed("the system does not say what a process takes".to_owned()))?;
    let taken = Taken {
        rss_peak_bytes: resident.peak_bytes,
        heap_peak_bytes: heap::peak_bytes(),
        device_peak_bytes: options.load.place.meter().map(|meter| meter.usage().total.peak_bytes),
        weights_bytes: model.weights_bytes(),
        kv_bytes: sequences.iter().map(Sequence::kv_bytes).sum(),
    };
    drop(tokenizer);
    let json = serde_json::to_string(&taken).map_err(|e| CliError::Failed(e.to_string()))?;
    writeln!(io.out, "{json}")?;
    Ok(())
}

const SEED: u64 = 42;

/// Runs a prompt and some decode steps, `context` tokens together, through `batch` sequences.
fn fill(model: &Model, context: usize, batch: usize, chunk: usize) -> Result<Vec<Sequence>, CliError> {
    let steps = DECODE_STEPS.min(context - 1);
    let mut sequences: Vec<Sequence> = (0..batch).map(|_| model.sequence()).collect();
    for sequence in &mut sequences {
        sequence.reserve(context);
    }
    let vocab = model.config().vocab_size;
    let prompts: Vec<Vec<u32>> = (0..batch).map(|i| ids(i * context, context - steps, vocab)).collect();
    let ids: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let mut running: Vec<_> = sequences.iter_mut().collect();
    let mut hooks = Hooks::none();
    let mut greedy = Sampler::new(SamplingParams::default())?;
    let mut workspace = model.workspace();
    let mut logits = model.prefill_in(&mut workspace, &mut running, &ids, chunk, &mut hooks)?;
    for _ in 0..steps {
        let last = (0..batch).map(|row| logits.sample(row, &mut greedy, &[]));
        let last = last.collect::<Result<Vec<u32>, _>>()?;
        logits = model.decode_step_in(&mut workspace, &mut running, &last, &mut hooks)?;
    }
    Ok(sequences)
}

/// Ids without a pattern, so that tokens choose their experts as those of a text do.
fn ids(first: usize, n: usize, vocab: usize) -> Vec<u32> {
    // Multiplicative hashing with the golden ratio of 2^64 (Knuth, volume 3, 6.4).
    let mixed = |i: usize| (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    (first..first + n).map(|i| (mixed(i) % vocab as u64) as u32).collect()
}

/// Runs a small model of the same family, so that code and threads of a forward pass are in memory.
pub(super) fn touch_everything(config: &ModelConfig) -> Result<(), CliError> {
    let name = match config.architecture {
        Architecture::GptOss => "dummy:gpt-oss-tiny",
        Architecture::Qwen3 | Architecture::Llama => "dummy:dense-tiny",
    };
    let options = OpenOptions {
        load: LoadOptions { num_layers: Some(1), ..LoadOptions::default() },
        seed: weights_seed(SEED),
        context_tokens: 1,
        batch: 1,
        prefill_chunk: 1,
        chat: None,
    };
    let model = session::open_model(name, &options, &mut |_| ())?;
    fill(&model, 128, 1, 64).map(drop)
}
