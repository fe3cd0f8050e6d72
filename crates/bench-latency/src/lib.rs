//! From traces to latency: samples, cell figures, estimates with intervals, verdicts.
//!
//! Everything is derived from recorded events; nothing here runs, waits or reads a file. Requests come one at a
//! time and are not kept, so that a cell of a million fits. Definitions stand in `bench_core::metric`, interval
//! arithmetic in `bench_core::stats`.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod analysis;
mod client;
mod device;
mod flight;
mod life;
mod request;
mod sample;
mod server;
mod study;
mod summary;
mod timelines;
mod verdict;
mod window;

pub use analysis::{Analysis, Analyzed};
pub use client::{
    ADDED_SHARE_LIMIT, CPU_SHARE_LIMIT, LATE_ROUNDS_LIMIT_MS, SHARED_CPU_LIMIT, SHARED_READS_LIMIT,
    STALL_LIMIT_MS,
};
pub use request::{Attainment, Ended, ended};
pub use sample::{each_sample, samples};
pub use study::study_rows;
pub use summary::summarise;
pub use verdict::SCHEDULE_LAG_LIMIT_MS;

#[cfg(test)]
mod tests;

/// Why a cell cannot be summarised.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Core(#[from] bench_core::Error),
    #[error("trace of trial {trial} belongs to cell {found}, not to {expected}; pass the traces of one cell")]
    OtherCell { trial: u32, found: String, expected: String },
    #[error(
        "cell {cell}: repeat {repeat}, slot {slot} is recorded twice; a trial was stored under two names"
    )]
    Duplicate { cell: String, repeat: u32, slot: u32 },
}

pub type Result<T> = std::result::Result<T, Error>;
