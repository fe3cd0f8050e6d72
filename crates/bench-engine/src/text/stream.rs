//! What to show of a stream of tokens: text and the channel it belongs to.
//!
//! Never fails and never holds text back for long, whatever a model writes; the strict reading is `harmony`'s
//! parser.

use super::format::ChatFormat;
use super::harmony::{Harmony, SpecialIds};
use super::tokenizer::Tokenizer;
use super::utf8::Utf8Stream;

/// What a piece of text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Label {
    /// The model thinks.
    Analysis,
    /// The answer, and all text of models without channels.
    Final,
    /// Tool calls, other channels, and text outside of any message.
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub label: Label,
    pub text: String,
}

/// Turns generated ids into labelled text, one by one.
#[derive(Debug, Clone)]
pub struct StreamText {
    tokenizer: Tokenizer,
    bytes: Utf8Stream,
    label: Label,
    harmony: Option<Reader>,
}

#[derive(Debug, Clone)]
struct Reader {
    ids: SpecialIds,
    place: Place,
    header: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Header,
    /// Inside of a message, or in text that belongs to none.
    Text,
    Between,
}

/// Longer text without `<|message|>` is no header.
const LONGEST_HEADER: usize = 256;

impl StreamText {
    /// For the ids that follow a prompt of `format`.
    pub fn new(tokenizer: &Tokenizer, format: &ChatFormat) -> Self {
        let harmony = match format {
            ChatFormat::Harmony { .. } => Harmony::new(tokenizer).ok(),
            ChatFormat::Template(_) | ChatFormat::Plain => None,
        };
        Self {
            tokenizer: tokenizer.clone(),
            bytes: Utf8Stream::new(),
            label: if harmony.is_some() { Label::Other } else { Label::Final },
            harmony: harmony.map(|h| Reader { ids: h.ids(), place: Place::Header, header: String::new() }),
        }
    }

    /// The text that `id` completes, if any.
    pub fn push(&mut self, id: u32) -> Option<Piece> {
        let Some(reader) = &mut self.harmony else {
            if self.tokenizer.is_special(id) {
                return None;
            }
            let text = self.bytes.push_token(&self.tokenizer, id);
            return piece(self.label, text);
        };
        if self.tokenizer.is_special(id) {
            let rest = piece(self.label, self.bytes.finish());
            if let Some(label) = reader.structure(id) {
                self.label = label;
            }
            return rest;
        }
        let text = self.bytes.push_token(&self.tokenizer, id);
        match reader.place {
            Place::Text => piece(self.label, text),
            Place::Between => {
                reader.place = Place::Text;
                self.label = Label::Other;
                piece(self.label, text)
            }
            Place::Header => {
                reader.header.push_str(&text);
                if reader.may_be_header() {
                    return None;
                }
                reader.place = Place::Text;
                self.label = Label::Other;
                piece(self.label, std::mem::take(&mut reader.header))
            }
        }
    }

    /// What is left when the stream ends.
    pub fn finish(&mut self) -> Option<Piece> {
        piece(self.label, self.bytes.finish())
    }
}

fn piece(label: Label, text: String) -> Option<Piece> {
    (!text.is_empty()).then_some(Piece { label, text })
}

impl Reader {
    /// Follows a special token; gives the label of the message that it opens.
    fn structure(&mut self, id: u32) -> Option<Label> {
        let ids = self.ids;
        if id == ids.start {
            self.place = Place::Header;
            self.header.clear();
        } else if id == ids.channel {
            if self.place != Place::Header {
                self.header.clear();
            }
            self.place = Place::Header;
            self.header.push_str(CHANNEL);
        } else if id == ids.message {
            let label = if self.place == Place::Header { self.header_label() } else { Label::Other };
            self.place = Place::Text;
            self.header.clear();
            return Some(label);
        } else if [ids.end, ids.ret, ids.call].contains(&id) {
            self.place = Place::Between;
        }
        None
    }

    fn header_label(&self) -> Label {
        let channel = self.header.split_once(CHANNEL).map(|(_, after)| after.trim_start());
        let name = channel.and_then(|after| after.split([' ', '<']).next());
        match name {
            // Code that a thought sends to a tool is still a thought.
            Some("analysis") => Label::Analysis,
            Some("final") => Label::Final,
            _ => Label::Other,
        }
    }

    fn may_be_header(&self) -> bool {
        let text = self.header.trim_start();
        let begins = |start: &&str| text.starts_with(start) || start.starts_with(text);
        let known = ["assistant", "user", "system", "developer", "tool", "functions.", "to=", CHANNEL];
        self.header.len() <= LONGEST_HEADER && known.iter().any(begins)
    }
}

const CHANNEL: &str = "<|channel|>";
