//! What happened, when: the raw record from which every metric is derived.
//!
//! A new metric must not need a new run, so events say what arrived and never what it means.

use crate::unit::Nanos;
use serde::{Deserialize, Serialize};

/// Where a token's text belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// The answer proper; also everything of models without channels.
    Final,
    /// Reasoning that a chat client would hide.
    Reasoning,
    /// A tool call's arguments.
    Tool,
    /// Tokens whose channel is not known (in-process runs with end-of-sequence suppressed).
    Unknown,
}

/// Why a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    Length,
    Stop,
    ToolCalls,
    ContentFilter,
}

/// Kinds of failure, counted apart; METRICS.md, "Failures".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    Connect,
    Timeout,
    Status,
    ErrorEvent,
    TruncatedStream,
    BadFrame,
    EmptyAnswer,
    /// The in-process engine refused or failed.
    Engine,
    /// The run was stopped while the request was in flight.
    Interrupted,
}

impl FailureKind {
    /// The text of the `stat` column of the `failures` metric, as in the stored events.
    pub fn key(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Status => "status",
            Self::ErrorEvent => "error_event",
            Self::TruncatedStream => "truncated_stream",
            Self::BadFrame => "bad_frame",
            Self::EmptyAnswer => "empty_answer",
            Self::Engine => "engine",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Who counted the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CountSource {
    Usage,
    TokenIds,
    Tokenizer,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum EventKind {
    /// When the load schedule wanted the request to start.
    Intended,
    /// First byte handed to the socket, or the engine called.
    Sent,
    /// First byte of the response.
    FirstByte,
    /// A chunk that carries no token: role only, empty, usage only, keep-alive.
    EmptyChunk,
    /// A chunk that brings `count` output tokens with one stamp.
    Tokens {
        count: u32,
        channel: Channel,
    },
    /// Token counts, and who counted.
    Counted {
        prompt_tokens: u32,
        output_tokens: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cached_prompt_tokens: Option<u32>,
        source: CountSource,
    },
    Done {
        finish: FinishReason,
    },
    Failed {
        failure: FailureKind,
        message: String,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub at: Nanos,
    #[serde(flatten)]
    pub kind: EventKind,
}
