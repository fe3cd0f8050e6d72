//! An exchange in the client's words to a request's trace in those of the results.

use bench_core::client::ServerTimes;
use bench_core::event::{Channel, CountSource, Event, EventKind, FailureKind, FinishReason};
use bench_core::trace::{Lengths, RequestTrace};
use bench_core::unit::Nanos;
use bench_http as http;

/// Which request it was, and what it asked for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    pub(super) repeat: u32,
    pub(super) slot: u32,
    /// Sent as `x-request-id`: how the server's log names it.
    pub(super) id: String,
    pub(super) prompt_hash: String,
    /// `None`: what its cell asks for.
    pub(super) lengths: Option<Lengths>,
    /// Whether the prompt's length was known beforehand; else there is nothing to hold the server's count to.
    pub(super) prompt_is_known: bool,
}

/// `intended` comes first, whatever else happened.
pub(super) fn trace(asked: Asked, intended: Nanos, exchange: &http::Exchange) -> RequestTrace {
    let mut events = Vec::with_capacity(exchange.events.len() + 1);
    events.push(Event { at: intended, kind: EventKind::Intended });
    let mut server = None;
    for event in &exchange.events {
        // A request that was held back starts when it was meant to, never before.
        let at = Nanos(event.at_ns).max(intended);
        if let http::EventKind::Server(times) = &event.kind {
            server = Some(server_times(times));
        } else if let Some(kind) = kind(&event.kind) {
            events.push(Event { at, kind });
        }
    }
    let counted = events.iter().rev().find_map(|e| match e.kind {
        EventKind::Counted { prompt_tokens, .. } => Some(prompt_tokens),
        _ => None,
    });
    let unheld = |lengths: Lengths| Lengths {
        prompt_tokens: counted.filter(|_| !asked.prompt_is_known).unwrap_or(lengths.prompt_tokens),
        ..lengths
    };
    RequestTrace {
        repeat: asked.repeat,
        slot: asked.slot,
        prompt_hash: asked.prompt_hash,
        asked: asked.lengths.map(unheld),
        server,
        kv_allocated_bytes: None,
        events,
    }
}

fn kind(kind: &http::EventKind) -> Option<EventKind> {
    Some(match kind {
        http::EventKind::Sent => EventKind::Sent,
        http::EventKind::FirstByte => EventKind::FirstByte,
        http::EventKind::EmptyChunk => EventKind::EmptyChunk,
        http::EventKind::Tokens { count, channel } => {
            EventKind::Tokens { count: count.unwrap_or(1), channel: self::channel(*channel) }
        }
        http::EventKind::Usage(usage) => EventKind::Counted {
            prompt_tokens: usage.prompt_tokens?,
            output_tokens: usage.output_tokens?,
            cached_prompt_tokens: usage.cached_prompt_tokens,
            source: CountSource::Usage,
        },
        http::EventKind::Server(_) => return None,
        http::EventKind::Done { finish } => EventKind::Done { finish: self::finish(*finish) },
        http::EventKind::Failed { failure, message } => {
            EventKind::Failed { failure: self::failure(*failure), message: message.clone() }
        }
    })
}

fn channel(channel: http::Channel) -> Channel {
    match channel {
        http::Channel::Final => Channel::Final,
        http::Channel::Reasoning => Channel::Reasoning,
        http::Channel::Tool => Channel::Tool,
    }
}

fn finish(finish: http::Finish) -> FinishReason {
    match finish {
        http::Finish::Length => FinishReason::Length,
        http::Finish::Stop => FinishReason::Stop,
        http::Finish::ToolCalls => FinishReason::ToolCalls,
        http::Finish::ContentFilter => FinishReason::ContentFilter,
    }
}

fn failure(failure: http::Failure) -> FailureKind {
    match failure {
        http::Failure::Connect => FailureKind::Connect,
        http::Failure::Timeout => FailureKind::Timeout,
        http::Failure::Status => FailureKind::Status,
        http::Failure::ErrorEvent => FailureKind::ErrorEvent,
        http::Failure::TruncatedStream => FailureKind::TruncatedStream,
        http::Failure::BadFrame => FailureKind::BadFrame,
        http::Failure::EmptyAnswer => FailureKind::EmptyAnswer,
        http::Failure::Interrupted => FailureKind::Interrupted,
    }
}

fn server_times(times: &http::ServerTimings) -> ServerTimes {
    ServerTimes { queue_ms: times.queue_ms, ttft_ms: times.ttft_ms, decode_ms: times.decode_ms }
}
