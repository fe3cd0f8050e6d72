//! gpt-oss and dense language models on candle, from checkpoint to next token.
//!
//! An ordinary inference library: it knows nothing of benchmarks and imports no other `bench-*` crate but
//! the kernels. It never prints, and it never downloads unless `hub` is called.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cache;
pub mod checkpoint;
pub mod config;
#[cfg(feature = "cuda")]
mod cuda;
mod dtype;
pub mod dummy;
pub mod error;
pub mod fidelity;
pub mod hooks;
pub mod hub;
pub mod inspect;
pub mod layout;
pub mod model;
mod ops;
pub mod parity;
pub mod place;
pub mod preflight;
pub mod preset;
pub mod rope;
pub mod sampling;
pub mod session;
pub mod source;
pub mod synth;
pub mod system;
pub mod text;
pub mod weights;

pub use bench_kernels::{Exec, heap};
pub use cache::Sequence;
pub use dtype::Stored;
pub use error::{Error, Result};
pub use hooks::{Hooks, Routing};
pub use model::{
    ActivationDtype, DenseDtype, ExpertMode, KvDtype, LoadNotes, LoadOptions, Logits, MatmulPrecision, Model,
    PackedCache, Progress, Workspace,
};
