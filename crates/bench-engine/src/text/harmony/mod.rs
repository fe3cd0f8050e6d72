//! Harmony, the conversation format of gpt-oss: messages to token ids and back.
//!
//! Types here, `render` and `parse` beside. Behaviour is that of openai-harmony 0.0.8, held by golden files;
//! only the seven structural tokens are special, all text of a message is ordinary text.

mod message;
mod parse;
mod render;
mod typescript;

use super::error::{Result, TextError};
use super::tokenizer::Tokenizer;

pub use message::{
    Author, ChannelConfig, Content, DeveloperContent, Message, ReasoningEffort, Role, SystemContent,
    ToolDescription, ToolNamespace,
};
pub use parse::{ParserState, StreamParser};
pub use render::RenderOptions;

/// The Harmony encoding over one tokenizer, whose special tokens are found by name.
#[derive(Debug, Clone)]
pub struct Harmony {
    tokenizer: Tokenizer,
    ids: SpecialIds,
}

/// Ids of the structural tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialIds {
    /// `<|start|>`, before a header.
    pub start: u32,
    /// `<|message|>`, between header and content.
    pub message: u32,
    /// `<|channel|>`, before the channel's name in a header.
    pub channel: u32,
    /// `<|constrain|>`, before a content type in a header.
    pub constrain: u32,
    /// `<|end|>`, after a message.
    pub end: u32,
    /// `<|return|>`, after the last message of a turn.
    pub ret: u32,
    /// `<|call|>`, after a message to a tool.
    pub call: u32,
}

impl Harmony {
    /// Fails if the tokenizer lacks one of the structural tokens.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let id = |name: &'static str| tokenizer.special_id(name).ok_or(TextError::MissingSpecial { name });
        let ids = SpecialIds {
            start: id("<|start|>")?,
            message: id("<|message|>")?,
            channel: id("<|channel|>")?,
            constrain: id("<|constrain|>")?,
            end: id("<|end|>")?,
            ret: id("<|return|>")?,
            call: id("<|call|>")?,
        };
        Ok(Self { tokenizer: tokenizer.clone(), ids })
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    pub fn ids(&self) -> SpecialIds {
        self.ids
    }

    /// Tokens that end a message.
    pub fn is_message_end(&self, id: u32) -> bool {
        [self.ids.end, self.ids.ret, self.ids.call].contains(&id)
    }

    /// Tokens at which the assistant stops and waits for the user or a tool.
    pub fn stop_ids(&self) -> [u32; 2] {
        [self.ids.ret, self.ids.call]
    }

    /// A parser of a completion that begins after `<|start|>` and the role, or, without a role, before
    /// `<|start|>`.
    pub fn parser(&self, role: Option<Role>) -> StreamParser {
        StreamParser::new(self.clone(), role)
    }

    /// Messages of a whole completion. `role` as for `parser`.
    pub fn parse_completion(&self, ids: &[u32], role: Option<Role>) -> Result<Vec<Message>> {
        let mut parser = self.parser(role);
        for id in ids {
            parser.process(*id)?;
        }
        parser.process_eos()?;
        Ok(parser.into_messages())
    }
}
