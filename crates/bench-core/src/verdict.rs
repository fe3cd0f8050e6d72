//! May this cell be believed, and if not, why.
//!
//! Every cell has a verdict; every reason names the values that led to it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a cell is not to be believed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum Reason {
    /// No request succeeded.
    NoSuccess { requests: u32 },
    /// Output length deviates by more than 1 % from what was asked, on average or in any request; `worst` is
    /// the length of the request that deviates most.
    OutputLength { requested: u32, actual_mean: f64, worst: u64 },
    /// Prompt length, likewise.
    PromptLength { requested: u32, actual_mean: f64, worst: u64 },
    /// The build has debug assertions or no optimisation.
    DebugBuild,
    /// The run was stopped before all repeats were done.
    Incomplete { have: u32, planned: u32 },
    /// Prompt tokens came from a prefix cache that was not asked for.
    CachedPrompt { tokens: u64 },
    /// The load generator ran late: 99th percentile of sent - intended.
    ScheduleLag { p99_ms: f64, limit_ms: f64 },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuccess { requests } => write!(f, "none of {requests} requests succeeded"),
            Self::OutputLength { requested, actual_mean, worst } => {
                write!(
                    f,
                    "output length {actual_mean:.1} on average, {worst} at worst, instead of {requested}"
                )
            }
            Self::PromptLength { requested, actual_mean, worst } => {
                write!(
                    f,
                    "prompt length {actual_mean:.1} on average, {worst} at worst, instead of {requested}"
                )
            }
            Self::DebugBuild => write!(f, "debug build"),
            Self::Incomplete { have, planned } => write!(f, "{have} of {planned} requests"),
            Self::CachedPrompt { tokens } => write!(f, "{tokens} prompt tokens from a cache"),
            Self::ScheduleLag { p99_ms, limit_ms } => {
                write!(f, "schedule lag p99 {p99_ms:.3} ms over {limit_ms} ms")
            }
        }
    }
}

/// `VALID`, or `INVALID` with reasons.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Verdict {
    pub reasons: Vec<Reason>,
}

impl Verdict {
    pub fn is_valid(&self) -> bool {
        self.reasons.is_empty()
    }

    /// The text of the `verdict` column.
    pub fn key(&self) -> &'static str {
        if self.is_valid() { "VALID" } else { "INVALID" }
    }

    /// The text of the `verdict_reason` column; empty when valid.
    pub fn reason_text(&self) -> String {
        self.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }
}
