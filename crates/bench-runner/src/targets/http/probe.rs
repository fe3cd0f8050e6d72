//! What is found out about a server before the first request that counts: whether it is there, serves the
//! model, and which parameters it takes.
//!
//! Everything that would make a whole run worthless fails here, with what to do about it. What a server
//! merely lacks becomes a capability and a note.

mod negotiate;

use super::prompts::{Vocabulary, is_gpt_oss};
use bench_core::plan::{ModelPlan, Plan, ServerPlan};
use bench_core::spec;
use bench_core::target::TargetError;
use bench_http::discover::{Identity, Models, Offered, Product, Questions, Tokenize};
use bench_http::{Api, BodyTemplate, EventKind, Exchange, Prompt, Route, Usage, Variable};
use negotiate::{Asked, Negotiation};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two looks at a server that is not ready.
const READY_STEP: Duration = Duration::from_millis(500);
/// Answer tokens of a probe.
const PROBE_TOKENS: u32 = 8;
/// Enough for a short answer of gpt-oss to end and to be forced on, which is where its chat parser fails.
const FORCED_TOKENS: u32 = 256;
const PROBE_TEXT: &str = "Reply with one word: is the sea salty?";

/// Who counts the tokens of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counting {
    /// `usage.prompt_tokens` of an answer.
    Usage,
    Tokenize(Tokenize),
    Nobody,
}

/// What the server takes.
// Six questions with yes or no for an answer.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    pub ignore_eos: bool,
    pub min_tokens: bool,
    /// Running counts in every chunk, by `continuous_usage_stats`.
    pub continuous_usage: bool,
    /// Token ids in every chunk, by `return_token_ids`; asked for only where there are no running counts.
    pub token_ids: bool,
    /// `max_completion_tokens` instead of `max_tokens`.
    pub max_completion_tokens: bool,
    /// Prompts as arrays of token ids.
    pub prompt_ids: bool,
}

/// Times of a probe, for the choice of a calibration's load.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Measured {
    pub ttft_ms: f64,
    /// Mean distance of tokens; `None` with fewer than two.
    pub gap_ms: Option<f64>,
}

/// A server that is ready for a run.
pub struct Served {
    /// The name that requests carry.
    pub model: String,
    pub api: Api,
    /// Prompt and answer together.
    pub max_context: Option<u32>,
    pub capabilities: Capabilities,
    /// Product and version as the server says, such as `vLLM 0.11.0`.
    pub server: String,
    pub first: Measured,
    /// To be told and stored.
    pub notes: Vec<String>,
    pub counting: Counting,
    /// What all requests have in common, with everything that the server takes and nothing that it refuses.
    pub template: BodyTemplate,
    pub(super) vocabulary: Option<Arc<Vocabulary>>,
    fixed_length: bool,
}

impl Served {
    /// What differs from request to request: the answer's length is forced where that is wanted and possible.
    pub fn variable<'a>(&self, prompt: &'a Prompt, output_tokens: u32, seed: Option<u64>) -> Variable<'a> {
        let forced = self.fixed_length && self.capabilities.min_tokens;
        Variable {
            prompt,
            max_tokens: Some(output_tokens),
            min_tokens: forced.then_some(output_tokens),
            seed,
        }
    }
}

/// Asks the server of `model` everything that a run needs to know. `key_is_set`: whether a key was sent.
///
/// # Errors
/// No server, no permission, another model, an API that does not answer, each with what to do about it.
pub async fn probe(
    questions: &Questions<'_>,
    plan: &Plan,
    model: &ModelPlan,
    key_is_set: bool,
) -> Result<Served, TargetError> {
    let server = plan.server.as_ref();
    let server = server.ok_or_else(|| TargetError("the plan has no server".to_owned()))?;
    let mut notes = Vec::new();
    let models = when_ready(questions, server).await?;
    let offered = offered(questions, server, &models, &model.id, key_is_set, &mut notes)?;
    let owner = offered.as_ref().and_then(|o| o.owned_by.as_deref());
    let unknown = Identity { product: Product::Unknown, version: None, max_context: None };
    let identity = questions.identity(owner).await.unwrap_or(unknown);
    let vocabulary = Vocabulary::open(plan, model)?.map(Arc::new);
    let negotiation = Negotiation::new(questions, server, model, key_is_set);
    let Asked { template, capabilities, exchange } =
        with_api(negotiation, server, &model.id, vocabulary.is_some(), &mut notes).await?;
    let mut served = Served {
        model: model.id.clone(),
        api: template.api,
        max_context: offered.and_then(|o| o.max_context).or(identity.max_context),
        capabilities,
        server: named(&identity),
        first: measured(&exchange),
        notes,
        counting: Counting::Nobody,
        template,
        vocabulary,
        fixed_length: server.fixed_length,
    };
    judge(questions, server, &mut served, &exchange).await?;
    if served.api == Api::Completions {
        try_ids(questions, &mut served).await?;
    }
    Ok(served)
}

fn named(identity: &Identity) -> String {
    match &identity.version {
        Some(version) => format!("{} {version}", identity.product.name()),
        None => identity.product.name().to_owned(),
    }
}

/// The list of models, once the server answers; a server that is starting answers 503, or not at all.
async fn when_ready(questions: &Questions<'_>, server: &ServerPlan) -> Result<Models, TargetError> {
    let until = Instant::now() + Duration::from_secs_f64(server.ready_timeout_s);
    let base = questions.dialer.endpoint().base();
    loop {
        let problem = match questions.models().await {
            Ok(Models::Strange(said)) if said.starts_with("status 50") => said,
            Ok(models) => return Ok(models),
            Err(failed) => failed.message,
        };
        if Instant::now() >= until {
            return Err(TargetError(format!(
                "no server at {base}: {problem}; check server.base_url and that the server runs, or wait \
                for it with server.ready_timeout_s (now {})",
                server.ready_timeout_s
            )));
        }
        tokio::select! {
            () = questions.stop.wait() => {
                return Err(TargetError("stopped while waiting for the server".to_owned()));
            }
            () = sleep(READY_STEP) => {}
        }
    }
}

/// The entry of the wanted model; `None` where the server has no list.
fn offered(
    questions: &Questions<'_>,
    server: &ServerPlan,
    models: &Models,
    id: &str,
    key_is_set: bool,
    notes: &mut Vec<String>,
) -> Result<Option<Offered>, TargetError> {
    let url = questions.dialer.endpoint().url(Route::Models);
    match models {
        Models::Offered(list) => {
            let is = |m: &&Offered| m.id == id || m.aliases.iter().any(|alias| alias == id);
            match list.iter().find(is) {
                Some(offered) => Ok(Some(offered.clone())),
                None => Err(TargetError(not_offered(&url, list, id))),
            }
        }
        Models::NoList => {
            notes.push(format!("{url} does not exist: whether model \"{id}\" is served is not known"));
            Ok(None)
        }
        Models::NotAllowed(said) => Err(TargetError(not_allowed(server, &url, said, key_is_set))),
        Models::Strange(said) => Err(TargetError(format!(
            "{url} brought no list of models, {said}: check server.base_url, it must be that of an \
             OpenAI-compatible server"
        ))),
    }
}

fn not_offered(url: &str, list: &[Offered], id: &str) -> String {
    let names: Vec<String> = list.iter().map(|m| format!("\"{}\"", m.id)).collect();
    let offer = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    format!("model \"{id}\" is not served: {url} offers {offer}; set models.id to the name that is offered")
}

fn not_allowed(server: &ServerPlan, url: &str, said: &str, key_is_set: bool) -> String {
    let name = &server.api_key_env;
    let hint = if key_is_set {
        format!("the key in the environment variable {name} is not accepted")
    } else {
        format!("no key was sent; put it into the environment variable {name}")
    };
    format!("{url} does not answer without permission, {said}: {hint}")
}

/// The API that the plan asks for; by itself conversations go to chat, and all else to completions.
fn wanted_api(server: &ServerPlan) -> Api {
    let talks = server.prompts.turns > 1 || server.prompts.dataset == spec::Dataset::Sharegpt;
    match server.endpoint {
        spec::Endpoint::Completions => Api::Completions,
        spec::Endpoint::Auto if !talks => Api::Completions,
        _ => Api::Chat,
    }
}

/// Asks over the wanted API; with `auto` over the other one where the server has only that.
async fn with_api(
    negotiation: Negotiation<'_>,
    server: &ServerPlan,
    id: &str,
    has_vocabulary: bool,
    notes: &mut Vec<String>,
) -> Result<Asked, TargetError> {
    let wanted = wanted_api(server);
    let other = if wanted == Api::Chat { Api::Completions } else { Api::Chat };
    let mut asked = match negotiation.ask(wanted, notes).await? {
        Ok(asked) => asked,
        Err(refusal) if server.endpoint == spec::Endpoint::Auto => {
            let (first, second) = (wanted.route().path(), other.route().path());
            notes.push(format!("the server has no {first} for this model: {second} is used"));
            negotiation.ask(other, notes).await?.map_err(|second| {
                TargetError(format!(
                    "neither API answers: {first}: {refusal}; {}: {second}",
                    other.route().path()
                ))
            })?
        }
        Err(refusal) => {
            return Err(TargetError(format!(
                "{} does not answer: {refusal}; check server.base_url and server.endpoint",
                wanted.route().path()
            )));
        }
    };
    if is_gpt_oss(id) && asked.template.api == Api::Chat && asked.template.ignore_eos {
        negotiation.provoke(&asked, FORCED_TOKENS).await?;
    }
    if is_gpt_oss(id) && asked.template.api == Api::Completions && !has_vocabulary {
        notes.push("no tokenizer of gpt-oss is there: prompts are text without Harmony's frame".to_owned());
    }
    asked.capabilities.max_completion_tokens =
        asked.template.max_tokens_field == bench_http::MaxTokensField::MaxCompletionTokens;
    Ok(asked)
}

/// What the answer of the probe tells: who counts, whether lengths are met, whether chunks are counted.
async fn judge(
    questions: &Questions<'_>,
    server: &ServerPlan,
    served: &mut Served,
    exchange: &Exchange,
) -> Result<(), TargetError> {
    let usage = usage(exchange);
    if usage.is_some_and(|u| u.prompt_tokens.is_some()) {
        served.counting = Counting::Usage;
    } else {
        served.notes.push("the server states no usage: output tokens are counted by chunks".to_owned());
        if let Ok(Some(form)) = questions.tokenize_form(&served.model).await {
            served.counting = Counting::Tokenize(form);
        }
    }
    let produced = usage.and_then(|u| u.output_tokens);
    if let Some(produced) = produced.filter(|n| server.fixed_length && *n != PROBE_TOKENS) {
        let taken = served.capabilities.ignore_eos;
        let why = if taken { "though it takes `ignore_eos`" } else { "and `ignore_eos` is refused" };
        served.notes.push(format!(
            "asked for {PROBE_TOKENS} tokens the server produced {produced}, {why}: output lengths are not \
            fixed"
        ));
    }
    if !served.template.streams() {
        served.capabilities.continuous_usage = false;
        served.template.continuous_usage = false;
        return Ok(());
    }
    let running = counts_chunks(exchange);
    served.capabilities.continuous_usage &= running;
    served.template.continuous_usage &= running;
    if !running {
        try_token_ids(questions, served).await;
    }
    Ok(())
}

/// Token ids in chunks, where nothing else says how many tokens a chunk brings.
async fn try_token_ids(questions: &Questions<'_>, served: &mut Served) {
    let prompt = Prompt::Text(PROBE_TEXT.to_owned());
    let mut template = served.template.clone();
    template.extra.insert("return_token_ids".to_owned(), true.into());
    let variable = served.variable(&prompt, PROBE_TOKENS, None);
    let answer = questions.generate(&template, &variable, false).await;
    if answer.is_ok_and(|a| a.refusal.is_none() && counts_chunks(&a.exchange)) {
        served.capabilities.token_ids = true;
        served.template = template;
    } else {
        served.notes.push(
            "the server does not say how many tokens a chunk brings: each counts as one until usage tells \
            more"
                .to_owned(),
        );
    }
}

/// Whether prompts can be ids: they then have the length that they have.
async fn try_ids(questions: &Questions<'_>, served: &mut Served) -> Result<(), TargetError> {
    let Some(vocabulary) = &served.vocabulary else { return Ok(()) };
    let ids = vocabulary.encode(PROBE_TEXT)?;
    let sent = ids.len() as u32;
    let prompt = Prompt::Tokens(ids);
    let variable = served.variable(&prompt, PROBE_TOKENS, None);
    let answer = questions.generate(&served.template, &variable, false).await;
    match answer.map(|a| (negotiate::problem(&a), a.exchange)) {
        Ok((None, exchange)) => {
            served.capabilities.prompt_ids = true;
            // The second answer is the warmer one.
            served.first = measured(&exchange);
            if let Some(counted) = usage(&exchange).and_then(|u| u.prompt_tokens).filter(|n| *n != sent) {
                served.notes.push(format!(
                    "a prompt of {sent} ids is {counted} tokens to the server: is the tokenizer the \
                    model's own?"
                ));
            }
        }
        Ok((Some(why), _)) => {
            served.notes.push(format!("the server takes no token ids, prompts are sent as text: {why}"));
        }
        Err(failed) => return Err(TargetError(format!("the server stopped answering: {failed}"))),
    }
    Ok(())
}

fn usage(exchange: &Exchange) -> Option<Usage> {
    exchange.events.iter().rev().find_map(|event| match event.kind {
        EventKind::Usage(usage) => Some(usage),
        _ => None,
    })
}

fn counts_chunks(exchange: &Exchange) -> bool {
    exchange.events.iter().any(|event| matches!(event.kind, EventKind::Tokens { count: Some(_), .. }))
}

fn measured(exchange: &Exchange) -> Measured {
    let sent = exchange.events.iter().find(|e| e.kind == EventKind::Sent).map(|e| e.at_ns);
    let tokens: Vec<(u64, u32)> = exchange
        .events
        .iter()
        .filter_map(|e| match e.kind {
            EventKind::Tokens { count, .. } => Some((e.at_ns, count.unwrap_or(1))),
            _ => None,
        })
        .collect();
    let (Some(sent), Some(first), Some(last)) = (sent, tokens.first(), tokens.last()) else {
        return Measured::default();
    };
    let number: u32 = tokens.iter().map(|t| t.1).sum();
    let ms = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
    let gap_ms = (number > 1 && last.0 > first.0).then(|| ms(first.0, last.0) / f64::from(number - 1));
    Measured { ttft_ms: ms(sent, first.0), gap_ms }
}

#[cfg(test)]
mod tests;
