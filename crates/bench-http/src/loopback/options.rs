//! What a loopback server is to do: times, sizes, dialect, and the faults that a test asks for.
//!
//! Values only; nothing here opens a socket.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;

/// A way to misbehave; chosen per request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This status with an error body, and `retry-after: 1` for 429 and 503; the connection stays open.
    Status(u16),
    /// 307 to `/moved`, which does not exist.
    Redirect,
    /// The answer's head claims `content-encoding: gzip`; the body is two bytes of a gzip head.
    Compressed,
    /// The connection ends without a byte of an answer.
    DropBeforeAnswer,
    /// As [`Fault::DropBeforeAnswer`], and from then on no connection is accepted.
    Refuse,
    /// No byte of an answer, and the connection stays open until the client closes it.
    StallBeforeAnswer,
    /// The connection ends after this many tokens (rounded up to whole chunks), in the middle of the body.
    DropAfterTokens(u32),
    /// Nothing comes after this many tokens (rounded up to whole chunks) until the client closes.
    StallAfterTokens(u32),
    /// The stream ends properly, but without `[DONE]`.
    NoDone,
    /// `[DONE]` comes, but no chunk had a finish reason.
    NoFinish,
    /// After the first chunk with tokens comes an `error` chunk, then `[DONE]`.
    ErrorEvent,
    /// Bytes that are no HTTP, then the end.
    Garbage,
    /// After the first chunk with tokens comes a `data:` line whose JSON breaks off, then `[DONE]`.
    BrokenJson,
    /// A whole answer, then the connection ends although nothing announced it.
    CloseAfterAnswer,
    /// A `data:` line that never ends, as fast as the client reads.
    EndlessLine,
}

/// Says which fault the request of this index (in order of arrival, from 0) meets.
pub type FaultRule = Arc<dyn Fn(u64) -> Option<Fault> + Send + Sync>;

/// The rule that gives request i the i-th entry, and none to those beyond the list.
pub fn faults_in_order(list: Vec<Option<Fault>>) -> FaultRule {
    Arc::new(move |index| usize::try_from(index).ok().and_then(|i| list.get(i).copied().flatten()))
}

/// When a chat stream sends the chunk that has a role and no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoleChunk {
    Never,
    /// With the head, as soon as the request has arrived.
    AtOnce,
    /// In the write of the first token, before it: what vLLM's server does.
    WithFirstToken,
}

/// Which counts a stream states. Whole answers state theirs unless it is [`UsagePolicy::Never`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsagePolicy {
    Never,
    /// As `stream_options` has it: `include_usage`, `continuous_usage_stats`.
    WhenAsked,
    /// In every chunk, and once more at the end.
    Continuous,
}

/// Everything that a [`Loopback`](super::Loopback) is told.
pub struct LoopbackOptions {
    /// Port 0 takes a free one.
    pub bind: SocketAddr,
    /// The one model that exists.
    pub model: String,
    /// Request's last byte read to first token, in nanoseconds.
    pub ttft_ns: u64,
    /// Between tokens, in nanoseconds.
    pub gap_ns: u64,
    /// A chunk of k tokens is due with its first one, so that chunks are k gaps apart. At least 1.
    pub tokens_per_chunk: u32,
    /// Length of an answer whose request states none; it then finishes with `stop`, else with `length`.
    pub default_output_tokens: u32,
    /// Added to the words of a chat's messages.
    pub chat_overhead_tokens: u32,
    /// Prompt plus output beyond this is refused with 400.
    pub max_model_len: u32,
    /// Stated as `cached_tokens` of every prompt, as far as the prompt is that long.
    pub cached_prompt_tokens: u32,
    /// Tokens that the pretended KV cache holds; only `vllm:kv_cache_usage_perc` and `vllm:cache_config_info`
    /// depend on it.
    pub kv_capacity_tokens: u64,
    pub role_chunk: RoleChunk,
    pub usage: UsagePolicy,
    /// Adds `"sent_ns":"…"`, the clock's nanoseconds in twenty digits, to every chunk with tokens.
    pub stamp_payload: bool,
    /// Pairs of threads: one that reads requests, one that writes tokens. At least 1.
    pub threads: usize,
    /// Requests whose every stamp is kept; those beyond count in the histogram only.
    pub log_cap: usize,
    pub faults: Option<FaultRule>,
    /// One JSON line for every finished request, written by a thread of its own.
    pub summary: Option<Box<dyn Write + Send + Sync>>,
}

impl Default for LoopbackOptions {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            model: "loopback".to_owned(),
            ttft_ns: 0,
            gap_ns: 0,
            tokens_per_chunk: 1,
            default_output_tokens: 16,
            chat_overhead_tokens: 4,
            max_model_len: 131_072,
            cached_prompt_tokens: 0,
            kv_capacity_tokens: 1 << 20,
            role_chunk: RoleChunk::WithFirstToken,
            usage: UsagePolicy::WhenAsked,
            stamp_payload: false,
            threads: 1,
            log_cap: 16_384,
            faults: None,
            summary: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, faults_in_order};

    #[test]
    fn a_list_of_faults_ends() {
        let rule = faults_in_order(vec![None, Some(Fault::Status(503))]);
        assert_eq!([rule(0), rule(1), rule(2)], [None, Some(Fault::Status(503)), None]);
    }
}
