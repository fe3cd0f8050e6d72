//! The figures of a variant: estimates of its rows, and the study's formulas over its raw requests.
//!
//! The study's time of a run is from the call to the last token, prefill included, and its rate the tokens over
//! that time; a batch is one run with the tokens of all its requests.

use super::variants::Variant;
use crate::CliError;
use bench_core::metric::Metric;
use bench_core::plan::Cell;
use bench_core::row::Row;
use bench_core::stats::Distribution;
use bench_core::trace::Timeline;
use bench_core::unit::Nanos;
use bench_report::RunInput;
use bench_runner::store::RunFolder;
use std::collections::BTreeMap;

/// A value with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Figure {
    pub(super) value: Option<f64>,
    pub(super) low: Option<f64>,
    pub(super) high: Option<f64>,
}

/// One variant that was run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Measured {
    pub(super) variant: Variant,
    pub(super) run_id: String,
    pub(super) model_id: String,
    pub(super) output_tokens: u32,
    /// Requests behind the estimates.
    pub(super) n: u64,
    pub(super) ttft_ms: Figure,
    pub(super) decode_tok_s: Figure,
    pub(super) runs: Runs,
    pub(super) verdict: String,
    pub(super) reason: String,
}

/// What the study makes of its runs.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Runs {
    pub(super) number: usize,
    pub(super) new_tokens: Of,
    pub(super) time_s: Of,
    pub(super) tokps: Of,
    /// Median of the prompt tokens that were counted.
    pub(super) context_tokens: Option<f64>,
}

/// Mean, median, and the value at index ceil(0.95 (n - 1)) of the sorted ones, which is the study's p95.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Of {
    pub(super) mean: Option<f64>,
    pub(super) p50: Option<f64>,
    pub(super) p95: Option<f64>,
}

impl Of {
    fn new(values: Vec<f64>) -> Result<Self, CliError> {
        let all = Distribution::new(values)?;
        let at = 1.0 + (0.95 * (all.n() as f64 - 1.0)).ceil();
        Ok(Self { mean: all.mean(), p50: all.quantile(0.5), p95: all.at(at) })
    }
}

pub(super) fn measured(variant: &Variant, folder: &RunFolder, run: &RunInput) -> Result<Measured, CliError> {
    let plan = folder.plan();
    let of_variant = |c: &&Cell| {
        c.model == variant.label && c.prompt_tokens == variant.prompt_tokens && c.batch == variant.batch
    };
    let cell = plan.cells.iter().find(of_variant).ok_or_else(|| {
        CliError::Failed(format!("run {} has no cell of variant {}", run.run_id, variant.name))
    })?;
    let rows: Vec<&Row> = run
        .rows
        .iter()
        .filter(|r| (&r.model, r.prompt_tokens, r.batch) == (&cell.model, cell.prompt_tokens, cell.batch))
        .collect();
    let p50 = |metric: Metric| {
        let key = metric.def().key;
        rows.iter().find(|r| r.metric == key && r.stat == "p50").copied()
    };
    let figure = |row: Option<&Row>| {
        row.map_or_else(Figure::default, |r| Figure { value: r.value, low: r.ci_low, high: r.ci_high })
    };
    let (ttft, decode) = (p50(Metric::Ttft), p50(Metric::DecodeRate));
    Ok(Measured {
        variant: variant.clone(),
        run_id: run.run_id.clone(),
        model_id: plan.model(&cell.model).map_or_else(String::new, |m| m.id.clone()),
        output_tokens: cell.output_tokens,
        n: ttft.map_or(0, |row| row.n),
        ttft_ms: figure(ttft),
        decode_tok_s: figure(decode),
        runs: runs(cell, folder)?,
        verdict: rows.first().map_or_else(|| "INVALID".to_owned(), |r| r.verdict.to_owned()),
        reason: rows.first().map_or_else(|| "nothing was measured".to_owned(), |r| r.verdict_reason.clone()),
    })
}

/// One run of a cell: its batch, or its request.
#[derive(Default)]
struct OneRun {
    began: Option<Nanos>,
    ended: Option<Nanos>,
    tokens: u64,
    requests: u32,
}

fn runs(cell: &Cell, folder: &RunFolder) -> Result<Runs, CliError> {
    let mut repeats: BTreeMap<u32, OneRun> = BTreeMap::new();
    let mut context = Vec::new();
    for trial in folder.read_trials()?.iter().filter(|t| t.cell == cell.id) {
        for request in &trial.requests {
            let timeline = Timeline::read(&cell.id, request)?;
            let Some(last) = timeline.last_token().filter(|_| timeline.succeeded()) else { continue };
            let run = repeats.entry(request.repeat).or_default();
            run.began = Some(run.began.map_or(timeline.sent, |began| began.min(timeline.sent)));
            run.ended = Some(run.ended.map_or(last, |ended| ended.max(last)));
            run.tokens += timeline.token_count();
            run.requests += 1;
            context.extend(timeline.prompt_tokens.map(f64::from));
        }
    }
    // A batch of which a request failed is no run.
    let whole = repeats.into_values().filter(|run| run.requests == cell.requests_per_repeat);
    let mut pairs: Vec<(f64, f64)> = Vec::new();
    for run in whole {
        let time = run.ended.zip(run.began).and_then(|(end, begin)| end.since(begin));
        pairs.extend(time.filter(|t| t.0 > 0).map(|time| (run.tokens as f64, time.as_secs())));
    }
    Ok(Runs {
        number: pairs.len(),
        new_tokens: Of::new(pairs.iter().map(|p| p.0).collect())?,
        time_s: Of::new(pairs.iter().map(|p| p.1).collect())?,
        tokps: Of::new(pairs.iter().map(|p| p.0 / p.1).collect())?,
        context_tokens: Distribution::new(context)?.quantile(0.5),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times of the study's first context row would give its row; here numbers that one can check by hand.
    #[test]
    fn the_studys_p95_of_five_is_the_largest() {
        let of = Of::new(vec![2.0, 1.0, 4.0, 3.0, 5.0]).unwrap();
        assert_eq!((of.mean, of.p50, of.p95), (Some(3.0), Some(3.0), Some(5.0)));
        let of = Of::new((1..=41).map(f64::from).collect()).unwrap();
        assert_eq!(of.p95, Some(39.0));
        assert_eq!(Of::new(Vec::new()).unwrap(), Of::default());
    }
}
