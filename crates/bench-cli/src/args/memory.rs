//! The arguments of `ossbench memory`.

use super::{EngineArgs, PowerArgs, RunCommon};
use clap::Args;

#[derive(Debug, Args)]
pub struct MemoryArgs {
    /// `dummy:<preset>`, a folder, or a hub name; several with commas
    #[arg(short = 'm', long = "model", required = true, value_delimiter = ',', value_name = "MODEL")]
    pub models: Vec<String>,
    /// Contexts in tokens, prompt and output together; `2k` is 2,048
    #[arg(
        short = 'c',
        long,
        value_delimiter = ',',
        value_parser = parse_length,
        default_value = "128,512,1k,2k",
        value_name = "N,.."
    )]
    pub context_lengths: Vec<u32>,
    /// Output tokens, of the context
    #[arg(short = 'n', long, default_value_t = 32, value_name = "N")]
    pub output_tokens: u32,
    /// Requests that run together
    #[arg(short = 'b', long, value_delimiter = ',', default_value = "1", value_name = "N,..")]
    pub batch: Vec<u32>,
    /// Measured repeats per cell
    #[arg(short = 'r', long, default_value_t = 3, value_name = "N")]
    pub repeats: u32,
    /// Unmeasured repeats before them
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub warmup: u32,
    /// Prompt tokens per forward pass [default: 512]
    #[arg(long, value_name = "N")]
    pub prefill_chunk: Option<u32>,
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Begins the name of the results folder
    #[arg(long, default_value = "memory")]
    pub name: String,
    /// Print the study that these flags make, as a file for `ossbench run`, and end
    #[arg(long)]
    pub print_study: bool,
    #[command(flatten, next_help_heading = "Engine")]
    pub engine: EngineArgs,
    #[command(flatten, next_help_heading = "Power")]
    pub power: PowerArgs,
    #[command(flatten)]
    pub common: RunCommon,
}

/// `512`, `2k`, `128K`: a number of tokens, `k` is 1,024.
pub(crate) fn parse_length(text: &str) -> Result<u32, String> {
    let expected = || "a number of tokens, such as 512, 2k (2,048) or 128k".to_owned();
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1024),
        None => (text, 1),
    };
    let number: u32 = digits.parse().map_err(|_| expected())?;
    number.checked_mul(unit).filter(|n| *n > 0).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::parse_length;

    #[test]
    fn k_is_1024() {
        for (text, tokens) in [("512", 512), ("2k", 2048), ("128K", 131_072)] {
            assert_eq!(parse_length(text), Ok(tokens));
        }
        for text in ["", "k", "0", "-1", "2.5k", "5m", "99999999k"] {
            assert!(parse_length(text).unwrap_err().contains("2k"), "{text}");
        }
    }
}
