//! One payload of an OpenAI-compatible answer: a chunk of a stream or a whole one, of chat or of completions.
//!
//! It reads what a measurement needs of any server's dialect and leaves the rest unbuilt. What a sequence of
//! payloads means is the matter of the reader above it. Of several choices only the one of index 0 is read.

mod lenient;

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, SeqAccess, Visitor};

use self::lenient::{Content, Length, Number, OrNone, Words};
pub(crate) use self::lenient::{Kept, Seen, Text};
use crate::record::{Channel, Finish, ServerTimings, Usage};

/// What one payload says.
#[derive(Debug)]
pub(crate) struct Chunk<T> {
    /// The server's words, where it reports an error in place of an answer.
    pub(crate) error: Option<String>,
    pub(crate) content: T,
    /// `reasoning`, else `reasoning_content`: some servers send both with the same text.
    pub(crate) reasoning: T,
    /// Arguments of a tool call; its name alone is no token.
    pub(crate) tool: bool,
    pub(crate) reason: Reason,
    pub(crate) usage: Option<Usage>,
    pub(crate) server: Option<ServerTimings>,
    /// Length of `token_ids`.
    pub(crate) ids: u32,
    /// Tokens that `logprobs` has entries of.
    pub(crate) logprobs: u32,
}

impl<'de, T: Text<'de>> Chunk<T> {
    /// Where the text of this payload belongs. The final channel comes first where there are several, so that
    /// its first token is never missed; the others' have the same stamp.
    pub(crate) fn channel(&self) -> Option<Channel> {
        if !self.content.is_empty() {
            Some(Channel::Final)
        } else if self.tool {
            Some(Channel::Tool)
        } else if !self.reasoning.is_empty() {
            Some(Channel::Reasoning)
        } else {
            None
        }
    }

    /// Output tokens up to and with this payload, where the server keeps count.
    pub(crate) fn running_tokens(&self) -> Option<u32> {
        let of_usage = self.usage.and_then(|usage| usage.output_tokens);
        of_usage.or_else(|| self.server.and_then(|server| server.output_tokens))
    }
}

/// Reading of `finish_reason`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Reason {
    /// Absent, null or an empty string: not finished.
    #[default]
    None,
    Finish(Finish),
    /// The server gave the answer up.
    Abandoned(String),
    /// No word that is known here. To call it a stop would be a guess that no figure shows.
    Unknown(String),
}

/// Reasons by what they mean for a measurement: OpenAI's first, then those of TGI, `SGLang`, Mistral and
/// of gateways that translate Anthropic's.
const REASONS: &[(&str, Finish)] = &[
    ("stop", Finish::Stop),
    ("length", Finish::Length),
    ("tool_calls", Finish::ToolCalls),
    ("function_call", Finish::ToolCalls),
    ("content_filter", Finish::ContentFilter),
    ("eos", Finish::Stop),
    ("eos_token", Finish::Stop),
    ("stop_sequence", Finish::Stop),
    ("end_turn", Finish::Stop),
    ("max_tokens", Finish::Length),
    ("model_length", Finish::Length),
    ("tool_use", Finish::ToolCalls),
];
const ABANDONED: &[&str] = &["abort", "aborted", "cancelled", "canceled", "error"];

impl Reason {
    fn of(word: &str) -> Self {
        if word.is_empty() {
            return Self::None;
        }
        if let Some((_, finish)) = REASONS.iter().find(|(known, _)| *known == word) {
            return Self::Finish(*finish);
        }
        if ABANDONED.contains(&word) {
            Self::Abandoned(word.to_owned())
        } else {
            Self::Unknown(word.to_owned())
        }
    }

    /// The words that are understood, for messages.
    pub(crate) fn known() -> impl Iterator<Item = &'static str> {
        REASONS.iter().map(|(word, _)| *word).chain(ABANDONED.iter().copied())
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ReasonVisitor;
        impl Visitor<'_> for ReasonVisitor {
            type Value = Reason;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a finish reason")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<Reason, E> {
                Ok(Reason::of(word))
            }

            fn visit_unit<E: Error>(self) -> Result<Reason, E> {
                Ok(Reason::None)
            }
        }
        deserializer.deserialize_any(ReasonVisitor)
    }
}

/// A payload that is no chunk.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub(crate) struct ParseError {
    why: String,
    /// It ends before its value does.
    pub(crate) cut: bool,
}

/// Reads one payload.
pub(crate) fn parse<'a, T: Text<'a>>(payload: &'a [u8]) -> Result<Chunk<T>, ParseError> {
    let text = std::str::from_utf8(payload)
        .map_err(|e| ParseError { why: format!("no UTF-8: {e}"), cut: e.error_len().is_none() })?;
    // A list would be taken for the members of the object in their order.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(ParseError { why: "no JSON object".to_owned(), cut: text.trim_ascii().is_empty() });
    }
    let wire: Wire<T> = serde_json::from_str(text)
        .map_err(|e| ParseError { why: format!("no JSON of an answer: {e}"), cut: e.is_eof() })?;
    Ok(wire.into_chunk())
}

/// The server's words in the body of an error, in any of the shapes that servers use; `None` without any.
pub fn error_message(body: &[u8]) -> Option<String> {
    parse::<Seen>(body).ok().and_then(|chunk| chunk.error)
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "T: Text<'de>"))]
struct Wire<T> {
    choices: Option<Choices<T>>,
    #[serde(default)]
    usage: OrNone<WireUsage>,
    #[serde(default)]
    metrics: OrNone<VllmMetrics>,
    #[serde(default)]
    timings: OrNone<LlamaTimings>,
    #[serde(default)]
    error: WireError,
    /// vLLM before 0.10 and some gateways put an error's members where an answer's are.
    #[serde(default)]
    message: Words,
}

impl<'de, T: Text<'de>> Wire<T> {
    fn into_chunk(self) -> Chunk<T> {
        let error = self.error.0.or(self.message.0.filter(|_| self.choices.is_none()));
        let choice = self.choices.and_then(|choices| choices.0).unwrap_or_default();
        let delta = choice.delta.or(choice.message).unwrap_or_default();
        let or_other = |one: Option<Content<T>>, other: Option<Content<T>>| {
            one.map(|text| text.0)
                .filter(|text| !text.is_empty())
                .or(other.map(|text| text.0))
                .unwrap_or_default()
        };
        let logprobs = choice.logprobs.0.map_or(0, |logprobs| logprobs.content.0.max(logprobs.tokens.0));
        let server = self.metrics.0.and_then(VllmMetrics::timings);
        Chunk {
            error,
            content: or_other(delta.content, choice.text),
            reasoning: or_other(delta.reasoning, delta.reasoning_content),
            tool: delta.tool_calls.is_some_and(|calls| calls.0)
                || delta.function_call.0.is_some_and(|call| call.has_arguments()),
            reason: choice.finish_reason,
            usage: self.usage.0.and_then(WireUsage::usage),
            server: server.or_else(|| self.timings.0.and_then(LlamaTimings::timings)),
            ids: choice.token_ids.0,
            logprobs,
        }
    }
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "T: Text<'de>"), expecting = "a choice")]
struct Choice<T> {
    #[serde(default)]
    index: Number,
    delta: Option<Delta<T>>,
    /// Where the answer is whole.
    message: Option<Delta<T>>,
    text: Option<Content<T>>,
    #[serde(default)]
    finish_reason: Reason,
    #[serde(default)]
    logprobs: OrNone<Logprobs>,
    /// vLLM's `return_token_ids`.
    #[serde(default)]
    token_ids: Length,
}

impl<T> Default for Choice<T> {
    fn default() -> Self {
        Self {
            index: Number::default(),
            delta: None,
            message: None,
            text: None,
            finish_reason: Reason::None,
            logprobs: OrNone::default(),
            token_ids: Length::default(),
        }
    }
}

/// The choice of index 0, if it is there.
struct Choices<T>(Option<Choice<T>>);

impl<'de, T: Text<'de>> Deserialize<'de> for Choices<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ChoicesVisitor<T>(PhantomData<T>);
        impl<'de, T: Text<'de>> Visitor<'de> for ChoicesVisitor<T> {
            type Value = Choices<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of choices")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Choices<T>, A::Error> {
                while let Some(choice) = list.next_element::<Choice<T>>()? {
                    if choice.index.get().unwrap_or(0.0) == 0.0 {
                        while list.next_element::<IgnoredAny>()?.is_some() {}
                        return Ok(Choices(Some(choice)));
                    }
                }
                Ok(Choices(None))
            }
        }
        deserializer.deserialize_seq(ChoicesVisitor(PhantomData))
    }
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "T: Text<'de>"), expecting = "a message or a part of one")]
struct Delta<T> {
    content: Option<Content<T>>,
    reasoning: Option<Content<T>>,
    reasoning_content: Option<Content<T>>,
    tool_calls: Option<ToolCalls>,
    /// The form before `tool_calls`.
    #[serde(default)]
    function_call: OrNone<Function>,
}

impl<T> Default for Delta<T> {
    fn default() -> Self {
        Self {
            content: None,
            reasoning: None,
            reasoning_content: None,
            tool_calls: None,
            function_call: OrNone::default(),
        }
    }
}

/// Whether any call of the list has arguments.
struct ToolCalls(bool);

impl<'de> Deserialize<'de> for ToolCalls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CallsVisitor;
        impl<'de> Visitor<'de> for CallsVisitor {
            type Value = ToolCalls;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of tool calls")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ToolCalls, A::Error> {
                let mut any = false;
                while let Some(call) = list.next_element::<OrNone<ToolCall>>()? {
                    let function = call.0.and_then(|call| call.function.0);
                    any |= function.is_some_and(|function| function.has_arguments());
                }
                Ok(ToolCalls(any))
            }
        }
        deserializer.deserialize_seq(CallsVisitor)
    }
}

#[derive(Deserialize)]
struct ToolCall {
    #[serde(default)]
    function: OrNone<Function>,
}

#[derive(Deserialize)]
struct Function {
    arguments: Option<Content<Seen>>,
}

impl Function {
    fn has_arguments(&self) -> bool {
        self.arguments.as_ref().is_some_and(|arguments| !arguments.0.is_empty())
    }
}

/// `content` in chat, `tokens` in completions: one entry per token either way.
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Logprobs {
    content: Length,
    tokens: Length,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireUsage {
    prompt_tokens: Number,
    completion_tokens: Number,
    prompt_tokens_details: OrNone<PromptDetails>,
    completion_tokens_details: OrNone<OutputDetails>,
    /// `SGLang`'s place for what others have in the details.
    reasoning_tokens: Number,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PromptDetails {
    cached_tokens: Number,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct OutputDetails {
    reasoning_tokens: Number,
}

impl WireUsage {
    fn usage(self) -> Option<Usage> {
        let reasoning = self.completion_tokens_details.0.and_then(|details| details.reasoning_tokens.count());
        let usage = Usage {
            prompt_tokens: self.prompt_tokens.count(),
            output_tokens: self.completion_tokens.count(),
            cached_prompt_tokens: self
                .prompt_tokens_details
                .0
                .and_then(|details| details.cached_tokens.count()),
            reasoning_tokens: reasoning.or_else(|| self.reasoning_tokens.count()),
        };
        Some(usage).filter(|usage| *usage != Usage::default())
    }
}

/// vLLM with `--enable-per-request-metrics` (its `docs/features/per_request_metrics.md`).
#[derive(Deserialize, Default)]
#[serde(default)]
struct VllmMetrics {
    /// From being scheduled, which is after the queue.
    #[serde(rename = "time_to_first_token_ms")]
    ttft: Number,
    #[serde(rename = "queue_time_ms")]
    queue: Number,
    /// First output token to last.
    #[serde(rename = "generation_time_ms")]
    decode: Number,
}

impl VllmMetrics {
    fn timings(self) -> Option<ServerTimings> {
        let queue_ms = self.queue.get();
        let timings = ServerTimings {
            queue_ms,
            ttft_ms: self.ttft.get().map(|ms| ms + queue_ms.unwrap_or(0.0)),
            decode_ms: self.decode.get(),
            ..ServerTimings::default()
        };
        Some(timings).filter(|timings| *timings != ServerTimings::default())
    }
}

/// llama.cpp; on every chunk with `timings_per_token`.
#[derive(Deserialize, Default)]
#[serde(default)]
struct LlamaTimings {
    /// Without those of the cache.
    prompt_n: Number,
    prompt_ms: Number,
    cache_n: Number,
    predicted_n: Number,
    predicted_ms: Number,
}

impl LlamaTimings {
    fn timings(self) -> Option<ServerTimings> {
        let timings = ServerTimings {
            queue_ms: None,
            ttft_ms: self.prompt_ms.get(),
            decode_ms: self.predicted_ms.get(),
            prompt_tokens: self.prompt_n.count(),
            cached_prompt_tokens: self.cache_n.count(),
            output_tokens: self.predicted_n.count(),
        };
        Some(timings).filter(|timings| *timings != ServerTimings::default())
    }
}

/// An `error` member: text, or an object with `message`; null, false and an empty text are none.
#[derive(Default)]
struct WireError(Option<String>);

#[derive(Deserialize, Default)]
#[serde(default)]
struct ErrorObject {
    message: Words,
    r#type: Words,
    code: Words,
}

impl<'de> Deserialize<'de> for WireError {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ErrorVisitor;
        impl<'de> Visitor<'de> for ErrorVisitor {
            type Value = WireError;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an error")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<WireError, E> {
                Ok(WireError(Some(text.to_owned()).filter(|text| !text.is_empty())))
            }

            fn visit_unit<E: Error>(self) -> Result<WireError, E> {
                Ok(WireError(None))
            }

            fn visit_bool<E: Error>(self, is: bool) -> Result<WireError, E> {
                Ok(WireError(is.then(|| "without words".to_owned())))
            }

            fn visit_u64<E: Error>(self, code: u64) -> Result<WireError, E> {
                Ok(WireError(Some(format!("code {code}"))))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<WireError, A::Error> {
                let error = ErrorObject::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                let words =
                    [error.message.0, error.r#type.0, error.code.0.map(|code| format!("code {code}"))];
                let words: Vec<String> = words.into_iter().flatten().collect();
                let said = if words.is_empty() { "without words".to_owned() } else { words.join(", ") };
                Ok(WireError(Some(said)))
            }
        }
        deserializer.deserialize_any(ErrorVisitor)
    }
}
