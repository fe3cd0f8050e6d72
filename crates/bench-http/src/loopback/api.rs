//! From a request to what is to be done about it: an answer at once, or a script to be paced.
//!
//! Pure: no socket, no clock. Faults that change an answer's bytes are built in here; those that change the
//! connection are named in the plan.

use serde_json::{Value, json};

use super::ask::Ask;
use super::http::{Request, stream_head, whole_answer};
use super::metrics::Counters;
use super::options::{Fault, LoopbackOptions, RoleChunk, UsagePolicy};
use super::script::{Dialect, End, Form, LAST_FRAME, Patched, Script, event, frame};

/// Bytes that are no HTTP: the beginning of a TLS hello.
const GARBAGE: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n";

/// What is to be done about a request.
#[derive(Debug)]
pub(super) enum Plan {
    Answer(Vec<u8>),
    Generate(Box<Generation>),
    /// These bytes, then the end of the connection.
    Last(Vec<u8>),
    /// No answer, as long as the client waits.
    Silence,
    /// As [`Plan::Last`] with nothing, and no connection is accepted from now on.
    Refuse,
    /// These bytes, then a line without end.
    Endless(Vec<u8>),
}

/// An answer that takes time.
#[derive(Debug)]
pub(super) struct Generation {
    /// Written as soon as the request is understood; not a token.
    pub(super) head: Vec<u8>,
    pub(super) script: Script,
    /// Arrival to the first write, and between writes.
    pub(super) first_after_ns: u64,
    pub(super) step_ns: u64,
    pub(super) cached_tokens: u32,
    pub(super) end: End,
    /// A fault shortened the answer.
    pub(super) cut: bool,
}

/// What the routes need to know of the server.
pub(super) struct Site<'a> {
    pub(super) options: &'a LoopbackOptions,
    pub(super) counters: &'a Counters,
    /// Unix time of the server's start.
    pub(super) created_s: u64,
}

/// Whether a request is one that generates, and so is counted and may meet a fault.
pub(super) fn generates(request: &Request) -> bool {
    request.method == "POST" && matches!(request.path.as_str(), "/v1/completions" | "/v1/chat/completions")
}

fn json_answer(status: u16, more: &str, value: &Value) -> Vec<u8> {
    whole_answer(status, "application/json", more, value.to_string().as_bytes())
}

/// An error as OpenAI's servers put it.
pub(super) fn error_answer(status: u16, more: &str, message: &str, param: Option<&str>) -> Vec<u8> {
    json_answer(status, more, &error_value(status, message, param))
}

fn error_value(status: u16, message: &str, param: Option<&str>) -> Value {
    let kind = match status {
        400 => "BadRequestError",
        404 => "NotFoundError",
        429 => "RateLimitError",
        500..=599 => "InternalServerError",
        _ => "Error",
    };
    json!({"error": {"message": message, "type": kind, "param": param, "code": status}})
}

impl Site<'_> {
    /// What is to be done about a request that does not generate.
    pub(super) fn plain(&self, request: &Request) -> Vec<u8> {
        let options = self.options;
        let ok = |value: &Value| json_answer(200, "", value);
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/health") => whole_answer(200, "text/plain", "", b""),
            ("GET", "/version") => ok(&json!({"version": env!("CARGO_PKG_VERSION")})),
            ("GET", "/v1/models") => ok(&json!({"object": "list", "data": [{
                "id": options.model, "object": "model", "created": self.created_s, "owned_by": "loopback",
                "root": options.model, "max_model_len": options.max_model_len,
            }]})),
            ("GET", "/metrics") => {
                let text = self.counters.render(&options.model, options.kv_capacity_tokens);
                whole_answer(200, "text/plain; version=0.0.4; charset=utf-8", "", text.as_bytes())
            }
            ("POST", "/tokenize") => match self.tokenize(&request.body) {
                Ok(value) => ok(&value),
                Err(message) => error_answer(400, "", &message, None),
            },
            (
                _,
                "/health"
                | "/version"
                | "/v1/models"
                | "/metrics"
                | "/tokenize"
                | "/v1/completions"
                | "/v1/chat/completions",
            ) => error_answer(405, "", &format!("{} is not allowed here", request.method), None),
            (_, path) => error_answer(404, "", &format!("there is nothing at `{path}`"), None),
        }
    }

    fn tokenize(&self, body: &[u8]) -> Result<Value, String> {
        let asked: Value = serde_json::from_slice(body).map_err(|e| format!("the body is no JSON: {e}"))?;
        if let Some(text) = asked["content"].as_str() {
            return Ok(json!({"tokens": ids(text)}));
        }
        let tokens = if let Some(text) = asked["prompt"].as_str() {
            ids(text)
        } else if let Some(messages) = asked["messages"].as_array() {
            let mut tokens = vec![0; self.options.chat_overhead_tokens as usize];
            for message in messages {
                tokens.extend(ids(message["content"].as_str().unwrap_or_default()));
            }
            tokens
        } else {
            return Err("one of `prompt`, `messages`, `content` is needed".to_owned());
        };
        let max_model_len = self.options.max_model_len;
        Ok(json!({"count": tokens.len(), "max_model_len": max_model_len, "tokens": tokens}))
    }

    /// What is to be done about a request that generates; `id` is repeated to the client.
    pub(super) fn generation(&self, request: &Request, id: &str, fault: Option<Fault>) -> Plan {
        let echo = format!("x-request-id: {id}\r\n");
        if let Some(plan) = instead_of_answer(fault, id, &echo) {
            return plan;
        }
        match self.script(request, id, fault) {
            Ok(generation) => Plan::Generate(Box::new(generation)),
            Err(Wrong { status, message, param }) => {
                Plan::Answer(error_answer(status, &echo, &message, param))
            }
        }
    }

    fn script(&self, request: &Request, id: &str, fault: Option<Fault>) -> Result<Generation, Wrong> {
        let options = self.options;
        let chat = request.path == "/v1/chat/completions";
        let ask: Ask = serde_json::from_slice(&request.body)
            .map_err(|e| wrong(400, format!("the body cannot be read: {e}"), None))?;
        if let Some(model) = ask.model.as_ref().filter(|model| **model != options.model) {
            let message = format!("the model `{model}` does not exist; there is `{}`", options.model);
            return Err(wrong(404, message, Some("model")));
        }
        let words = ask
            .words(chat)
            .map_err(|name| wrong(400, format!("the member `{name}` is missing"), Some(name)))?;
        let prompt_tokens = if chat { words.saturating_add(options.chat_overhead_tokens) } else { words };
        let tokens = ask.max_output().unwrap_or(options.default_output_tokens);
        if tokens == 0 {
            return Err(wrong(400, "`max_tokens` must be at least 1".to_owned(), Some("max_tokens")));
        }
        if u64::from(prompt_tokens) + u64::from(tokens) > u64::from(options.max_model_len) {
            let longest = options.max_model_len;
            let message = format!(
                "{prompt_tokens} prompt tokens and {tokens} output tokens are more than the model's {longest}"
            );
            return Err(wrong(400, message, Some("max_tokens")));
        }
        let model_json = Value::from(options.model.as_str()).to_string();
        let dialect = Dialect {
            form: if chat { Form::Chat } else { Form::Completion },
            id,
            created_s: self.created_s,
            model_json: &model_json,
            prompt_tokens,
            cached_tokens: options.cached_prompt_tokens.min(prompt_tokens),
            running_usage: match options.usage {
                UsagePolicy::Never => false,
                UsagePolicy::WhenAsked => ask.continuous_usage(),
                UsagePolicy::Continuous => true,
            },
            stamped: options.stamp_payload,
            token_ids: ask.token_ids(),
        };
        let finish = if ask.max_output().is_some() { "length" } else { "stop" };
        let finish = (fault != Some(Fault::NoFinish)).then_some(finish);
        if ask.stream.unwrap_or(false) {
            let usage = match options.usage {
                UsagePolicy::Never => false,
                UsagePolicy::WhenAsked => ask.include_usage(),
                UsagePolicy::Continuous => true,
            };
            Ok(self.stream(&dialect, tokens, finish, usage, fault))
        } else {
            Ok(self.whole(&dialect, tokens, finish, fault))
        }
    }

    fn stream(
        &self,
        dialect: &Dialect<'_>,
        tokens: u32,
        finish: Option<&str>,
        usage: bool,
        fault: Option<Fault>,
    ) -> Generation {
        let options = self.options;
        let chat = dialect.form == Form::Chat;
        let per_write = options.tokens_per_chunk.clamp(1, tokens);
        let writes = tokens.div_ceil(per_write);
        let mut head = stream_head(dialect.id, "");
        let mut lead = Vec::new();
        match options.role_chunk {
            RoleChunk::AtOnce if chat => head.extend_from_slice(&dialect.role()),
            RoleChunk::WithFirstToken if chat => lead = dialect.role(),
            _ => {}
        }
        let mut tail = dialect.chunk(tokens - (writes - 1) * per_write, finish);
        if usage {
            tail.push(&dialect.usage_event(tokens));
        }
        if fault != Some(Fault::NoDone) {
            tail.push(&event("[DONE]"));
        }
        tail.push(LAST_FRAME);
        let script = Script {
            lead,
            chunk: dialect.chunk(per_write, None),
            tail,
            writes,
            tokens_per_write: per_write,
            tokens,
            prompt_tokens: dialect.prompt_tokens,
        };
        let mut generation = Generation {
            head,
            script,
            first_after_ns: options.ttft_ns,
            step_ns: options.gap_ns.saturating_mul(u64::from(per_write)),
            cached_tokens: dialect.cached_tokens,
            end: End::KeepAlive,
            cut: false,
        };
        generation.spoil_stream(fault);
        generation
    }

    fn whole(
        &self,
        dialect: &Dialect<'_>,
        tokens: u32,
        finish: Option<&str>,
        fault: Option<Fault>,
    ) -> Generation {
        let options = self.options;
        let mut body = dialect.whole(tokens, finish, options.usage != UsagePolicy::Never);
        let mut status = 200;
        match fault {
            Some(Fault::BrokenJson) => body.truncate(body.len() / 2),
            Some(Fault::ErrorEvent) => {
                status = 500;
                body = error_value(status, "the engine died, as was asked for", None).to_string();
            }
            _ => {}
        }
        let echo = format!("x-request-id: {}\r\n", dialect.id);
        let answer = whole_answer(status, "application/json", &echo, body.as_bytes());
        let gaps_ns = options.gap_ns.saturating_mul(u64::from(tokens - 1));
        let mut generation = Generation {
            head: Vec::new(),
            script: Script {
                tail: Patched::fixed(answer),
                writes: 1,
                tokens_per_write: tokens,
                tokens,
                prompt_tokens: dialect.prompt_tokens,
                ..Script::default()
            },
            first_after_ns: options.ttft_ns.saturating_add(gaps_ns),
            step_ns: 0,
            cached_tokens: dialect.cached_tokens,
            end: End::KeepAlive,
            cut: matches!(fault, Some(Fault::BrokenJson | Fault::ErrorEvent)),
        };
        match fault {
            Some(Fault::DropAfterTokens(_)) => generation.cut_after(0, End::Close),
            Some(Fault::StallAfterTokens(_)) => generation.cut_after(0, End::Stall),
            Some(Fault::CloseAfterAnswer) => generation.end = End::Close,
            _ => {}
        }
        generation
    }
}

impl Generation {
    fn spoil_stream(&mut self, fault: Option<Fault>) {
        let broken = match fault {
            Some(Fault::DropAfterTokens(n)) => return self.cut_after(n, End::Close),
            Some(Fault::StallAfterTokens(n)) => return self.cut_after(n, End::Stall),
            Some(Fault::CloseAfterAnswer) => {
                self.end = End::Close;
                return;
            }
            Some(Fault::ErrorEvent) => {
                event(&error_value(500, "the engine died, as was asked for", None).to_string())
            }
            Some(Fault::BrokenJson) => frame(b"data: {\"id\":\"cmpl-\",\"choices\":[{\"index\":0,\"te\n\n"),
            _ => return,
        };
        let mut tail = self.script.chunk.clone();
        tail.push(&broken);
        tail.push(&event("[DONE]"));
        tail.push(LAST_FRAME);
        self.script.tail = tail;
        self.script.tokens = self.script.tokens_per_write;
        self.script.writes = 1;
        self.cut = true;
    }

    /// Ends after `tokens`, rounded up to whole writes, without the bytes that would end the answer.
    fn cut_after(&mut self, tokens: u32, end: End) {
        let script = &mut self.script;
        self.end = end;
        let writes = tokens.div_ceil(script.tokens_per_write);
        if writes < script.writes {
            script.writes = writes;
            script.tokens = writes * script.tokens_per_write;
            script.tail = script.chunk.clone();
            self.cut = true;
        }
    }
}

/// Faults that leave nothing of the answer.
fn instead_of_answer(fault: Option<Fault>, id: &str, echo: &str) -> Option<Plan> {
    Some(match fault? {
        Fault::Status(status) => {
            let wait = if matches!(status, 429 | 503) { "retry-after: 1\r\n" } else { "" };
            let message = format!("status {status}, as was asked for");
            Plan::Answer(error_answer(status, &format!("{echo}{wait}"), &message, None))
        }
        Fault::Redirect => {
            Plan::Answer(whole_answer(307, "text/plain", &format!("{echo}location: /moved\r\n"), b""))
        }
        Fault::Compressed => {
            let more = format!("{echo}content-encoding: gzip\r\n");
            Plan::Answer(whole_answer(200, "application/json", &more, &[0x1f, 0x8b]))
        }
        Fault::DropBeforeAnswer => Plan::Last(Vec::new()),
        Fault::Refuse => Plan::Refuse,
        Fault::StallBeforeAnswer => Plan::Silence,
        Fault::Garbage => Plan::Last(GARBAGE.to_vec()),
        Fault::EndlessLine => Plan::Endless(stream_head(id, "")),
        _ => return None,
    })
}

struct Wrong {
    status: u16,
    message: String,
    param: Option<&'static str>,
}

fn wrong(status: u16, message: String, param: Option<&'static str>) -> Wrong {
    Wrong { status, message, param }
}

/// An id for every word: the same word has the same one.
fn ids(text: &str) -> Vec<u32> {
    let hash = |word: &str| {
        word.bytes().fold(0x811c_9dc5_u32, |hash, b| (hash ^ u32::from(b)).wrapping_mul(0x0100_0193))
    };
    text.split_whitespace().map(|word| hash(word) % 100_000).collect()
}
