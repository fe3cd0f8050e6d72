//! Statistics over samples: quantiles, what n supports, and 95 % intervals.
//!
//! Everything here is a pure function of its arguments; the bootstrap draws from a seeded generator.
//! Which metric is summarised how stands in the metric crates, and nothing here knows a metric.

mod cluster;
mod compare;
mod distribution;
mod interval;
mod regression;
mod running;
mod support;
mod tally;

#[cfg(test)]
mod coverage;

pub use cluster::{Clustered, MIN_CLUSTERS};
pub use compare::{
    Bounded, Change, Collector, Comparison, Measured, ROUNDS_AS_UNITS, ROUNDS_DIFFER, Ranked, Samples, Side,
    TESTED_REPEATS, Test, Unit, compare, holm, mann_whitney, shift, smallest_p,
};
pub use distribution::{Distribution, HISTOGRAM_FROM};
pub use interval::{mean_interval, quantile_interval, wilson_interval};
pub use regression::{Line, least_squares};
pub use running::Running;
pub use support::{is_bounded, minimum_bounded_n, minimum_n, supports};
pub use tally::{BATCHES, Tally};

/// Error probability of every interval: 95 % are nominal.
pub const ALPHA: f64 = 0.05;
