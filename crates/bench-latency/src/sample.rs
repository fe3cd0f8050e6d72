//! Samples of every latency metric: one place per definition, as written in `bench_core::metric`.
//!
//! A failed request gives missing samples, never a latency.

use crate::life::{self, Life};
use crate::{Result, window};
use bench_core::metric::{Metric, Scope};
use bench_core::plan::{Cell, Plan};
use bench_core::sample::Sample;
use bench_core::trace::{Timeline, TrialTrace};
use bench_core::unit::Nanos;

/// Metrics that some targets cannot have: without any value in the cell they have no samples at all, instead
/// of missing ones.
const OPTIONAL: &[Metric] = &[
    Metric::Ttfo,
    Metric::Ttfb,
    Metric::PrefillRate,
    Metric::PromptTokens,
    Metric::KvBytes,
    Metric::Itl,
    Metric::Icl,
];

/// All samples of `cell`: per request (or gap) of `trials` in their order, then one per figure of the whole
/// cell. `target` is the key of the target: some metrics exist in-process only, some over a network only.
pub fn samples(plan: &Plan, cell: &Cell, trials: &[TrialTrace], target: &str) -> Result<Vec<Sample>> {
    Ok(of_lives(plan, cell, &life::read(cell, trials)?, target))
}

pub(crate) fn of_lives(plan: &Plan, cell: &Cell, trials: &[Vec<Life>], target: &str) -> Vec<Sample> {
    let mut samples = Vec::new();
    for &metric in Metric::ALL {
        let before = samples.len();
        for life in trials.iter().flatten() {
            match metric.def().scope {
                Scope::Request => {
                    let value = of_request(metric, life, target);
                    samples.push(Sample { metric, request: life.repeat, value });
                }
                Scope::Gap => samples.extend(gaps(metric, life)),
                Scope::Cell => {}
            }
        }
        let none = samples[before..].iter().all(|s| s.value.is_none());
        if none && OPTIONAL.contains(&metric) {
            samples.truncate(before);
        }
    }
    samples.extend(
        window::figures(cell, plan.slo.as_ref(), trials).into_iter().map(|(metric, value)| Sample {
            metric,
            request: 0,
            value,
        }),
    );
    samples
}

pub(crate) fn of_request(metric: Metric, life: &Life, target: &str) -> Option<f64> {
    // The generator's own lateness is known of failed requests too.
    if metric == Metric::ScheduleLag {
        return ms(life.sent?, life.timeline.intended);
    }
    if !life.succeeded() {
        return None;
    }
    let in_process = matches!(target, "engine" | "mock" | "null");
    let t = &life.timeline;
    match metric {
        Metric::Ttft => ms(t.first_token()?, t.sent),
        Metric::TtftFromSchedule => ms(t.first_token()?, t.intended),
        Metric::Ttfo => ms(t.first_final?, t.sent),
        Metric::TtftRole => ms(t.first_chunk?, t.sent),
        Metric::Ttfb if !in_process => ms(t.first_byte?, t.sent),
        Metric::E2el => ms(t.last_token()?, t.sent),
        Metric::E2elFromSchedule => ms(t.last_token()?, t.intended),
        Metric::Tpot => later_tokens(t).map(|(tokens, time)| time.0 as f64 / (tokens as f64 * 1e6)),
        Metric::DecodeRate => later_tokens(t).and_then(|(tokens, time)| rate(tokens, time)),
        Metric::Ntpot => {
            let (tokens, time) = (t.token_count(), t.last_token()?.since(t.sent)?);
            (tokens > 0).then(|| time.0 as f64 / (tokens as f64 * 1e6))
        }
        Metric::RequestRate => rate(t.token_count(), t.last_token()?.since(t.sent)?),
        Metric::PrefillRate if in_process => {
            rate(u64::from(t.prompt_tokens?), t.first_token()?.since(t.sent)?)
        }
        Metric::PromptTokens => t.prompt_tokens.map(f64::from),
        Metric::OutputTokens => Some(t.token_count() as f64),
        Metric::KvBytes => life.kv_allocated_bytes.map(|b| b as f64),
        _ => None,
    }
}

fn ms(later: Nanos, earlier: Nanos) -> Option<f64> {
    later.since(earlier).map(Nanos::as_ms)
}

/// Tokens after the first, and the time from the first token to the last; `None` when n < 2.
fn later_tokens(t: &Timeline) -> Option<(u64, Nanos)> {
    let tokens = t.token_count().checked_sub(1).filter(|&n| n > 0)?;
    Some((tokens, t.last_token()?.since(t.first_token()?)?))
}

/// Tokens per second; no time has no rate.
fn rate(tokens: u64, time: Nanos) -> Option<f64> {
    (time.0 > 0).then(|| tokens as f64 * 1e9 / time.0 as f64)
}

fn gaps(metric: Metric, life: &Life) -> Vec<Sample> {
    let sample = |value| Sample { metric, request: life.repeat, value };
    if !life.succeeded() {
        // How many gaps it would have had is not known: one missing sample stands for the request.
        return vec![sample(None)];
    }
    let mut samples = Vec::new();
    for (before, chunk) in life.timeline.chunks.iter().zip(life.timeline.chunks.iter().skip(1)) {
        let gap = (chunk.0.0 - before.0.0) as f64;
        if metric == Metric::Icl {
            samples.push(sample(Some(gap / 1e6)));
        } else {
            let value = gap / (f64::from(chunk.1) * 1e6);
            samples.extend((0..chunk.1).map(|_| sample(Some(value))));
        }
    }
    samples
}
