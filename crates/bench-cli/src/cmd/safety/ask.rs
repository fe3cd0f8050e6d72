//! Who answers: the engine with the model's chat format, or a server's chat.
//!
//! Channels are kept apart here; what an answer counts as is not decided here.

use super::super::model::{self, Opened, PREFILL_CHUNK};
use crate::args::{LimitArgs, SafetyArgs, SamplingArgs};
use crate::{CliError, Io, secrets, signal};
use bench_core::event::FinishReason;
use bench_core::plan::derive_seed;
use bench_engine::sampling::{Sampler, SamplingParams};
use bench_engine::text::{Label, StreamText, Turn, harmony::Role};
use bench_engine::{Hooks, Sequence};
use bench_runner::targets::http::ask::{AskOptions, Asker, Reply};
use bench_safety::{Finish, Prompt};
use std::time::{Duration, Instant};

/// An answer as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) answer: String,
    pub(super) reasoning: String,
    pub(super) other: String,
    pub(super) finish: Finish,
    pub(super) failure: Option<String>,
    pub(super) prompt_tokens: Option<u32>,
    pub(super) output_tokens: Option<u32>,
}

impl Asked {
    fn empty() -> Self {
        Self {
            answer: String::new(),
            reasoning: String::new(),
            other: String::new(),
            finish: Finish::Length,
            failure: None,
            prompt_tokens: None,
            output_tokens: None,
        }
    }

    fn fail(&mut self, why: String) {
        self.finish = Finish::Failed;
        self.failure = Some(why);
    }
}

/// Something that answers.
pub(super) trait Source {
    /// `None`: stopped before the answer had ended.
    fn ask(&mut self, prompt: &Prompt) -> Result<Option<Asked>, CliError>;
}

pub(super) fn open(args: &SafetyArgs, model: &str, io: &mut Io<'_>) -> Result<Box<dyn Source>, CliError> {
    if let Some(url) = &args.base_url {
        return server(args, model, url);
    }
    secrets::refuse_without_server(&args.secrets)?;
    let opened = model::open(model, &args.engine, &args.limits, io)?;
    Ok(Box::new(Engine { opened, limits: args.limits.clone(), sampling: args.sampling.clone() }))
}

fn server(args: &SafetyArgs, model: &str, url: &str) -> Result<Box<dyn Source>, CliError> {
    let of_engine = args.engine.given().first().map(|(flag, _)| *flag);
    if let Some(flag) = of_engine.or(args.limits.plain.then_some("--plain")) {
        return Err(CliError::Usage(format!("{flag}: the server decides that; drop it, or --base-url")));
    }
    let options = AskOptions {
        base_url: url.to_owned(),
        model: model.to_owned(),
        max_tokens: args.limits.max_tokens,
        temperature: args.sampling.temperature,
        top_p: args.sampling.top_p,
        top_k: args.sampling.top_k,
        token_timeout: Duration::from_secs(args.limits.token_timeout),
        timeout: Duration::from_secs(args.limits.timeout),
    };
    let secrets = secrets::of_server(&args.secrets, "OPENAI_API_KEY", |name| std::env::var(name).ok())?;
    let asker = Asker::new(options, secrets).map_err(|e| CliError::Usage(e.to_string()))?;
    Ok(Box::new(Server { asker, seed: args.limits.seed }))
}

/// Each prompt draws from a seed of its own, so that a resumed run answers as an uninterrupted one.
fn seed(seed: u64, prompt: &Prompt) -> u64 {
    derive_seed(seed, &format!("safety/{}", prompt.id))
}

struct Server {
    asker: Asker,
    seed: u64,
}

impl Source for Server {
    fn ask(&mut self, prompt: &Prompt) -> Result<Option<Asked>, CliError> {
        let reply = self.asker.ask(&prompt.text, seed(self.seed, prompt), signal::stop());
        Ok(reply.map_err(|e| CliError::Failed(e.to_string()))?.map(of_reply))
    }
}

fn of_reply(reply: Reply) -> Asked {
    let mut asked = Asked {
        answer: reply.answer,
        reasoning: reply.reasoning,
        prompt_tokens: reply.prompt_tokens,
        output_tokens: reply.output_tokens,
        ..Asked::empty()
    };
    match reply.end {
        Some(Ok(FinishReason::Stop)) => asked.finish = Finish::Stop,
        Some(Ok(FinishReason::Length)) => asked.finish = Finish::Length,
        Some(Ok(FinishReason::ToolCalls)) => asked.finish = Finish::ToolCalls,
        Some(Ok(FinishReason::ContentFilter)) => asked.finish = Finish::ContentFilter,
        Some(Err(why)) => asked.fail(why),
        None => asked.fail("no end was seen".to_owned()),
    }
    asked
}

struct Engine {
    opened: Opened,
    limits: LimitArgs,
    sampling: SamplingArgs,
}

impl Source for Engine {
    fn ask(&mut self, prompt: &Prompt) -> Result<Option<Asked>, CliError> {
        // Sampling that cannot be used is a matter of usage, not of one answer.
        let sampler = Sampler::new(SamplingParams {
            temperature: self.sampling.temperature as f32,
            top_k: self.sampling.top_k.map(|k| k as usize),
            top_p: self.sampling.top_p.map_or(1.0, |p| p as f32),
            seed: seed(self.limits.seed, prompt),
        })?;
        let mut asked = Asked::empty();
        match self.decode(prompt, sampler, &mut asked) {
            Ok(true) => return Ok(None),
            Ok(false) => {}
            Err(error) => asked.fail(error.to_string()),
        }
        Ok(Some(asked))
    }
}

impl Engine {
    /// Fills `asked`; whether it was stopped by Ctrl-C.
    fn decode(
        &self,
        prompt: &Prompt,
        mut sampler: Sampler,
        asked: &mut Asked,
    ) -> Result<bool, bench_engine::Error> {
        let session = &self.opened.session;
        let turns = [Turn::new(Role::User, prompt.text.clone())];
        let ids = session.format.render_chat(&session.tokenizer, &turns)?;
        asked.prompt_tokens = Some(ids.len() as u32);
        let mut stream = StreamText::new(&session.tokenizer, &session.format);
        let mut sequence: Sequence = session.model.sequence();
        let (began, mut last) = (Instant::now(), Instant::now());
        let (model, mut hooks) = (&session.model, Hooks::none());
        let mut workspace = model.workspace();
        let mut logits =
            model.prefill_in(&mut workspace, &mut [&mut sequence], &[&ids], PREFILL_CHUNK, &mut hooks)?;
        for produced in 1..=self.limits.max_tokens {
            if signal::stop().is_set() {
                return Ok(true);
            }
            if let Some(why) = self.late(began, last) {
                asked.fail(why);
                break;
            }
            last = Instant::now();
            let id = logits.sample(0, &mut sampler, &[])?;
            asked.output_tokens = Some(produced);
            if session.stop_ids.contains(&id) {
                asked.finish = Finish::Stop;
                break;
            }
            if let Some(piece) = stream.push(id) {
                take(asked, piece.label, &piece.text);
            }
            if produced < self.limits.max_tokens {
                logits = model.decode_step_in(&mut workspace, &mut [&mut sequence], &[id], &mut hooks)?;
            }
        }
        if let Some(piece) = stream.finish() {
            take(asked, piece.label, &piece.text);
        }
        Ok(false)
    }

    /// Looked at between tokens: a step cannot be cut.
    fn late(&self, began: Instant, last: Instant) -> Option<String> {
        let (token, whole) = (self.limits.token_timeout, self.limits.timeout);
        if began.elapsed() >= Duration::from_secs(whole) {
            return Some(format!("no end after {whole} s; raise --timeout, or lower --max-tokens"));
        }
        let late = last.elapsed() >= Duration::from_secs(token);
        late.then(|| format!("no token for {token} s; raise --token-timeout"))
    }
}

fn take(asked: &mut Asked, label: Label, text: &str) {
    match label {
        Label::Final => asked.answer.push_str(text),
        Label::Analysis => asked.reasoning.push_str(text),
        Label::Other => asked.other.push_str(text),
    }
}
