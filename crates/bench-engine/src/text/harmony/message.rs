//! The types of a Harmony conversation, with openai-harmony's JSON form.
//!
//! Only data: how a message is written as tokens stands in `render`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    User,
    Assistant,
    System,
    Developer,
    Tool,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::System => "system",
            Self::Developer => "developer",
            Self::Tool => "tool",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [Self::User, Self::Assistant, Self::System, Self::Developer, Self::Tool]
            .into_iter()
            .find(|role| role.name() == name)
    }
}

/// Who speaks. Tools are known by their name alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Author {
    pub role: Role,
    #[serde(default)]
    pub name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    #[serde(flatten)]
    pub author: Author,
    #[serde(deserialize_with = "text_or_contents")]
    pub content: Vec<Content>,
    /// `analysis`, `commentary` or `final` for the assistant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// The tool that is called, or who gets a tool's answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// Such as `<|constrain|>json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
}

impl Message {
    pub fn new(role: Role, content: impl Into<Content>) -> Self {
        Self::from_author(Author { role, name: None }, content)
    }

    /// The answer of a tool such as `functions.get_weather`, on the commentary channel.
    pub fn from_tool(name: impl Into<String>, content: impl Into<Content>) -> Self {
        Self::from_author(Author { role: Role::Tool, name: Some(name.into()) }, content)
            .with_channel("commentary")
            .with_recipient("assistant")
    }

    fn from_author(author: Author, content: impl Into<Content>) -> Self {
        Self { author, content: vec![content.into()], channel: None, recipient: None, content_type: None }
    }

    #[must_use]
    pub fn with_channel(mut self, channel: impl Into<String>) -> Self {
        self.channel = Some(channel.into());
        self
    }

    #[must_use]
    pub fn with_recipient(mut self, recipient: impl Into<String>) -> Self {
        self.recipient = Some(recipient.into());
        self
    }

    #[must_use]
    pub fn with_content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = Some(content_type.into());
        self
    }

    /// The text parts, one after the other.
    pub fn text(&self) -> String {
        let parts = self.content.iter().map(|content| match content {
            Content::Text { text } => text.as_str(),
            Content::SystemContent(_) | Content::DeveloperContent(_) => "",
        });
        parts.collect()
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Content {
    Text { text: String },
    SystemContent(SystemContent),
    DeveloperContent(DeveloperContent),
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Self::Text { text: text.to_owned() }
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Self::Text { text }
    }
}

impl From<SystemContent> for Content {
    fn from(content: SystemContent) -> Self {
        Self::SystemContent(content)
    }
}

impl From<DeveloperContent> for Content {
    fn from(content: DeveloperContent) -> Self {
        Self::DeveloperContent(content)
    }
}

/// How long the model thinks before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum ReasoningEffort {
    Low,
    #[default]
    Medium,
    High,
}

impl ReasoningEffort {
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Low, Self::Medium, Self::High].into_iter().find(|effort| effort.name() == name)
    }
}

/// What the system message tells the model about itself. `None` leaves the line out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SystemContent {
    #[serde(default)]
    pub model_identity: Option<String>,
    #[serde(default)]
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Written as the current date. Never filled in silently: it changes the prompt from day to day.
    #[serde(default)]
    pub conversation_start_date: Option<String>,
    #[serde(default)]
    pub knowledge_cutoff: Option<String>,
    #[serde(default)]
    pub channel_config: Option<ChannelConfig>,
    /// Built-in tools by namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<BTreeMap<String, ToolNamespace>>,
}

impl Default for SystemContent {
    /// What gpt-oss was trained with, without a date.
    fn default() -> Self {
        Self {
            model_identity: Some("You are ChatGPT, a large language model trained by OpenAI.".to_owned()),
            reasoning_effort: Some(ReasoningEffort::Medium),
            conversation_start_date: None,
            knowledge_cutoff: Some("2024-06".to_owned()),
            channel_config: Some(ChannelConfig::default()),
            tools: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelConfig {
    pub valid_channels: Vec<String>,
    pub channel_required: bool,
}

impl Default for ChannelConfig {
    fn default() -> Self {
        let valid_channels = ["analysis", "commentary", "final"].map(str::to_owned).to_vec();
        Self { valid_channels, channel_required: true }
    }
}

/// What is usually called the system prompt, and the functions that may be called.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DeveloperContent {
    #[serde(default)]
    pub instructions: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<BTreeMap<String, ToolNamespace>>,
}

impl DeveloperContent {
    pub fn new(instructions: impl Into<String>) -> Self {
        Self { instructions: Some(instructions.into()), tools: None }
    }

    /// Adds the namespace `functions`.
    #[must_use]
    pub fn with_functions(mut self, tools: Vec<ToolDescription>) -> Self {
        let namespace = ToolNamespace { name: "functions".to_owned(), description: None, tools };
        self.tools.get_or_insert_default().insert(namespace.name.clone(), namespace);
        self
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolNamespace {
    pub name: String,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub tools: Vec<ToolDescription>,
}

/// A function with its JSON schema.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolDescription {
    pub name: String,
    pub description: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
}

fn text_or_contents<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Content>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum TextOrContents {
        Text(String),
        Contents(Vec<Content>),
    }
    Ok(match TextOrContents::deserialize(deserializer)? {
        TextOrContents::Text(text) => vec![Content::Text { text }],
        TextOrContents::Contents(contents) => contents,
    })
}
