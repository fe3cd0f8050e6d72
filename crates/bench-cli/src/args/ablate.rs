//! The arguments of `ossbench ablate`: which one thing is varied, and what stays as it is.

use super::{EngineArgs, RunCommon, SecretArgs, keyword};
use bench_core::spec::TargetKind;
use clap::Args;

#[derive(Debug, Args)]
pub struct AblateArgs {
    /// `dummy:<preset>`, a folder, or a hub name
    #[arg(short = 'm', long, value_name = "MODEL")]
    pub model: String,
    /// What is varied: decoding, precision, expert-mode, context, server, batch, or all
    #[arg(long, value_delimiter = ',', value_parser = parse_tests, default_value = "all", value_name = "TEST,..")]
    pub tests: Vec<Tests>,
    /// Prompt tokens, template included, where they are not what is varied
    #[arg(short = 'p', long, default_value_t = 128, value_name = "N")]
    pub prompt_tokens: u32,
    /// Output tokens; 64 is the study's
    #[arg(short = 'n', long, default_value_t = 64, value_name = "N")]
    pub output_tokens: u32,
    /// Measured repeats per variant
    #[arg(short = 'r', long, default_value_t = 20, value_name = "N")]
    pub repeats: u32,
    /// Rounds over which the repeats are spread, each in an order of its own [default: 2]
    #[arg(long, value_name = "N")]
    pub rounds: Option<u32>,
    /// Unmeasured repeats before each trial
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub warmup: u32,
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Begins the names of the results folders
    #[arg(long, default_value = "ablate")]
    pub name: String,
    /// Prompt lengths of the context ablation; k is 1024
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = parse_length,
        default_value = "512,1k,2k,4k",
        value_name = "N,.."
    )]
    pub context_lengths: Vec<u32>,
    /// Requests that run together in the batch ablation
    #[arg(short = 'b', long, value_delimiter = ',', default_value = "1,2,4,8,16", value_name = "N,..")]
    pub batch: Vec<u32>,
    /// Servers to hold against the engine in the server ablation; several with commas
    #[arg(long, value_delimiter = ',', value_name = "URL,..")]
    pub base_url: Vec<String>,
    /// Name that the servers know the model under [default: --model]
    #[arg(long, value_name = "NAME")]
    pub served_model_name: Option<String>,
    /// Tokenizer of the served model, for prompts of exact length [default: that of --model]
    #[arg(long, value_name = "TOKENIZER")]
    pub tokenizer: Option<String>,
    /// Without a tokenizer for the servers: their own counts decide
    #[arg(long, conflicts_with = "tokenizer")]
    pub skip_tokenizer_init: bool,
    /// `engine`, or `mock` (scripted times: a test of the harness)
    #[arg(long, value_parser = parse_target, default_value = "engine", value_name = "engine|mock")]
    pub target: TargetKind,
    /// Print the studies that these flags make, as files for `ossbench run`, and end
    #[arg(long)]
    pub print_study: bool,
    #[command(flatten)]
    pub secrets: SecretArgs,
    #[command(flatten, next_help_heading = "Engine")]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub common: RunCommon,
}

impl AblateArgs {
    /// The ablations that are asked for, each once.
    pub fn ablations(&self) -> Vec<Ablation> {
        let asked = |ablation: &Ablation| {
            self.tests.iter().any(|t| matches!(t, Tests::All) || *t == Tests::One(*ablation))
        };
        Ablation::ALL.into_iter().filter(asked).collect()
    }
}

/// The one thing that is varied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ablation {
    Decoding,
    Precision,
    /// Experts that the router chose, or all.
    ExpertMode,
    Context,
    Server,
    Batch,
}

impl Ablation {
    pub const ALL: [Self; 6] =
        [Self::Decoding, Self::Precision, Self::ExpertMode, Self::Context, Self::Server, Self::Batch];

    pub fn key(self) -> &'static str {
        match self {
            Self::Decoding => "decoding",
            Self::Precision => "precision",
            Self::ExpertMode => "expert-mode",
            Self::Context => "context",
            Self::Server => "server",
            Self::Batch => "batch",
        }
    }
}

/// A word of `--tests`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tests {
    One(Ablation),
    All,
}

fn parse_tests(text: &str) -> Result<Tests, String> {
    let mut words: Vec<_> = Ablation::ALL.iter().map(|a| (a.key(), Tests::One(*a))).collect();
    words.push(("all", Tests::All));
    keyword(text, &words)
}

fn parse_target(text: &str) -> Result<TargetKind, String> {
    keyword(text, &[("engine", TargetKind::Engine), ("mock", TargetKind::Mock)])
}

/// `2048`, `2k`, `2K`.
fn parse_length(text: &str) -> Result<u32, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1024),
        None => (text, 1),
    };
    let number: u32 = digits.parse().map_err(|_| "expected a number of tokens such as 2048 or 2k")?;
    match number.checked_mul(unit) {
        Some(0) => Err("at least 1 token".to_owned()),
        Some(tokens) => Ok(tokens),
        None => Err("too long".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_numbers_or_multiples_of_1024() {
        for (text, tokens) in [("512", 512), ("2k", 2048), ("128K", 131_072)] {
            assert_eq!(parse_length(text), Ok(tokens));
        }
        for text in ["0", "0k", "k", "2m", "-1", "4194304k", ""] {
            assert!(parse_length(text).is_err(), "{text}");
        }
    }
}
