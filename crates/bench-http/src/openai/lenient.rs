//! JSON values read for what a measurement needs of them, without building them.
//!
//! Servers differ in what they put where: what is null, absent or of another kind reads as nothing here, so
//! that a field of no weight never fails an answer. Text is the exception: of an unknown kind it is an error.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What is kept of the text of an answer.
pub(crate) trait Text<'de>: Default {
    /// Text that lies in the payload as it is.
    fn add_borrowed(&mut self, bytes: &'de [u8]);
    /// Text with escapes, which lies in a buffer that the next text will overwrite.
    fn add_copied(&mut self, bytes: &[u8]);
    fn is_empty(&self) -> bool;
    /// UTF-8, but for surrogates without their other half, which JSON permits.
    fn bytes(&self) -> &[u8];
}

/// Only whether there is any.
#[derive(Debug, Default)]
pub(crate) struct Seen(bool);

impl<'de> Text<'de> for Seen {
    fn add_borrowed(&mut self, bytes: &'de [u8]) {
        self.0 |= !bytes.is_empty();
    }

    fn add_copied(&mut self, bytes: &[u8]) {
        self.0 |= !bytes.is_empty();
    }

    fn is_empty(&self) -> bool {
        !self.0
    }

    fn bytes(&self) -> &[u8] {
        b""
    }
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Kept<'de>(Cow<'de, [u8]>);

impl<'de> Text<'de> for Kept<'de> {
    fn add_borrowed(&mut self, bytes: &'de [u8]) {
        if self.0.is_empty() {
            self.0 = Cow::Borrowed(bytes);
        } else {
            self.add_copied(bytes);
        }
    }

    fn add_copied(&mut self, bytes: &[u8]) {
        self.0.to_mut().extend_from_slice(bytes);
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A string, or a list of parts with a string in `text` each.
#[derive(Debug, Default)]
pub(crate) struct Content<T>(pub(crate) T);

impl<'de, T: Text<'de>> Deserialize<'de> for Content<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // As bytes, since Python servers may escape half of a surrogate pair.
        deserializer.deserialize_bytes(ContentVisitor(T::default())).map(Content)
    }
}

struct ContentVisitor<T>(T);

impl<'de, T: Text<'de>> Visitor<'de> for ContentVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, or a list of parts with text")
    }

    fn visit_borrowed_bytes<E: Error>(mut self, bytes: &'de [u8]) -> Result<T, E> {
        self.0.add_borrowed(bytes);
        Ok(self.0)
    }

    fn visit_bytes<E: Error>(mut self, bytes: &[u8]) -> Result<T, E> {
        self.0.add_copied(bytes);
        Ok(self.0)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut parts: A) -> Result<T, A::Error> {
        while let Some(part) = parts.next_element::<OrNone<Part<Kept<'de>>>>()? {
            match part.0.and_then(|part| part.text).map(|text| text.0.0) {
                Some(Cow::Borrowed(bytes)) => self.0.add_borrowed(bytes),
                Some(Cow::Owned(bytes)) => self.0.add_copied(&bytes),
                None => {}
            }
        }
        Ok(self.0)
    }
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "T: Text<'de>"))]
struct Part<T> {
    text: Option<Content<T>>,
}

/// Takes whatever stands there and says nothing; for the kinds that a field is not expected to have.
macro_rules! visit_others {
    ($($visit:ident: $of:ty),* $(,)?) => {
        $(fn $visit<E: Error>(self, _: $of) -> Result<Self::Value, E> {
            Ok(Self::Value::default())
        })*

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(Self::Value::default())
        }
    };
    (seq) => {
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok(Self::Value::default())
        }
    };
    (map) => {
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(Self::Value::default())
        }
    };
}

/// An object, or nothing.
#[derive(Debug)]
pub(crate) struct OrNone<T>(pub(crate) Option<T>);

impl<T> Default for OrNone<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OrNone<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = OrNone<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(|object| OrNone(Some(object)))
    }

    visit_others!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);
    visit_others!(seq);
}

/// A finite number that is not negative, or nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Number(Option<f64>);

impl Number {
    pub(crate) fn get(self) -> Option<f64> {
        self.0
    }

    /// The number as a count, where it is one.
    pub(crate) fn count(self) -> Option<u32> {
        self.0.filter(|value| value.fract() == 0.0 && *value <= f64::from(u32::MAX)).map(|value| value as u32)
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberVisitor)
    }
}

struct NumberVisitor;

impl<'de> Visitor<'de> for NumberVisitor {
    type Value = Number;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Number, E> {
        Ok(Number(Some(value as f64)))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Number, E> {
        Ok(Number(Some(value).filter(|value| value.is_finite() && *value >= 0.0)))
    }

    // Negative ones only: a count or a time that is negative was never measured.
    visit_others!(visit_bool: bool, visit_i64: i64, visit_str: &str);
    visit_others!(seq);
    visit_others!(map);
}

/// Length of a list; 0 for anything else.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Length(pub(crate) u32);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LengthVisitor)
    }
}

struct LengthVisitor;

impl<'de> Visitor<'de> for LengthVisitor {
    type Value = Length;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Length, A::Error> {
        let mut length = 0_u32;
        while list.next_element::<IgnoredAny>()?.is_some() {
            length = length.saturating_add(1);
        }
        Ok(Length(length))
    }

    visit_others!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);
    visit_others!(map);
}

/// A string or a number as text, or nothing; only errors are read with it.
#[derive(Debug, Default)]
pub(crate) struct Words(pub(crate) Option<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordsVisitor)
    }
}

struct WordsVisitor;

impl<'de> Visitor<'de> for WordsVisitor {
    type Value = Words;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Words, E> {
        Ok(Words(Some(text.to_owned()).filter(|text| !text.is_empty())))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Words, E> {
        Ok(Words(Some(value.to_string())))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Words, E> {
        Ok(Words(Some(value.to_string())))
    }

    visit_others!(visit_bool: bool, visit_f64: f64);
    visit_others!(seq);
    visit_others!(map);
}
