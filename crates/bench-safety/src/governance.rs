//! Who made a model, and under which terms: facts from a metadata file, each with its source.
//!
//! Nothing is looked up and nothing is judged: what the file does not state is missing.

use crate::rows;
use crate::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Columns of the overview before the sources, in the study's order.
pub const FACTS: [&str; 9] = [
    "id",
    "name",
    "organization",
    "license",
    "license_class",
    "usage_policy",
    "governance",
    "release_date",
    "model_card",
];

/// Facts that need a source: all but the names, and the model card, which is an address itself.
pub const SOURCED: [&str; 6] =
    ["organization", "license", "license_class", "usage_policy", "governance", "release_date"];

/// What the file states of one model; `None` where it does not say.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelEntry {
    pub id: String,
    pub name: Option<String>,
    pub organization: Option<String>,
    pub license: Option<String>,
    /// What kind of license: `permissive`, or which limits it sets.
    pub license_class: Option<String>,
    pub usage_policy: Option<String>,
    /// How the maker says that the model was examined, or who may use it.
    pub governance: Option<String>,
    /// `YYYY-MM-DD`.
    pub release_date: Option<String>,
    /// Address of the model card.
    pub model_card: Option<String>,
    /// By fact: the address of where it stands.
    #[serde(default)]
    pub sources: BTreeMap<String, String>,
}

impl ModelEntry {
    /// The value of a column of [`FACTS`].
    pub fn fact(&self, name: &str) -> Option<&str> {
        match name {
            "id" => Some(&self.id),
            "name" => self.name.as_deref(),
            "organization" => self.organization.as_deref(),
            "license" => self.license.as_deref(),
            "license_class" => self.license_class.as_deref(),
            "usage_policy" => self.usage_policy.as_deref(),
            "governance" => self.governance.as_deref(),
            "release_date" => self.release_date.as_deref(),
            "model_card" => self.model_card.as_deref(),
            _ => None,
        }
    }

    fn problems(&self) -> Vec<String> {
        let id = &self.id;
        let mut problems = Vec::new();
        for name in FACTS {
            if self.fact(name).is_some_and(|text| text.trim().is_empty()) && name != "id" {
                problems.push(format!("`{name}` of \"{id}\" is empty: leave out what is not known"));
            }
        }
        for name in SOURCED {
            if self.fact(name).is_some() && !self.sources.contains_key(name) {
                let remedy = format!("add sources.{name}, or leave the fact out");
                problems.push(format!("`{name}` of \"{id}\" has no source: {remedy}"));
            }
        }
        for (name, address) in &self.sources {
            if !SOURCED.contains(&name.as_str()) {
                let valid = SOURCED.join(", ");
                problems
                    .push(format!("`sources.{name}` of \"{id}\" is the source of no fact; valid: {valid}"));
            } else if self.fact(name).is_none() {
                problems.push(format!("`sources.{name}` of \"{id}\" has no fact `{name}`"));
            }
            if !is_address(address) {
                problems.push(format!("`sources.{name}` of \"{id}\" is no http(s) address: \"{address}\""));
            }
        }
        if let Some(card) = self.model_card.as_deref().filter(|card| !is_address(card)) {
            problems.push(format!("`model_card` of \"{id}\" is no http(s) address: \"{card}\""));
        }
        if let Some(date) = self.release_date.as_deref().filter(|date| !is_date(date)) {
            problems.push(format!("`release_date` of \"{id}\" is \"{date}\", expected YYYY-MM-DD"));
        }
        problems
    }
}

fn is_address(text: &str) -> bool {
    text.strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .is_some_and(|rest| !rest.is_empty())
}

fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let digits = |part: &str, n: usize| part.len() == n && part.bytes().all(|b| b.is_ascii_digit());
    matches!(parts.as_slice(), [y, m, d] if digits(y, 4) && digits(m, 2) && digits(d, 2))
}

/// The overview of models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Governance {
    /// In the order of the file.
    pub models: Vec<ModelEntry>,
}

impl Governance {
    /// Ours: `bench-configs/safety/models.toml`.
    ///
    /// # Errors
    /// None that a test has not excluded.
    pub fn builtin() -> Result<Self> {
        let text = include_str!("../../../bench-configs/safety/models.toml");
        Self::parse("bench-configs/safety/models.toml", text)
    }

    /// Reads `[[models]]` tables; `origin` names the file in errors.
    ///
    /// # Errors
    /// Unknown keys, missing and repeated ids, facts without a source, sources without a fact: all of them, with
    /// the lines where their tables begin.
    pub fn parse(origin: &str, text: &str) -> Result<Self> {
        let mut problems = Vec::new();
        let rows = rows::toml_rows::<ModelEntry>(origin, text, "models", &mut problems)?;
        rows::check_ids(rows.iter().map(|r| (r.line, r.value.id.as_str())), &mut problems);
        for row in &rows {
            problems.extend(row.value.problems().into_iter().map(|p| format!("line {}: {p}", row.line)));
        }
        let models: Vec<_> = rows::accept(origin, "models", rows, problems)?;
        Ok(Self { models: models.into_iter().map(|row| row.value).collect() })
    }

    /// Column names: the facts, then the sources that some model has, `sources.license`.
    pub fn columns(&self) -> Vec<String> {
        let sources = SOURCED.into_iter().filter(|s| self.models.iter().any(|m| m.sources.contains_key(*s)));
        FACTS.into_iter().map(str::to_owned).chain(sources.map(|s| format!("sources.{s}"))).collect()
    }

    /// The models as lines of [`Self::columns`]; empty where a fact is missing.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let columns = self.columns();
        let value = |model: &ModelEntry, column: &String| match column.strip_prefix("sources.") {
            Some(fact) => model.sources.get(fact).cloned(),
            None => model.fact(column).map(str::to_owned),
        };
        let row = |model| columns.iter().map(|c| value(model, c).unwrap_or_default()).collect();
        self.models.iter().map(row).collect()
    }

    /// The model of this id.
    ///
    /// # Errors
    /// An id that is not there, with those that are.
    pub fn model(&self, id: &str) -> Result<&ModelEntry> {
        self.models.iter().find(|m| m.id == id).ok_or_else(|| {
            let known: Vec<_> = self.models.iter().map(|m| m.id.as_str()).collect();
            let problem = format!("there is no model \"{id}\"; known: {}", known.join(", "));
            Error::Rows { origin: "the metadata".to_owned(), problems: vec![problem] }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_metadata_has_the_studys_columns_and_a_source_for_each_fact() {
        let ours = Governance::builtin().unwrap();
        let ids: Vec<_> = ours.models.iter().map(|m| m.id.as_str()).collect();
        assert_eq!(
            ids,
            [
                "openai/gpt-oss-20b",
                "openai/gpt-oss-120b",
                "Qwen/Qwen3-32B",
                "01-ai/Yi-34B",
                "meta-llama/Llama-3.1-70B"
            ]
        );
        assert_eq!(
            ours.columns().join(","),
            "id,name,organization,license,license_class,usage_policy,governance,release_date,model_card,\
             sources.organization,sources.license,sources.license_class,sources.usage_policy,\
             sources.governance,sources.release_date"
        );
        let qwen = ours.model("Qwen/Qwen3-32B").unwrap();
        assert_eq!((qwen.fact("license"), qwen.fact("usage_policy")), (Some("Apache-2.0"), None));
        assert!(ours.rows().iter().all(|row| row.len() == ours.columns().len()));
        assert!(ours.model("x").unwrap_err().to_string().contains("openai/gpt-oss-20b"));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let error = |text: &str| Governance::parse("m.toml", text).unwrap_err().to_string();
        for (text, says) in [
            ("", "m.toml holds no models"),
            ("[[models]]\nname = \"x\"\n", "line 1: missing field `id`"),
            ("\n[[models]]\nid = \"a\"\nlicence = \"x\"\n", "line 2: unknown field `licence`"),
            ("[[models]]\nid = \"a\"\n[[models]]\nid = \"a\"\n", "line 3: id \"a\" stands there twice"),
            ("[[models]]\nid = \"\"\n", "line 1: `id` is empty"),
            ("[[models]]\nid = \"a\"\nlicense = \"MIT\"\n", "`license` of \"a\" has no source"),
            ("[[models]]\nid = \"a\"\nname = \"\"\n", "`name` of \"a\" is empty"),
            ("[[models]]\nid = \"a\"\nmodel_card = \"x\"\n", "`model_card` of \"a\" is no http(s) address"),
            (
                "[[models]]\nid = \"a\"\nrelease_date = \"May\"\nsources.release_date = \"https://a.b\"\n",
                "\"May\", expected YYYY-MM-DD",
            ),
            ("[[models]]\nid = \"a\"\nsources.license = \"https://a.b\"\n", "has no fact `license`"),
            ("[[models]]\nid = \"a\"\nsources.name = \"https://a.b\"\n", "`sources.name` of \"a\""),
            (
                "[[models]]\nid = \"a\"\nlicense = \"MIT\"\nsources.license = \"a.b\"\n",
                "`sources.license` of \"a\" is no http(s) address: \"a.b\"",
            ),
            ("model = 3\n", "unknown key `model`; valid: [[models]] tables"),
        ] {
            let error = error(text);
            assert!(error.contains(says), "no {says:?} in {error}");
        }
    }
}
