//! Every key that a study may hold, with type, default and meaning: the source of the key reference.

use std::fmt::Write as _;

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
    Key(
        "run",
        "repeats",
        "integer",
        "20",
        "Measured repeats per cell; p95 needs 20 requests, p99 100. With a server, `load.requests` counts instead; if absent, repeats times the concurrency, or times the rate.",
    ),
    Key(
        "run",
        "rounds",
        "integer",
        "2",
        "The repeats are split into this many rounds, each in an order of its own, so that drift of the machine does not fall on one cell. At most `repeats`. With a server 1, since each round has a ramp of its own.",
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
        "`engine`, `http` (a server), `mock` (scripted times) or `null` (measures the harness).",
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
        "`dummy:<preset>`, a folder in Hugging Face layout, or a hub name; for a server the name that it serves the model under. Required.",
    ),
    Key("models", "label", "string", "-", "Name in tables and figures; the last part of `id` if absent."),
    Key("models", "layers", "integer", "-", "Load the first N layers only."),
    Key(
        "models",
        "base_url",
        "string",
        "-",
        "Server of this model, instead of `server.base_url`: two servers can stand in one study.",
    ),
    Key(
        "models",
        "tokenizer",
        "string",
        "-",
        "Where the tokenizer of a served model is: a folder, a hub name or `dummy:<preset>`. Without it the server's own counts decide the prompt lengths.",
    ),
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
        "workload",
        "dataset",
        "string",
        "\"random\"",
        "With a server: `random` (generated text of exact length), `sharegpt` or `custom` (prompts from `dataset_path`).",
    ),
    Key("workload", "dataset_path", "string", "-", "File of the data set."),
    Key(
        "workload",
        "dataset_hash",
        "string",
        "-",
        "Hash of the data set; filled in when it is read, and refused if the file is another one.",
    ),
    Key(
        "workload",
        "length_range",
        "float",
        "0.0",
        "Lengths are drawn evenly from `[(1 - r) * length, (1 + r) * length]`, 0 <= r < 1; with a server and `random`.",
    ),
    Key(
        "workload",
        "shared_prefix_tokens",
        "integer",
        "0",
        "First tokens of the prompt that all requests of a cell share, to measure a prefix cache on purpose.",
    ),
    Key(
        "workload",
        "turns",
        "integer",
        "1",
        "Requests per conversation; each carries the answers before it.",
    ),
    Key("workload", "think_time_ms", "float", "0.0", "Pause between an answer and the next turn."),
    Key(
        "workload",
        "salt",
        "boolean",
        "true",
        "Prompts begin with text that no other prompt has, so that no prefix cache helps unasked.",
    ),
    Key(
        "load",
        "arrival",
        "string",
        "\"closed\"",
        "`closed` (fixed number in flight), `constant`, `poisson`, `gamma`, `ramp`, `burst` (all at once) or `replay`. Server only.",
    ),
    Key("load", "concurrency", "list of integers", "[1]", "Requests in flight, for `closed`; one cell each."),
    Key(
        "load",
        "rate",
        "list of floats",
        "-",
        "Requests per second, for `constant`, `poisson`, `gamma`; where `ramp` begins. One cell each.",
    ),
    Key(
        "load",
        "burstiness",
        "float",
        "1.0",
        "Shape of `gamma` distances: 1 is Poisson, below 1 comes in bursts, above 1 is smoother.",
    ),
    Key("load", "ramp_to", "float", "-", "Rate at which a ramp ends."),
    Key("load", "ramp_growth", "string", "\"linear\"", "`linear` or `exponential`."),
    Key(
        "load",
        "max_concurrency",
        "integer",
        "-",
        "Most requests in flight in an open loop; what waits has schedule lag.",
    ),
    Key("load", "requests", "integer", "-", "Measured requests per cell."),
    Key("load", "duration_s", "float", "-", "Length of an open loop's schedule, instead of `requests`."),
    Key(
        "load",
        "trace",
        "string",
        "-",
        "File of a recorded trace, for `replay`: Mooncake JSONL, Azure or BurstGPT CSV.",
    ),
    Key(
        "load",
        "trace_hash",
        "string",
        "-",
        "Hash of the trace; filled in when it is read, and refused if the file is another one.",
    ),
    Key("load", "trace_format", "string", "\"auto\"", "`auto`, `mooncake`, `azure` or `burstgpt`."),
    Key("load", "trace_speed", "float", "1.0", "2 replays a trace twice as fast."),
    Key("load", "trace_limit", "integer", "-", "First requests of the trace."),
    Key(
        "server",
        "base_url",
        "string",
        "-",
        "`http://host:port`, with or without `/v1`. Required unless each model has its own.",
    ),
    Key(
        "server",
        "endpoint",
        "string",
        "\"auto\"",
        "`completions`, `chat`, or `auto`: completions for random prompts, chat for conversations.",
    ),
    Key(
        "server",
        "api_key_env",
        "string",
        "\"OPENAI_API_KEY\"",
        "Environment variable with the key; the key itself is never stored.",
    ),
    Key(
        "server",
        "headers",
        "table",
        "{}",
        "Further headers. They are stored with the results: secrets belong into `--header` or the key.",
    ),
    Key("server", "extra_body", "table", "{}", "Further members of the request's JSON; they win."),
    Key(
        "server",
        "stream",
        "boolean",
        "true",
        "Ask for a stream; without it there is one instant for all tokens.",
    ),
    Key(
        "server",
        "fixed_length",
        "boolean",
        "true",
        "Ask for exactly `output_tokens` by `ignore_eos` and `min_tokens`, where the server takes them.",
    ),
    Key("server", "connect_timeout_s", "float", "10.0", "Longest wait for a connection."),
    Key(
        "server",
        "first_token_timeout_s",
        "float",
        "600.0",
        "Longest wait from sending to the first byte of the answer.",
    ),
    Key("server", "gap_timeout_s", "float", "120.0", "Longest silence within an answer."),
    Key("server", "request_timeout_s", "float", "3600.0", "Longest request."),
    Key(
        "server",
        "ready_timeout_s",
        "float",
        "0.0",
        "How long to wait for a server that does not answer yet.",
    ),
    Key("server", "insecure", "boolean", "false", "Accept any certificate."),
    Key("server", "ca_file", "string", "-", "Certificates (PEM) to trust besides the usual ones."),
    Key(
        "server",
        "client_threads",
        "integer",
        "-",
        "Threads that send and read; if absent 1 per 512 requests in flight, at most half of the cores.",
    ),
    Key(
        "server",
        "keep_awake",
        "boolean",
        "false",
        "Keep this machine's cores from sleeping during a trial by threads of lowest priority: a virtual core may take half a millisecond to wake. Costs energy.",
    ),
    Key(
        "server",
        "metrics",
        "boolean",
        "true",
        "Read the server's `/metrics` during the run, where it has one.",
    ),
    Key("server", "metrics_url", "string", "-", "Where the metrics are; `/metrics` of `base_url` if absent."),
    Key("server", "metrics_interval_ms", "float", "1000.0", "Distance between readings."),
    Key(
        "server",
        "calibrate",
        "boolean",
        "true",
        "Measure beforehand, against a loopback server at the cell's own load, what the client adds.",
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
