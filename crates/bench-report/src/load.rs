//! A cell's load as a reader sees it: `batch 4`, `c=64`, `2.5 req/s`.
//!
//! Its words come from the rows; what they mean stands in `bench_core::load`.

use bench_core::row::Row;
use std::fmt;

/// Kind and level of a load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LoadText<'a> {
    /// The `load` column.
    pub kind: &'a str,
    pub batch: u32,
    pub concurrency: Option<u32>,
    pub rate: Option<f64>,
}

impl<'a> LoadText<'a> {
    pub(crate) fn of(row: &'a Row) -> Self {
        Self { kind: &row.load, batch: row.batch, concurrency: row.concurrency, rate: row.request_rate }
    }

    pub(crate) fn is_batch(&self) -> bool {
        self.kind == "batch"
    }

    /// Requests in flight of a closed loop, requests per second of an open one; `None` where there is no level.
    pub(crate) fn level(&self) -> Option<f64> {
        match self.kind {
            "batch" => None,
            "closed" => self.concurrency.map(f64::from),
            _ => self.rate,
        }
    }
}

impl fmt::Display for LoadText<'_> {
    /// A rate without a pattern is Poisson's; a ramp's kind holds its rates.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, self.concurrency, self.rate) {
            ("batch", ..) => return write!(f, "batch {}", self.batch),
            ("closed", Some(concurrency), _) => return write!(f, "c={concurrency}"),
            ("poisson", _, Some(rate)) => write!(f, "{rate} req/s")?,
            (kind, _, Some(rate)) if !kind.contains("ramp") => write!(f, "{rate} req/s {kind}")?,
            (kind, ..) => write!(f, "{kind}")?,
        }
        match self.concurrency {
            Some(most) => write!(f, ", at most {most}"),
            None => Ok(()),
        }
    }
}
