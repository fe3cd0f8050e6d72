//! The chat format of a model: what stands around a user's text.
//!
//! The text itself is always encoded as ordinary text, so that `<|end|>` typed by a user stays six characters
//! and does not end the message.

use std::ops::Range;

use serde_json::json;

use super::date::Date;
use super::error::{Result, TextError};
use super::harmony::{
    DeveloperContent, Harmony, Message, ReasoningEffort, RenderOptions, Role, SystemContent,
};
use super::template::ChatTemplate;
use super::tokenizer::Tokenizer;

/// How a model wants its prompts.
#[derive(Debug, Clone)]
pub enum ChatFormat {
    /// gpt-oss.
    Harmony { reasoning_effort: ReasoningEffort, date: Date },
    /// The checkpoint's own template.
    Template(ChatTemplate),
    /// Text alone: base models and bare token counts.
    Plain,
}

/// Ids around the user's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// System prompt and header of the user's message.
    pub prefix: Vec<u32>,
    /// End of the user's message and generation prompt.
    pub suffix: Vec<u32>,
}

/// A prompt and where in it the user's text lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedPrompt {
    pub ids: Vec<u32>,
    pub body: Range<usize>,
}

/// One turn of a conversation, for `ChatFormat::render_chat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    pub role: Role,
    pub text: String,
}

impl Turn {
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Self { role, text: text.into() }
    }
}

/// Stands for a text while a template is rendered; the number tells texts apart.
fn placeholder(index: usize) -> String {
    format!("OssbenchText{index}Here")
}

impl ChatFormat {
    /// Harmony for gpt-oss, else the template, else plain text.
    pub fn for_model(
        is_gpt_oss: bool,
        template: Option<ChatTemplate>,
        reasoning_effort: ReasoningEffort,
        date: Date,
    ) -> Self {
        match template {
            _ if is_gpt_oss => Self::Harmony { reasoning_effort, date },
            Some(template) => Self::Template(template),
            None => Self::Plain,
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Harmony { .. } => "harmony",
            Self::Template(_) => "template",
            Self::Plain => "plain",
        }
    }

    /// What stands before and after a single user message.
    pub fn frame(&self, tokenizer: &Tokenizer) -> Result<Frame> {
        match self {
            Self::Plain => Ok(Frame { prefix: Vec::new(), suffix: Vec::new() }),
            Self::Template(template) => {
                let text = template.render(&json!([{"role": "user", "content": placeholder(0)}]), true)?;
                let (before, after) =
                    split_once(&text, &placeholder(0)).ok_or(TextError::TemplateHidesBody)?;
                let prefix = tokenizer.encode_with_specials(before)?;
                Ok(Frame { prefix, suffix: tokenizer.encode_with_specials(after)? })
            }
            Self::Harmony { .. } => {
                let harmony = Harmony::new(tokenizer)?;
                let mut prefix = self.harmony_ids(&harmony, &[Turn::new(Role::User, "")])?;
                let end = prefix.iter().rposition(|id| *id == harmony.ids().end).unwrap_or(prefix.len());
                let suffix = prefix.split_off(end);
                Ok(Frame { prefix, suffix })
            }
        }
    }

    /// A prompt for one user message.
    pub fn render_user(&self, tokenizer: &Tokenizer, text: &str) -> Result<RenderedPrompt> {
        let Frame { prefix, suffix } = self.frame(tokenizer)?;
        let body = tokenizer.encode(text)?;
        let range = prefix.len()..prefix.len() + body.len();
        Ok(RenderedPrompt { ids: [prefix, body, suffix].concat(), body: range })
    }

    /// A prompt for a conversation: system, user and assistant turns, ending with the generation prompt.
    /// System turns are developer instructions in Harmony.
    pub fn render_chat(&self, tokenizer: &Tokenizer, turns: &[Turn]) -> Result<Vec<u32>> {
        match self {
            Self::Plain => {
                let texts: Vec<&str> = turns.iter().map(|turn| turn.text.as_str()).collect();
                tokenizer.encode(&texts.join("\n\n"))
            }
            Self::Harmony { .. } => self.harmony_ids(&Harmony::new(tokenizer)?, turns),
            Self::Template(template) => template_ids(template, tokenizer, turns),
        }
    }

    /// Ids at which generation ends: the format's own and the checkpoint's `eos`.
    pub fn stop_ids(&self, tokenizer: &Tokenizer, eos: &[u32]) -> Vec<u32> {
        let mut ids = eos.to_vec();
        if let (Self::Harmony { .. }, Ok(harmony)) = (self, Harmony::new(tokenizer)) {
            ids.extend(harmony.stop_ids());
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    fn harmony_ids(&self, harmony: &Harmony, turns: &[Turn]) -> Result<Vec<u32>> {
        let Self::Harmony { reasoning_effort, date } = self else {
            return Ok(Vec::new());
        };
        let system = SystemContent {
            reasoning_effort: Some(*reasoning_effort),
            conversation_start_date: Some(date.to_string()),
            ..SystemContent::default()
        };
        let said = turns.iter().map(|turn| match turn.role {
            Role::System | Role::Developer => {
                Message::new(Role::Developer, DeveloperContent::new(&turn.text))
            }
            Role::Assistant => Message::new(Role::Assistant, turn.text.as_str()).with_channel("final"),
            Role::User | Role::Tool => Message::new(Role::User, turn.text.as_str()),
        });
        let messages: Vec<Message> =
            std::iter::once(Message::new(Role::System, system)).chain(said).collect();
        harmony.render_conversation_for_completion(&messages, Role::Assistant, RenderOptions::default())
    }
}

/// Renders with a placeholder for each user text, then encodes what lies between with specials and the texts
/// without. Other turns are the model's or the caller's own words and go through the template as they are.
fn template_ids(template: &ChatTemplate, tokenizer: &Tokenizer, turns: &[Turn]) -> Result<Vec<u32>> {
    let content = |(index, turn): (usize, &Turn)| match turn.role {
        Role::User => json!({"role": "user", "content": placeholder(index)}),
        role => json!({"role": role.name(), "content": turn.text}),
    };
    let rendered = template.render(&turns.iter().enumerate().map(content).collect(), true)?;
    let mut rest = rendered.as_str();
    let mut ids = Vec::new();
    for (index, turn) in turns.iter().enumerate().filter(|(_, turn)| turn.role == Role::User) {
        let (before, after) = rest.split_once(&placeholder(index)).ok_or(TextError::TemplateHidesBody)?;
        ids.extend(tokenizer.encode_with_specials(before)?);
        ids.extend(tokenizer.encode(&turn.text)?);
        rest = after;
    }
    ids.extend(tokenizer.encode_with_specials(rest)?);
    Ok(ids)
}

/// What lies around the only occurrence of `mark`.
fn split_once<'a>(text: &'a str, mark: &str) -> Option<(&'a str, &'a str)> {
    text.split_once(mark).filter(|(_, after)| !after.contains(mark))
}
