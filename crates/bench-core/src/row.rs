//! One row of the unified long CSV, the truth that every wide or compatibility table is a view of.

use crate::SCHEMA_VERSION;
use crate::plan::Cell;
use crate::sample::{Estimate, Summary, TokenSource};

/// Column names and their meaning, in file order.
pub const COLUMNS: &[(&str, &str)] = &[
    ("run_id", "the run's folder under `raw/`"),
    ("target", "what was measured: `engine`, `http`, `mock`, `null`"),
    ("model", "label of the model"),
    ("prompt_tokens", "prompt tokens asked for, template included; the mean where requests differ"),
    ("output_tokens", "output tokens asked for; the mean where requests differ"),
    ("batch", "requests that run together in-process; 1 with a server"),
    (
        "load",
        "`batch` in-process; with a server `closed`, `constant`, `poisson`, `gamma(burstiness)`, `ramp(from..to)`, \
         `exponential_ramp(from..to)`, `burst` or `replay`",
    ),
    (
        "concurrency",
        "requests in flight of a closed loop, most in flight of an open one; empty if there is no limit",
    ),
    (
        "request_rate",
        "requests per second of the schedule, the mean of a ramp's ends; empty if there is none",
    ),
    ("metric", "key of the metric, see below"),
    (
        "scope",
        "what the figure covers where there are several of its kind: `gpu_board` (all of them), `gpu_board.0`, `cpu_package`, \
         `dram`, `system` for energy; `allocator`, `process`, `gpu_process`, `gpu_device`, `gpu_allocator` and its parts \
         (`gpu_weights`, `gpu_kv_cache`, ...) for memory; the task of an accuracy; `all_experts` for what it were if every expert were read; else empty",
    ),
    ("unit", "unit of `value`, `ci_low`, `ci_high` and `instrument_error`"),
    (
        "stat",
        "`mean`, `stddev`, `min`, `max`, `p50` ... `value` for one figure of the whole cell; the kind for `failures`",
    ),
    ("value", "the figure; empty where n does not support it"),
    ("ci_low", "lower end of the 95 % interval; empty where n cannot bound it"),
    ("ci_high", "upper end of the 95 % interval; empty where n cannot bound it"),
    (
        "instrument_error",
        "99th percentile of what the client adds to a time of this kind, calibrated at the cell's own load; empty for \
         what is no time of the client, and where there is no calibration",
    ),
    (
        "ci_method",
        "`order_statistic`, `student_t`, `cluster_bootstrap`, `wilson`, `least_squares` or `standard_error`",
    ),
    (
        "n",
        "samples that went in; 0 for what is computed from sizes alone, and for an accuracy whose file does not say how \
         many questions there were",
    ),
    ("missing", "samples that should have been there and were not"),
    (
        "missing_reason",
        "why, as codes with their counts: `window_too_short: 3`; empty where it is plain from the metric",
    ),
    ("bounded", "for quantiles: n reaches MLPerf's minimum"),
    ("success_rate", "successful requests / requests of the cell"),
    (
        "token_source",
        "who counted the output tokens: `usage`, `token_ids`, `tokenizer`, `chunks` (nobody: what was seen to arrive), \
         or `mixed`; empty if no request succeeded",
    ),
    ("verdict", "`VALID` or `INVALID`, for the cell"),
    ("verdict_reason", "why not; for a `VALID` cell what a reader must know, such as `overloaded`"),
    (
        "client_verdict",
        "`client_ok`, or `client_bound` and why; empty in-process and where the client did not watch itself",
    ),
    ("schema_version", "version of this table"),
];

/// One row; field order is that of `COLUMNS`.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub run_id: String,
    pub target: String,
    pub model: String,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
    pub batch: u32,
    pub load: String,
    pub concurrency: Option<u32>,
    pub request_rate: Option<f64>,
    pub metric: &'static str,
    pub scope: String,
    pub unit: &'static str,
    pub stat: String,
    pub value: Option<f64>,
    pub ci_low: Option<f64>,
    pub ci_high: Option<f64>,
    pub instrument_error: Option<f64>,
    pub ci_method: Option<&'static str>,
    pub n: u64,
    pub missing: u64,
    pub missing_reason: String,
    pub bounded: Option<bool>,
    pub success_rate: Option<f64>,
    /// Empty if no request succeeded.
    pub token_source: &'static str,
    pub verdict: &'static str,
    pub verdict_reason: String,
    /// Empty where there is no client between.
    pub client_verdict: String,
    pub schema_version: u32,
}

/// The rows of one cell.
pub fn rows(run_id: &str, target: &str, cell: &Cell, summary: &Summary) -> Vec<Row> {
    summary.estimates.iter().map(|estimate| row(run_id, target, cell, summary, estimate)).collect()
}

fn row(run_id: &str, target: &str, cell: &Cell, summary: &Summary, estimate: &Estimate) -> Row {
    let def = estimate.metric.def();
    Row {
        run_id: run_id.to_owned(),
        target: target.to_owned(),
        model: cell.model.clone(),
        prompt_tokens: cell.prompt_tokens,
        output_tokens: cell.output_tokens,
        batch: cell.batch,
        load: cell.load.key(),
        concurrency: cell.load.concurrency(),
        request_rate: cell.load.rate(),
        metric: def.key,
        scope: estimate.scope.clone().unwrap_or_default(),
        unit: def.unit,
        stat: estimate.stat.key(),
        value: estimate.value,
        ci_low: estimate.interval.and_then(|i| i.low),
        ci_high: estimate.interval.and_then(|i| i.high),
        instrument_error: estimate.instrument_error,
        ci_method: estimate.interval.map(|i| i.method.key()),
        n: estimate.n,
        missing: estimate.missing,
        missing_reason: estimate.missing_reason.clone(),
        bounded: estimate.bounded,
        success_rate: (summary.requests > 0)
            .then(|| f64::from(summary.succeeded) / f64::from(summary.requests)),
        token_source: summary.token_source.map_or("", TokenSource::key),
        verdict: summary.verdict.key(),
        verdict_reason: summary.verdict.reason_text(),
        client_verdict: summary.client.as_ref().map_or_else(String::new, ToString::to_string),
        schema_version: SCHEMA_VERSION,
    }
}

/// Header of the study's unified latency CSV: a view of the same events with the study's own formulas.
pub const STUDY_LATENCY_COLUMNS: &[&str] = &[
    "model_short",
    "model",
    "model_type",
    "prompt_tokens",
    "gen_tokens",
    "TTFT_ms",
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "TPOT_tokps",
    "context_length",
    "ttft_ms",
];

/// Columns of the study's unified memory CSV, in its order; `_mb` are MiB, and `kv_cache_*` are peaks of a request
/// less what was allocated before it.
pub const STUDY_MEMORY_COLUMNS: &[&str] = &[
    "model_short",
    "model",
    "device_name",
    "context_length",
    "gen_tokens",
    "total_tokens",
    "baseline_alloc_mb",
    "baseline_reserved_mb",
    "after_tokenize_alloc_mb",
    "after_tokenize_reserved_mb",
    "after_generate_alloc_mb",
    "after_generate_reserved_mb",
    "peak_alloc_mb",
    "peak_reserved_mb",
    "tokenize_delta_alloc_mb",
    "generate_delta_alloc_mb",
    "total_delta_alloc_mb",
    "kv_cache_alloc_mb",
    "kv_cache_reserved_mb",
    "memory_per_token_alloc_mb",
    "memory_per_token_reserved_mb",
    "util_after_percent_alloc",
    "util_peak_percent_alloc",
    "util_peak_percent_reserved",
    "total_gpu_memory_mb",
    "peak_memory_mb",
    "memory_efficiency",
];

/// Columns of the study's unified energy CSV, in its order; `tokens_per_watt` are tokens per joule.
pub const STUDY_ENERGY_COLUMNS: &[&str] = &[
    "model_short",
    "model",
    "context_length",
    "gen_tokens",
    "ttft_ms",
    "ttft_joules",
    "decode_tokens_per_second",
    "total_tokens_per_second",
    "avg_gpu_power_watts",
    "baseline_gpu_power_watts",
    "avg_gpu_utilization_percent",
    "avg_memory_utilization_percent",
    "energy_per_decoded_token_joules",
    "energy_per_1k_decoded_tokens_joules",
    "energy_per_total_token_joules",
    "tokens_per_watt",
    "energy_per_1k_joules",
    "TPOT_tokps",
];

/// Columns of the study's efficiency CSV, in its order; `peak_memory_GB` are GiB.
pub const STUDY_APE_COLUMNS: &[&str] = &[
    "model_id",
    "model_name",
    "architecture",
    "organization",
    "context_length",
    "total_params_B",
    "active_params_B",
    "ttft_ms",
    "tpot_tokps",
    "peak_memory_GB",
    "energy_per_1k_joules",
    "tokens_per_watt",
    "throughput_per_activeB_tokps_per_B",
    "inv_ttft_per_activeB_tokps_per_B",
    "tokens_per_watt_per_activeB",
    "tokens_per_GB_tokps_per_GB",
];

/// One row of the study's unified latency CSV; field order is that of `STUDY_LATENCY_COLUMNS`.
#[derive(Debug, Clone, PartialEq)]
pub struct StudyLatencyRow {
    pub model_short: String,
    pub model: String,
    pub model_type: String,
    pub prompt_tokens: u32,
    pub gen_tokens: u32,
    /// Median of `ttft_ms`.
    pub ttft_median_ms: Option<f64>,
    /// Median of `e2el_ms`.
    pub p50_ms: Option<f64>,
    /// `e2el_ms` at index ceil(0.95 (n - 1)) of the sorted values.
    pub p95_ms: Option<f64>,
    /// `e2el_ms` at index ceil(0.99 (n - 1)) of the sorted values.
    pub p99_ms: Option<f64>,
    /// `gen_tokens` / `p50_ms` in seconds: a rate in spite of its name, prefill included.
    pub tpot_tokps: Option<f64>,
    /// `prompt_tokens` again.
    pub context_length: u32,
    /// `TTFT_ms` again.
    pub ttft_ms: Option<f64>,
}

/// What the study's memory, energy and efficiency tables are computed from, beside rows: one cell that had
/// a request.
#[derive(Debug, Clone, PartialEq)]
pub struct StudyCell {
    pub cell: Cell,
    pub latency: StudyLatencyRow,
    /// `None` where nobody counts allocations.
    pub memory: Option<StudyMemory>,
}

/// Bytes by the engine's allocator around a batch, on the host or on a GPU, each the median over the cell's batches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StudyMemory {
    /// Before the prefill, the prompt's ids at hand.
    pub before_bytes: f64,
    /// After the last token, the cache still held.
    pub held_bytes: f64,
    /// Most at once in between.
    pub peak_bytes: f64,
    /// All memory of the GPU that these are bytes of; `None` for the machine's own.
    pub device_bytes: Option<f64>,
}
