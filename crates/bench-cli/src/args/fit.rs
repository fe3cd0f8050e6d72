//! The arguments of `ossbench fit`, and of the attempts that it starts.

use super::EngineArgs;
use clap::Args;

#[derive(Debug, Clone, Args)]
pub struct FitArgs {
    /// `dummy:<preset>`, a folder, or a hub name that was downloaded
    pub model: String,
    /// Memory to fill, e.g. 24GiB or 800MB [default: what is available here]
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    pub memory: Option<u64>,
    /// Prompt and output tokens at which the largest batch is sought [default: 4096, or what fits]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub context: Option<u32>,
    /// Sequences at once for which the largest context is sought
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch: u32,
    /// Prompt tokens of each sequence per forward pass
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub prefill_chunk: u32,
    /// Find by trial what really loads and runs: the largest context, or with --context the largest batch
    #[arg(long)]
    pub verify: bool,
    /// Longest time for all attempts of --verify, seconds
    #[arg(long, default_value_t = 600, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    pub verify_timeout: u32,
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// One attempt of `fit --verify`, in a process of its own.
#[derive(Debug, Clone, Args)]
pub struct FitAttemptArgs {
    pub model: String,
    #[arg(long)]
    pub context: u32,
    #[arg(long)]
    pub batch: u32,
    #[arg(long)]
    pub prefill_chunk: u32,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Units of a size, with their bytes.
const UNITS: [(&str, f64); 6] = [
    ("TiB", (1_u64 << 40) as f64),
    ("GiB", (1_u64 << 30) as f64),
    ("MiB", (1_u64 << 20) as f64),
    ("TB", 1e12),
    ("GB", 1e9),
    ("MB", 1e6),
];

/// `24GiB`, `1.5 GB`, `800MB`.
fn parse_size(text: &str) -> Result<u64, String> {
    let expected = || "expected a number with TiB, GiB, MiB, TB, GB or MB, e.g. 24GiB".to_owned();
    let lower = text.trim().to_ascii_lowercase();
    let unit = |(unit, bytes): &(&str, f64)| {
        lower.strip_suffix(&unit.to_ascii_lowercase()).map(|number| (number.trim().to_owned(), *bytes))
    };
    let (number, unit) = UNITS.iter().find_map(unit).ok_or_else(expected)?;
    let bytes = number.parse::<f64>().map_err(|_| expected())? * unit;
    if !(1e6..1e18).contains(&bytes) {
        return Err(format!("{text} is no memory of a machine: {}", expected()));
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit_and_make_sense() {
        for (text, bytes) in
            [("24GiB", 24 << 30), ("1.5 GB", 1_500_000_000), ("800mb", 800_000_000), (" 2MiB", 2 << 20)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "24", "GiB", "-1GiB", "NaN GB", "inf GB", "0MB", "1e30GB", "24 GiBs", "2 4GiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
