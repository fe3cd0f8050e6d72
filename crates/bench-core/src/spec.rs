//! A study as it was written: every key optional but the models, nothing resolved.
//!
//! Unknown keys are errors that list the valid ones. Defaults are filled in `plan`, never here.

use crate::Error;
use crate::load::Growth;
use serde::{Deserialize, Serialize};

mod keys;

pub use keys::{KEYS, Key, reference};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetKind {
    /// The built-in engine.
    Engine,
    /// An OpenAI-compatible server.
    Http,
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
            Self::Http => "http",
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

/// How the matrices of attention, of dense MLPs and the unembedding are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenseDtype {
    /// As the checkpoint stores them, which is bf16 for every model here.
    #[default]
    #[serde(alias = "bf16")]
    Native,
    Q8_0,
    Q6_0,
}

/// How activations enter a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatmulPrecision {
    #[default]
    F32,
    Int16,
    Int8,
}

/// Which experts of a mixture are computed for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExpertMode {
    /// Those that the router chose, as the model is meant to be served.
    #[default]
    Routed,
    /// All of them, with weight 0 where the router did not choose: an ablation.
    DenseAll,
}

impl ExpertMode {
    /// As a study spells it.
    pub fn key(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::DenseAll => "dense-all",
        }
    }
}

/// What the KV cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvDtype {
    F32,
    Bf16,
    Q8_0,
}

/// Where the prompts of a server's requests come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dataset {
    /// Generated text of exact length.
    Random,
    /// First turns of `ShareGPT` conversations, with the lengths of their answers.
    Sharegpt,
    /// JSON lines with `prompt` and, if wanted, `output_tokens`.
    Custom,
}

/// `load.arrival` as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArrivalKind {
    Closed,
    Constant,
    Poisson,
    Gamma,
    Ramp,
    Burst,
    Replay,
}

/// Format of a recorded trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceFormat {
    Auto,
    Mooncake,
    Azure,
    Burstgpt,
}

/// Path of the API that requests go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    Auto,
    Completions,
    Chat,
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
        isolate: bool,
    }
}
table! {
    /// `[target]`
    TargetTable {
        kind: TargetKind,
        device: String,
        activation_dtype: ActivationDtype,
        expert_dtype: ExpertDtype,
        expert_mode: ExpertMode,
        dense_dtype: DenseDtype,
        matmul_precision: MatmulPrecision,
        kv_dtype: KvDtype,
        threads: u32,
        pin_threads: bool,
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
        dataset: Dataset,
        dataset_path: String,
        dataset_hash: String,
        length_range: f64,
        shared_prefix_tokens: u32,
        turns: u32,
        think_time_ms: f64,
        salt: bool,
    }
}
table! {
    /// `[load]`: how requests are sent to a server
    LoadTable {
        arrival: ArrivalKind,
        concurrency: Vec<u32>,
        rate: Vec<f64>,
        burstiness: f64,
        ramp_to: f64,
        ramp_growth: Growth,
        max_concurrency: u32,
        requests: u32,
        duration_s: f64,
        trace: String,
        trace_hash: String,
        trace_format: TraceFormat,
        trace_speed: f64,
        trace_limit: u32,
    }
}
table! {
    /// `[server]`: the server, and how the client treats it
    ServerTable {
        base_url: String,
        endpoint: Endpoint,
        api_key_env: String,
        headers: std::collections::BTreeMap<String, String>,
        extra_body: serde_json::Map<String, serde_json::Value>,
        stream: bool,
        fixed_length: bool,
        connect_timeout_s: f64,
        first_token_timeout_s: f64,
        gap_timeout_s: f64,
        request_timeout_s: f64,
        ready_timeout_s: f64,
        insecure: bool,
        ca_file: String,
        client_threads: u32,
        keep_awake: bool,
        metrics: bool,
        metrics_url: String,
        metrics_interval_ms: f64,
        calibrate: bool,
    }
}
table! {
    /// `[energy]`: how power is read
    EnergyTable {
        source: String,
        poll_hz: f64,
        idle_s: f64,
        cooldown_s: f64,
        cooldown_above_c: f64,
        gpus: Vec<u32>,
        nvml_library: String,
    }
}
table! {
    /// `[ape]`: what efficiency is held against
    ApeTable {
        bandwidth_gb_s: f64,
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation_dtype: Option<ActivationDtype>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert_dtype: Option<ExpertDtype>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert_mode: Option<ExpertMode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dense_dtype: Option<DenseDtype>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matmul_precision: Option<MatmulPrecision>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_dtype: Option<KvDtype>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_context_tokens: Option<u32>,
}

impl ModelTable {
    /// A model by its id alone.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            label: None,
            layers: None,
            base_url: None,
            tokenizer: None,
            activation_dtype: None,
            expert_dtype: None,
            expert_mode: None,
            dense_dtype: None,
            matmul_precision: None,
            kv_dtype: None,
            temperature: None,
            top_k: None,
            top_p: None,
            shape: None,
            accuracy: None,
            max_context_tokens: None,
        }
    }
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
    pub load: Option<LoadTable>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerTable>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slo: Option<SloTable>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<EnergyTable>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ape: Option<ApeTable>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fmt::Write as _;

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
                ("-", "string") if key.ends_with("_dtype") => "\"bf16\"",
                ("-", "string") if *key == "matmul_precision" => "\"int8\"",
                ("-", "string") if *key == "expert_mode" => "\"dense-all\"",
                ("-", "boolean") => "true",
                ("-", "string") => "\"a\"",
                ("-", "float") => "1.0",
                ("-", "list of floats") => "[1.0]",
                ("-", "list of integers") => "[1]",
                ("-", _) => "1",
                (default, _) => default,
            };
            let _ = writeln!(text, "{key} = {value}");
        }
        text
    }
}
