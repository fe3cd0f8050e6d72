//! May this cell be believed, and if not, why; and was the client the bottleneck.
//!
//! Every cell has a verdict; every reason names the values that led to it. The limits stand with the rules, in
//! the metric crates.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a cell is not to be believed, or what must be known to read it.
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
    /// Where each request asks for lengths of its own: `off` of them deviate by more than 1 %; `requested` and
    /// `worst` are those of the request that deviates most.
    OutputLengths { off: u64, requests: u64, requested: u32, worst: u64 },
    /// Prompt lengths, likewise.
    PromptLengths { off: u64, requests: u64, requested: u32, worst: u64 },
    /// The build has debug assertions or no optimisation.
    DebugBuild,
    /// The run was stopped before all repeats were done.
    Incomplete { have: u32, planned: u32 },
    /// Prompt tokens came from a prefix cache that was not asked for.
    CachedPrompt { tokens: u64 },
    /// The load generator ran late: 99th percentile of sent - intended.
    ScheduleLag { p99_ms: f64, limit_ms: f64 },
    /// The client's own work is too large a part of what it measured.
    ClientBound { bounds: Vec<ClientBound> },
    /// The server did not keep up with an open loop, or the run ended before it could settle: requests intended
    /// and not ended, on average in the second and in the last quarter of the schedule. The figures are right, but
    /// those of a longer run would be others.
    Overloaded { early: f64, late: f64 },
    /// Every expert was computed for every token, also those that the router did not choose: an ablation.
    AllExperts,
    /// Host stamps of a phase and the device's own clock differ in `off` of `batches` batches; times are those of
    /// the batch in which they differ most.
    DeviceClock { off: u32, batches: u32, phase: String, host_ms: f64, device_ms: f64 },
}

impl Reason {
    /// A note tells how to read figures that may be believed.
    pub fn is_note(&self) -> bool {
        matches!(self, Self::Overloaded { .. } | Self::AllExperts | Self::DeviceClock { .. })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = |f: &mut fmt::Formatter<'_>, what, mean: f64, worst, asked| {
            write!(f, "{what} length {mean:.1} on average, {worst} at worst, instead of {asked}")
        };
        let lengths = |f: &mut fmt::Formatter<'_>, what, off, requests, worst, asked| {
            write!(
                f,
                "{what} length of {off} of {requests} requests is off, {worst} instead of {asked} at worst"
            )
        };
        match self {
            Self::NoSuccess { requests } => write!(f, "none of {requests} requests succeeded"),
            Self::OutputLength { requested, actual_mean, worst } => {
                length(f, "output", *actual_mean, worst, requested)
            }
            Self::PromptLength { requested, actual_mean, worst } => {
                length(f, "prompt", *actual_mean, worst, requested)
            }
            Self::OutputLengths { off, requests, requested, worst } => {
                lengths(f, "output", off, requests, worst, requested)
            }
            Self::PromptLengths { off, requests, requested, worst } => {
                lengths(f, "prompt", off, requests, worst, requested)
            }
            Self::DebugBuild => write!(f, "debug build"),
            Self::Incomplete { have, planned } => write!(f, "{have} of {planned} requests"),
            Self::CachedPrompt { tokens } => write!(f, "{tokens} prompt tokens from a cache"),
            Self::ScheduleLag { p99_ms, limit_ms } => {
                write!(f, "schedule lag p99 {p99_ms:.3} ms over {limit_ms} ms")
            }
            Self::ClientBound { bounds } => write!(f, "client-bound: {}", joined(bounds)),
            Self::AllExperts => {
                write!(f, "all experts computed (ablation): not how the model is served")
            }
            Self::Overloaded { early, late } => write!(
                f,
                "overloaded, or too short to settle: {early:.1} requests in flight in the second quarter of the \
                 schedule, {late:.1} in the last; latencies depend on the length of the run"
            ),
            Self::DeviceClock { off, batches, phase, host_ms, device_ms } => write!(
                f,
                "host and device disagree in {off} of {batches} batches: {phase} took {host_ms:.3} ms by the host's \
                 stamps and {device_ms:.3} ms by the device's marks; the host was held up, or its clock is off"
            ),
        }
    }
}

/// `VALID`, or `INVALID` with reasons; notes may stand with either.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Verdict {
    pub reasons: Vec<Reason>,
}

impl Verdict {
    pub fn is_valid(&self) -> bool {
        self.reasons.iter().all(Reason::is_note)
    }

    /// The text of the `verdict` column.
    pub fn key(&self) -> &'static str {
        if self.is_valid() { "VALID" } else { "INVALID" }
    }

    /// The text of the `verdict_reason` column; empty when there is nothing to say.
    pub fn reason_text(&self) -> String {
        joined(&self.reasons)
    }
}

/// One limit that the client broke, with what was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "bound")]
pub enum ClientBound {
    ScheduleLag {
        p99_ms: f64,
        limit_ms: f64,
    },
    CpuShare {
        share: f64,
        limit: f64,
    },
    Stall {
        longest_ms: f64,
        limit_ms: f64,
    },
    LateRounds {
        p99_ms: f64,
        limit_ms: f64,
    },
    AddedTtft {
        p99_ms: f64,
        limit_ms: f64,
    },
    GapError {
        p99_ms: f64,
        limit_ms: f64,
    },
    /// Reads that carried several events while the processor was busy: the client came late to them.
    SharedReads {
        share: f64,
        cpu_share: f64,
    },
}

impl fmt::Display for ClientBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |f: &mut fmt::Formatter<'_>, what, ms: f64, limit_ms: f64| {
            write!(f, "{what} {ms:.3} ms over {limit_ms:.3} ms")
        };
        match *self {
            Self::ScheduleLag { p99_ms, limit_ms } => time(f, "schedule lag p99", p99_ms, limit_ms),
            Self::CpuShare { share, limit } => {
                write!(f, "busiest thread {share:.2} of a core over {limit:.2}")
            }
            Self::Stall { longest_ms, limit_ms } => time(f, "longest stall", longest_ms, limit_ms),
            Self::LateRounds { p99_ms, limit_ms } => time(f, "event loop late by p99", p99_ms, limit_ms),
            Self::AddedTtft { p99_ms, limit_ms } => time(f, "added to TTFT p99", p99_ms, limit_ms),
            Self::GapError { p99_ms, limit_ms } => time(f, "gap error p99", p99_ms, limit_ms),
            Self::SharedReads { share, cpu_share } => {
                write!(f, "{:.0} % of events shared a read at {cpu_share:.2} of a core", share * 100.0)
            }
        }
    }
}

/// Whether the client could keep up with what it measured.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientVerdict {
    pub bounds: Vec<ClientBound>,
}

impl fmt::Display for ClientVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bounds.is_empty() {
            write!(f, "client_ok")
        } else {
            write!(f, "client_bound: {}", joined(&self.bounds))
        }
    }
}

fn joined(parts: &[impl ToString]) -> String {
    parts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
