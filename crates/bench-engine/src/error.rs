//! What can go wrong between a checkpoint and the next token: one enum for the crate.

use std::path::PathBuf;

use crate::place::DeviceMemory;
use crate::preflight::gib;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error(transparent)]
    Text(#[from] crate::text::TextError),

    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: std::io::Error },

    #[error("{file}: {reason}")]
    Config { file: String, reason: String },

    #[error("{file}: model type {found:?} is not supported: expected one of {supported}")]
    UnsupportedModelType { file: String, found: String, supported: String },

    #[error("{requested} layers asked for: the model has {available}, expected 1 to {available}")]
    Layers { requested: usize, available: usize },

    #[error("unknown preset {name:?}: expected one of {valid}")]
    UnknownPreset { name: String, valid: String },

    #[error(
        "unknown model {name:?}: expected a folder, org/name of the hub, or dummy:<preset> with one of {presets}{hint}"
    )]
    UnknownModel { name: String, presets: String, hint: String },

    #[error("{repo} is not downloaded yet: `ossbench generate -m {repo} \"Hello\"` brings it{hint}")]
    NotDownloaded { repo: String, hint: String },

    #[error(
        "{model} does not fit in memory: it needs {required} (weights {weights}, KV cache {kv} for {context} \
         tokens), {available} are available; {suggestion}",
        required = gib(*.required), weights = gib(*.weights), kv = gib(*.kv), available = gib(*.available)
    )]
    DoesNotFit {
        model: String,
        /// Bytes, as the next three.
        required: u64,
        weights: u64,
        kv: u64,
        available: u64,
        context: usize,
        suggestion: String,
    },

    #[error(transparent)]
    DoesNotFitOn(Box<DoesNotFit>),

    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Device(bench_kernels::cuda::GpuError),

    #[error("unknown device \"{name}\": expected one of {valid}")]
    UnknownDevice { name: String, valid: &'static str },

    #[error(
        "device \"{name}\": this build has no CUDA; build it with the feature `cuda`, or run it with --device cpu"
    )]
    NoCuda { name: String },

    #[error("{what} does not run on a GPU: valid there: {instead}")]
    OnDevice { what: &'static str, instead: &'static str },

    #[error("a sequence of a model elsewhere: a sequence belongs to the model that made it")]
    OtherSequence,

    #[error(
        "site \"{site}\" does not exist on a GPU, where a fused kernel never writes it: use --device cpu"
    )]
    SiteOnDevice { site: String },

    #[error("{folder} is not a checkpoint: it {problem}", folder = .folder.display())]
    NotACheckpoint { folder: PathBuf, problem: String },

    #[error("{path} {problem}", path = .path.display())]
    BadFile { path: PathBuf, problem: String },

    #[error("tensor \"{tensor}\" is missing in {file}{hint}")]
    MissingTensor { tensor: String, file: String, hint: String },

    #[error("tensor \"{tensor}\" in {file}: {problem}")]
    BadTensor { tensor: String, file: String, problem: String },

    #[error("{what} {name:?} cannot be used: expected {expected}")]
    HubName { what: &'static str, name: String, expected: &'static str },

    #[error("cannot reach {host}: {reason}; give a local folder or dummy:<preset> instead")]
    HubUnreachable { host: String, reason: String },

    #[error("{endpoint} refuses {repo} (status {status}): {advice}")]
    HubAccess { endpoint: String, repo: String, status: u16, advice: String },

    #[error("{endpoint} has no {what}; check the name, or give a local folder or dummy:<preset> instead")]
    HubNotFound { endpoint: String, what: String },

    #[error("{url} {problem}")]
    HubAnswer { url: String, problem: String },

    #[error(
        "{file}: the connection broke after {done} of {total} bytes ({reason}); \
         what is there is kept, run the same command again to go on"
    )]
    HubInterrupted { file: String, done: u64, total: u64, reason: String },

    #[error(
        "{file}: what arrived has the SHA-256 {found}, the hub says {expected}; \
         it was deleted, run the same command again"
    )]
    HubHash { file: String, expected: String, found: String },

    #[error("{folder} has {available} bytes left, the download needs {needed}: free some, or set OSSBENCH_CACHE",
        folder = .folder.display())]
    HubSpace { folder: PathBuf, needed: u64, available: u64 },

    #[error("{folder} is being downloaded by another process: wait for it", folder = .folder.display())]
    HubBusy { folder: PathBuf },

    #[error("token id {id} is outside the vocabulary of {vocab_size} ids")]
    TokenOutOfVocabulary { id: u32, vocab_size: usize },

    #[error("sequence {sequence} of the batch has no token to run: every prompt needs at least one")]
    EmptyPrompt { sequence: usize },

    #[error(
        "a position of {wanted} tokens exceeds max_position_embeddings = {limit}: shorten the prompt or the output"
    )]
    ContextTooLong { wanted: usize, limit: usize },

    #[error("{sequences} sequences but {ids} lists of token ids: expected one list per sequence")]
    BatchMismatch { sequences: usize, ids: usize },

    #[error(
        "logits of {site} contain {count} values that are not numbers: the weights are corrupt or the dtype overflows"
    )]
    NonFiniteLogits { site: String, count: usize },

    #[error("unknown site \"{site}\": valid are {valid}")]
    UnknownSite { site: String, valid: String },

    #[error("site \"{site}\": replacement has shape {found:?}, expected {expected:?}")]
    ReplacementShape { site: String, expected: Vec<usize>, found: Vec<usize> },

    #[error("site \"{site}\" can be read but not replaced")]
    ReadOnlySite { site: String },

    #[error("a forward pass of this sequence failed before it was through: reset the sequence")]
    InterruptedSequence,

    #[error("{what} does not run on device {device} yet: use the CPU")]
    UnsupportedDevice { what: &'static str, device: String },

    #[error("{what}: {problem}")]
    InvalidModel { what: String, problem: String },

    #[error("sampling parameter {name} = {value}: expected {expected}")]
    InvalidSampling { name: &'static str, value: String, expected: &'static str },

    #[error("no token can be sampled: all {vocab_size} logits are suppressed or not finite")]
    NothingToSample { vocab_size: usize },

    #[error(transparent)]
    Alloc(#[from] bench_kernels::host::AllocError),

    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is needed on a GPU, what is free there, and who has the rest.
#[derive(Debug, thiserror::Error)]
#[error(
    "{model} does not fit on {device}: it needs {required} (weights {weights}, KV cache {kv} for {batch} x {context} \
     tokens, activations {activations}), {free} of {total} are free{others}; {suggestion}",
    required = gib(*.required), weights = gib(*.weights), kv = gib(*.kv), activations = gib(*.activations),
    free = gib(.memory.free_bytes), total = gib(.memory.total_bytes), others = held_by_others(*.others, .memory)
)]
pub struct DoesNotFit {
    pub model: String,
    pub device: String,
    /// Bytes, as the next three.
    pub required: u64,
    pub weights: u64,
    pub kv: u64,
    pub activations: u64,
    pub context: usize,
    pub batch: usize,
    pub memory: DeviceMemory,
    /// Bytes of other processes, where they are much.
    pub others: Option<u64>,
    pub suggestion: String,
}

fn held_by_others(others: Option<u64>, memory: &DeviceMemory) -> String {
    let said =
        |bytes| format!(", {} of {} are in use by other processes", gib(bytes), gib(memory.total_bytes));
    others.map_or_else(String::new, said)
}

/// Beginning and end of a text that may repeat what a hostile file says, at any length.
pub(crate) fn excerpt(text: String) -> String {
    const HEAD: usize = 400;
    const TAIL: usize = 200;
    if text.len() <= HEAD + TAIL {
        return text;
    }
    let (head, tail) = (text.floor_char_boundary(HEAD), text.ceil_char_boundary(text.len() - TAIL));
    format!("{}...{}", &text[..head], &text[tail..])
}
