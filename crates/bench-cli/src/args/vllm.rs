//! Every flag of `vllm bench serve`, and what becomes of each: it works here, or it is refused with a reason.
//!
//! Nothing of a known command is ignored in silence. Names only; their meaning is decided in `cmd::vllm`.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

/// What becomes of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It works; how.
    Supported(&'static str),
    /// It ends the command; why, and what to use instead.
    Refused(&'static str),
}

/// A flag without its dashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag(pub &'static str, pub Support);

use Support::{Refused as No, Supported as Yes};

const OTHER_DATASET: &str = "\
    only random, sharegpt and custom prompts are made here; write this data set as JSON lines with \
    `prompt` and pass --dataset-name custom --dataset-path FILE";
const TEXT_ONLY: &str = "only text is measured; leave it out";
const NO_RANKING: &str = "embedding and ranking are not measured; leave it out";
const TRACE: &str = "\
    a trace is replayed with --trace FILE (Mooncake JSONL), whose members are `timestamp` in ms, \
    `input_length`, `output_length`, `hash_ids` per 512 tokens; rename them in the file";
const FIGURES: &str = "figures are drawn from the stored events by `ossbench report`; leave it out";
const LORA: &str = "give the adapters as models, -m NAME,NAME: each is measured for itself";
const PREFIX: &str = "to share a prefix use --dataset-name random --random-prefix-len N";

/// In alphabetic order. Source: vllm-project/vllm, `add_cli_args` of vllm/benchmarks/serve.py at 009e6d4 and
/// `add_dataset_parser` of vllm/benchmarks/datasets/datasets.py at 003cf02; `config` is of its parser class.
pub const FLAGS: &[Flag] = &[
    Flag("append-result", Yes("a further line of the JSON file")),
    Flag("asr-max-audio-len-sec", No(TEXT_ONLY)),
    Flag("asr-min-audio-len-sec", No(TEXT_ONLY)),
    Flag("backend", Yes("chooses completions or chat")),
    Flag("base-url", Yes("the server")),
    Flag("bfcl-categories", No(OTHER_DATASET)),
    Flag("blazedit-max-distance", No(OTHER_DATASET)),
    Flag("blazedit-min-distance", No(OTHER_DATASET)),
    Flag("burstiness", Yes("1 is Poisson, else gamma; inf is constant")),
    Flag(
        "chat-template-kwargs",
        No("the server renders the prompts: pass --extra-body '{\"chat_template_kwargs\": {..}}'"),
    ),
    Flag(
        "config",
        No("write the study as TOML and run it with `ossbench run FILE`; --print-study makes one from \
             flags"),
    ),
    Flag("custom-ensure-client-side-data", No(TEXT_ONLY)),
    Flag("custom-output-len", Yes("one length for every answer; the file's own if absent, not 256")),
    Flag("dataset-name", Yes("random, sharegpt or custom")),
    Flag("dataset-path", Yes("file of sharegpt or custom")),
    Flag(
        "disable-shuffle",
        No("the order of a data set is drawn from --seed, and one seed gives one order; leave it out"),
    ),
    Flag("disable-tqdm", Yes("no progress is shown")),
    Flag("enable-multimodal-chat", No(TEXT_ONLY)),
    Flag("endpoint", Yes("path that ends in /v1/completions or /v1/chat/completions")),
    Flag("extra-body", Yes("merged into every request")),
    Flag("frequency-penalty", Yes("a member of every request")),
    Flag("goodput", Yes("limits of ttft, tpot and e2el")),
    Flag("header", Yes("sent with every request, never stored")),
    Flag("hf-name", No(OTHER_DATASET)),
    Flag("hf-output-len", No(OTHER_DATASET)),
    Flag("hf-split", No(OTHER_DATASET)),
    Flag("hf-subset", No(OTHER_DATASET)),
    Flag("host", Yes("the server")),
    Flag("ignore-eos", Yes("server.fixed_length; always so for random prompts")),
    Flag("input-len", Yes("as --random-input-len")),
    Flag("insecure", Yes("any certificate")),
    Flag("label", Yes("name of the JSON file, and in it")),
    Flag(
        "logprobs",
        No("pass --extra-body '{\"logprobs\": N}' (chat: '{\"logprobs\": true, \"top_logprobs\": N}')"),
    ),
    Flag("lora-assignment", No(LORA)),
    Flag("lora-modules", No(LORA)),
    Flag("max-concurrency", Yes("closed loop; with a finite rate the most in flight; several make a sweep")),
    Flag("metadata", Yes("members of the JSON file")),
    Flag("metric-percentiles", Yes("of the JSON file and the summary")),
    Flag("min-p", Yes("a member of every request")),
    Flag("model", Yes("required here: the first model of a server is not guessed")),
    Flag(
        "no-oversample",
        No("where a data set has too few prompts some are repeated, and that is said; lower --num-prompts"),
    ),
    Flag("no-reranker", No(NO_RANKING)),
    Flag(
        "no-self-timed",
        No("a trace is replayed with its own times; for others use --request-rate with a data set"),
    ),
    Flag("no-stream", No("data sets are files here; for answers without a stream use --streaming false")),
    Flag(
        "num-prompts",
        Yes("requests of each cell; without it 20 for each in flight or per second, not 1000"),
    ),
    Flag("num-warmups", Yes("as --warmup; 2 if absent, not 0")),
    Flag("output-len", Yes("as --random-output-len")),
    Flag("percentile-metrics", Yes("of the JSON file and the summary")),
    Flag("plot-dataset-stats", No(FIGURES)),
    Flag("plot-timeline", No(FIGURES)),
    Flag("port", Yes("the server")),
    Flag("prefix-repetition-num-prefixes", No(PREFIX)),
    Flag("prefix-repetition-output-len", No(PREFIX)),
    Flag("prefix-repetition-prefix-len", No(PREFIX)),
    Flag("prefix-repetition-suffix-len", No(PREFIX)),
    Flag("presence-penalty", Yes("a member of every request")),
    Flag(
        "probe-request-rate",
        No("one load is measured at a time; run a second `ossbench latency` beside this one"),
    ),
    Flag(
        "profile",
        No("start and stop the server's profiler yourself: a profiled run measures the profiler"),
    ),
    Flag("ramp-up-end-rps", Yes("where the ramp ends")),
    Flag("ramp-up-start-rps", Yes("where the ramp begins")),
    Flag("ramp-up-strategy", Yes("linear or exponential")),
    Flag("random-batch-size", No(NO_RANKING)),
    Flag("random-input-len", Yes("prompt tokens besides the prefix; 128 if absent, not 1024")),
    Flag("random-mm-base-items-per-request", No(TEXT_ONLY)),
    Flag("random-mm-bucket-config", No(TEXT_ONLY)),
    Flag("random-mm-limit-mm-per-prompt", No(TEXT_ONLY)),
    Flag("random-mm-num-mm-items-range-ratio", No(TEXT_ONLY)),
    Flag("random-output-len", Yes("output tokens; 32 if absent, not 128")),
    Flag("random-prefix-len", Yes("first tokens that all prompts share")),
    Flag("random-range-ratio", Yes("[(1 - r) L, (1 + r) L]; one ratio for both lengths")),
    Flag("ready-check-timeout-sec", Yes("wait for the server")),
    Flag("repetition-penalty", Yes("a member of every request")),
    Flag(
        "request-id-prefix",
        No("requests are known by cell, repeat and slot; to send an id use --header x-request-id=ID"),
    ),
    Flag("request-rate", Yes("open loop; several make a sweep; inf is all at once")),
    Flag("result-dir", Yes("folder of the JSON file")),
    Flag("result-filename", Yes("name of the JSON file")),
    Flag("save-detailed", Yes("lists over all requests in the JSON file")),
    Flag("save-result", Yes("the JSON file, beside the results folder")),
    Flag("seed", Yes("42 if absent, not 0")),
    Flag("self-timed", No("a trace is replayed with its own times: --trace FILE")),
    Flag("served-model-name", Yes("the name that is sent; --model is then the tokenizer's")),
    Flag("sharegpt-output-len", Yes("one length for every answer")),
    Flag("skip-chat-template", Yes("prompts as they are")),
    Flag("skip-tokenizer-init", Yes("no tokenizer: the server's counts decide")),
    Flag("sonnet-input-len", No(OTHER_DATASET)),
    Flag("sonnet-output-len", No(OTHER_DATASET)),
    Flag("sonnet-prefix-len", No(OTHER_DATASET)),
    Flag("spec-bench-category", No(OTHER_DATASET)),
    Flag("spec-bench-output-len", No(OTHER_DATASET)),
    Flag("speed-bench-category", No(OTHER_DATASET)),
    Flag("speed-bench-dataset-subset", No(OTHER_DATASET)),
    Flag("speed-bench-output-len", No(OTHER_DATASET)),
    Flag("temperature", Yes("0 if absent, not the server's default")),
    Flag("timed-trace-chunk-hash-size", No(TRACE)),
    Flag("timed-trace-label-hash-ids", No(TRACE)),
    Flag("timed-trace-label-input-length", No(TRACE)),
    Flag("timed-trace-label-output-length", No(TRACE)),
    Flag("timed-trace-label-timestamp", No(TRACE)),
    Flag("timed-trace-sec-multiplier", No(TRACE)),
    Flag("timeline-itl-thresholds", No(FIGURES)),
    Flag("tokenizer", Yes("folder or hub name")),
    Flag(
        "tokenizer-mode",
        No("the tokenizer.json (gpt-oss: o200k_harmony) of --tokenizer is read as it is; leave it out"),
    ),
    Flag("top-k", Yes("a member of every request")),
    Flag("top-p", Yes("a member of every request")),
    Flag("trust-remote-code", No("no code of a model is run here; leave it out")),
    Flag("use-beam-search", No("a beam has no token times of its own; leave it out")),
];

/// Refused flags, as given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refused(pub Vec<Flag>);

fn refused() -> impl Iterator<Item = &'static Flag> {
    FLAGS.iter().filter(|flag| matches!(flag.1, No(_)))
}

/// Hidden arguments that take any values, so that a refused flag is always told from a mistyped one.
impl Args for Refused {
    fn augment_args(command: Command) -> Command {
        command.args(refused().map(|Flag(name, _)| {
            Arg::new(*name)
                .long(*name)
                .hide(true)
                .num_args(0..)
                .action(ArgAction::Append)
                .allow_negative_numbers(true)
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Refused {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |name: &str| matches.value_source(name) == Some(ValueSource::CommandLine);
        Ok(Self(refused().filter(|flag| given(flag.0)).copied().collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
