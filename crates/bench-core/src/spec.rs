//! A study as it was written: every key optional but the models, nothing resolved.
//!
//! Unknown keys are errors that list the valid ones. Defaults are filled in `plan`, never here.

use crate::Error;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetKind {
    /// The built-in engine.
    Engine,
    /// Scripted token times on a scripted clock: every figure is exact and takes no time.
    Mock,
    /// Answers at once: what is left is the harness itself.
    Null,
}

impl TargetKind {
    /// The text of the `target` column.
    pub fn key(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Mock => "mock",
            Self::Null => "null",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationDtype {
    F32,
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertDtype {
    /// As the checkpoint stores them: MXFP4 stays MXFP4.
    Native,
    Bf16,
}

/// How a prompt is wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Chat {
    /// Harmony for gpt-oss, the checkpoint's template where it has one, else plain.
    Auto,
    /// Text alone.
    Plain,
}

macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$fdoc])* #[serde(default, skip_serializing_if = "Option::is_none")] pub $field: Option<$ty>,)*
        }
    };
}

table! {
    /// `[run]`
    RunTable {
        name: String,
        seed: u64,
        repeats: u32,
        rounds: u32,
        warmup: u32,
    }
}
table! {
    /// `[target]`
    TargetTable {
        kind: TargetKind,
        device: String,
        activation_dtype: ActivationDtype,
        expert_dtype: ExpertDtype,
        threads: u32,
        prefill_chunk: u32,
    }
}
table! {
    /// `[workload]`
    WorkloadTable {
        prompt_tokens: Vec<u32>,
        output_tokens: Vec<u32>,
        batch: Vec<u32>,
        chat: Chat,
        date: String,
        temperature: f64,
        top_k: u32,
        top_p: f64,
    }
}
table! {
    /// `[slo]`: what a request must meet to count as good
    SloTable {
        ttft_ms: f64,
        tpot_ms: f64,
        e2el_ms: f64,
    }
}
table! {
    /// `[mock]`: the script of the mock target
    MockTable {
        ttft_us: u64,
        gap_us: u64,
        tokens_per_chunk: u32,
    }
}

/// `[[models]]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelTable {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<u32>,
}

/// A whole study.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    #[serde(default)]
    pub run: RunTable,
    #[serde(default)]
    pub target: TargetTable,
    #[serde(default)]
    pub models: Vec<ModelTable>,
    #[serde(default)]
    pub workload: WorkloadTable,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slo: Option<SloTable>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mock: Option<MockTable>,
}

impl RunSpec {
    /// Parses a study; `origin` names the file for the error's text.
    pub fn from_toml(origin: &str, text: &str) -> Result<Self, Error> {
        toml::from_str(text).map_err(|e| Error::Spec {
            origin: origin.to_owned(),
            message: e.to_string().trim_end().to_owned(),
        })
    }

    /// The study as TOML, for the results folder.
    pub fn to_toml(&self) -> Result<String, Error> {
        toml::to_string_pretty(self)
            .map_err(|e| Error::Spec { origin: "spec".to_owned(), message: e.to_string() })
    }
}

/// One key of a study: table, key, type, default as TOML, meaning.
pub struct Key(pub &'static str, pub &'static str, pub &'static str, pub &'static str, pub &'static str);

/// Every key that a study may hold. A default is what `plan` fills in; `-` means that there is none.
pub const KEYS: &[Key] = &[
    Key("run", "name", "string", "\"study\"", "Begins the name of the results folder."),
    Key(
        "run",
        "seed",
        "integer",
        "42",
        "Seed of weights, prompts, sampling and order; each derives its own.",
    ),
    Key("run", "repeats", "integer", "20", "Measured repeats per cell; p95 needs 20 requests, p99 100."),
    Key(
        "run",
        "rounds",
        "integer",
        "2",
        "The repeats are split into this many rounds, each in an order of its own, so that drift of the machine does not fall on one cell. At most `repeats`.",
    ),
    Key(
        "run",
        "warmup",
        "integer",
        "2",
        "Unmeasured repeats at the cell's own shape before each trial; prompts disjoint from measured ones.",
    ),
    Key(
        "target",
        "kind",
        "string",
        "\"engine\"",
        "`engine`, `mock` (scripted times) or `null` (measures the harness).",
    ),
    Key("target", "device", "string", "\"cpu\"", "Where the engine runs."),
    Key("target", "activation_dtype", "string", "\"f32\"", "`f32` or `bf16`; the KV cache has the same."),
    Key(
        "target",
        "expert_dtype",
        "string",
        "\"native\"",
        "`native` keeps MXFP4 experts as they are, `bf16` dequantizes them.",
    ),
    Key("target", "threads", "integer", "-", "Compute threads; all cores if absent."),
    Key("target", "prefill_chunk", "integer", "512", "Prompt tokens per forward pass."),
    Key(
        "models",
        "id",
        "string",
        "-",
        "`dummy:<preset>`, a folder in Hugging Face layout, or a hub name. Required.",
    ),
    Key("models", "label", "string", "-", "Name in tables and figures; the last part of `id` if absent."),
    Key("models", "layers", "integer", "-", "Load the first N layers only."),
    Key(
        "workload",
        "prompt_tokens",
        "list of integers",
        "[128]",
        "Prompt lengths, chat template included, exact.",
    ),
    Key(
        "workload",
        "output_tokens",
        "list of integers",
        "[32]",
        "Output lengths; end-of-sequence is suppressed so that they are exact.",
    ),
    Key("workload", "batch", "list of integers", "[1]", "Requests that run together."),
    Key(
        "workload",
        "chat",
        "string",
        "\"auto\"",
        "`auto` (Harmony or the checkpoint's template) or `plain`.",
    ),
    Key(
        "workload",
        "date",
        "string",
        "\"2025-06-28\"",
        "Date in system prompts, pinned so that prompts do not change from day to day.",
    ),
    Key("workload", "temperature", "float", "0.0", "0 is greedy."),
    Key("workload", "top_k", "integer", "-", "Sample from the k most likely tokens."),
    Key(
        "workload",
        "top_p",
        "float",
        "-",
        "Sample from the smallest set of tokens with this much probability.",
    ),
    Key(
        "slo",
        "ttft_ms",
        "float",
        "-",
        "Largest `ttft_ms` of a good request; `goodput_req_s` counts those that meet every limit.",
    ),
    Key("slo", "tpot_ms", "float", "-", "Largest `tpot_ms` of a good request."),
    Key("slo", "e2el_ms", "float", "-", "Largest `e2el_ms` of a good request."),
    Key("mock", "ttft_us", "integer", "50000", "Scripted time to first token, microseconds."),
    Key("mock", "gap_us", "integer", "10000", "Scripted gap between chunks, microseconds."),
    Key("mock", "tokens_per_chunk", "integer", "1", "Tokens that arrive together."),
];

/// The generated key reference, as Markdown.
pub fn reference() -> String {
    let mut text = String::from(
        "# bench-configs/\n\n<!-- generated by `cargo xtask docs`; edit crates/bench-core/src/spec.rs -->\n\n\
         One TOML file is one study. `ossbench plan FILE` prints what it resolves to, `ossbench run FILE` runs it. \
         Unknown keys are errors.\n",
    );
    let mut table = "";
    for Key(in_table, key, ty, default, meaning) in KEYS {
        if *in_table != table {
            table = in_table;
            let heading = if table == "models" { "[[models]]".to_owned() } else { format!("[{table}]") };
            let _ = write!(
                text,
                "\n## `{heading}`\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n"
            );
        }
        let _ = writeln!(text, "| `{key}` | {ty} | {} | {meaning} |", code(default));
    }
    text
}

fn code(default: &str) -> String {
    if default == "-" { String::new() } else { format!("`{default}`") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn unknown_key_lists_the_valid_ones() {
        let error = RunSpec::from_toml("x.toml", "[run]\nrepeat = 3\n").unwrap_err().to_string();
        assert!(
            error.contains("x.toml") && error.contains("`repeat`") && error.contains("`repeats`"),
            "{error}"
        );
    }

    #[test]
    fn reference_names_every_key_of_the_structs() {
        let spec = RunSpec::from_toml("t", &toml_of_all_keys()).unwrap();
        let value = serde_json::to_value(&spec).unwrap();
        let mut written = BTreeSet::new();
        for (table, content) in value.as_object().unwrap() {
            let content = content.as_array().map_or(content, |a| &a[0]);
            written.extend(content.as_object().unwrap().keys().map(|k| format!("{table}.{k}")));
        }
        let listed: BTreeSet<_> = KEYS.iter().map(|k| format!("{}.{}", k.0, k.1)).collect();
        assert_eq!(written, listed);
    }

    /// A study with every listed key set; fails to parse if KEYS names one that does not exist.
    fn toml_of_all_keys() -> String {
        let mut text = String::new();
        let mut table = "";
        for Key(in_table, key, ty, default, _) in KEYS {
            if *in_table != table {
                table = in_table;
                let heading = if table == "models" { "[[models]]".to_owned() } else { format!("[{table}]") };
                let _ = writeln!(text, "{heading}");
            }
            let value = match (*default, *ty) {
                ("-", "string") => "\"a\"",
                ("-", "float") => "1.0",
                ("-", _) => "1",
                (default, _) => default,
            };
            let _ = writeln!(text, "{key} = {value}");
        }
        text
    }
}
