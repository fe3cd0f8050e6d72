//! Where transcripts came from, and whether a run may go on: the content of `provenance.json`.
//!
//! A run goes on only with the prompts, the rule and the settings that it began with.

use crate::{Error, Result};
use bench_core::provenance::{Build, Machine, Resumption};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything that decides what is asked and how answers are counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub model: String,
    /// `engine`, or the server's address.
    pub target: String,
    /// File of the prompts.
    pub prompts: String,
    pub prompts_hash: String,
    pub prompts_number: u32,
    pub rule: String,
    pub rule_version: u32,
    /// Sampling, limits and template, by name.
    pub options: BTreeMap<String, String>,
}

impl Settings {
    /// What of `now` differs, if anything: name, value then, value now. Where the prompts lie does not matter,
    /// what they say does.
    fn difference(&self, now: &Self) -> Option<(String, String, String)> {
        let pairs = [
            ("model", self.model.clone(), now.model.clone()),
            ("target", self.target.clone(), now.target.clone()),
            ("hash of the prompts", self.prompts_hash.clone(), now.prompts_hash.clone()),
            ("rule", self.rule.clone(), now.rule.clone()),
            ("version of the rule", self.rule_version.to_string(), now.rule_version.to_string()),
        ];
        let options = self.options.keys().chain(now.options.keys()).map(|key| {
            let of =
                |settings: &Self| settings.options.get(key).cloned().unwrap_or_else(|| "unset".to_owned());
            (key.as_str(), of(self), of(now))
        });
        let found = pairs.into_iter().chain(options).find(|(_, was, now)| was != now);
        found.map(|(what, was, now)| (what.to_owned(), was, now))
    }
}

/// The content of `provenance.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    pub schema_version: u32,
    pub run_id: String,
    pub started_at: String,
    /// The command as given, secrets left out.
    pub command: Vec<String>,
    pub settings: Settings,
    /// Weights that nobody trained: answers mean nothing.
    pub generated_weights: bool,
    pub build: Build,
    pub machine: Machine,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resumptions: Vec<Resumption>,
}

impl RunRecord {
    /// Refuses to go on with other settings than the stored ones.
    ///
    /// # Errors
    /// What differs first, with both values.
    pub fn check(&self, now: &Settings) -> Result<()> {
        match self.settings.difference(now) {
            None => Ok(()),
            Some((what, was, now)) => Err(Error::OtherRun { run_id: self.run_id.clone(), what, was, now }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            model: "m".to_owned(),
            target: "engine".to_owned(),
            prompts: "a.toml".to_owned(),
            prompts_hash: "00".to_owned(),
            prompts_number: 2,
            rule: "r".to_owned(),
            rule_version: 1,
            options: [("temperature".to_owned(), "0".to_owned())].into(),
        }
    }

    #[test]
    fn any_difference_that_matters_is_named() {
        let was = settings();
        assert_eq!(was.difference(&Settings { prompts: "b.toml".to_owned(), ..settings() }), None);
        for (now, what) in [
            (Settings { prompts_hash: "01".to_owned(), ..settings() }, "hash of the prompts"),
            (Settings { rule_version: 2, ..settings() }, "version of the rule"),
            (Settings { model: "n".to_owned(), ..settings() }, "model"),
            (Settings { target: "http://h".to_owned(), ..settings() }, "target"),
            (
                Settings { options: [("temperature".to_owned(), "1".to_owned())].into(), ..settings() },
                "temperature",
            ),
            (Settings { options: BTreeMap::new(), ..settings() }, "temperature"),
        ] {
            assert_eq!(was.difference(&now).unwrap().0, what);
        }
    }
}
