//! The study's own latency columns, with its own formulas, from the same events.
//!
//! A view for comparison with its tables; what the columns leave to be desired is not repaired here.

use crate::{Result, summary};
use bench_core::plan::{Cell, Plan};
use bench_core::row::StudyLatencyRow;
use bench_core::spec::Chat;
use bench_core::stats::Distribution;
use bench_core::trace::TrialTrace;

/// One row per cell of `plan` that has requests, in the plan's order. `trials` may be those of the whole run;
/// for those that are at hand.
pub fn study_rows(plan: &Plan, trials: &[TrialTrace], target: &str) -> Result<Vec<StudyLatencyRow>> {
    let mut rows = Vec::new();
    for cell in &plan.cells {
        let own: Vec<_> = trials.iter().filter(|t| t.cell == cell.id).cloned().collect();
        rows.extend(summary::taken_in(plan, cell, &own, target)?.finish(false, None)?.study);
    }
    Ok(rows)
}

/// The times behind a row: `p50_ms` is the median of `e2el_ms`, `p95_ms` and `p99_ms` stand at index
/// ceil(q (n - 1)) of the sorted values, and `ttft_ms` is the median over the same requests (the study ran
/// one-token generations apart).
#[derive(Debug, Default)]
pub(crate) struct Times {
    pub(crate) ttft_ms: Option<f64>,
    /// p50, p95 and p99, in ms.
    e2el: [Option<f64>; 3],
}

impl Times {
    pub(crate) fn take_e2el(&mut self, e2el: &Distribution) {
        let at_index = |q: f64| e2el.at(1.0 + (q * (e2el.n() as f64 - 1.0)).ceil());
        self.e2el = [e2el.quantile(0.5), at_index(0.95), at_index(0.99)];
    }
}

/// `TPOT_tokps` is the tokens asked for over the median seconds, as in the study's files.
pub(crate) fn row(plan: &Plan, cell: &Cell, times: &Times) -> StudyLatencyRow {
    let [p50_ms, p95_ms, p99_ms] = times.e2el;
    StudyLatencyRow {
        model_short: cell.model.clone(),
        model: plan.model(&cell.model).map_or_else(|| cell.model.clone(), |m| m.id.clone()),
        model_type: match plan.target.chat {
            Chat::Auto => "chat_template",
            Chat::Plain => "plain",
        }
        .to_owned(),
        prompt_tokens: cell.prompt_tokens,
        gen_tokens: cell.output_tokens,
        ttft_median_ms: times.ttft_ms,
        p50_ms,
        p95_ms,
        p99_ms,
        tpot_tokps: p50_ms.filter(|&ms| ms > 0.0).map(|ms| f64::from(cell.output_tokens) / (ms / 1e3)),
        context_length: cell.prompt_tokens,
        ttft_ms: times.ttft_ms,
    }
}
