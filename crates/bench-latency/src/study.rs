//! The study's own latency columns, with its own formulas, from the same events.
//!
//! A view for comparison with its tables; what the columns leave to be desired is not repaired here.

use crate::Result;
use crate::sample::samples;
use bench_core::metric::Metric;
use bench_core::plan::{Cell, Plan};
use bench_core::row::StudyLatencyRow;
use bench_core::sample::Sample;
use bench_core::spec::Chat;
use bench_core::stats::Distribution;
use bench_core::trace::TrialTrace;

/// One row per cell of `plan` that has traces, in the plan's order. `trials` may be those of the whole run.
///
/// `p50_ms` is the median of `e2el_ms`, `p95_ms` and `p99_ms` stand at index ceil(q (n - 1)) of the sorted
/// values, `TTFT_ms` is the median of `ttft_ms` over the same requests (the study ran one-token generations
/// apart), and `TPOT_tokps` is the tokens asked for over the median seconds, as in the study's files.
pub fn study_rows(plan: &Plan, trials: &[TrialTrace], target: &str) -> Result<Vec<StudyLatencyRow>> {
    let mut rows = Vec::new();
    for cell in &plan.cells {
        let own: Vec<_> = trials.iter().filter(|t| t.cell == cell.id).cloned().collect();
        if !own.is_empty() {
            rows.push(row(plan, cell, &samples(plan, cell, &own, target)?)?);
        }
    }
    Ok(rows)
}

fn row(plan: &Plan, cell: &Cell, samples: &[Sample]) -> Result<StudyLatencyRow> {
    let of = |metric| {
        Distribution::new(samples.iter().filter(|s| s.metric == metric).filter_map(|s| s.value).collect())
    };
    let (ttft, e2el) = (of(Metric::Ttft)?, of(Metric::E2el)?);
    let ttft_ms = ttft.quantile(0.5);
    let p50_ms = e2el.quantile(0.5);
    let at_index = |q: f64| e2el.at(1.0 + (q * (e2el.n() as f64 - 1.0)).ceil());
    Ok(StudyLatencyRow {
        model_short: cell.model.clone(),
        model: plan.model(&cell.model).map_or_else(|| cell.model.clone(), |m| m.id.clone()),
        model_type: match plan.target.chat {
            Chat::Auto => "chat_template",
            Chat::Plain => "plain",
        }
        .to_owned(),
        prompt_tokens: cell.prompt_tokens,
        gen_tokens: cell.output_tokens,
        ttft_median_ms: ttft_ms,
        p50_ms,
        p95_ms: at_index(0.95),
        p99_ms: at_index(0.99),
        tpot_tokps: p50_ms.filter(|&ms| ms > 0.0).map(|ms| f64::from(cell.output_tokens) / (ms / 1e3)),
        context_length: cell.prompt_tokens,
        ttft_ms,
    })
}
