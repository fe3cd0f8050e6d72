//! One question to a server's chat, and its answer as text: for those who read answers and measure no times.
//!
//! Nothing is probed or negotiated: what the server does not take is its error, told as it came.

use super::{RunClock, event_loop, wish};
use crate::targets::Secrets;
use bench_core::clock::MonotonicClock;
use bench_core::event::FinishReason;
use bench_core::target::{StopFlag, TargetError};
use bench_http::discover::{self, Questions};
use bench_http::{
    Api, ApiKey, BodyTemplate, Dialer, Endpoint, EventKind, Exchange, Failure, Finish, Prompt, Timeouts,
    TlsOptions, Variable,
};
use std::sync::Arc;
use std::time::Duration;

/// What every question has in common.
#[derive(Debug, Clone)]
pub struct AskOptions {
    pub base_url: String,
    /// The name that the server knows the model under.
    pub model: String,
    pub max_tokens: u32,
    pub temperature: f64,
    pub top_p: Option<f64>,
    pub top_k: Option<u32>,
    /// Longest silence of the server.
    pub token_timeout: Duration,
    /// Longest answer.
    pub timeout: Duration,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    pub answer: String,
    pub reasoning: String,
    /// Why the answer ended, or why there is no whole one.
    pub end: Option<Result<FinishReason, String>>,
    pub prompt_tokens: Option<u32>,
    pub output_tokens: Option<u32>,
}

/// A server that is asked one question after another.
pub struct Asker {
    dialer: Dialer,
    template: BodyTemplate,
    options: AskOptions,
    secrets: Secrets,
}

impl Asker {
    /// Takes the address; asks nobody yet.
    ///
    /// # Errors
    /// An address, a key or a header that cannot be used.
    pub fn new(options: AskOptions, secrets: Secrets) -> Result<Self, TargetError> {
        let failed = |e: bench_http::SetupError| TargetError(e.to_string());
        let mut endpoint = Endpoint::parse(&options.base_url).map_err(failed)?;
        if let Some(key) = &secrets.api_key {
            endpoint = endpoint.with_api_key(&ApiKey::new(key)).map_err(failed)?;
        }
        for (name, value) in &secrets.headers {
            endpoint = endpoint.with_header(&format!("{name}: {value}")).map_err(failed)?;
        }
        let clock = Arc::new(RunClock(Arc::new(MonotonicClock::default())));
        let dialer = Dialer::new(endpoint, &TlsOptions::default(), clock).map_err(failed)?;
        let mut template = BodyTemplate::new(Api::Chat, options.model.clone());
        template.temperature = Some(options.temperature);
        template.top_p = options.top_p;
        template.top_k = options.top_k.map(i64::from);
        Ok(Self { dialer, template, options, secrets })
    }

    /// Asks `text` as the user's only message. `None` when `stop` was set before the answer had ended.
    ///
    /// # Errors
    /// A server that cannot be reached; what it answers, errors among it, is a reply.
    pub fn ask(&self, text: &str, seed: u64, stop: &StopFlag) -> Result<Option<Reply>, TargetError> {
        let timeouts = Timeouts {
            first_byte: self.options.token_timeout,
            between_tokens: self.options.token_timeout,
            total: self.options.timeout,
            ..Timeouts::default()
        };
        let gone = bench_http::Stop::new();
        let questions = Questions { dialer: &self.dialer, timeouts: &timeouts, stop: &gone };
        let prompt = Prompt::Messages(vec![discover::user(text)]);
        // Some servers read a seed as a signed number of 32 bits.
        let seed = Some(seed & 0x7fff_ffff);
        let variable = Variable { max_tokens: Some(self.options.max_tokens), seed, ..Variable::new(&prompt) };
        let asked = event_loop()?.block_on(async {
            tokio::select! {
                asked = questions.generate(&self.template, &variable, true) => Some(asked),
                () = wish(stop) => None,
            }
        });
        let Some(asked) = asked else { return Ok(None) };
        let generated = asked.map_err(|e| TargetError(self.secrets.scrub(&e.to_string())))?;
        let mut reply = reply(generated.exchange);
        if let Some((status, words)) = generated.refusal {
            let words: String = words.chars().take(500).collect();
            reply.end = Some(Err(format!("status {status}: {words}")));
        }
        if let Some(Err(why)) = &mut reply.end {
            *why = self.secrets.scrub(why);
        }
        Ok(Some(reply))
    }
}

fn reply(exchange: Exchange) -> Reply {
    let text = exchange.text.unwrap_or_default();
    let mut reply = Reply { answer: text.content, reasoning: text.reasoning, ..Reply::default() };
    for event in exchange.events {
        match event.kind {
            EventKind::Usage(usage) => {
                reply.prompt_tokens = usage.prompt_tokens;
                reply.output_tokens = usage.output_tokens;
            }
            EventKind::Done { finish } => {
                reply.end = Some(Ok(match finish {
                    Finish::Length => FinishReason::Length,
                    Finish::Stop => FinishReason::Stop,
                    Finish::ToolCalls => FinishReason::ToolCalls,
                    Finish::ContentFilter => FinishReason::ContentFilter,
                }));
            }
            // Finished with a reason and without a token: an empty answer, not a failure of the server.
            EventKind::Failed { failure: Failure::EmptyAnswer, message } => {
                // The reason itself stands in the message alone.
                let cut = message.contains("(Length)");
                reply.end = Some(Ok(if cut { FinishReason::Length } else { FinishReason::Stop }));
            }
            EventKind::Failed { message, .. } => reply.end = Some(Err(message)),
            _ => {}
        }
    }
    reply
}
