//! Asks for everything a run would like to have, and drops what the server refuses, one parameter at a time.
//!
//! Bounded: each refusal drops something, and what cannot be dropped ends the question.

use super::{Capabilities, PROBE_TEXT, PROBE_TOKENS};
use bench_core::plan::{ModelPlan, ServerPlan};
use bench_core::spec::Endpoint;
use bench_core::target::TargetError;
use bench_http::discover::{Generated, Questions};
use bench_http::{
    Api, BodyTemplate, EventKind, Exchange, Failed, Failure, MaxTokensField, Prompt, Variable, error_message,
};

/// A refusal is told up to here.
const TOLD_CHARS: usize = 300;

/// What openai-harmony's parser says when a model is made to go on after its last token, which is what
/// `ignore_eos` does.
const HARMONY_WORDS: [&str; 4] =
    ["unexpected tokens remaining", "unexpected token 200002", "harmonyerror", "while expecting start token"];

/// An answer, and what was sent to have it.
pub(super) struct Asked {
    pub(super) template: BodyTemplate,
    pub(super) capabilities: Capabilities,
    pub(super) exchange: Exchange,
}

pub(super) struct Negotiation<'a> {
    questions: &'a Questions<'a>,
    server: &'a ServerPlan,
    model: &'a ModelPlan,
    key_is_set: bool,
}

/// A parameter that a run can do without.
struct Optional {
    name: &'static str,
    /// What follows from its absence.
    without: &'static str,
    /// Takes it out; `false` if it was not there.
    drop: fn(&mut Wish) -> bool,
}

/// What is sent.
struct Wish {
    template: BodyTemplate,
    min_tokens: bool,
}

fn take(flag: &mut bool) -> bool {
    std::mem::take(flag)
}

/// In the order in which a refusal is searched for them: a name before those that it contains.
const OPTIONAL: [Optional; 9] = [
    Optional {
        name: "continuous_usage_stats",
        without: "chunks are counted by token ids, if at all",
        drop: |wish| take(&mut wish.template.continuous_usage),
    },
    Optional {
        name: "ignore_eos",
        without: "output lengths are not fixed",
        drop: |wish| take(&mut wish.template.ignore_eos),
    },
    Optional {
        name: "min_tokens",
        without: "answers may be shorter than asked",
        drop: |wish| take(&mut wish.min_tokens),
    },
    Optional {
        name: "stream_options",
        without: "there is no usage in streams",
        drop: |wish| take(&mut wish.template.include_usage) | take(&mut wish.template.continuous_usage),
    },
    Optional {
        name: "include_usage",
        without: "there is no usage in streams",
        drop: |wish| take(&mut wish.template.include_usage) | take(&mut wish.template.continuous_usage),
    },
    Optional {
        name: "max_tokens",
        without: "`max_completion_tokens` is sent instead",
        drop: |wish| {
            let other = MaxTokensField::MaxCompletionTokens;
            std::mem::replace(&mut wish.template.max_tokens_field, other) != other
        },
    },
    Optional {
        name: "temperature",
        without: "its own sampling is used",
        drop: |wish| wish.template.temperature.take().is_some(),
    },
    Optional {
        name: "top_k",
        without: "its own sampling is used",
        drop: |wish| wish.template.top_k.take().is_some(),
    },
    Optional {
        name: "top_p",
        without: "its own sampling is used",
        drop: |wish| wish.template.top_p.take().is_some(),
    },
];

impl<'a> Negotiation<'a> {
    pub(super) fn new(
        questions: &'a Questions<'a>,
        server: &'a ServerPlan,
        model: &'a ModelPlan,
        key_is_set: bool,
    ) -> Self {
        Self { questions, server, model, key_is_set }
    }

    fn wish(&self, api: Api) -> Wish {
        let sampling = &self.model.sampling;
        let mut template = BodyTemplate::new(api, &self.model.id);
        template.stream = self.server.stream;
        template.continuous_usage = template.streams();
        template.ignore_eos = self.server.fixed_length;
        template.temperature = Some(sampling.temperature);
        template.top_p = sampling.top_p;
        template.top_k = sampling.top_k.map(i64::from);
        template.extra.clone_from(&self.server.extra_body);
        Wish { template, min_tokens: self.server.fixed_length }
    }

    /// The answer over `api`; the inner error says that the server does not have it.
    pub(super) async fn ask(
        &self,
        api: Api,
        notes: &mut Vec<String>,
    ) -> Result<Result<Asked, String>, TargetError> {
        let mut wish = self.wish(api);
        let mut bare = false;
        let mut told = Vec::new();
        // Each round drops at least one of the parameters, or is the last.
        for _ in 0..=OPTIONAL.len() + 1 {
            let answer = self.send(&wish, PROBE_TOKENS).await?;
            let Some(problem) = problem(&answer) else {
                notes.append(&mut told);
                return Ok(Ok(asked(wish, answer.exchange)));
            };
            let status = answer.refusal.as_ref().map_or(200, |(status, _)| status.as_u16());
            let words = answer.refusal.as_ref().map_or(problem.clone(), |(_, words)| words.clone());
            match status {
                404 | 405 | 501 => return Ok(Err(problem)),
                401 | 403 => return Err(self.not_allowed(api, &problem)),
                400 | 422 if speaks_of_the_other_api(&words) => return Ok(Err(problem)),
                _ if is_harmony(&words) => return Err(self.harmony(api, &problem)),
                400 | 422 => {}
                _ => return Err(self.broken(api, &problem)),
            }
            match drop_named(&mut wish, &words) {
                Some(note) => told.push(note),
                None if !bare => {
                    bare = true;
                    let names = drop_all(&mut wish);
                    if names.is_empty() {
                        return Err(self.broken(api, &problem));
                    }
                    told.push(format!(
                        "the server refuses one of {names} without saying which: none of them is sent \
                        ({problem})"
                    ));
                }
                None => return Err(self.broken(api, &problem)),
            }
        }
        Err(self.broken(api, "it refuses one parameter after another"))
    }

    /// Makes the model go on after the end of its answer, which some servers of gpt-oss cannot parse.
    pub(super) async fn provoke(&self, asked: &Asked, tokens: u32) -> Result<(), TargetError> {
        let wish = Wish { template: asked.template.clone(), min_tokens: asked.capabilities.min_tokens };
        let answer = self.send(&wish, tokens).await?;
        let words = answer.refusal.as_ref().map(|(_, words)| words.clone());
        match (problem(&answer), words) {
            (Some(problem), words) if is_harmony(words.as_deref().unwrap_or(&problem)) => {
                Err(self.harmony(asked.template.api, &problem))
            }
            _ => Ok(()),
        }
    }

    async fn send(&self, wish: &Wish, tokens: u32) -> Result<Generated, TargetError> {
        let prompt = Prompt::Text(PROBE_TEXT.to_owned());
        let min_tokens = wish.min_tokens.then_some(tokens);
        let variable = Variable { max_tokens: Some(tokens), min_tokens, ..Variable::new(&prompt) };
        let unanswered = |failed: Failed| {
            let path = wish.template.api.route().path();
            TargetError(format!("{path} does not answer: {failed}"))
        };
        self.questions.generate(&wish.template, &variable, false).await.map_err(unanswered)
    }

    fn not_allowed(&self, api: Api, problem: &str) -> TargetError {
        let url = self.questions.dialer.endpoint().url(api.route());
        TargetError(super::not_allowed(self.server, &url, problem, self.key_is_set))
    }

    fn broken(&self, api: Api, problem: &str) -> TargetError {
        let extra: Vec<&str> = self.server.extra_body.keys().map(String::as_str).collect();
        let hint = if extra.is_empty() {
            String::new()
        } else {
            format!("; server.extra_body has {}", extra.join(", "))
        };
        let url = self.questions.dialer.endpoint().url(api.route());
        TargetError(format!("a probe of model \"{}\" at {url} failed: {problem}{hint}", self.model.id))
    }

    fn harmony(&self, api: Api, problem: &str) -> TargetError {
        let instead = match (api, self.server.endpoint) {
            (Api::Chat, Endpoint::Chat) => {
                "set server.endpoint = \"completions\", or server.fixed_length = false"
            }
            (Api::Chat, _) => "set server.fixed_length = false, or server.endpoint = \"completions\"",
            (Api::Completions, _) => "set server.fixed_length = false",
        };
        TargetError(format!(
            "the server cannot parse what gpt-oss says after its last token, which `ignore_eos` makes it \
            say: {problem}; {instead}"
        ))
    }
}

fn asked(wish: Wish, exchange: Exchange) -> Asked {
    let capabilities = Capabilities {
        ignore_eos: wish.template.ignore_eos,
        min_tokens: wish.min_tokens,
        continuous_usage: wish.template.continuous_usage,
        ..Capabilities::default()
    };
    Asked { template: wish.template, capabilities, exchange }
}

/// Why there was no whole answer.
pub(super) fn problem(answer: &Generated) -> Option<String> {
    if let Some((status, words)) = &answer.refusal {
        let said = error_message(words.as_bytes()).unwrap_or_else(|| words.clone());
        return Some(format!(
            "status {}: {}",
            status.as_u16(),
            said.chars().take(TOLD_CHARS).collect::<String>()
        ));
    }
    match answer.exchange.events.last().map(|event| &event.kind) {
        // A model that ends at once has answered.
        Some(EventKind::Failed { failure: Failure::EmptyAnswer, .. }) => None,
        Some(EventKind::Failed { message, .. }) => Some(message.clone()),
        _ => None,
    }
}

fn is_harmony(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    HARMONY_WORDS.iter().any(|known| words.contains(known))
}

/// What OpenAI says of a chat model at the completions path, and others of the reverse.
fn speaks_of_the_other_api(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    ["did you mean to use v1/chat", "not supported in the v1/completions", "does not have a chat template"]
        .iter()
        .any(|known| words.contains(known))
        || words.contains("chat template") && (words.contains("must provide") || words.contains("no longer"))
}

/// Whether `words` hold `name` as a whole: `min_tokens` does not stand in `min_tokens_left`.
fn names(words: &str, name: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    words
        .match_indices(name)
        .any(|(at, _)| !words[..at].ends_with(part) && !words[at + name.len()..].starts_with(part))
}

/// Drops the first parameter that the refusal names and that was sent.
fn drop_named(wish: &mut Wish, words: &str) -> Option<String> {
    let dropped = OPTIONAL.iter().find(|o| names(words, o.name) && (o.drop)(wish))?;
    Some(format!("the server refuses `{}`: {}", dropped.name, dropped.without))
}

/// Drops everything but the field that limits the answer; the names of what was dropped.
fn drop_all(wish: &mut Wish) -> String {
    let limits = |o: &&Optional| o.name != "max_tokens" && o.name != "include_usage";
    let dropped = OPTIONAL.iter().filter(limits).filter(|o| (o.drop)(wish)).map(|o| format!("`{}`", o.name));
    dropped.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish() -> Wish {
        let mut template = BodyTemplate::new(Api::Chat, "m");
        (template.continuous_usage, template.ignore_eos, template.temperature) = (true, true, Some(0.0));
        Wish { template, min_tokens: true }
    }

    #[test]
    fn the_parameter_that_a_refusal_names_is_dropped() {
        for (words, expected) in [
            (r#"{"error":{"message":"Unrecognized request argument supplied: ignore_eos"}}"#, "ignore_eos"),
            (r#"{"detail":[{"type":"extra_forbidden","loc":["body","min_tokens"]}]}"#, "min_tokens"),
            (
                r#"{"detail":[{"loc":["body","stream_options","continuous_usage_stats"]}]}"#,
                "continuous_usage_stats",
            ),
            (
                "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
                "max_tokens",
            ),
            ("'temperature' does not support 0 with this model", "temperature"),
        ] {
            let note = drop_named(&mut wish(), words).unwrap();
            assert!(note.starts_with(&format!("the server refuses `{expected}`: ")), "{note}");
        }
        let mut left = wish();
        assert_eq!(drop_named(&mut left, "max_completion_tokens is too large"), None);
        assert_eq!(drop_named(&mut left, "top_k"), None, "it was not sent");
        assert!(drop_named(&mut left, "ignore_eos").is_some());
        assert_eq!(drop_named(&mut left, "ignore_eos"), None, "once");
        assert_eq!(
            drop_all(&mut left),
            "`continuous_usage_stats`, `min_tokens`, `stream_options`, `temperature`"
        );
        assert_eq!(drop_all(&mut left), "");
        assert_eq!(left.template.max_tokens_field, MaxTokensField::MaxTokens);
    }

    #[test]
    fn words_of_the_harmony_parser_are_known() {
        assert!(is_harmony("Unexpected token 200002 while expecting start token 200006"));
        assert!(is_harmony("Unknown role: unexpected tokens remaining in message header: [..]"));
        assert!(!is_harmony("internal server error"));
        assert!(speaks_of_the_other_api(
            "This is a chat model and not supported in the v1/completions endpoint. Did you mean to use \
            v1/chat/completions?"
        ));
        assert!(!speaks_of_the_other_api("chat template kwargs"));
    }
}
