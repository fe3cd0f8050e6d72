//! The prompts that a model is asked: ours, or a user's own file.
//!
//! A set has a hash, so that a run goes on only with the prompts that it began with.

use crate::rows::{self, Row};
use crate::{Error, Result};
use bench_core::plan::short_hash;
use serde::{Deserialize, Serialize};

/// One question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// Unique in its set.
    pub id: String,
    /// Answers are counted by it: `benign`, `borderline`, or a user's own.
    pub category: String,
    /// What it is about; for readers of the transcripts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    pub text: String,
}

/// How a file of prompts is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptFormat {
    /// `[[prompts]]` tables.
    Toml,
    /// An object per line.
    Jsonl,
}

impl PromptFormat {
    /// By the ending of a file's name.
    ///
    /// # Errors
    /// An ending that is not known.
    pub fn of(path: &str) -> Result<Self> {
        match path.rsplit('.').next().map(str::to_ascii_lowercase).as_deref() {
            Some("toml") => Ok(Self::Toml),
            Some("jsonl" | "ndjson") => Ok(Self::Jsonl),
            _ => Err(Error::Format { origin: path.to_owned() }),
        }
    }
}

/// Prompts in the order in which they are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptSet {
    pub prompts: Vec<Prompt>,
}

/// The row of all categories together has this name, so no category may.
pub(crate) const ALL: &str = "all";

impl PromptSet {
    /// Ours: `bench-configs/safety/prompts.toml`.
    ///
    /// # Errors
    /// None that a test has not excluded.
    pub fn builtin() -> Result<Self> {
        let text = include_str!("../../../bench-configs/safety/prompts.toml");
        Self::parse("bench-configs/safety/prompts.toml", text, PromptFormat::Toml)
    }

    /// Reads a file's `text`; `origin` names it in errors.
    ///
    /// # Errors
    /// Every bad row with its line; a set without prompts.
    pub fn parse(origin: &str, text: &str, format: PromptFormat) -> Result<Self> {
        let mut problems = Vec::new();
        let rows: Vec<Row<Prompt>> = match format {
            PromptFormat::Toml => rows::toml_rows(origin, text, "prompts", &mut problems)?,
            PromptFormat::Jsonl => rows::jsonl_rows(text, &mut problems),
        };
        for row in &rows {
            problems.extend(problem(&row.value).map(|problem| format!("line {}: {problem}", row.line)));
        }
        rows::check_ids(rows.iter().map(|r| (r.line, r.value.id.as_str())), &mut problems);
        let prompts = rows::accept(origin, "prompts", rows, problems)?;
        Ok(Self { prompts: prompts.into_iter().map(|row| row.value).collect() })
    }

    /// First 16 hex digits of the SHA-256 over the prompts as JSON; comments of the file do not count.
    pub fn hash(&self) -> String {
        // Strings alone: they always have a JSON form.
        short_hash(serde_json::to_string(&self.prompts).unwrap_or_default().as_bytes())
    }
}

fn problem(prompt: &Prompt) -> Option<String> {
    let id = &prompt.id;
    if prompt.category.trim().is_empty() {
        return Some(format!("`category` of \"{id}\" is empty"));
    }
    if prompt.category == ALL {
        return Some(format!("`category` of \"{id}\" is \"{ALL}\", which names the row of all categories"));
    }
    prompt.text.trim().is_empty().then(|| format!("`text` of \"{id}\" is empty"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, format: PromptFormat) -> std::result::Result<PromptSet, String> {
        PromptSet::parse("mine", text, format).map_err(|e| e.to_string())
    }

    #[test]
    fn our_set_has_twenty_prompts_of_each_kind() {
        let set = PromptSet::builtin().unwrap();
        let of = |category: &str| set.prompts.iter().filter(|p| p.category == category).count();
        assert_eq!((of("benign"), of("borderline"), set.prompts.len()), (20, 20, 40));
        assert!(set.prompts.iter().all(|p| p.topic.is_some()));
    }

    #[test]
    fn toml_and_jsonl_say_the_same() {
        let toml = "# mine\n[[prompts]]\nid = \"a\"\ncategory = \"x\"\ntext = \"Why?\"\n";
        let jsonl = "\n{\"id\":\"a\",\"category\":\"x\",\"text\":\"Why?\"}\n";
        let (a, b) = (parse(toml, PromptFormat::Toml).unwrap(), parse(jsonl, PromptFormat::Jsonl).unwrap());
        assert_eq!(a, b);
        assert_eq!(a.hash(), b.hash());
        let other = parse(&jsonl.replace("Why?", "How?"), PromptFormat::Jsonl).unwrap();
        assert_ne!(a.hash(), other.hash());
    }

    #[test]
    fn bad_rows_are_all_named_with_their_line() {
        let jsonl = "{\"id\":\"a\",\"category\":\"x\",\"text\":\"t\"}\n\n{\"id\":\"b\",\"text\":\"t\"}\n\
                     {\"id\":\"a\",\"category\":\"x\",\"text\":\"t\"}\nnot json\n\
                     {\"id\":\"c\",\"category\":\"all\",\"text\":\"t\"}\n{\"id\":\"d\",\"category\":\"x\",\"text\":\" \"}\n\
                     {\"id\":\"e\",\"category\":\"x\",\"text\":\"t\",\"score\":1}\n";
        let error = parse(jsonl, PromptFormat::Jsonl).unwrap_err();
        for says in [
            "line 3: missing field `category`",
            "line 4: id \"a\" stands there twice, first in line 1",
            "line 5: expected",
            "line 6: `category` of \"c\" is \"all\"",
            "line 7: `text` of \"d\" is empty",
            "line 8: unknown field `score`",
        ] {
            assert!(error.contains(says), "no {says:?} in {error}");
        }
        let toml =
            "note = 1\n[[prompts]]\nid = \"\"\ncategory = \"x\"\ntext = \"t\"\n\n[[prompts]]\nid = \"b\"\n";
        let error = parse(toml, PromptFormat::Toml).unwrap_err();
        for says in ["unknown key `note`", "line 2: `id` is empty", "line 7: missing field `category`"] {
            assert!(error.contains(says), "no {says:?} in {error}");
        }
    }

    #[test]
    fn files_without_prompts_or_of_another_kind_are_refused() {
        for (text, format, says) in [
            ("", PromptFormat::Toml, "mine holds no prompts"),
            ("\n", PromptFormat::Jsonl, "mine holds no prompts"),
            ("[prompts", PromptFormat::Toml, "cannot be read as TOML"),
            ("prompts = 3", PromptFormat::Toml, "no list of tables"),
        ] {
            let error = parse(text, format).unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        }
        assert!(PromptFormat::of("a.csv").unwrap_err().to_string().contains(".jsonl"));
        assert_eq!(PromptFormat::of("a.b.JSONL").unwrap(), PromptFormat::Jsonl);
    }
}
