//! Messages to token ids.
//!
//! Text is encoded piece by piece as openai-harmony does it (a header's role, recipient and channel apart),
//! since the cut between pieces decides the ids.

use std::collections::BTreeMap;

use super::super::error::{Result, TextError};
use super::message::{ChannelConfig, Content, DeveloperContent, Message, Role, SystemContent, ToolNamespace};
use super::{Harmony, typescript};

/// How a conversation is rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RenderOptions {
    /// Leaves out the thoughts before the first final answer, once the assistant's last message is final.
    pub auto_drop_analysis: bool,
}

impl Default for RenderOptions {
    fn default() -> Self {
        Self { auto_drop_analysis: true }
    }
}

const FINAL: Option<&str> = Some("final");

impl Harmony {
    /// All messages, each closed.
    pub fn render_conversation(&self, messages: &[Message], options: RenderOptions) -> Result<Vec<u32>> {
        let functions = messages.iter().any(declares_functions);
        let last_said = messages.iter().rev().find(|message| message.author.role == Role::Assistant);
        let answered = last_said.is_some_and(|message| message.channel.as_deref() == FINAL);
        let first_final = messages.iter().position(|message| message.channel.as_deref() == FINAL);
        let dropped_before = if options.auto_drop_analysis && answered { first_final } else { None };

        let mut ids = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            let thought = message.channel.as_deref() == Some("analysis");
            if thought && dropped_before.is_some_and(|first| index < first) {
                continue;
            }
            self.render_message(message, functions, &mut ids)?;
        }
        Ok(ids)
    }

    /// The conversation and the header of the next turn: what a model gets to go on from.
    pub fn render_conversation_for_completion(
        &self,
        messages: &[Message],
        next: Role,
        options: RenderOptions,
    ) -> Result<Vec<u32>> {
        let mut ids = self.render_conversation(messages, options)?;
        ids.push(self.ids.start);
        self.text(next.name(), &mut ids)?;
        Ok(ids)
    }

    /// The conversation, a final answer at its end closed with `<|return|>`.
    pub fn render_conversation_for_training(
        &self,
        messages: &[Message],
        options: RenderOptions,
    ) -> Result<Vec<u32>> {
        let mut ids = self.render_conversation(messages, options)?;
        let last = messages.last();
        let answers = last.is_some_and(|m| m.author.role == Role::Assistant && m.channel.as_deref() == FINAL);
        if let (true, Some(end)) = (answers, ids.last_mut()) {
            *end = self.ids.ret;
        }
        Ok(ids)
    }

    fn text(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        ids.extend(self.tokenizer.encode(text)?);
        Ok(())
    }

    /// One message. `functions`: whether any message of the conversation declares function tools.
    fn render_message(&self, message: &Message, functions: bool, ids: &mut Vec<u32>) -> Result<()> {
        ids.push(self.ids.start);
        self.render_header(message, ids)?;
        ids.push(self.ids.message);
        for content in &message.content {
            self.text(&content_text(content, message.author.role, functions)?, ids)?;
        }
        let calls = message.author.role == Role::Assistant && message.recipient.is_some();
        ids.push(if calls { self.ids.call } else { self.ids.end });
        Ok(())
    }

    fn render_header(&self, message: &Message, ids: &mut Vec<u32>) -> Result<()> {
        let name = message.author.name.as_deref();
        if message.author.role == Role::Tool {
            self.text(name.ok_or(TextError::UnnamedTool)?, ids)?;
        } else {
            self.text(message.author.role.name(), ids)?;
            if let Some(name) = name {
                self.text(&format!(":{name}"), ids)?;
            }
        }
        if let Some(recipient) = message.recipient.as_deref().filter(|recipient| *recipient != "all") {
            self.text(&format!(" to={recipient}"), ids)?;
        }
        if let Some(channel) = &message.channel {
            ids.push(self.ids.channel);
            self.text(channel, ids)?;
        }
        let Some(content_type) = &message.content_type else {
            return Ok(());
        };
        if let Some(format) = content_type.strip_prefix("<|constrain|>") {
            self.text(" ", ids)?;
            ids.push(self.ids.constrain);
            return self.text(format, ids);
        }
        self.text(&format!(" {content_type}"), ids)
    }
}

fn declares_functions(message: &Message) -> bool {
    message.content.iter().any(|content| match content {
        Content::DeveloperContent(DeveloperContent { tools: Some(tools), .. }) => {
            tools.get("functions").is_some_and(|namespace| !namespace.tools.is_empty())
        }
        _ => false,
    })
}

fn content_text(content: &Content, role: Role, functions: bool) -> Result<String> {
    let misplaced = |what, expected| TextError::MisplacedContent { what, expected, found: role.name() };
    match content {
        Content::Text { text } => Ok(text.clone()),
        Content::SystemContent(_) if role != Role::System => Err(misplaced("system content", "system")),
        Content::DeveloperContent(_) if role != Role::Developer => {
            Err(misplaced("developer content", "developer"))
        }
        Content::SystemContent(system) => Ok(system_text(system, functions)),
        Content::DeveloperContent(developer) => Ok(developer_text(developer)),
    }
}

fn system_text(system: &SystemContent, functions: bool) -> String {
    let line = |label: &str, value: &Option<String>| value.as_ref().map(|value| format!("{label}{value}"));
    let about = [
        line("", &system.model_identity),
        line("Knowledge cutoff: ", &system.knowledge_cutoff),
        line("Current date: ", &system.conversation_start_date),
    ];
    let about: Vec<String> = about.into_iter().flatten().collect();

    let mut sections = Vec::new();
    if !about.is_empty() {
        sections.push(about.join("\n"));
    }
    if let Some(effort) = system.reasoning_effort {
        sections.push(format!("Reasoning: {}", effort.name()));
    }
    sections.extend(system.tools.as_ref().and_then(tools_text));
    sections.extend(system.channel_config.as_ref().and_then(|channels| channels_text(channels, functions)));
    sections.join("\n\n")
}

fn channels_text(channels: &ChannelConfig, functions: bool) -> Option<String> {
    if channels.valid_channels.is_empty() {
        return None;
    }
    let mut text = format!("# Valid channels: {}.", channels.valid_channels.join(", "));
    if channels.channel_required {
        text.push_str(" Channel must be included for every message.");
    }
    if functions {
        text.push_str("\nCalls to these tools must go to the commentary channel: 'functions'.");
    }
    Some(text)
}

fn developer_text(developer: &DeveloperContent) -> String {
    let instructions = developer.instructions.as_ref().map(|text| format!("# Instructions\n\n{text}"));
    let sections: Vec<String> =
        instructions.into_iter().chain(developer.tools.as_ref().and_then(tools_text)).collect();
    sections.join("\n\n")
}

/// The tools section, or nothing if there is no namespace.
fn tools_text(namespaces: &BTreeMap<String, ToolNamespace>) -> Option<String> {
    if namespaces.is_empty() {
        return None;
    }
    let sections: Vec<String> = namespaces.values().map(namespace_text).collect();
    Some(format!("# Tools\n\n{}", sections.join("\n\n")))
}

/// A namespace without functions is described in plain text, one with functions in TypeScript comments.
fn namespace_text(namespace: &ToolNamespace) -> String {
    let name = &namespace.name;
    let description = namespace.description.as_deref().unwrap_or_default().lines();
    let mut lines = vec![format!("## {name}\n")];
    if namespace.tools.is_empty() {
        lines.extend(description.map(str::to_owned));
        return lines.join("\n");
    }
    lines.extend(description.map(|line| format!("// {line}")));
    lines.push(format!("namespace {name} {{\n"));
    for tool in &namespace.tools {
        lines.extend(tool.description.lines().map(|line| format!("// {line}")));
        let argument =
            tool.parameters.as_ref().map(|schema| format!("_: {}", typescript::type_of(schema, "")));
        lines.push(format!("type {} = ({}) => any;\n", tool.name, argument.unwrap_or_default()));
    }
    lines.push(format!("}} // namespace {name}"));
    lines.join("\n")
}
