//! The JSON of a request, in the field names that servers share; the user's extra fields come last and win.
//!
//! It writes what it is told. Whether a server takes a field is for a probe to find out.

use bytes::Bytes;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};

use crate::endpoint::Route;
use crate::error::SetupError;

/// Which of the two interfaces is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    Completions,
    Chat,
}

impl Api {
    pub fn route(self) -> Route {
        match self {
            Self::Completions => Route::Completions,
            Self::Chat => Route::ChatCompletions,
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Message {
    pub role: String,
    pub content: String,
}

/// What the model is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// For chat it becomes one message of the user.
    Text(String),
    /// Token ids; completions only.
    Tokens(Vec<u32>),
    /// Chat only.
    Messages(Vec<Message>),
}

/// The field that limits the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MaxTokensField {
    #[default]
    MaxTokens,
    /// OpenAI's reasoning models refuse `max_tokens`.
    MaxCompletionTokens,
}

impl MaxTokensField {
    fn key(self) -> &'static str {
        match self {
            Self::MaxTokens => "max_tokens",
            Self::MaxCompletionTokens => "max_completion_tokens",
        }
    }
}

/// What all requests of a run have in common. What is `None` or false is not sent.
// Each is a field of the request.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Clone, PartialEq)]
pub struct BodyTemplate {
    pub api: Api,
    pub model: String,
    pub stream: bool,
    /// `stream_options.include_usage`: the server's own token counts at the end of the stream.
    pub include_usage: bool,
    /// `stream_options.continuous_usage_stats`: running counts in every chunk, where the server knows it.
    pub continuous_usage: bool,
    pub max_tokens_field: MaxTokensField,
    pub ignore_eos: bool,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    /// Merged last; a key that stands here replaces ours.
    pub extra: Map<String, Value>,
}

impl BodyTemplate {
    /// A stream with usage and nothing else set.
    pub fn new(api: Api, model: impl Into<String>) -> Self {
        Self {
            api,
            model: model.into(),
            stream: true,
            include_usage: true,
            continuous_usage: false,
            max_tokens_field: MaxTokensField::default(),
            ignore_eos: false,
            temperature: None,
            top_p: None,
            top_k: None,
            extra: Map::new(),
        }
    }

    /// Whether the answer will be a stream, the extra fields considered.
    pub fn streams(&self) -> bool {
        self.extra.get("stream").and_then(Value::as_bool).unwrap_or(self.stream)
    }

    /// The bytes of one request.
    pub fn render(&self, variable: &Variable<'_>) -> Result<Bytes, SetupError> {
        match (self.api, variable.prompt) {
            (Api::Chat, Prompt::Tokens(_)) => {
                return Err(SetupError::Body("chat takes no token ids; use completions or text".into()));
            }
            (Api::Completions, Prompt::Messages(_)) => {
                return Err(SetupError::Body("completions take no messages; use chat or text".into()));
            }
            _ => {}
        }
        let mut bytes = Vec::with_capacity(512 + variable.prompt.estimated_bytes());
        serde_json::to_writer(&mut bytes, &Rendered { template: self, variable })
            .map_err(|error| SetupError::Body(error.to_string()))?;
        Ok(Bytes::from(bytes))
    }
}

/// What differs from request to request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Variable<'a> {
    pub prompt: &'a Prompt,
    pub max_tokens: Option<u32>,
    pub min_tokens: Option<u32>,
    pub seed: Option<u64>,
}

impl<'a> Variable<'a> {
    pub fn new(prompt: &'a Prompt) -> Self {
        Self { prompt, max_tokens: None, min_tokens: None, seed: None }
    }
}

impl Prompt {
    fn estimated_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len() + text.len() / 8,
            Self::Tokens(ids) => ids.len() * 7,
            Self::Messages(messages) => messages.iter().map(|m| m.content.len() + m.role.len() + 32).sum(),
        }
    }
}

struct Rendered<'a> {
    template: &'a BodyTemplate,
    variable: &'a Variable<'a>,
}

impl Serialize for Rendered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (template, variable) = (self.template, self.variable);
        let mut fields = Fields { map: serializer.serialize_map(None)?, extra: &template.extra };
        fields.put("model", &template.model)?;
        match (template.api, variable.prompt) {
            (Api::Completions, Prompt::Text(text)) => fields.put("prompt", text)?,
            (_, Prompt::Tokens(ids)) => fields.put("prompt", ids)?,
            (Api::Chat, Prompt::Text(text)) => {
                fields.put("messages", &[UserMessage { role: "user", content: text }])?;
            }
            (_, Prompt::Messages(messages)) => fields.put("messages", messages)?,
        }
        fields.put("stream", &template.stream)?;
        if template.streams() && (template.include_usage || template.continuous_usage) {
            fields.put("stream_options", &stream_options(template))?;
        }
        fields.put_some(template.max_tokens_field.key(), variable.max_tokens)?;
        fields.put_some("min_tokens", variable.min_tokens)?;
        fields.put_some("ignore_eos", template.ignore_eos.then_some(true))?;
        fields.put_some("temperature", template.temperature)?;
        fields.put_some("top_p", template.top_p)?;
        fields.put_some("top_k", template.top_k)?;
        fields.put_some("seed", variable.seed)?;
        for (key, value) in &template.extra {
            fields.map.serialize_entry(key, value)?;
        }
        fields.map.end()
    }
}

fn stream_options(template: &BodyTemplate) -> Value {
    let mut options = Map::new();
    if template.include_usage {
        options.insert("include_usage".to_owned(), Value::Bool(true));
    }
    if template.continuous_usage {
        options.insert("continuous_usage_stats".to_owned(), Value::Bool(true));
    }
    Value::Object(options)
}

#[derive(serde::Serialize)]
struct UserMessage<'a> {
    role: &'static str,
    content: &'a str,
}

/// A JSON object that leaves out what the extra fields will bring: servers differ over a key given twice.
struct Fields<'a, M> {
    map: M,
    extra: &'a Map<String, Value>,
}

impl<M: SerializeMap> Fields<'_, M> {
    fn put<T: Serialize + ?Sized>(&mut self, key: &str, value: &T) -> Result<(), M::Error> {
        if self.extra.contains_key(key) { Ok(()) } else { self.map.serialize_entry(key, value) }
    }

    fn put_some<T: Serialize>(&mut self, key: &str, value: Option<T>) -> Result<(), M::Error> {
        value.map_or(Ok(()), |value| self.put(key, &value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(template: &BodyTemplate, variable: &Variable<'_>) -> String {
        match template.render(variable) {
            Ok(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn only_what_is_set_is_sent() {
        let prompt = Prompt::Text("a \"b\"\n".to_owned());
        let template = BodyTemplate::new(Api::Completions, "m");
        assert_eq!(
            rendered(&template, &Variable::new(&prompt)),
            r#"{"model":"m","prompt":"a \"b\"\n","stream":true,"stream_options":{"include_usage":true}}"#
        );
        let chat = BodyTemplate { stream: false, ..BodyTemplate::new(Api::Chat, "m") };
        assert_eq!(
            rendered(&chat, &Variable::new(&prompt)),
            r#"{"model":"m","messages":[{"role":"user","content":"a \"b\"\n"}],"stream":false}"#
        );
    }

    #[test]
    fn every_field_has_the_name_that_servers_know() {
        let prompt = Prompt::Tokens(vec![1, 200_002]);
        let template = BodyTemplate {
            continuous_usage: true,
            ignore_eos: true,
            temperature: Some(0.0),
            top_p: Some(0.95),
            top_k: Some(-1),
            ..BodyTemplate::new(Api::Completions, "m")
        };
        let variable = Variable {
            max_tokens: Some(7),
            min_tokens: Some(7),
            seed: Some(1 << 60),
            ..Variable::new(&prompt)
        };
        assert_eq!(
            rendered(&template, &variable),
            concat!(
                r#"{"model":"m","prompt":[1,200002],"stream":true,"#,
                r#""stream_options":{"include_usage":true,"continuous_usage_stats":true},"#,
                r#""max_tokens":7,"min_tokens":7,"ignore_eos":true,"temperature":0.0,"top_p":0.95,"#,
                r#""top_k":-1,"seed":1152921504606846976}"#
            )
        );
        let other = BodyTemplate { max_tokens_field: MaxTokensField::MaxCompletionTokens, ..template };
        assert!(rendered(&other, &variable).contains(r#""max_completion_tokens":7"#));
    }

    #[test]
    fn extra_fields_win_and_stand_once() {
        let prompt = Prompt::Messages(vec![Message { role: "user".into(), content: "x".into() }]);
        let mut template = BodyTemplate::new(Api::Chat, "m");
        template.extra.insert("stream".to_owned(), Value::Bool(false));
        template.extra.insert("model".to_owned(), "other".into());
        template.extra.insert("reasoning_effort".to_owned(), "low".into());
        assert!(!template.streams());
        assert_eq!(
            rendered(&template, &Variable::new(&prompt)),
            concat!(
                r#"{"messages":[{"role":"user","content":"x"}],"#,
                r#""stream":false,"model":"other","reasoning_effort":"low"}"#
            )
        );
    }

    #[test]
    fn a_prompt_that_the_interface_cannot_carry_is_refused() {
        let tokens = Prompt::Tokens(vec![1]);
        let chat = BodyTemplate::new(Api::Chat, "m");
        assert!(rendered(&chat, &Variable::new(&tokens)).contains("chat takes no token ids"));
        let messages = Prompt::Messages(Vec::new());
        let completions = BodyTemplate::new(Api::Completions, "m");
        assert!(rendered(&completions, &Variable::new(&messages)).contains("completions take no messages"));
    }
}
