//! From a plan to stored traces: targets, trial order, recorder, store, provenance, resume.
//!
//! What comes in is a resolved `Plan`; what goes out is a folder of raw events. Nothing here computes a
//! metric, prints, or handles signals: the caller hands in a stop flag and an observer.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod batch;
pub mod error;
pub mod load;
pub mod observer;
mod plan_diff;
pub mod provenance;
pub mod run;
#[cfg(feature = "engine")]
pub mod shape;
pub mod store;
pub mod targets;
pub mod time;

pub use batch::Batches;
pub use error::{Error, Result};
pub use observer::{Observer, Progress, Quiet};
pub use run::{RunContext, RunOutcome, run};
pub use store::{RunFolder, list_runs};
