//! `ossbench calibrate`: what this client adds to the times of a server that is known.

use crate::args::CalibrateArgs;
use crate::{CliError, Io, signal};
use bench_core::client::Calibration;
use bench_core::clock::{Clock, MonotonicClock};
use bench_core::unit::Nanos;
use bench_report::Format;
use bench_runner::targets::http::{CalibrationLoad, calibrate};
use std::fmt::Write as _;
use std::sync::Arc;

/// Requests per unit of the level, and the fewest.
const REQUESTS_PER_LEVEL: f64 = 4.0;
const FEWEST: f64 = 100.0;

pub(crate) fn run(args: &CalibrateArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    let loads = loads(args)?;
    let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::default());
    let mut rows = Vec::with_capacity(loads.len());
    for load in &loads {
        let calibration = calibrate(load, &clock, signal::stop());
        rows.push(calibration.map_err(|e| CliError::Failed(e.to_string()))?);
        if signal::stop().is_set() {
            return Err(CliError::Interrupted("stopped by Ctrl-C; nothing is stored".to_owned()));
        }
    }
    if matches!(args.output, Format::Json | Format::Jsonl) {
        let text = serde_json::to_string_pretty(&rows).map_err(|e| CliError::Failed(e.to_string()))?;
        writeln!(io.out, "{text}")?;
    } else {
        write!(io.out, "{}", table(&rows, args.output))?;
    }
    Ok(())
}

fn loads(args: &CalibrateArgs) -> Result<Vec<CalibrationLoad>, CliError> {
    let nanos = |flag: &str, ms: f64| {
        if ms.is_finite() && (0.0..=3.6e6).contains(&ms) {
            Ok(Nanos((ms * 1e6) as u64))
        } else {
            Err(CliError::Usage(format!("{flag} {ms}: expected milliseconds from 0 to an hour")))
        }
    };
    let load = |concurrency: u32, rate: Option<f64>| -> Result<CalibrationLoad, CliError> {
        let level = rate.unwrap_or(f64::from(concurrency));
        if !(level.is_finite() && level > 0.0) {
            return Err(CliError::Usage(format!("a level of {level}: expected a number above 0")));
        }
        let usual = (level * REQUESTS_PER_LEVEL).clamp(FEWEST, f64::from(u32::MAX)) as u32;
        Ok(CalibrationLoad {
            concurrency,
            rate,
            ttft: nanos("--ttft-ms", args.ttft_ms)?,
            gap: nanos("--gap-ms", args.gap_ms)?,
            prompt_tokens: args.prompt_tokens.max(1),
            output_tokens: args.output_tokens.max(2),
            requests: args.requests.unwrap_or(usual).max(1),
            threads: args.client_threads.max(1),
            keep_awake: args.keep_awake,
            seed: args.seed,
        })
    };
    if args.rate.is_empty() {
        args.concurrency.iter().map(|c| load(*c, None)).collect()
    } else {
        // As many connections ahead as start within a tenth of a second.
        args.rate.iter().map(|r| load((r / 10.0).ceil().clamp(1.0, 1_024.0) as u32, Some(*r))).collect()
    }
}

const HEADER: [&str; 17] = [
    "load",
    "ttft_ms",
    "gap_ms",
    "tokens",
    "requests",
    "tok_s",
    "ttft_added_p50_ms",
    "ttft_added_p99_ms",
    "ttft_difference_p50_ms",
    "ttft_difference_p99_ms",
    "gap_error_p50_ms",
    "gap_error_p99_ms",
    "gap_error_sd_ms",
    "schedule_lag_p99_ms",
    "server_error_p50_ms",
    "server_error_p99_ms",
    "client_cpu_s",
];

fn cells(c: &Calibration) -> [String; 17] {
    let ms = |value: f64| format!("{value:.3}");
    [
        c.rate.map_or_else(|| format!("{} in flight", c.concurrency), |rate| format!("{rate} req/s")),
        c.ttft_ms.to_string(),
        c.gap_ms.to_string(),
        c.output_tokens.to_string(),
        c.requests.to_string(),
        format!("{:.0}", c.token_rate),
        ms(c.ttft_added.p50_ms),
        ms(c.ttft_added.p99_ms),
        ms(c.ttft_difference.p50_ms),
        ms(c.ttft_difference.p99_ms),
        ms(c.gap_error.p50_ms),
        ms(c.gap_error.p99_ms),
        ms(c.gap_error_sd_ms),
        ms(c.schedule_lag.p99_ms),
        ms(c.server_error.p50_ms),
        ms(c.server_error.p99_ms),
        format!("{:.2}", c.health.cpu_s),
    ]
}

/// Rows under a header; as a table for people each load is a column, since there are more figures than loads.
fn table(rows: &[Calibration], format: Format) -> String {
    let rows: Vec<_> = rows.iter().map(cells).collect();
    let mut text = String::new();
    match format {
        Format::Csv => {
            let _ = writeln!(text, "{}", HEADER.join(","));
            for row in &rows {
                let _ = writeln!(text, "{}", row.join(","));
            }
        }
        Format::Md => {
            let _ = writeln!(text, "| {} |", HEADER.join(" | "));
            let _ = writeln!(text, "|{}", " --- |".repeat(HEADER.len()));
            for row in &rows {
                let _ = writeln!(text, "| {} |", row.join(" | "));
            }
        }
        _ => {
            for (index, name) in HEADER.iter().enumerate() {
                let _ = write!(text, "{name:<24}");
                for row in &rows {
                    let _ = write!(text, "{:>16}", row[index]);
                }
                text.push('\n');
            }
        }
    }
    text
}
