//! What one trial recorded, and one request's life read from its events.
//!
//! A trace is stored as it came. `Timeline` is the one place where events become instants.

use crate::Error;
use crate::client::{ClientHealth, Scrape, ServerTimes};
use crate::event::{Channel, CountSource, Event, EventKind, FailureKind, FinishReason};
use crate::memory::MemoryTrace;
use crate::power::PowerTrace;
use crate::shape::ExpertUse;
use crate::unit::Nanos;
use serde::{Deserialize, Serialize};

/// Tokens of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lengths {
    pub prompt_tokens: u32,
    pub output_tokens: u32,
}

/// The events of one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestTrace {
    /// Number of the repeat within its cell, over all rounds: a batch, a request, or a conversation. Which
    /// request of the batch, or which turn of the conversation, is `slot`.
    pub repeat: u32,
    pub slot: u32,
    /// Hash of the prompt's token ids, first 16 hex digits of SHA-256.
    pub prompt_hash: String,
    /// Lengths that this request asked for, where they differ from its cell's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Lengths>,
    /// Times that the server stated for this request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerTimes>,
    /// Bytes of KV cache that the engine held for this request at its end, where it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_allocated_bytes: Option<u64>,
    #[serde(with = "crate::packed")]
    pub events: Vec<Event>,
}

/// One trial: all requests of one cell in one round, warm-up apart.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TrialTrace {
    pub schema_version: u32,
    /// Position in the plan's order.
    pub trial: u32,
    pub cell: String,
    pub round: u32,
    /// Measured requests that the plan wanted.
    pub planned_requests: u32,
    /// `false` when the run was stopped inside this trial.
    pub complete: bool,
    /// Wall-clock time at the clock's zero, for people; never used in arithmetic.
    pub started_at_unix_ms: u64,
    pub warmup: Vec<RequestTrace>,
    pub requests: Vec<RequestTrace>,
    /// How the load generator fared; `None` in-process.
    pub client: Option<ClientHealth>,
    /// Readings of the server's `/metrics`, in order of time.
    pub scrapes: Vec<Scrape>,
    /// Of each measured repeat, in-process.
    pub memory: Vec<MemoryTrace>,
    /// Of each measured repeat, of a mixture of experts in-process.
    pub experts: Vec<ExpertUse>,
    /// `None` where nothing could be read.
    pub power: Option<PowerTrace>,
}

/// The part of a trial in which its load was steady; METRICS.md, "Steady window".
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SteadyWindow {
    /// Which of the cell's trials, in the order in which they were taken in, from 0.
    pub trial: u32,
    pub from: Nanos,
    pub to: Nanos,
    /// That arrived after `from` and not after `to`, of requests that succeeded; a fraction where a target's count
    /// is spread over what was seen.
    pub output_tokens: f64,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Finished(FinishReason),
    Failed { failure: FailureKind, message: String },
}

/// One request's instants; METRICS.md, "The life of one request".
#[derive(Debug, Clone, PartialEq)]
pub struct Timeline {
    pub intended: Nanos,
    pub sent: Nanos,
    pub first_byte: Option<Nanos>,
    /// First chunk of any kind, empty ones included.
    pub first_chunk: Option<Nanos>,
    /// First token of the final channel; `None` where channels are not told apart.
    pub first_final: Option<Nanos>,
    /// Chunks that carry tokens: arrival and number of tokens.
    pub chunks: Vec<(Nanos, u32)>,
    pub done: Option<Nanos>,
    pub prompt_tokens: Option<u32>,
    pub output_tokens: Option<u32>,
    pub cached_prompt_tokens: Option<u32>,
    pub count_source: Option<CountSource>,
    pub outcome: Outcome,
}

impl Timeline {
    /// Reads the events of `request`; `cell` is for the error's text.
    pub fn read(cell: &str, request: &RequestTrace) -> Result<Self, Error> {
        let fail = |message: &str| Error::Trace {
            cell: cell.to_owned(),
            repeat: request.repeat,
            message: message.to_owned(),
        };
        if request.events.windows(2).any(|w| matches!(w, [a, b] if a.at > b.at)) {
            return Err(fail("events are not in order of time; the file was changed after the run"));
        }
        let mut t = Self::empty(
            first(request, |k| matches!(k, EventKind::Intended))
                .ok_or_else(|| fail("no `intended` event"))?,
            first(request, |k| matches!(k, EventKind::Sent)),
        );
        for event in &request.events {
            t.apply(event);
        }
        Ok(t)
    }

    fn empty(intended: Nanos, sent: Option<Nanos>) -> Self {
        Self {
            intended,
            sent: sent.unwrap_or(intended),
            first_byte: None,
            first_chunk: None,
            first_final: None,
            chunks: Vec::new(),
            done: None,
            prompt_tokens: None,
            output_tokens: None,
            cached_prompt_tokens: None,
            count_source: None,
            outcome: Outcome::Failed {
                failure: FailureKind::TruncatedStream,
                message: "no end was recorded".to_owned(),
            },
        }
    }

    fn apply(&mut self, event: &Event) {
        match &event.kind {
            EventKind::Intended | EventKind::Sent => {}
            EventKind::FirstByte => _ = self.first_byte.get_or_insert(event.at),
            EventKind::EmptyChunk => _ = self.first_chunk.get_or_insert(event.at),
            EventKind::Tokens { count, channel } => {
                self.first_chunk.get_or_insert(event.at);
                if *channel == Channel::Final {
                    self.first_final.get_or_insert(event.at);
                }
                if *count > 0 {
                    self.chunks.push((event.at, *count));
                }
            }
            EventKind::Counted { prompt_tokens, output_tokens, cached_prompt_tokens, source } => {
                self.prompt_tokens = Some(*prompt_tokens);
                self.output_tokens = Some(*output_tokens);
                self.cached_prompt_tokens = *cached_prompt_tokens;
                self.count_source = Some(*source);
            }
            EventKind::Done { finish } => {
                self.done = Some(event.at);
                self.outcome = Outcome::Finished(*finish);
            }
            EventKind::Failed { failure, message } => {
                self.outcome = Outcome::Failed { failure: *failure, message: message.clone() };
            }
        }
    }

    /// Arrival of the first output token.
    pub fn first_token(&self) -> Option<Nanos> {
        self.chunks.first().map(|c| c.0)
    }

    /// Arrival of the last output token.
    pub fn last_token(&self) -> Option<Nanos> {
        self.chunks.last().map(|c| c.0)
    }

    /// Output tokens: the target's count, else those that were seen.
    pub fn token_count(&self) -> u64 {
        self.output_tokens.map_or_else(|| self.chunks.iter().map(|c| u64::from(c.1)).sum(), u64::from)
    }

    pub fn succeeded(&self) -> bool {
        matches!(self.outcome, Outcome::Finished(_)) && !self.chunks.is_empty()
    }
}

fn first(request: &RequestTrace, is: impl Fn(&EventKind) -> bool) -> Option<Nanos> {
    request.events.iter().find(|e| is(&e.kind)).map(|e| e.at)
}
