//! From readings of memory to figures: weights, KV cache in theory and measured, activations, peaks, slopes.
//!
//! Theory comes from a model's shape, readings from traces; a trial runs elsewhere, and nothing here reads a file
//! but `process`, which asks the kernel about this process. Definitions stand in `bench_core::metric`.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod analysis;
mod device;
mod estimate;
mod process;
mod server;
mod slope;
mod theory;

pub use analysis::{Analysis, CellMemory};
pub use process::{HeapCounters, SystemProbe};
pub use slope::{MIN_CONTEXTS, slopes};
pub use theory::{kv_full_bytes, kv_theory_bytes, tokens_fed, weights_bytes};

#[cfg(test)]
mod tests;
