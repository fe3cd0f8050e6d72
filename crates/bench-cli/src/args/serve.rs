//! The arguments of `ossbench latency` that only a server has: where it is, what it is asked, and when.
//!
//! Values are checked for their form alone; what a combination means is decided in `cmd::vllm`.

use super::keyword;
use bench_core::load::Growth;
use bench_core::spec::{Dataset, Endpoint, TraceFormat};
use clap::Args;
use serde_json::{Map, Value};

/// What opens a server. Never stored: the command line is kept with `***` instead.
#[derive(Clone, Default, Args)]
pub struct SecretArgs {
    /// Bearer token; the environment variable `OPENAI_API_KEY` if absent
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Further headers of every request; their values are not stored
    #[arg(long, short = 'H', num_args = 1.., value_name = "NAME=VALUE")]
    pub header: Vec<String>,
}

impl std::fmt::Debug for SecretArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretArgs {{ api_key: {}, headers: {} }}", self.api_key.is_some(), self.header.len())
    }
}

/// The server.
#[derive(Debug, Clone, Default, Args)]
pub struct ServerArgs {
    /// Address of an OpenAI-compatible server, with or without /v1
    #[arg(
        long,
        visible_alias = "url",
        short = 'u',
        value_name = "URL",
        conflicts_with_all = ["host", "port"]
    )]
    pub base_url: Option<String>,
    /// Instead of --base-url [default: 127.0.0.1]
    #[arg(long)]
    pub host: Option<String>,
    /// Instead of --base-url [default: 8000]
    #[arg(long)]
    pub port: Option<u16>,
    /// Which API: vllm, openai or completions; openai-chat or chat
    /// [default: completions for random prompts, chat for conversations]
    #[arg(long, visible_alias = "endpoint-type", value_parser = parse_backend, value_name = "BACKEND")]
    pub backend: Option<Backend>,
    /// Path of the API, which ends in /v1/completions or /v1/chat/completions
    #[arg(long, alias = "custom-endpoint", value_name = "PATH")]
    pub endpoint: Option<String>,
    /// Name that the server knows the model under; --model then says where the tokenizer is
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub served_model_name: Vec<String>,
    /// Tokenizer of the model: a folder or a hub name; without one the server's own counts decide
    #[arg(long, value_name = "TOKENIZER")]
    pub tokenizer: Option<String>,
    /// Without a tokenizer, whatever --served-model-name
    #[arg(long, conflicts_with = "tokenizer")]
    pub skip_tokenizer_init: bool,
    #[command(flatten)]
    pub secrets: SecretArgs,
    /// Further members of every request's JSON; they win
    #[arg(long, value_parser = parse_object, value_name = "JSON")]
    pub extra_body: Option<Map<String, Value>>,
    /// Sampling of the server: no token below this part of the likeliest one's probability
    #[arg(long, value_name = "P")]
    pub min_p: Option<f64>,
    /// Sampling of the server
    #[arg(long, allow_negative_numbers = true, value_name = "X")]
    pub frequency_penalty: Option<f64>,
    /// Sampling of the server
    #[arg(long, allow_negative_numbers = true, value_name = "X")]
    pub presence_penalty: Option<f64>,
    /// Sampling of the server
    #[arg(long, value_name = "X")]
    pub repetition_penalty: Option<f64>,
    /// Accept any certificate
    #[arg(long)]
    pub insecure: bool,
    /// How long to wait for a server that does not answer yet, seconds
    #[arg(long, value_name = "S")]
    pub ready_check_timeout_sec: Option<f64>,
    /// Longest request, seconds [default: 3600]
    #[arg(long, value_name = "S")]
    pub request_timeout_seconds: Option<f64>,
    /// Ask for a stream [default: true]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub streaming: Option<bool>,
    /// Do not measure beforehand what the client adds
    #[arg(long)]
    pub no_calibrate: bool,
}

/// Prompts of a server's requests.
#[derive(Debug, Clone, Default, Args)]
pub struct PromptArgs {
    /// `random`, `sharegpt` or `custom` [default: random]
    #[arg(long, value_parser = parse_dataset, value_name = "NAME")]
    pub dataset_name: Option<Dataset>,
    /// File of sharegpt or custom
    #[arg(long, value_name = "FILE")]
    pub dataset_path: Option<String>,
    /// Prompt tokens besides --random-prefix-len
    #[arg(
        long, value_delimiter = ',', value_name = "N,..", conflicts_with_all = ["input_len", "prompt_tokens"]
    )]
    pub random_input_len: Vec<u32>,
    /// As --random-input-len
    #[arg(long, value_delimiter = ',', value_name = "N,..", conflicts_with = "prompt_tokens")]
    pub input_len: Vec<u32>,
    /// Output tokens
    #[arg(
        long, value_delimiter = ',', value_name = "N,..", conflicts_with_all = ["output_len", "output_tokens"]
    )]
    pub random_output_len: Vec<u32>,
    /// As --random-output-len
    #[arg(long, value_delimiter = ',', value_name = "N,..", conflicts_with = "output_tokens")]
    pub output_len: Vec<u32>,
    /// Lengths L of prompts and answers are drawn evenly from [(1 - r) L, (1 + r) L], 0 <= r < 1, as vLLM does
    /// now (its older versions, and scripts made from them, drew from [r L, L]); both bounds are said
    #[arg(long, value_parser = parse_range, value_name = "R")]
    pub random_range_ratio: Option<f64>,
    /// First tokens that all prompts of a cell share; they come on top of --random-input-len
    #[arg(long, value_name = "N")]
    pub random_prefix_len: Option<u32>,
    /// One length for every answer of custom prompts; -1 for those of the file [default: those of the file]
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        conflicts_with_all = ["output_len", "output_tokens"]
    )]
    pub custom_output_len: Option<i64>,
    /// One length for every answer of sharegpt prompts [default: those of the file]
    #[arg(long, value_name = "N", conflicts_with_all = ["output_len", "output_tokens"])]
    pub sharegpt_output_len: Option<u32>,
    /// Answers as long as asked: always so for random prompts, and by this flag for those of a file
    #[arg(long)]
    pub ignore_eos: bool,
    /// Prompts as they are, without a chat template
    #[arg(long)]
    pub skip_chat_template: bool,
}

/// When requests are sent.
#[derive(Debug, Clone, Default, Args)]
pub struct LoadArgs {
    /// Requests per cell; without --request-rate and --max-concurrency all at once, as vLLM means it
    /// [default: --repeats for each request in flight, or per second; of a data set at most 1000]
    #[arg(long, value_name = "N", conflicts_with_all = ["repeats", "request_count"])]
    pub num_prompts: Option<u32>,
    /// Requests per cell
    #[arg(long, visible_alias = "num-requests", value_name = "N", conflicts_with = "repeats")]
    pub request_count: Option<u32>,
    /// Requests in flight: a closed loop; with a finite --request-rate the most that may be
    #[arg(long, visible_alias = "concurrency", value_delimiter = ',', value_name = "N,..")]
    pub max_concurrency: Vec<u32>,
    /// Requests per second, sent whatever the server does; `inf`: all at once, or with --max-concurrency a
    /// closed loop
    #[arg(long, value_delimiter = ',', value_name = "R,..")]
    pub request_rate: Vec<f64>,
    /// Shape of gamma distances between requests: 1 is Poisson, less comes in bursts, `inf` is constant
    #[arg(long, visible_alias = "arrival-smoothness", value_name = "X")]
    pub burstiness: Option<f64>,
    /// `constant`, `poisson`, `gamma` or `concurrency_burst` (closed loop)
    #[arg(long, value_parser = parse_pattern, value_name = "PATTERN")]
    pub arrival_pattern: Option<Pattern>,
    /// Length of an open loop's schedule in seconds, instead of a number of requests
    #[arg(long, value_name = "S", conflicts_with_all = ["num_prompts", "request_count", "repeats"])]
    pub benchmark_duration: Option<f64>,
    /// `linear` or `exponential`: the rate grows over the requests
    #[arg(
        long, value_parser = parse_growth, value_name = "STRATEGY",
        requires = "ramp_up_start_rps", requires = "ramp_up_end_rps",
        conflicts_with_all = ["request_rate", "burstiness", "arrival_pattern"]
    )]
    pub ramp_up_strategy: Option<Growth>,
    /// Rate at which the ramp begins
    #[arg(long, value_name = "R", requires = "ramp_up_strategy")]
    pub ramp_up_start_rps: Option<f64>,
    /// Rate at which the ramp ends
    #[arg(long, value_name = "R", requires = "ramp_up_strategy")]
    pub ramp_up_end_rps: Option<f64>,
    /// Recorded trace to replay: Mooncake JSONL, Azure or `BurstGPT` CSV
    #[arg(
        long, value_name = "FILE",
        conflicts_with_all = ["request_rate", "burstiness", "arrival_pattern", "ramp_up_strategy"]
    )]
    pub trace: Option<String>,
    /// `auto`, `mooncake`, `azure` or `burstgpt`
    #[arg(long, value_parser = parse_trace_format, value_name = "FORMAT", requires = "trace")]
    pub trace_format: Option<TraceFormat>,
    /// 2 replays twice as fast
    #[arg(long, value_name = "X", requires = "trace")]
    pub trace_speed: Option<f64>,
    /// First requests of the trace
    #[arg(long, value_name = "N", requires = "trace")]
    pub trace_limit: Option<u32>,
}

/// A backend's name, and the API that it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    pub name: String,
    pub endpoint: Endpoint,
}

/// aiperf's arrival patterns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    Constant,
    Poisson,
    Gamma,
    ConcurrencyBurst,
}

fn parse_backend(text: &str) -> Result<Backend, String> {
    let words = [
        ("vllm", Endpoint::Completions),
        ("openai", Endpoint::Completions),
        ("completions", Endpoint::Completions),
        ("openai-chat", Endpoint::Chat),
        ("chat", Endpoint::Chat),
    ];
    let endpoint = keyword(text, &words).map_err(|valid| {
        format!(
            "{valid}; any OpenAI-compatible server is one of them; audio, embedding, ranking are not measured"
        )
    })?;
    Ok(Backend { name: text.to_owned(), endpoint })
}

fn parse_dataset(text: &str) -> Result<Dataset, String> {
    let words = [("random", Dataset::Random), ("sharegpt", Dataset::Sharegpt), ("custom", Dataset::Custom)];
    keyword(text, &words).map_err(|valid| {
        let instead = match text {
            "timed_trace" | "burstgpt" => "; to replay a trace with its times use --trace FILE",
            "prefix_repetition" => "; to share a prefix use `random` with --random-prefix-len",
            _ => "; write others as JSON lines with `prompt` and use `custom`",
        };
        format!("{valid}{instead}")
    })
}

fn parse_pattern(text: &str) -> Result<Pattern, String> {
    let words = [
        ("constant", Pattern::Constant),
        ("poisson", Pattern::Poisson),
        ("gamma", Pattern::Gamma),
        ("concurrency_burst", Pattern::ConcurrencyBurst),
    ];
    keyword(text, &words)
}

fn parse_growth(text: &str) -> Result<Growth, String> {
    keyword(text, &[("linear", Growth::Linear), ("exponential", Growth::Exponential)])
}

fn parse_trace_format(text: &str) -> Result<TraceFormat, String> {
    let words = [
        ("auto", TraceFormat::Auto),
        ("mooncake", TraceFormat::Mooncake),
        ("azure", TraceFormat::Azure),
        ("burstgpt", TraceFormat::Burstgpt),
    ];
    keyword(text, &words)
}

/// A number, or vLLM's `{"input": r, "output": r}` with equal values.
fn parse_range(text: &str) -> Result<f64, String> {
    if let Ok(ratio) = text.parse() {
        return Ok(ratio);
    }
    let expected = "a number in [0, 1), or {\"input\": r, \"output\": r}";
    let object = parse_object(text).map_err(|_| expected.to_owned())?;
    let of = |key: &str| object.get(key).map_or(Some(0.0), Value::as_f64);
    match (of("input"), of("output")) {
        (Some(input), Some(output)) if input == output && !object.is_empty() => Ok(input),
        (Some(_), Some(_)) => Err("one ratio holds for both lengths; measure them in two studies".to_owned()),
        _ => Err(expected.to_owned()),
    }
}

fn parse_object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|e| format!("expected a JSON object: {e}"))
}
