//! Questions to a server before a run: what it is, what it serves, how it counts.
//!
//! Each question is one plain request of its own connection. What the answers mean for a run, and what is
//! asked when, is the caller's matter.

use http::StatusCode;
use serde_json::{Value, json};

use crate::body::{BodyTemplate, Message, Prompt, Variable};
use crate::connection::{Plain, Terms};
use crate::dial::Dialer;
use crate::endpoint::Route;
use crate::error::Failed;
use crate::head::told;
use crate::limits::{Stop, Timeouts};
use crate::plain::{self, PlainTerms};
use crate::record::{Exchange, Failure};

/// The longest answer that is read: a `/tokenize` of a million tokens, a `/metrics` of many models.
const LONGEST_BODY_BYTES: usize = 16 * 1024 * 1024;

/// Asks one server.
#[derive(Clone, Copy)]
pub struct Questions<'a> {
    pub dialer: &'a Dialer,
    pub timeouts: &'a Timeouts,
    pub stop: &'a Stop,
}

/// A model that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    pub id: String,
    /// Other names that it answers to.
    pub aliases: Vec<String>,
    pub owned_by: Option<String>,
    /// Prompt and answer together.
    pub max_context: Option<u32>,
}

/// What `/v1/models` brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Models {
    Offered(Vec<Offered>),
    /// There is no such path.
    NoList,
    /// A status of 401 or 403, with the server's words.
    NotAllowed(String),
    /// Another status, or a body that is no list, with the server's words.
    Strange(String),
}

/// The program behind the API, as far as it can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    Vllm,
    Sglang,
    LlamaCpp,
    Unknown,
}

impl Product {
    pub fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vLLM",
            Self::Sglang => "SGLang",
            Self::LlamaCpp => "llama.cpp",
            Self::Unknown => "unknown",
        }
    }
}

/// Product and version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub product: Product,
    pub version: Option<String>,
    /// Where the product says it elsewhere than in its list of models.
    pub max_context: Option<u32>,
}

/// Forms of `/tokenize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokenize {
    /// vLLM's: `prompt` or `messages` to `count`.
    Vllm,
    /// llama.cpp's: `content` to `tokens`; text only.
    LlamaCpp,
}

/// How a request that generates was answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    pub exchange: Exchange,
    /// Status and body of the refusal, where the status was not 200.
    pub refusal: Option<(StatusCode, String)>,
}

impl Questions<'_> {
    fn terms(&self) -> PlainTerms<'_> {
        PlainTerms { limit_bytes: LONGEST_BODY_BYTES, timeouts: self.timeouts, stop: self.stop }
    }

    /// The whole body of a path, whatever its status.
    ///
    /// # Errors
    /// No connection, no answer in time, bytes that are no HTTP.
    pub async fn get(&self, route: Route) -> Result<Plain, Failed> {
        plain::get(self.dialer, route, &self.terms()).await
    }

    /// The JSON of a path; `None` for any status but 200 and for what is no JSON.
    async fn json(&self, route: Route) -> Result<Option<Value>, Failed> {
        let answer = self.get(route).await?;
        Ok(plain::json(self.dialer, route, &answer).ok())
    }

    /// A server's words, without secrets, on one line.
    fn words(&self, plain: &Plain) -> String {
        told(&self.dialer.redacted(&String::from_utf8_lossy(&plain.body)))
    }

    /// What `/v1/models` lists.
    ///
    /// # Errors
    /// As [`Questions::get`].
    pub async fn models(&self) -> Result<Models, Failed> {
        let answer = self.get(Route::Models).await?;
        let said = || format!("status {}: {}", answer.status.as_u16(), self.words(&answer));
        Ok(match answer.status {
            StatusCode::OK => match offered(&answer.body) {
                Some(models) => Models::Offered(models),
                None => Models::Strange(said()),
            },
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                Models::NoList
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Models::NotAllowed(said()),
            _ => Models::Strange(said()),
        })
    }

    /// Which program answers. `owner`: `owned_by` of the model, where a list names it.
    ///
    /// # Errors
    /// As [`Questions::get`].
    pub async fn identity(&self, owner: Option<&str>) -> Result<Identity, Failed> {
        let known = match owner.map(str::to_ascii_lowercase).as_deref() {
            Some("vllm") => Some(Product::Vllm),
            Some("sglang") => Some(Product::Sglang),
            Some("llamacpp") => Some(Product::LlamaCpp),
            _ => None,
        };
        if matches!(known, None | Some(Product::LlamaCpp))
            && let Some(props) = self.json(Route::Props).await?
            && props.get("default_generation_settings").is_some()
        {
            let version = text(&props["build_info"]);
            let max_context = number(&props["default_generation_settings"]["n_ctx"]);
            return Ok(Identity { product: Product::LlamaCpp, version, max_context });
        }
        if matches!(known, None | Some(Product::Sglang))
            && let Some(info) = self.json(Route::ModelInfo).await?
            && info.get("model_path").is_some()
        {
            let version = text(&info["version"]).or(text(&info["sglang_version"]));
            return Ok(Identity { product: Product::Sglang, version, max_context: None });
        }
        let version = self.json(Route::Version).await?.and_then(|v| text(&v["version"]));
        let product = match (known, &version) {
            (Some(product), _) => product,
            // Only vLLM answers with a version and nothing else.
            (None, Some(_)) if owner.is_none() => Product::Vllm,
            (None, _) => Product::Unknown,
        };
        Ok(Identity { product, version, max_context: None })
    }

    /// Which form of `/tokenize` the server has; `None` where it has neither.
    ///
    /// # Errors
    /// As [`Questions::get`].
    pub async fn tokenize_form(&self, model: &str) -> Result<Option<Tokenize>, Failed> {
        for form in [Tokenize::Vllm, Tokenize::LlamaCpp] {
            let text = Prompt::Text("one two three".to_owned());
            if self.tokenized(form, model, &text).await?.is_some_and(|count| count > 0) {
                return Ok(Some(form));
            }
        }
        Ok(None)
    }

    /// Tokens of `prompt` as the server counts them, what it adds itself included; `None` where it does not
    /// say.
    ///
    /// # Errors
    /// As [`Questions::get`].
    pub async fn tokenized(
        &self,
        form: Tokenize,
        model: &str,
        prompt: &Prompt,
    ) -> Result<Option<u32>, Failed> {
        let Some(body) = tokenize_body(form, model, prompt) else { return Ok(None) };
        let answer = plain::post(self.dialer, Route::Tokenize, &body, &self.terms()).await?;
        let Ok(value) = plain::json(self.dialer, Route::Tokenize, &answer) else { return Ok(None) };
        Ok(number(&value["count"])
            .or_else(|| value["tokens"].as_array().and_then(|tokens| u32::try_from(tokens.len()).ok())))
    }

    /// One request that generates. Where it is refused by its status, the same is asked again for the whole
    /// body of the refusal, which an exchange keeps the beginning of only.
    ///
    /// # Errors
    /// No connection, no answer to the second question, a body that cannot be written.
    pub async fn generate(
        &self,
        template: &BodyTemplate,
        variable: &Variable<'_>,
        keep_text: bool,
    ) -> Result<Generated, Failed> {
        let route = template.api.route();
        let unsaid = |error: crate::SetupError| Failed::new(Failure::Connect, error.to_string());
        let body = template.render(variable).map_err(unsaid)?;
        let request = self.dialer.endpoint().post(route, body.clone()).map_err(unsaid)?;
        let mut connection = self.dialer.open(self.timeouts.connect, self.stop).await?;
        let streamed = template.streams();
        let terms =
            Terms { streamed, keep_text, expected_tokens: 0, timeouts: self.timeouts, stop: self.stop };
        let exchange = connection.exchange(request, &terms).await;
        let refused = matches!(
            exchange.events.last().map(|event| &event.kind),
            Some(crate::EventKind::Failed { failure: Failure::Status, .. })
        );
        drop(connection);
        if !refused {
            return Ok(Generated { exchange, refusal: None });
        }
        let value: Value = serde_json::from_slice(&body)
            .map_err(|error| Failed::new(Failure::BadFrame, error.to_string()))?;
        let again = plain::post(self.dialer, route, &value, &self.terms()).await?;
        let words = self.dialer.redacted(&String::from_utf8_lossy(&again.body));
        let refusal = (again.status != StatusCode::OK).then_some((again.status, words));
        Ok(Generated { exchange, refusal })
    }
}

fn tokenize_body(form: Tokenize, model: &str, prompt: &Prompt) -> Option<Value> {
    match (form, prompt) {
        (Tokenize::Vllm, Prompt::Text(text)) => Some(json!({"model": model, "prompt": text})),
        (Tokenize::Vllm, Prompt::Messages(messages)) => {
            Some(json!({"model": model, "messages": messages, "add_generation_prompt": true}))
        }
        // The completions path adds the model's begin token, so it is asked for here too.
        (Tokenize::LlamaCpp, Prompt::Text(text)) => {
            Some(json!({"content": text, "add_special": true, "parse_special": true}))
        }
        _ => None,
    }
}

/// The list of models in OpenAI's form, with the members that vLLM, `SGLang` and llama.cpp add.
fn offered(body: &[u8]) -> Option<Vec<Offered>> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let list = value["data"].as_array().or(value.as_array())?;
    let model = |entry: &Value| {
        let aliases = entry["aliases"].as_array().into_iter().flatten();
        Some(Offered {
            id: text(&entry["id"])?,
            aliases: aliases.filter_map(text).collect(),
            owned_by: text(&entry["owned_by"]),
            max_context: number(&entry["max_model_len"]).or(number(&entry["meta"]["n_ctx"])),
        })
    };
    Some(list.iter().filter_map(model).collect())
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

/// A message of the user.
pub fn user(text: impl Into<String>) -> Message {
    Message { role: "user".to_owned(), content: text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(body: &str) -> Option<String> {
        let entry = |m: Offered| format!("{} {:?} {:?} {:?}", m.id, m.aliases, m.owned_by, m.max_context);
        Some(offered(body.as_bytes())?.into_iter().map(entry).collect::<Vec<_>>().join("; "))
    }

    #[test]
    fn lists_of_models_are_read_in_each_servers_form() {
        for (body, expected) in [
            (
                r#"{"object":"list","data":[{"id":"m","owned_by":"vllm","max_model_len":4096}]}"#,
                Some(r#"m [] Some("vllm") Some(4096)"#),
            ),
            (
                r#"{"data":[{"id":"tiny","aliases":["t"],"owned_by":"llamacpp","meta":{"n_ctx":1024}}]}"#,
                Some(r#"tiny ["t"] Some("llamacpp") Some(1024)"#),
            ),
            (r#"{"data":[{"id":"a"},{"name":"b"},{"id":"c"}]}"#, Some("a [] None None; c [] None None")),
            (r#"[{"id":"a"}]"#, Some("a [] None None")),
            (r#"{"data":[]}"#, Some("")),
            (r#"{"error":"x"}"#, None),
            ("<html>", None),
        ] {
            assert_eq!(listed(body).as_deref(), expected, "{body}");
        }
    }

    #[test]
    fn tokens_are_asked_for_in_each_servers_form() {
        let ask = |form, prompt| tokenize_body(form, "m", &prompt).map(|body| body.to_string());
        let text = || Prompt::Text("x".to_owned());
        let messages = || Prompt::Messages(vec![user("x")]);
        assert_eq!(ask(Tokenize::Vllm, text()).as_deref(), Some(r#"{"model":"m","prompt":"x"}"#));
        assert!(ask(Tokenize::Vllm, messages()).unwrap().contains(r#""messages":[{"#));
        assert!(ask(Tokenize::LlamaCpp, text()).unwrap().contains(r#""content":"x""#));
        assert_eq!(ask(Tokenize::LlamaCpp, messages()), None);
        assert_eq!(ask(Tokenize::Vllm, Prompt::Tokens(vec![1])), None);
    }
}
