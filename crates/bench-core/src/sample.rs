//! One value of one metric, and what a cell's values come to.
//!
//! Missing is `None`. Statistics over samples stand in `stats`; this is their vocabulary, and which of them every
//! metric with samples has.

use crate::event::{CountSource, FailureKind};
use crate::metric::Metric;
use crate::stats::{Clustered, is_bounded, supports};
use crate::verdict::{ClientVerdict, Verdict};

/// One value of one metric for one request (or one gap of it, or one cell).
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub metric: Metric,
    /// The repeat within the cell, 0 for a value of the whole cell: groups what is not independent, the gaps of
    /// one request and the requests of one batch, which share their instants.
    pub request: u32,
    pub value: Option<f64>,
}

/// Which statistic of the samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stat {
    Mean,
    /// Standard deviation with n - 1.
    StdDev,
    Min,
    Max,
    /// Type 7 quantile; 0.5 is written `p50`, 0.999 `p99.9`.
    Quantile(f64),
    /// The metric is one value of the whole cell (throughput, success rate).
    Value,
    /// Requests that failed in this way; written as the kind's key.
    Count(FailureKind),
}

impl Stat {
    /// The text of the `stat` column.
    pub fn key(self) -> String {
        match self {
            Self::Mean => "mean".into(),
            Self::StdDev => "stddev".into(),
            Self::Min => "min".into(),
            Self::Max => "max".into(),
            Self::Value => "value".into(),
            Self::Count(kind) => kind.key().into(),
            Self::Quantile(p) => {
                let percent = format!("{:.4}", p * 100.0);
                format!("p{}", percent.trim_end_matches('0').trim_end_matches('.'))
            }
        }
    }
}

/// How an interval was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntervalMethod {
    /// Binomial order statistics, for quantiles.
    OrderStatistic,
    StudentT,
    /// Studentized bootstrap that resamples whole requests, or whole batches.
    ClusterBootstrap,
    /// Wilson score, for proportions.
    Wilson,
    /// Slope of a line by ordinary least squares, Student's t with n - 2.
    LeastSquares,
    /// 1.96 standard errors to either side, where only a standard error was given.
    StandardError,
}

impl IntervalMethod {
    pub fn key(self) -> &'static str {
        match self {
            Self::OrderStatistic => "order_statistic",
            Self::StudentT => "student_t",
            Self::ClusterBootstrap => "cluster_bootstrap",
            Self::Wilson => "wilson",
            Self::LeastSquares => "least_squares",
            Self::StandardError => "standard_error",
        }
    }
}

/// 95 % interval; an end that the samples cannot bound is `None`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    pub low: Option<f64>,
    pub high: Option<f64>,
    pub method: IntervalMethod,
}

/// One statistic of one metric in one cell.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    pub metric: Metric,
    /// What the figure covers where a cell has several of its kind: `gpu_board`, `process`, a task.
    pub scope: Option<String>,
    pub stat: Stat,
    /// `None` where n does not support it.
    pub value: Option<f64>,
    pub interval: Option<Interval>,
    /// 99th percentile of what the client adds to such a time, in the metric's unit.
    pub instrument_error: Option<f64>,
    /// Samples that went in.
    pub n: u64,
    /// Samples that should have been there and were missing.
    pub missing: u64,
    /// Why samples are missing, as codes with their counts; empty where none is or where it is plain.
    pub missing_reason: String,
    /// For quantiles: n reaches `MLPerf`'s minimum for this percentile.
    pub bounded: Option<bool>,
}

/// Quantiles of every metric that has samples.
const QUANTILES: [f64; 5] = [0.5, 0.9, 0.95, 0.99, 0.999];

impl Estimate {
    /// One value of a whole cell, from `n` samples or requests.
    pub fn of_cell(metric: Metric, value: Option<f64>, n: u64) -> Self {
        Self {
            metric,
            scope: None,
            stat: Stat::Value,
            value,
            interval: None,
            instrument_error: None,
            n,
            missing: u64::from(value.is_none()),
            missing_reason: String::new(),
            bounded: None,
        }
    }

    /// What samples come to: mean, spread, ends, and the quantiles that their number supports, with intervals.
    pub fn of_samples(metric: Metric, samples: &Clustered, missing: u64) -> Vec<Self> {
        let pooled = samples.pooled();
        let n = pooled.n();
        let estimate = |stat, value, interval: Option<Interval>, bounded| Self {
            stat,
            interval: interval.filter(|i| i.low.is_some() || i.high.is_some()),
            missing,
            bounded,
            ..Self::of_cell(metric, value, n)
        };
        let mut estimates = vec![
            estimate(Stat::Mean, pooled.mean(), samples.mean_interval(), None),
            estimate(Stat::StdDev, pooled.std_dev(), None, None),
            estimate(Stat::Min, pooled.min(), None, None),
            estimate(Stat::Max, pooled.max(), None, None),
        ];
        for p in QUANTILES {
            let supported = supports(n, p);
            let value = supported.then(|| pooled.quantile(p)).flatten();
            let interval = supported.then(|| samples.quantile_interval(p)).flatten();
            estimates.push(estimate(Stat::Quantile(p), value, interval, Some(is_bounded(n, p))));
        }
        estimates
    }
}

/// All estimates of one cell with its verdict.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    pub estimates: Vec<Estimate>,
    pub requests: u32,
    pub succeeded: u32,
    /// `None` if no request succeeded.
    pub token_source: Option<TokenSource>,
    pub verdict: Verdict,
    /// `None` in-process, and where the client did not watch itself.
    pub client: Option<ClientVerdict>,
}

/// Who counted the output tokens of a cell's successful requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenSource {
    Counted(CountSource),
    /// Nobody: the tokens are those that chunks were taken to bring.
    Chunks,
    /// Not the same for all requests.
    Mixed,
}

impl TokenSource {
    /// What can stand in the `token_source` column.
    pub const KEYS: [&'static str; 5] = ["usage", "token_ids", "tokenizer", "chunks", "mixed"];

    /// The text of the `token_source` column.
    pub fn key(self) -> &'static str {
        match self {
            Self::Counted(CountSource::Usage) => "usage",
            Self::Counted(CountSource::TokenIds) => "token_ids",
            Self::Counted(CountSource::Tokenizer) => "tokenizer",
            Self::Chunks => "chunks",
            Self::Mixed => "mixed",
        }
    }
}
