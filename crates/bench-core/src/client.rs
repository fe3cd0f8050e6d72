//! What the load generator knows of its own error, and what the server says of itself.
//!
//! Stored with the trials, so that every figure of a server stands beside the error of the instrument.

use crate::unit::Nanos;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How the client fared during one trial.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct ClientHealth {
    /// Threads that sent and read.
    pub threads: u32,
    /// Processor time of the busiest of them / duration of the trial.
    pub cpu_share: Option<f64>,
    /// Processor time of all of them.
    pub cpu_s: f64,
    /// Longest time in which an event loop did not come round, and the 99th percentile of its rounds' lateness.
    pub stall_max_ms: f64,
    pub stall_p99_ms: f64,
    /// Reads that returned bytes, events in them, and events that shared their read with an earlier one.
    pub reads: u64,
    pub events: u64,
    pub shared_events: u64,
    pub connections_opened: u64,
    pub connections_reused: u64,
    /// Connections that were not open when a request wanted one: their opening is part of the schedule lag.
    pub opened_late: u64,
    pub closed_by_server: u64,
}

/// Two quantiles of one error, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ErrorBound {
    pub p50_ms: f64,
    pub p99_ms: f64,
}

/// What the client adds, measured against a loopback server with known token times at a cell's own load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Streams in flight.
    pub concurrency: u32,
    /// Requests per second of an open loop.
    pub rate: Option<f64>,
    pub ttft_ms: f64,
    pub gap_ms: f64,
    pub output_tokens: u32,
    /// Requests, and gaps between tokens, that were compared.
    pub requests: u64,
    pub gaps: u64,
    /// First token read by the client - written by the server, on one clock: what the client, and the socket
    /// between, add to a time to first token.
    pub ttft_added: ErrorBound,
    /// Client's time to first token less the server's own, which begins when the server has read the request:
    /// what a client without the server's clock could see.
    pub ttft_difference: ErrorBound,
    /// Absolute difference of a gap as the client saw it and as the server made it.
    pub gap_error: ErrorBound,
    /// Standard deviation of the signed difference.
    pub gap_error_sd_ms: f64,
    /// Sent - intended.
    pub schedule_lag: ErrorBound,
    /// Token times of the server itself: written - due. Taken out of the figures above.
    pub server_error: ErrorBound,
    /// Tokens per second that were carried.
    pub token_rate: f64,
    pub health: ClientHealth,
}

/// One reading of a server's `/metrics`, under this project's own names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scrape {
    pub at: Nanos,
    pub values: BTreeMap<String, f64>,
}

/// What was found out about a server before the first request.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ServerFacts {
    pub base_url: String,
    /// Product and version as the server says.
    pub server: String,
    /// `completions` or `chat`.
    pub api: String,
    pub max_context: Option<u32>,
    /// Parameters that fix the length of answers or tell tokens apart, and that the server takes.
    pub takes: Vec<String>,
    /// What the reader of the results should know.
    pub notes: Vec<String>,
}

/// Times that a server states for one request, on its own clock.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct ServerTimes {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_ms: Option<f64>,
    /// Arrival, or begin of the prompt where there is no queue time, to first token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// First token to last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_ms: Option<f64>,
}
