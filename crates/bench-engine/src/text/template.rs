//! Chat templates of checkpoints, rendered by minijinja as transformers renders them with jinja2.
//!
//! Gives text only; `format` turns it into ids. The clock of a template (`strftime_now`) is the pinned date.

use std::path::Path;
use std::sync::Arc;

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};
use serde_json::{Map, Value as Json};

use super::date::Date;
use super::error::{Result, TextError};

/// A checkpoint's chat template and the special tokens that templates refer to.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    /// `bos_token`, `eos_token` and their like, as the template sees them.
    variables: Map<String, Json>,
}

const NAME: &str = "chat_template";
const TOKENS: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];

impl ChatTemplate {
    /// Reads `chat_template.jinja`, else the `chat_template` of `tokenizer_config.json` (a string, or a list
    /// of which `default` is taken). `None` if the checkpoint has none.
    pub fn from_folder(folder: impl AsRef<Path>, date: Date) -> Result<Option<Self>> {
        let folder = folder.as_ref();
        let config = match read(&folder.join("tokenizer_config.json"))? {
            Some(text) => serde_json::from_str(&text).map_err(|error| TextError::BadConfig {
                path: folder.join("tokenizer_config.json"),
                message: error.to_string(),
            })?,
            None => Json::Null,
        };
        let source = match read(&folder.join("chat_template.jinja"))? {
            Some(source) => Some(source),
            None => source_in_config(&config),
        };
        source.map(|source| Self::new(source, &config, date)).transpose()
    }

    /// A template from its source. `config`: the content of `tokenizer_config.json`, or null.
    pub fn new(source: String, config: &Json, date: Date) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", move |pattern: String| date.format(&pattern));
        environment.add_template_owned(NAME, source).map_err(|error| template_error(&error))?;

        let token = |key: &str| {
            let value = config.get(key)?;
            value.get("content").or(Some(value)).filter(|text| text.is_string()).cloned()
        };
        let variables = TOKENS.iter().filter_map(|key| Some(((*key).to_owned(), token(key)?))).collect();
        Ok(Self { environment: Arc::new(environment), variables })
    }

    /// Sets a variable that the template reads, such as `enable_thinking` or `reasoning_effort`.
    #[must_use]
    pub fn with_variable(mut self, name: impl Into<String>, value: impl Into<Json>) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// The text of a conversation. `messages` is a list of objects in `OpenAI`'s form (`role`, `content`, …).
    pub fn render(&self, messages: &Json, add_generation_prompt: bool) -> Result<String> {
        let mut context = self.variables.clone();
        context.insert("messages".to_owned(), messages.clone());
        context.insert("add_generation_prompt".to_owned(), add_generation_prompt.into());
        let template = self.environment.get_template(NAME).map_err(|error| template_error(&error))?;
        template.render(Value::from_serialize(&context)).map_err(|error| template_error(&error))
    }
}

fn template_error(error: &Error) -> TextError {
    TextError::Template { message: error.to_string() }
}

fn read(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TextError::Io { action: "read", path: path.to_owned(), source }),
    }
}

fn source_in_config(config: &Json) -> Option<String> {
    let template = config.get(NAME)?;
    if let Some(list) = template.as_array() {
        let named = |name| list.iter().find(|entry| entry.get("name").and_then(Json::as_str) == name);
        let entry = named(Some("default")).or(list.first())?;
        return entry.get("template")?.as_str().map(str::to_owned);
    }
    template.as_str().map(str::to_owned)
}

// By value, as minijinja hands arguments over.
#[allow(clippy::needless_pass_by_value)]
/// `tojson` as transformers defines it: Python's `json.dumps` with `ensure_ascii=False`.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    // Accepted and without effect here: what follows is never escaped.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;

    let failed = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut json = serde_json::to_value(value).map_err(failed)?;
    if sort_keys == Some(true) {
        json.sort_all_objects();
    }
    let mut out = Vec::new();
    let written = match indent {
        Some(width) => {
            let width = " ".repeat(width);
            let formatter = PrettyFormatter::with_indent(width.as_bytes());
            json.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
        None => json.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonFormatter)),
    };
    written.map_err(failed)?;
    Ok(Value::from_safe_string(String::from_utf8_lossy(&out).into_owned()))
}

/// One line, with Python's `", "` and `": "`.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(source: &str, config: &Json) -> ChatTemplate {
        ChatTemplate::new(source.to_owned(), config, "2025-06-28".parse().unwrap()).unwrap()
    }

    #[track_caller]
    fn check(source: &str, messages: &Json, expected: &str) {
        let config =
            json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "special": true}, "pad_token": null});
        let text = template(source, &config).render(messages, true);
        assert_eq!(text.unwrap_or_else(|error| error.to_string()), expected);
    }

    #[test]
    fn behaves_as_transformers() {
        let hi = json!([{"role": "user", "content": " Hi "}]);
        check(
            "{{ bos_token }}{% for m in messages %}[{{ m.content.strip() }}]{{ eos_token }}{% endfor %}",
            &hi,
            "<s>[Hi]</s>",
        );
        check("{% if true %}\n  a\n  {% endif %}\nb\n", &hi, "  a\nb");
        check("{{ strftime_now('%d %b %Y') }}", &hi, "28 Jun 2025");
        check("{{ messages | tojson }}", &hi, r#"[{"role": "user", "content": " Hi "}]"#);
        check(
            "{{ {'b': [1, 2.5, none], 'a': 'é<'} | tojson(indent=2) }}",
            &hi,
            "{\n  \"b\": [\n    1,\n    2.5,\n    null\n  ],\n  \"a\": \"é<\"\n}",
        );
        check("{%- for m in messages %}{% continue %}{% endfor %}{{ pad_token is defined }}", &hi, "False");
    }

    #[test]
    fn a_template_can_refuse() {
        let refused =
            template("{{ raise_exception('roles must alternate') }}", &Json::Null).render(&json!([]), true);
        assert!(refused.unwrap_err().to_string().contains("roles must alternate"));
        assert!(
            ChatTemplate::new("{% if %}".to_owned(), &Json::Null, "2025-06-28".parse().unwrap()).is_err()
        );
    }

    #[test]
    fn finds_the_source() {
        let (tools, plain) =
            (json!({"name": "tool_use", "template": "t"}), json!({"name": "default", "template": "d"}));
        let list = json!({"chat_template": [tools, plain]});
        assert_eq!(source_in_config(&list).as_deref(), Some("d"));
        assert_eq!(source_in_config(&json!({"chat_template": "s"})).as_deref(), Some("s"));
        assert_eq!(source_in_config(&json!({})), None);

        let folder = tempfile::tempdir().unwrap();
        let date: Date = "2025-06-28".parse().unwrap();
        assert!(ChatTemplate::from_folder(folder.path(), date).unwrap().is_none());
        std::fs::write(folder.path().join("tokenizer_config.json"), r#"{"chat_template": "config"}"#)
            .unwrap();
        let rendered = |t: Option<ChatTemplate>| t.unwrap().render(&json!([]), true).unwrap();
        assert_eq!(rendered(ChatTemplate::from_folder(folder.path(), date).unwrap()), "config");
        std::fs::write(folder.path().join("chat_template.jinja"), "file").unwrap();
        assert_eq!(rendered(ChatTemplate::from_folder(folder.path(), date).unwrap()), "file");
        std::fs::write(folder.path().join("tokenizer_config.json"), "{").unwrap();
        assert!(ChatTemplate::from_folder(folder.path(), date).is_err());
    }
}
