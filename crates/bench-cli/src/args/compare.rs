//! Arguments of `compare`, and the small languages in them: metrics, renames, limits.

use super::{FORMATS, parse_format};
use bench_core::metric::{Better, Metric, Per};
use bench_core::sample::Stat;
use bench_report::Format;
use clap::Args;
use std::path::PathBuf;

const AFTER: &str = "\
Each side is a run id, the path of a run's folder, `latest`, or the name of a study (its latest run); several \
runs of one side are joined by commas, and are then what the test counts.

Cells match by model label, prompt, output, batch and load. Of each, the median of B is held against that of A: \
difference with a 95 % interval, p-value by Mann-Whitney's test on the medians of repeats (batches, requests, \
conversations), or by Student's t where runs or rounds are the units, corrected for all comparisons by Holm. A \
verdict needs a corrected p-value below 5 % and an interval without 0. INVALID cells are shown and never \
counted.

Rounds are the units where both sides have six, and where the rounds of a run differ by more than its repeats \
explain. One run a side cannot tell a change from the difference of two runs of the same: measure each side \
several times.

Exit code 3 when a gate of --fail-on-regression fails: its metric regressed after correction and is worse by \
more than the limit, as estimated; or this cannot be said, since a cell is INVALID, missing in B, has no figure \
or too few repeats. Fewer metrics (--metric) leave more power to each.";

/// Two runs, cell by cell.
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct CompareArgs {
    /// What is compared with: the baseline
    #[arg(value_name = "A")]
    pub a: String,
    /// What is compared
    #[arg(value_name = "B")]
    pub b: String,
    /// Folder of `raw/`
    #[arg(long, default_value = "results", value_name = "DIR")]
    pub results: PathBuf,
    /// Metrics, each with a quantile if wanted: `ttft_ms,itl_ms:p99` [default: `ttft_ms`, `tpot_ms`,
    /// `itl_ms`, `e2el_ms`, `decode_tok_s`, `system_tok_s`, `j_per_tok`, `peak_bytes`, `kv_retained_bytes`]
    #[arg(long = "metric", value_delimiter = ',', value_parser = parse_wanted, value_name = "METRIC,..")]
    pub metrics: Vec<Wanted>,
    /// Model labels of A as they are in B, to compare two models or two servers
    #[arg(long = "map", value_delimiter = ',', value_parser = parse_rename, value_name = "A=B,..")]
    pub renames: Vec<(String, String)>,
    /// Also say where the interval lies within this margin: `3%`
    #[arg(long, value_parser = parse_percent, value_name = "PERCENT")]
    pub equivalence: Option<f64>,
    /// Exit with 3 if this metric got worse by more: `ttft_ms:5%`, `itl_ms:p99:10%`; may be repeated
    #[arg(long, value_delimiter = ',', value_parser = parse_limit, value_name = "METRIC:PERCENT")]
    pub fail_on_regression: Vec<(Wanted, f64)>,
    /// How the comparison is written
    #[arg(short = 'o', long = "output", value_parser = parse_format, default_value = "table", value_name = FORMATS)]
    pub output: Format,
}

/// A metric, and which statistic of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wanted {
    pub metric: Metric,
    pub stat: Stat,
}

impl Wanted {
    /// The statistic by which a metric is compared: the median of samples, the mean of windows, a cell's
    /// figure.
    pub fn usual(metric: Metric) -> Self {
        let stat = match metric.def().per {
            Per::Request | Per::Gap => Stat::Quantile(0.5),
            Per::Window => Stat::Mean,
            Per::Cell => Stat::Value,
        };
        Self { metric, stat }
    }
}

/// Derived from several metrics, or over several cells: no samples of their own.
const DERIVED: [Metric; 14] = [
    Metric::KvPerToken,
    Metric::KvPerTokenTheory,
    Metric::ApeDecode,
    Metric::ApeTtft,
    Metric::ApeEnergy,
    Metric::ApeMemory,
    Metric::ApeAccuracy,
    Metric::Accuracy,
    Metric::ActiveParameters,
    Metric::ExpertsTouched,
    Metric::BytesPerToken,
    Metric::RooflineLimit,
    Metric::RooflineRatio,
    Metric::Failures,
];

fn comparable() -> impl Iterator<Item = Metric> {
    Metric::ALL.iter().copied().filter(|m| !DERIVED.contains(m))
}

fn valid(of: impl Fn(Metric) -> bool) -> String {
    comparable().filter(|m| of(*m)).map(|m| m.def().key).collect::<Vec<_>>().join(", ")
}

fn parse_wanted(text: &str) -> Result<Wanted, String> {
    let (key, stat) = text.split_once(':').map_or((text, None), |(key, stat)| (key, Some(stat)));
    let metric = comparable()
        .find(|m| m.def().key == key)
        .ok_or_else(|| format!("no metric \"{key}\" that can be compared; valid: {}", valid(|_| true)))?;
    let usual = Wanted::usual(metric);
    let Some(stat) = stat else { return Ok(usual) };
    if stat == usual.stat.key() {
        return Ok(usual);
    }
    if !matches!(usual.stat, Stat::Quantile(_)) {
        return Err(format!("{key} is compared by its {} alone, not by \"{stat}\"", usual.stat.key()));
    }
    let percent = stat.strip_prefix('p').and_then(|p| p.parse::<f64>().ok());
    let percent = percent.filter(|p| (1.0..=99.9).contains(p));
    let percent =
        percent.ok_or_else(|| format!("\"{stat}\" is no quantile; write p50, p90, p95, p99 or p99.9"))?;
    Ok(Wanted { metric, stat: Stat::Quantile(percent / 100.0) })
}

fn parse_rename(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((a, b)) if !a.is_empty() && !b.is_empty() => Ok((a.to_owned(), b.to_owned())),
        _ => Err("write the label in A, `=`, and the label in B".to_owned()),
    }
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    let share = number.filter(|p| p.is_finite() && *p >= 0.0).map(|p| p / 100.0);
    share.ok_or_else(|| format!("\"{text}\" is no percentage of 0 or more; write 5%"))
}

fn parse_limit(text: &str) -> Result<(Wanted, f64), String> {
    let (metric, limit) = text
        .rsplit_once(':')
        .ok_or_else(|| format!("\"{text}\" has no limit; write METRIC:PERCENT, such as ttft_ms:5%"))?;
    let wanted = parse_wanted(metric)?;
    if wanted.metric.def().better == Better::Neutral {
        let directed = valid(|m| m.def().better != Better::Neutral);
        return Err(format!("neither direction of {metric} is better; valid: {directed}"));
    }
    Ok((wanted, parse_percent(limit)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_say_what_is_wrong_with_them() {
        let (wanted, limit) = parse_limit("itl_ms:p99:2.5%").unwrap();
        assert_eq!((wanted.metric, wanted.stat.key()), (Metric::Itl, "p99".to_owned()));
        assert!((limit - 0.025).abs() < 1e-12);
        assert_eq!(parse_limit("ttft_ms:p50:5%").unwrap().0, Wanted::usual(Metric::Ttft));
        for (text, says) in [
            ("ttft:5%", "ttft_ms, "),
            ("ttft_ms", "METRIC:PERCENT"),
            ("ttft_ms:5", "no percentage"),
            ("ttft_ms:-5%", "no percentage"),
            ("ttft_ms:nan%", "no percentage"),
            ("ttft_ms:p100:5%", "no quantile"),
            ("system_tok_s:p99:5%", "by its value alone"),
            ("temp_c:5%", "neither direction"),
            ("ape_decode:5%", "decode_tok_s"),
        ] {
            let error = parse_limit(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!(parse_rename("a=").is_err() && parse_rename("a=b").is_ok());
    }
}
