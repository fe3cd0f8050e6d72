//! Token ids to messages, one token at a time.
//!
//! Strict as openai-harmony is strict: a token out of place is an error. Showing whatever a model writes is
//! the task of `text::stream`, which never fails.

use super::super::error::{Result, TextError};
use super::super::utf8::Utf8Stream;
use super::Harmony;
use super::message::{Author, Content, Message, Role};

/// Where a parser stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParserState {
    /// Between messages.
    ExpectStart,
    /// After `<|start|>`.
    Header,
    /// After `<|message|>`.
    Content,
}

/// Parses a completion token by token; finished messages are kept.
#[derive(Debug, Clone)]
pub struct StreamParser {
    harmony: Harmony,
    /// The role that the prompt gave already.
    next_role: Option<Role>,
    state: ParserState,
    header_ids: Vec<u32>,
    /// Header of the current message; its content is empty until the message ends.
    current: Option<Message>,
    content: String,
    bytes: Utf8Stream,
    delta: Option<String>,
    messages: Vec<Message>,
}

impl StreamParser {
    pub(super) fn new(harmony: Harmony, role: Option<Role>) -> Self {
        Self {
            harmony,
            next_role: role,
            state: if role.is_some() { ParserState::Header } else { ParserState::ExpectStart },
            header_ids: Vec::new(),
            current: None,
            content: String::new(),
            bytes: Utf8Stream::new(),
            delta: None,
            messages: Vec::new(),
        }
    }

    /// Takes the next token. After an error the parser waits for the next message.
    pub fn process(&mut self, id: u32) -> Result<()> {
        let ids = self.harmony.ids;
        match self.state {
            ParserState::ExpectStart if id == ids.start => {
                self.state = ParserState::Header;
                Ok(())
            }
            ParserState::ExpectStart => Err(TextError::ExpectedStart { found: id, expected: ids.start }),
            ParserState::Header if id == ids.message => self.begin_content(),
            ParserState::Header => {
                self.header_ids.push(id);
                Ok(())
            }
            ParserState::Content if self.harmony.is_message_end(id) => {
                self.end_message();
                Ok(())
            }
            ParserState::Content => {
                let text = self.bytes.push_token(&self.harmony.tokenizer, id);
                self.content.push_str(&text);
                self.delta = Some(text).filter(|text| !text.is_empty());
                Ok(())
            }
        }
    }

    /// The stream is over. An open message is closed; an open header is an error.
    pub fn process_eos(&mut self) -> Result<()> {
        match self.state {
            ParserState::ExpectStart => Ok(()),
            ParserState::Header => Err(TextError::EosInHeader),
            ParserState::Content => {
                self.end_message();
                Ok(())
            }
        }
    }

    pub fn state(&self) -> ParserState {
        self.state
    }

    /// Role of the message at hand, if it is known.
    pub fn role(&self) -> Option<Role> {
        self.current.as_ref().map_or(self.next_role, |message| Some(message.author.role))
    }

    pub fn channel(&self) -> Option<&str> {
        self.current.as_ref()?.channel.as_deref()
    }

    pub fn recipient(&self) -> Option<&str> {
        self.current.as_ref()?.recipient.as_deref()
    }

    pub fn content_type(&self) -> Option<&str> {
        self.current.as_ref()?.content_type.as_deref()
    }

    /// Text that the last token completed.
    pub fn last_content_delta(&self) -> Option<&str> {
        self.delta.as_deref()
    }

    /// Text of the current message so far.
    pub fn current_content(&self) -> &str {
        &self.content
    }

    /// Messages that are complete.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    pub fn into_messages(self) -> Vec<Message> {
        self.messages
    }

    fn begin_content(&mut self) -> Result<()> {
        self.state = ParserState::ExpectStart;
        let ids = std::mem::take(&mut self.header_ids);
        let header = String::from_utf8(self.harmony.tokenizer.decode_bytes(&ids)).map_err(|error| {
            let header = String::from_utf8_lossy(error.as_bytes()).into_owned();
            TextError::BadHeader { header, message: "not UTF-8" }
        })?;
        self.current = Some(parse_header(&header, self.next_role)?);
        self.next_role = None;
        self.state = ParserState::Content;
        Ok(())
    }

    fn end_message(&mut self) {
        let mut text = std::mem::take(&mut self.content);
        text.push_str(&self.bytes.finish());
        if let Some(mut message) = self.current.take() {
            message.content = vec![Content::Text { text }];
            self.messages.push(message);
        }
        self.delta = None;
        self.state = ParserState::ExpectStart;
    }
}

/// Reads `role[ to=recipient][<|channel|>channel][ to=recipient][ content type]`; without the role at its
/// front if `role` is given.
fn parse_header(header: &str, role: Option<Role>) -> Result<Message> {
    let bad = |message: &'static str| TextError::BadHeader { header: header.to_owned(), message };
    let (rest, channel) =
        take_channel(header).ok_or_else(|| bad("<|channel|> without a channel after it"))?;
    // A content type that touches the recipient is a word of its own.
    let rest = rest.replace("<|constrain|>", " <|constrain|>");
    let mut words: Vec<&str> = rest.split_ascii_whitespace().collect();
    let author = take_author(&mut words, role).ok_or_else(|| bad("no role that is known"))?;

    let alone = words.len() == 1;
    let (mut recipient, mut content_type) = (None, None);
    if let Some(last) = words.pop() {
        if alone || last.starts_with("to=") {
            recipient = Some(last);
        } else {
            content_type = Some(last.to_owned());
            recipient = words.pop();
        }
    }
    if !words.is_empty() {
        return Err(bad("more words than a role, a recipient and a content type"));
    }
    let recipient = recipient.map(|to| to.strip_prefix("to=").unwrap_or(to).to_owned());
    Ok(Message { author, content: Vec::new(), channel, recipient, content_type })
}

/// The header without its channel, and the channel. `None` if the marker has no name after it.
fn take_channel(header: &str) -> Option<(String, Option<String>)> {
    let Some((before, after)) = header.split_once("<|channel|>") else {
        return Some((header.to_owned(), None));
    };
    let end = after.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(after.len());
    let (channel, rest) = after.split_at(end);
    if channel.is_empty() { None } else { Some((format!("{before}{rest}"), Some(channel.to_owned()))) }
}

/// Takes the role, and the name of a tool, from the front of a header. A word that is no role is a tool's
/// name if more words follow.
fn take_author(words: &mut Vec<&str>, role: Option<Role>) -> Option<Author> {
    if let Some(role) = role {
        if words.first() == Some(&role.name()) {
            words.remove(0);
        }
        return Some(Author { role, name: None });
    }
    let first = *words.first()?;
    if let Some(role) = Role::from_name(first) {
        words.remove(0);
        // openai-harmony keeps the word as the name of a tool, even the bare "tool".
        let name = (role == Role::Tool).then(|| first.to_owned());
        return Some(Author { role, name });
    }
    if words.len() == 1 && !first.starts_with("to=") {
        return None;
    }
    words.remove(0);
    if words.first() == Some(&Role::Tool.name()) {
        words.remove(0);
    }
    Some(Author { role: Role::Tool, name: Some(first.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(header: &str, role: Option<Role>, expected: &str) {
        let shown = match parse_header(header, role) {
            Ok(m) => format!(
                "{:?} {:?} {:?} {:?} {:?}",
                m.author.role, m.author.name, m.recipient, m.channel, m.content_type
            ),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn headers() {
        check("assistant<|channel|>final", None, r#"Assistant None None Some("final") None"#);
        check(
            "<|channel|>analysis to=python code",
            Some(Role::Assistant),
            r#"Assistant None Some("python") Some("analysis") Some("code")"#,
        );
        check(
            "functions.now to=assistant<|channel|>commentary",
            None,
            r#"Tool Some("functions.now") Some("assistant") Some("commentary") None"#,
        );
        check(
            "<|channel|>commentary to=f.x<|constrain|>json",
            Some(Role::Assistant),
            r#"Assistant None Some("f.x") Some("commentary") Some("<|constrain|>json")"#,
        );
        check("nobody", None, r#"bad message header "nobody": no role that is known"#);
        check(
            "assistant<|channel|> final",
            None,
            r#"bad message header "assistant<|channel|> final": <|channel|> without a channel after it"#,
        );
        check(
            "assistant a b c",
            None,
            r#"bad message header "assistant a b c": more words than a role, a recipient and a content type"#,
        );
    }
}
