//! What one request brought, when: the words that a caller reads.
//!
//! Events say what arrived and never what it means; latencies are the caller's matter.

/// Where a token's text belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// `content` or `text`.
    Final,
    /// `reasoning` or `reasoning_content`.
    Reasoning,
    /// Arguments of a tool call.
    Tool,
}

/// The server's `finish_reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    Length,
    Stop,
    ToolCalls,
    ContentFilter,
}

/// Kinds of failure, counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// No connection: refused, no such host, TLS, reset before the first byte of the answer.
    Connect,
    /// A finite limit was reached: connect, first byte, between tokens or total; the message says which.
    Timeout,
    /// A status other than 200; the message has it with the beginning of the body.
    Status,
    /// `event: error`, or a chunk with an `error` member, after a 200.
    ErrorEvent,
    /// The stream ended, or the connection broke, without a finish reason.
    TruncatedStream,
    /// What arrived is not an answer: bytes that are no HTTP, JSON that does not parse, a line without end.
    BadFrame,
    /// Finished with a reason and without a token.
    EmptyAnswer,
    /// The caller's stop flag.
    Interrupted,
}

/// The server's `usage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub prompt_tokens: Option<u32>,
    pub output_tokens: Option<u32>,
    /// `prompt_tokens_details.cached_tokens`.
    pub cached_prompt_tokens: Option<u32>,
    /// `completion_tokens_details.reasoning_tokens`.
    pub reasoning_tokens: Option<u32>,
}

/// Times that the server states for this request, in milliseconds on its own clock: vLLM's `metrics`,
/// llama.cpp's `timings`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ServerTimings {
    /// Waiting before the prompt was begun.
    pub queue_ms: Option<f64>,
    /// Arrival (or begin of the prompt, where there is no queue time) to first token.
    pub ttft_ms: Option<f64>,
    /// First token to last.
    pub decode_ms: Option<f64>,
    /// Tokens of the prompt that were computed, not cached.
    pub prompt_tokens: Option<u32>,
    pub cached_prompt_tokens: Option<u32>,
    pub output_tokens: Option<u32>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// First byte handed to the socket.
    Sent,
    /// First byte of the response, whatever it belongs to.
    FirstByte,
    /// A chunk that carries no token: role only, empty, usage only, keep-alive.
    EmptyChunk,
    /// A chunk that brings tokens with one stamp. `count` is `None` where the server does not say how many
    /// (neither token ids, nor logprobs, nor running usage): then it is one at least.
    Tokens {
        count: Option<u32>,
        channel: Channel,
    },
    /// The server's counts; the last one of a stream that repeats them.
    Usage(Usage),
    /// In a box: it is rare and large, and a stream has an event for every token.
    Server(Box<ServerTimings>),
    /// End of the answer: `[DONE]` or the end of the body, after a finish reason.
    Done {
        finish: Finish,
    },
    Failed {
        failure: Failure,
        message: String,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Nanoseconds on the caller's clock.
    pub at_ns: u64,
    pub kind: EventKind,
}

/// How the answer came off the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadCounts {
    /// Reads that returned bytes.
    pub reads: u64,
    pub bytes: u64,
    /// Server-sent events.
    pub events: u64,
    /// Events that shared their read with an earlier one, so that their stamp may be late.
    pub shared: u64,
}

/// One request from its first byte out to its end; the last event is `Done` or `Failed`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Exchange {
    /// In order of time.
    pub events: Vec<Event>,
    pub reads: ReadCounts,
    /// The answer's text by channel, kept only where the caller asked for it.
    pub text: Option<AnswerText>,
    /// Whether the connection can carry another request.
    pub reusable: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AnswerText {
    pub content: String,
    pub reasoning: String,
}
