//! Accuracies from the JSON that lm-eval writes.
//!
//! One figure per task: the first metric of a stated order that the task has. No task is run here, and
//! tasks are not averaged.

use crate::{Error, Result};
use bench_core::sample::{Interval, IntervalMethod};
use serde_json::{Map, Value};

/// Shares of right answers, the one that stands for a task first. Where both are given, normalised
/// likelihood is what leaderboards compare, and exact match is what a task that generates is scored by.
const METRICS: [&str; 9] =
    ["acc_norm", "acc", "exact_match", "prompt_level_strict_acc", "pass@1", "pass_at_1", "em", "mc2", "f1"];
/// Filters of one metric in the same way; any other comes after them.
const FILTERS: [&str; 4] = ["none", "strict-match", "flexible-extract", "get-answer"];
/// Two-sided 95 % of a normal distribution.
const Z95: f64 = 1.96;

/// The accuracy of one task.
#[derive(Debug, Clone, PartialEq)]
pub struct Accuracy {
    pub task: String,
    /// As the file names it: `acc_norm,none`.
    pub metric: String,
    /// From 0 to 1.
    pub value: f64,
    /// Standard error as the file gives it.
    pub stderr: Option<f64>,
    /// Questions, where the file says how many.
    pub n: Option<u64>,
}

impl Accuracy {
    /// Value ± 1.96 standard errors, within 0 and 1.
    pub fn interval(&self) -> Option<Interval> {
        let half = Z95 * self.stderr?;
        let end = |v: f64| Some(v.clamp(0.0, 1.0));
        let method = IntervalMethod::StandardError;
        Some(Interval { low: end(self.value - half), high: end(self.value + half), method })
    }
}

/// What a file of lm-eval holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Accuracies {
    /// By task, as the file orders them; parts of a group that has a figure of its own are left out.
    pub tasks: Vec<Accuracy>,
    /// Tasks without an accuracy, with what they have instead.
    pub skipped: Vec<String>,
}

impl Accuracies {
    /// Reads the text of an lm-eval results file; `origin` names it in errors.
    ///
    /// # Errors
    /// Another schema, an accuracy outside of 0 to 1, no accuracy at all. The run is to be kept.
    pub fn parse(origin: &str, text: &str) -> Result<Self> {
        let wrong = |found: String, expected: &str| Error::Accuracy {
            origin: origin.to_owned(),
            found,
            expected: expected.to_owned(),
        };
        let schema = "lm-eval's results file, a JSON object with `results`: {task: {\"acc,none\": 0.5, ..}}";
        let root: Value =
            serde_json::from_str(text).map_err(|e| wrong(format!("is no JSON ({e})"), schema))?;
        let Some(root) = root.as_object() else {
            return Err(wrong(format!("is {}", kind(&root)), schema));
        };
        let results = match root.get("results") {
            Some(Value::Object(results)) => results,
            Some(other) => return Err(wrong(format!("`results` is {}", kind(other)), schema)),
            None => return Err(wrong(format!("no `results` among {}", names(root)), schema)),
        };
        let mut all = Self::default();
        for (task, scores) in results {
            let Some(scores) = scores.as_object() else {
                return Err(wrong(format!("task {task:?} is {}", kind(scores)), schema));
            };
            let Some((key, value)) = primary(scores) else {
                all.skipped.push(format!("{task}: no accuracy among {}", names(scores)));
                continue;
            };
            let valid = value.as_f64().filter(|v| (0.0..=1.0).contains(v));
            let value = valid.ok_or_else(|| {
                wrong(format!("task {task:?}: `{key}` is {value}"), "a share of right answers from 0 to 1")
            })?;
            let metric = key.to_owned();
            let (stderr, n) = (stderr(scores, key), samples(root, task));
            all.tasks.push(Accuracy { task: task.clone(), metric, value, stderr, n });
        }
        let inner = parts(root, &all.tasks);
        all.tasks.retain(|a| !inner.contains(&a.task));
        if all.tasks.is_empty() {
            let found = if all.skipped.is_empty() { "no tasks".into() } else { all.skipped.join("; ") };
            return Err(wrong(found, &format!("a task with one of {}", METRICS.join(", "))));
        }
        Ok(all)
    }
}

/// The score that stands for a task, with its key: `acc` in old files, `acc,none` (metric, filter) since.
fn primary(scores: &Map<String, Value>) -> Option<(&str, &Value)> {
    let rank = |key: &str| {
        let (metric, filter) = key.split_once(',').unwrap_or((key, "none"));
        let metric = METRICS.iter().position(|m| *m == metric)?;
        Some((metric, FILTERS.iter().position(|f| *f == filter).unwrap_or(FILTERS.len())))
    };
    let ranked = scores.iter().filter_map(|(key, value)| Some((rank(key)?, key, value)));
    ranked.min_by_key(|(rank, ..)| *rank).map(|(_, key, value)| (key.as_str(), value))
}

/// `acc_stderr,none` of `acc,none`; written "N/A" where it is not known.
fn stderr(scores: &Map<String, Value>, key: &str) -> Option<f64> {
    let name = match key.split_once(',') {
        Some((metric, filter)) => format!("{metric}_stderr,{filter}"),
        None => format!("{key}_stderr"),
    };
    scores.get(&name)?.as_f64().filter(|e| e.is_finite() && *e >= 0.0)
}

fn samples(root: &Map<String, Value>, task: &str) -> Option<u64> {
    root.get("n-samples")?.get(task)?.get("effective")?.as_u64()
}

/// Tasks that are parts of a group whose own figure is there.
fn parts(root: &Map<String, Value>, tasks: &[Accuracy]) -> Vec<String> {
    let groups = root.get("group_subtasks").and_then(Value::as_object);
    let whole = groups.into_iter().flatten().filter(|(group, _)| tasks.iter().any(|a| a.task == **group));
    let inner = whole.filter_map(|(group, parts)| Some((group, parts.as_array()?)));
    // A group may be listed among its own parts.
    inner
        .flat_map(|(group, parts)| parts.iter().filter_map(Value::as_str).filter(move |p| p != group))
        .map(str::to_owned)
        .collect()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The first keys of an object, for an error.
fn names(object: &Map<String, Value>) -> String {
    if object.is_empty() {
        return "no keys".to_owned();
    }
    let keys: Vec<_> = object.keys().take(8).map(|k| format!("`{k}`")).collect();
    keys.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Accuracies> {
        Accuracies::parse("results.json", text)
    }

    fn check_error(text: &str, says: &[&str]) {
        let error = parse(text).unwrap_err().to_string();
        for part in [&["results.json"], says].concat() {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
    }

    #[test]
    fn files_of_old_and_new_versions_are_read() {
        let new = r#"{"results": {
            "arc_challenge": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.01,
                              "acc_norm,none": 0.6, "acc_norm_stderr,none": 0.02},
            "gsm8k": {"exact_match,flexible-extract": 0.7, "exact_match_stderr,flexible-extract": 0.03,
                      "exact_match,strict-match": 0.4, "exact_match_stderr,strict-match": "N/A"},
            "wikitext": {"word_perplexity,none": 9.5, "alias": "wikitext"}},
            "n-samples": {"arc_challenge": {"original": 1172, "effective": 100}}, "config": {}}"#;
        let read = parse(new).unwrap();
        let [arc, gsm] = &read.tasks[..] else { panic!("{read:?}") };
        assert_eq!((arc.task.as_str(), arc.metric.as_str()), ("arc_challenge", "acc_norm,none"));
        assert_eq!((arc.value, arc.stderr, arc.n), (0.6, Some(0.02), Some(100)));
        let interval = arc.interval().unwrap();
        // 0.6 -+ 1.96 * 0.02
        assert!(
            (interval.low.unwrap() - 0.5608).abs() < 1e-12 && (interval.high.unwrap() - 0.6392).abs() < 1e-12
        );
        assert_eq!((gsm.metric.as_str(), gsm.value, gsm.interval()), ("exact_match,strict-match", 0.4, None));
        assert_eq!(read.skipped, ["wikitext: no accuracy among `word_perplexity,none`, `alias`"]);

        let old =
            parse(r#"{"results": {"piqa": {"acc": 0.99, "acc_stderr": 0.01}}, "versions": {}}"#).unwrap();
        assert_eq!(old.tasks[0].interval().unwrap().high, Some(1.0));
    }

    #[test]
    fn a_group_stands_for_its_parts_if_it_has_a_figure() {
        let with = |group: &str| {
            let text = format!(
                r#"{{"results": {{"mmlu": {group}, "mmlu_law": {{"acc,none": 0.2}}, "mmlu_math": {{"acc,none": 0.4}}}},
                    "group_subtasks": {{"mmlu": ["mmlu_law", "mmlu_math"]}}}}"#
            );
            let tasks = parse(&text).unwrap().tasks;
            tasks.into_iter().map(|a| a.task).collect::<Vec<_>>()
        };
        assert_eq!(with(r#"{"acc,none": 0.3}"#), ["mmlu"]);
        assert_eq!(with(r#"{" ": " "}"#), ["mmlu_law", "mmlu_math"]);
    }

    #[test]
    fn another_schema_says_what_was_expected_and_found() {
        check_error("", &["is no JSON", "lm-eval"]);
        check_error("[1]", &["is a list", "`results`"]);
        check_error(r#"{"accuracy": 0.5}"#, &["no `results` among `accuracy`", "lm-eval"]);
        check_error(r#"{"results": [0.5]}"#, &["`results` is a list"]);
        check_error(r#"{"results": {"piqa": 0.5}}"#, &["task \"piqa\" is a number", "acc,none"]);
        check_error(r#"{"results": {"piqa": {"acc,none": 50.0}}}"#, &["`acc,none` is 50.0", "0 to 1"]);
        check_error(r#"{"results": {"piqa": {"acc,none": "high"}}}"#, &["is \"high\"", "0 to 1"]);
        check_error(
            r#"{"results": {"wiki": {"bits": 2}}}"#,
            &["wiki: no accuracy among `bits`", "acc_norm, acc"],
        );
        check_error(r#"{"results": {}}"#, &["no tasks"]);
    }
}
