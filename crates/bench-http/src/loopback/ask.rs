//! What a generation request asks for, read from its JSON.
//!
//! The prompt is counted, not kept: a token is a word between spaces, or one number of an array of ids.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The members that the server heeds; all others are accepted and ignored, as sampling cannot change words
/// that are always the same.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Ask {
    pub(super) model: Option<String>,
    prompt: Option<Words>,
    messages: Option<Words>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    pub(super) stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    return_token_ids: Option<bool>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

impl Ask {
    /// Words of the prompt or of the messages; an error names the member that is missing.
    pub(super) fn words(&self, chat: bool) -> Result<u32, &'static str> {
        let (words, name) = if chat { (&self.messages, "messages") } else { (&self.prompt, "prompt") };
        words.as_ref().map(|w| w.0).ok_or(name)
    }

    pub(super) fn max_output(&self) -> Option<u32> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    pub(super) fn include_usage(&self) -> bool {
        self.stream_options.and_then(|o| o.include_usage).unwrap_or(false)
    }

    pub(super) fn continuous_usage(&self) -> bool {
        self.include_usage() && self.stream_options.and_then(|o| o.continuous_usage_stats).unwrap_or(false)
    }

    pub(super) fn token_ids(&self) -> bool {
        self.return_token_ids.unwrap_or(false)
    }
}

/// Number of tokens in a prompt or in messages, whatever their form.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Words(u32);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Count)
    }
}

struct Count;

impl<'de> Visitor<'de> for Count {
    type Value = Words;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, token ids, messages, or a list of them")
    }

    fn visit_str<E>(self, text: &str) -> Result<Words, E> {
        Ok(Words(text.split_whitespace().count() as u32))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Words, E> {
        Ok(Words(1))
    }

    fn visit_unit<E>(self) -> Result<Words, E> {
        Ok(Words(0))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Words, A::Error> {
        let mut total = 0;
        while let Some(Words(words)) = seq.next_element()? {
            total += words;
        }
        Ok(Words(total))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Words, A::Error> {
        let mut total = 0;
        while let Some(key) = map.next_key::<String>()? {
            if matches!(key.as_str(), "content" | "text") {
                total += map.next_value::<Words>()?.0;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Words(total))
    }
}

#[cfg(test)]
mod tests {
    use super::Ask;

    fn ask(json: &str) -> Ask {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn every_form_of_prompt_is_counted() {
        for (json, words) in [
            (r#"{"prompt":" one two\nthree "}"#, Ok(3)),
            (r#"{"prompt":""}"#, Ok(0)),
            (r#"{"prompt":[5,6,7,8]}"#, Ok(4)),
            (r#"{"prompt":[[5,6],[7]]}"#, Ok(3)),
            (r#"{"prompt":["one two","three"]}"#, Ok(3)),
            (r#"{"prompt":null}"#, Err("prompt")),
            (r"{}", Err("prompt")),
        ] {
            assert_eq!(ask(json).words(false), words, "{json}");
        }
        let chat = r#"{"messages":[{"role":"system","content":"be kind"},{"role":"user","content":
            [{"type":"text","text":"what is this"},{"type":"image_url","image_url":{"url":"a b c"}}]},
            {"role":"assistant","content":null}]}"#;
        assert_eq!(ask(chat).words(true), Ok(5));
        assert_eq!(ask(chat).words(false), Err("prompt"));
        assert!(serde_json::from_str::<Ask>(r#"{"prompt":-1.5}"#).is_err());
    }

    #[test]
    fn lengths_and_usage_are_read_under_each_name() {
        assert_eq!(ask(r#"{"max_tokens":5}"#).max_output(), Some(5));
        assert_eq!(ask(r#"{"max_tokens":5,"max_completion_tokens":6}"#).max_output(), Some(6));
        assert_eq!(ask(r#"{"max_tokens":null}"#).max_output(), None);
        let all = ask(r#"{"stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#);
        assert!(all.include_usage() && all.continuous_usage());
        let alone = ask(r#"{"stream_options":{"continuous_usage_stats":true}}"#);
        assert!(!alone.include_usage() && !alone.continuous_usage());
    }
}
