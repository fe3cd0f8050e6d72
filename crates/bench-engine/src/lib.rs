//! gpt-oss and dense language models on candle, from checkpoint to next token.
//!
//! An ordinary inference library: it knows nothing of benchmarks and imports no other `bench-*` crate but
//! the kernels. It never prints, and it never downloads unless `hub` is called.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod checkpoint;
pub mod config;
pub mod dummy;
pub mod error;
pub mod layout;
pub mod preset;
pub mod text;
pub mod weights;

pub use error::{Error, Result};
