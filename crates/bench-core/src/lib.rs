//! The words of a measurement, shared by everything that measures, stores or reports.
//!
//! Spec as written, plan as resolved, events as they came, traces, samples, statistics, verdicts, rows.
//! This crate does no I/O, knows no async runtime, and never reads a clock that was not handed to it,
//! but for the one monotonic clock that it defines.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod client;
pub mod clock;
pub mod detail;
pub mod event;
pub mod load;
pub mod memory;
pub mod metric;
mod packed;
pub mod plan;
pub mod power;
pub mod probe;
pub mod provenance;
pub mod reference;
pub mod row;
pub mod sample;
pub mod shape;
pub mod spec;
pub mod stats;
pub mod target;
pub mod trace;
pub mod unit;
pub mod verdict;

/// Version of every stored format: raw traces, plan, rows. It grows when a column or a definition changes.
pub const SCHEMA_VERSION: u32 = 3;

/// What can be wrong with a spec, a plan or a stored trace.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{origin}: {message}")]
    Spec { origin: String, message: String },
    #[error("`{key}` = {value}: {expected}")]
    Value { key: &'static str, value: String, expected: String },
    #[error("unknown metric \"{key}\"; valid: {valid}")]
    UnknownMetric { key: String, valid: String },
    #[error("trace of cell {cell}, repeat {repeat}: {message}")]
    Trace { cell: String, repeat: u32, message: String },
    #[error("{value} among {n} samples: only finite numbers can be summarised; leave out what is missing")]
    NotFinite { value: f64, n: u64 },
}
