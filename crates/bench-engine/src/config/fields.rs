//! Typed access to the keys of a JSON object, with errors that name file, key and expectation.
//!
//! Knows nothing of models. A key that is absent or null is the same to it.

use serde_json::{Map, Value};

use crate::Error;
use crate::error::excerpt;

/// One JSON object and what to call it in errors.
pub(super) struct Fields<'a> {
    pub(super) file: &'a str,
    pub(super) object: &'a Map<String, Value>,
    /// Where the object stands in the file; empty for the top level, else it ends in a dot.
    prefix: &'static str,
}

/// No dimension of a model known to us comes near; it keeps every product far from overflow.
const MAX_DIMENSION: u64 = 1 << 24;

impl<'a> Fields<'a> {
    pub(super) fn new(file: &'a str, object: &'a Map<String, Value>) -> Self {
        Self { file, object, prefix: "" }
    }

    pub(super) fn error(&self, reason: String) -> Error {
        Error::Config { file: self.file.to_owned(), reason: excerpt(reason) }
    }

    /// The value of a key, `None` when it is absent or null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, value: &Value, expected: &str) -> Error {
        let mut shown = value.to_string();
        if shown.len() > 60 {
            let end = (0..=60).rev().find(|i| shown.is_char_boundary(*i)).unwrap_or(0);
            shown.truncate(end);
            shown.push_str("...");
        }
        self.error(format!("\"{}{key}\" is {shown}, expected {expected}", self.prefix))
    }

    fn missing(&self, key: &str, expected: &str) -> Error {
        self.error(format!("key \"{}{key}\" is missing, expected {expected}", self.prefix))
    }

    /// A size: a positive integer of at most 2^24.
    pub(super) fn size(&self, key: &str) -> Result<usize, Error> {
        self.optional_size(key)?.ok_or_else(|| self.missing(key, "a positive integer"))
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n @ 1..=MAX_DIMENSION) => Ok(Some(n as usize)),
            _ => Err(self.wrong(key, value, "an integer from 1 to 16777216")),
        }
    }

    /// A finite number above zero.
    pub(super) fn positive(&self, key: &str) -> Result<f64, Error> {
        self.optional_positive(key)?.ok_or_else(|| self.missing(key, "a positive number"))
    }

    pub(super) fn optional_positive(&self, key: &str) -> Result<Option<f64>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
            _ => Err(self.wrong(key, value, "a positive number")),
        }
    }

    pub(super) fn boolean(&self, key: &str) -> Result<bool, Error> {
        self.optional_boolean(key)?.ok_or_else(|| self.missing(key, "true or false"))
    }

    pub(super) fn optional_boolean(&self, key: &str) -> Result<Option<bool>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    pub(super) fn optional_text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, value, "a string"))
    }

    pub(super) fn text(&self, key: &str) -> Result<&'a str, Error> {
        self.optional_text(key)?.ok_or_else(|| self.missing(key, "a string"))
    }

    pub(super) fn optional_list(&self, key: &str) -> Result<Option<&'a [Value]>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value {
            Value::Array(list) => Ok(Some(list)),
            _ => Err(self.wrong(key, value, "a list")),
        }
    }

    pub(super) fn optional_object(&self, key: &str, prefix: &'static str) -> Result<Option<Self>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value {
            Value::Object(object) => Ok(Some(Self { file: self.file, object, prefix })),
            _ => Err(self.wrong(key, value, "an object")),
        }
    }

    /// Token ids: one id, or a list; each below `vocab_size`. Absent is an empty list.
    pub(super) fn token_ids(&self, key: &str, vocab_size: usize) -> Result<Vec<u32>, Error> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let list = match value {
            Value::Array(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        let valid = |id: &Value| id.as_u64().filter(|id| *id < vocab_size as u64).map(|id| id as u32);
        list.iter()
            .map(|id| valid(id).ok_or_else(|| self.wrong(key, id, "token ids below \"vocab_size\"")))
            .collect()
    }

    /// The key must be absent or have this value: the engine computes nothing else.
    pub(super) fn only(&self, key: &str, expected: &Value) -> Result<(), Error> {
        match self.get(key) {
            Some(value) if value != expected => {
                Err(self.wrong(key, value, &format!("{expected}, the only value that the engine implements")))
            }
            _ => Ok(()),
        }
    }
}
