//! What pictures need of a cell and rows do not hold: shapes of distributions, one request's tokens, power over
//! time.
//!
//! Reduced where it is made to a size that does not grow with the run, so that a report of millions of samples
//! carries a few kilobytes a cell. Nothing is decided from it: every figure that is quoted stands in a row.

use crate::metric::Metric;
use crate::plan::Cell;

/// Steps of a distribution, at most.
pub const MAX_STEPS: usize = 512;
/// Chunks of a timeline and samples of a power trace, at most; further ones are left out and counted.
pub const MAX_POINTS: usize = 4096;

/// One cell, beyond its rows.
#[derive(Debug, Clone, PartialEq)]
pub struct CellDetail {
    pub cell: Cell,
    /// Files of its trials, relative to the run's folder, rounds ascending.
    pub raw: Vec<String>,
    pub distributions: Vec<Distribution>,
    /// The first measured request that succeeded, and the one with the longest gap where that is another.
    pub timelines: Vec<TokenTimeline>,
    /// One for each device of the cell's first trial that has power.
    pub power: Vec<PowerTimeline>,
}

/// Empirical distribution of a metric over a cell's samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    pub metric: Metric,
    pub n: u64,
    /// Ascending values, each with the share of samples that are not above it; the last share is 1. Every value that
    /// occurs where there are at most [`MAX_STEPS`], else quantiles that keep both ends and are dense in the upper
    /// tail; `stats::Distribution::steps`.
    pub steps: Vec<(f64, f64)>,
}

/// When one request's tokens arrived.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenTimeline {
    pub repeat: u32,
    pub slot: u32,
    /// Instants in ms after `sent`, each with the number of tokens that it brought: consecutive ones, the longest gap
    /// of the request with the longest gap among them.
    pub chunks: Vec<(f64, u32)>,
    /// Chunks before and after, where there are more than [`MAX_POINTS`].
    pub left_out: u64,
}

/// Power of one device during a trial; the instants are seconds after the first sample of any device.
#[derive(Debug, Clone, PartialEq)]
pub struct PowerTimeline {
    /// `gpu_board.0`.
    pub scope: String,
    pub device: String,
    /// Seconds and watts; a reading that failed, or that no device can mean, is `None`. Where power is the mean
    /// between two readings of a counter, both ends of that time are there.
    pub samples: Vec<(f64, Option<f64>)>,
    /// What the requests of the trial did, in order of time; they may overlap where requests do. At most
    /// [`MAX_POINTS`].
    pub phases: Vec<Phase>,
    /// Power of the idle machine before the run.
    pub idle_w: Option<f64>,
    /// Samples beyond [`MAX_POINTS`].
    pub left_out: u64,
}

/// One request's prefill (from `sent` to its first token) or decode (from there to its last).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Phase {
    pub kind: PhaseKind,
    pub from_s: f64,
    pub to_s: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhaseKind {
    Prefill,
    Decode,
}
