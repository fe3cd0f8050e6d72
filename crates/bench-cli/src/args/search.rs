//! The arguments of `ossbench search`.

use super::{RunCommon, keyword};
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct SearchArgs {
    /// The study: one model, one prompt length, one output length, and the limits of [slo]
    pub config: PathBuf,
    /// What is raised [default: what the study's load has]
    #[arg(long, value_parser = parse_over, value_name = "concurrency|rate")]
    pub over: Option<Over>,
    /// Level to begin with [default: the lowest of the study, else 1]
    #[arg(long, value_name = "X")]
    pub min: Option<f64>,
    /// Highest level to try [default: 1024 times --min]
    #[arg(long, value_name = "X")]
    pub max: Option<f64>,
    /// Share of the requests that must meet every limit of [slo]
    #[arg(long, value_parser = parse_share, default_value = "0.99", value_name = "SHARE")]
    pub attainment: f64,
    /// How close the answer is to be: a share, or with % at its end
    #[arg(long, value_parser = parse_share, default_value = "5%", value_name = "SHARE")]
    pub tolerance: f64,
    /// Most levels to measure
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: u32,
    #[command(flatten)]
    pub secrets: super::SecretArgs,
    #[command(flatten)]
    pub common: RunCommon,
}

/// What a search raises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Requests in flight of a closed loop.
    Concurrency,
    /// Requests per second of an open loop.
    Rate,
}

impl Over {
    pub fn key(self) -> &'static str {
        match self {
            Self::Concurrency => "concurrency",
            Self::Rate => "rate",
        }
    }
}

fn parse_over(text: &str) -> Result<Over, String> {
    keyword(text, &[("concurrency", Over::Concurrency), ("rate", Over::Rate)])
}

/// `0.05` or `5%`, in (0, 1].
fn parse_share(text: &str) -> Result<f64, String> {
    let (number, unit) = text.strip_suffix('%').map_or((text, 1.0), |percent| (percent.trim_end(), 100.0));
    let share = number.parse::<f64>().map(|n| n / unit).map_err(|e| e.to_string())?;
    if share > 0.0 && share <= 1.0 {
        Ok(share)
    } else {
        Err("expected a share in (0, 1], or a percentage".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_numbers_or_percentages() {
        for (text, share) in [("0.99", 0.99), ("5%", 0.05), ("5 %", 0.05), ("100%", 1.0), ("1", 1.0)] {
            assert_eq!(parse_share(text), Ok(share));
        }
        for text in ["0", "5", "-1%", "101%", "x", "nan", "%", ""] {
            assert!(parse_share(text).is_err(), "{text}");
        }
    }
}
