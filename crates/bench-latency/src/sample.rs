//! Samples of every latency metric: one place per definition, as written in `bench_core::metric`.
//!
//! A failed request gives missing samples, never a latency.

use crate::life::Life;
use crate::{Analysis, Result};
use bench_core::metric::{Metric, Per};
use bench_core::plan::{Cell, Plan};
use bench_core::sample::Sample;
use bench_core::trace::{RequestTrace, Timeline, TrialTrace};
use bench_core::unit::Nanos;

/// Metrics that some targets cannot have: without any value in the cell they have no samples at all, instead
/// of missing ones.
pub(crate) const OPTIONAL: &[Metric] = &[
    Metric::Ttfo,
    Metric::Ttfb,
    Metric::PrefillRate,
    Metric::PromptTokens,
    Metric::KvBytes,
    Metric::Itl,
    Metric::Icl,
    Metric::CachedPromptTokens,
    Metric::TokensPerChunk,
    Metric::TokenCountDifference,
    Metric::ServerTtft,
    Metric::ServerQueue,
    Metric::ServerDecode,
    Metric::ResidualTtft,
];

/// What a request's metrics depend on besides its events.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    /// Some metrics exist in-process only, some over a network only.
    in_process: bool,
    /// Without a stream the whole answer is one chunk, and nothing within it has a time.
    streamed: bool,
}

impl Setting {
    /// `target` is the key of the target.
    pub(crate) fn new(plan: &Plan, target: &str) -> Self {
        Self {
            in_process: matches!(target, "engine" | "mock" | "null"),
            streamed: plan.server.as_ref().is_none_or(|s| s.stream),
        }
    }
}

/// Hands every sample of `life` to `take`, `None` for one that should be there and is not.
pub(crate) fn of_life(
    life: &Life,
    setting: Setting,
    mut take: impl FnMut(Metric, Option<f64>) -> Result<()>,
) -> Result<()> {
    for &metric in Metric::ALL {
        match metric.def().per {
            Per::Request => take(metric, of_request(metric, life, setting))?,
            Per::Gap => gaps(metric, life, &mut take)?,
            // Memory and energy are other crates' matter.
            Per::Window | Per::Cell => {}
        }
    }
    Ok(())
}

/// Hands each sample of one request to `take`, metric by metric; those that are missing are left out. For what is
/// done with samples elsewhere: nothing is kept.
///
/// # Errors
/// Events out of order.
pub fn each_sample(
    plan: &Plan,
    cell: &Cell,
    target: &str,
    request: &RequestTrace,
    mut take: impl FnMut(Metric, f64),
) -> Result<()> {
    let life = Life::read(&cell.id, request)?;
    of_life(&life, Setting::new(plan, target), |metric, value| {
        if let Some(value) = value {
            take(metric, value);
        }
        Ok(())
    })
}

/// All samples of `cell`: per request (or gap) of `trials` in their order, then one per figure of the whole
/// cell. For looking at few requests; `Analysis` is for many.
pub fn samples(plan: &Plan, cell: &Cell, trials: &[TrialTrace], target: &str) -> Result<Vec<Sample>> {
    let setting = Setting::new(plan, target);
    let mut samples = Vec::new();
    let mut analysis = Analysis::new(plan, cell, target);
    for trial in trials {
        analysis.trial(trial.trial, &trial.cell)?;
        for request in &trial.requests {
            analysis.request(request)?;
            let life = Life::read(&cell.id, request)?;
            of_life(&life, setting, |metric, value| {
                samples.push(Sample { metric, request: request.repeat, value });
                Ok(())
            })?;
        }
    }
    let has_value = |metric| samples.iter().any(|s: &Sample| s.metric == metric && s.value.is_some());
    let none: Vec<_> = OPTIONAL.iter().copied().filter(|m| !has_value(*m)).collect();
    samples.retain(|s| !none.contains(&s.metric));
    samples.sort_by_key(|s| s.metric);
    let of_cell = analysis.figures().into_iter();
    samples.extend(of_cell.map(|(metric, value)| Sample { metric, request: 0, value }));
    Ok(samples)
}

pub(crate) fn of_request(metric: Metric, life: &Life, setting: Setting) -> Option<f64> {
    // The generator's own lateness is known of failed requests too.
    if metric == Metric::ScheduleLag {
        return ms(life.sent?, life.timeline.intended);
    }
    if !life.succeeded() {
        return None;
    }
    let t = &life.timeline;
    let first_token = || t.first_token().filter(|_| setting.streamed);
    match metric {
        Metric::Ttft => ms(first_token()?, t.sent),
        Metric::TtftFromSchedule => ms(first_token()?, t.intended),
        Metric::Ttfo if setting.streamed => ms(t.first_final?, t.sent),
        Metric::TtftRole if setting.streamed => ms(t.first_chunk?, t.sent),
        Metric::E2el => ms(t.last_token()?, t.sent),
        Metric::E2elFromSchedule => ms(t.last_token()?, t.intended),
        Metric::Tpot if t.chunks.len() > 1 => {
            later_tokens(t).map(|(tokens, time)| time.0 as f64 / (tokens as f64 * 1e6))
        }
        Metric::DecodeRate => later_tokens(t).and_then(|(tokens, time)| rate(tokens, time)),
        Metric::Ntpot => {
            let (tokens, time) = (t.token_count(), t.last_token()?.since(t.sent)?);
            (tokens > 0).then(|| time.0 as f64 / (tokens as f64 * 1e6))
        }
        Metric::RequestRate => rate(t.token_count(), t.last_token()?.since(t.sent)?),
        Metric::PromptTokens => t.prompt_tokens.map(f64::from),
        Metric::OutputTokens => Some(t.token_count() as f64),
        Metric::CachedPromptTokens => t.cached_prompt_tokens.map(f64::from),
        Metric::KvBytes => life.kv_allocated_bytes.map(|b| b as f64),
        Metric::PrefillRate if setting.in_process => {
            rate(u64::from(t.prompt_tokens?), t.first_token()?.since(t.sent)?)
        }
        _ if !setting.in_process => over_network(metric, life, setting),
        _ => None,
    }
}

/// What exists only where a server and a network are between.
fn over_network(metric: Metric, life: &Life, setting: Setting) -> Option<f64> {
    let t = &life.timeline;
    let server = life.server.unwrap_or_default();
    match metric {
        Metric::Ttfb => ms(t.first_byte?, t.sent),
        Metric::TokensPerChunk => Some(t.token_count() as f64 / t.chunks.len() as f64),
        Metric::TokenCountDifference => {
            t.output_tokens.map(|counted| f64::from(counted) - life.seen_tokens() as f64)
        }
        Metric::ServerTtft => server.ttft_ms,
        Metric::ServerQueue => server.queue_ms,
        Metric::ServerDecode => server.decode_ms,
        Metric::ResidualTtft => Some(of_request(Metric::Ttft, life, setting)? - server.ttft_ms?),
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

/// A server that counts so many tokens more than were seen put several into a chunk, or hid some. Harmony's
/// control tokens, about ten in an answer, are no reason to give up the gaps.
const UNSEEN_TOKENS: u64 = 16;
/// The same as a share of the tokens that were seen, for long answers: one in this many.
const UNSEEN_ONE_IN: u64 = 10;

/// Whether each chunk is known to bring as many tokens as its event says.
fn tokens_per_chunk_known(life: &Life) -> bool {
    let seen = life.seen_tokens();
    let unseen = life.timeline.token_count().saturating_sub(seen);
    unseen <= UNSEEN_TOKENS || unseen * UNSEEN_ONE_IN <= seen
}

fn gaps(metric: Metric, life: &Life, take: &mut impl FnMut(Metric, Option<f64>) -> Result<()>) -> Result<()> {
    let known = metric == Metric::Icl || tokens_per_chunk_known(life);
    if !life.succeeded() || !known {
        // How many gaps it would have had is not known: one missing sample stands for the request.
        return take(metric, None);
    }
    let chunks = &life.timeline.chunks;
    for (before, chunk) in chunks.iter().zip(chunks.iter().skip(1)) {
        let gap = (chunk.0.0 - before.0.0) as f64;
        if metric == Metric::Icl {
            take(metric, Some(gap / 1e6))?;
        } else {
            let value = gap / (f64::from(chunk.1) * 1e6);
            for _ in 0..chunk.1 {
                take(metric, Some(value))?;
            }
        }
    }
    Ok(())
}
