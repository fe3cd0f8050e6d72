//! Efficiency per active parameter, beside what a decode step must move and compute.
//!
//! Sizes of a model, the experts that its router counted, and estimates of latency, memory and energy come
//! in; estimates go out. It reads no file and measures nothing: bandwidth and accuracy are handed in as
//! well.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod accuracy;
mod estimates;
mod routing;
mod step;
pub mod study;

pub use accuracy::{Accuracies, Accuracy};
pub use estimates::{ALL_EXPERTS, EXPERTS_NOT_COUNTED, Inputs, METRICS, NO_DECODE_STEP, estimates};
pub use routing::Routing;
pub use step::{Experts, Step};

/// What is wrong with a file that was handed in.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{origin}: {found}; expected {expected}")]
    Accuracy { origin: String, found: String, expected: String },
    #[error("{file}: {message}")]
    Study { file: &'static str, message: String },
}

pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests;
