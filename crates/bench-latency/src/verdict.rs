//! May the cell be believed: every rule in one place, every reason with its values.

use crate::life::Life;
use bench_core::event::FailureKind;
use bench_core::plan::{Cell, Plan};
use bench_core::stats::Distribution;
use bench_core::unit::Nanos;
use bench_core::verdict::{Reason, Verdict};

/// A 99th percentile of sent - intended above this means that the generator could not keep up. Two ticks of a
/// 4 ms scheduler slice fit below it, so that a busy laptop passes and a saturated generator does not.
pub const SCHEDULE_LAG_LIMIT_MS: f64 = 10.0;

/// Largest deviation of a length from what was asked, on average and of any request.
const LENGTH_TOLERANCE: f64 = 0.01;

/// The verdict over all requests of the cell.
pub(crate) fn judge(
    plan: &Plan,
    cell: &Cell,
    lives: &[&Life],
    build_is_debug: bool,
) -> crate::Result<Verdict> {
    let good: Vec<_> = lives.iter().filter(|l| l.succeeded()).collect();
    let mut reasons = Vec::new();
    if good.is_empty() {
        reasons.push(Reason::NoSuccess { requests: lives.len() as u32 });
    }
    let output: Vec<_> = good.iter().map(|l| l.timeline.token_count()).collect();
    if let Some((actual_mean, worst)) = deviation(cell.output_tokens, &output) {
        reasons.push(Reason::OutputLength { requested: cell.output_tokens, actual_mean, worst });
    }
    let prompt: Vec<_> = good.iter().filter_map(|l| l.timeline.prompt_tokens.map(u64::from)).collect();
    if let Some((actual_mean, worst)) = deviation(cell.prompt_tokens, &prompt) {
        reasons.push(Reason::PromptLength { requested: cell.prompt_tokens, actual_mean, worst });
    }
    if build_is_debug {
        reasons.push(Reason::DebugBuild);
    }
    let have = lives.iter().filter(|l| l.failure() != Some(FailureKind::Interrupted)).count() as u32;
    let planned = plan.repeats.saturating_mul(cell.batch);
    if have < planned {
        reasons.push(Reason::Incomplete { have, planned });
    }
    let tokens = lives.iter().filter_map(|l| l.timeline.cached_prompt_tokens).map(u64::from).sum();
    if tokens > 0 {
        reasons.push(Reason::CachedPrompt { tokens });
    }
    let lags = lives.iter().filter_map(|l| l.sent?.since(l.timeline.intended)).map(Nanos::as_ms);
    // With few requests this is nearly the largest lag: a warning must not wait for n.
    match Distribution::new(lags.collect())?.quantile(0.99) {
        Some(p99_ms) if p99_ms > SCHEDULE_LAG_LIMIT_MS => {
            reasons.push(Reason::ScheduleLag { p99_ms, limit_ms: SCHEDULE_LAG_LIMIT_MS });
        }
        _ => {}
    }
    Ok(Verdict { reasons })
}

/// Mean and the value furthest from `asked`, if either is off by more than the tolerance.
fn deviation(asked: u32, actual: &[u64]) -> Option<(f64, u64)> {
    let asked = f64::from(asked);
    let off = |value: f64| (value - asked).abs();
    let worst = *actual.iter().max_by(|a, b| off(**a as f64).total_cmp(&off(**b as f64)))?;
    let mean = actual.iter().sum::<u64>() as f64 / actual.len() as f64;
    // The mean cannot be further off than the worst request.
    (off(worst as f64) > asked * LENGTH_TOLERANCE).then_some((mean, worst))
}
