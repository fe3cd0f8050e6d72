//! Bytes per token over the contexts of one model: a line through one point per cell, measured and in theory.
//!
//! A point is the mean of its repeats: they share whatever keeps a context off the line (blocks, rings), so that
//! taking each for itself would claim an interval that is too narrow.

use crate::analysis::CellMemory;
use crate::theory::{kv_theory_bytes, tokens_fed};
use bench_core::load::Load;
use bench_core::metric::Metric;
use bench_core::plan::Cell;
use bench_core::sample::{Estimate, Stat};
use bench_core::shape::ModelFacts;
use bench_core::stats::least_squares;

/// Contexts that a line needs to have an interval.
pub const MIN_CONTEXTS: usize = 3;

/// What a slope needs of one cell.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Point {
    group: Group,
    /// In the cache of one sequence.
    tokens: u64,
    /// Bytes of one sequence.
    retained: Option<f64>,
    theory: Option<f64>,
    /// Somebody tried to measure what is retained.
    measured: bool,
}

/// What the cells of one line have in common.
#[derive(Debug, Clone, PartialEq)]
struct Group {
    model: String,
    batch: u32,
    output_tokens: u32,
    load: Load,
}

impl Point {
    /// `retained` is that of a whole batch.
    pub(crate) fn new(
        cell: &Cell,
        facts: Option<&ModelFacts>,
        retained: Option<f64>,
        measured: bool,
    ) -> Self {
        let tokens = tokens_fed(cell.prompt_tokens, cell.output_tokens);
        Self {
            group: Group {
                model: cell.model.clone(),
                batch: cell.batch,
                output_tokens: cell.output_tokens,
                load: cell.load.clone(),
            },
            tokens,
            retained: retained.map(|bytes| bytes / f64::from(cell.batch.max(1))),
            theory: facts.map(|facts| kv_theory_bytes(&facts.shape, tokens) as f64),
            measured,
        }
    }
}

/// Adds the bytes per token, measured and in theory, to each cell of a model, batch, number of output tokens and
/// load; missing with the reason `too_few_contexts` below three of them. Where nothing was measured there is only
/// the theory, if there are contexts enough.
pub fn slopes(cells: &mut [CellMemory]) {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (index, cell) in cells.iter().enumerate() {
        match groups.iter_mut().find(|g| cells[g[0]].point.group == cell.point.group) {
            Some(group) => group.push(index),
            None => groups.push(vec![index]),
        }
    }
    for group in groups {
        let of_group = |cells: &[CellMemory]| -> Vec<Point> {
            group.iter().map(|&index| cells[index].point.clone()).collect()
        };
        let estimates = of_points(&of_group(cells));
        for &index in &group {
            let own = &mut cells[index].estimates;
            own.extend(estimates.iter().cloned());
            own.sort_by_key(|e| e.metric);
        }
    }
}

fn of_points(points: &[Point]) -> Vec<Estimate> {
    let measured = points.iter().any(|p| p.measured);
    // Theory at the contexts that were measured: with windows the slope depends on them.
    let known = |p: &&Point| !measured || p.retained.is_some();
    let line = |of: fn(&Point) -> Option<f64>| -> Vec<(f64, f64)> {
        points.iter().filter(known).filter_map(|p| Some((p.tokens as f64, of(p)?))).collect()
    };
    let theory = points.iter().any(|p| p.theory.is_some());
    let mut estimates = Vec::new();
    if measured {
        estimates.push(slope(Metric::KvPerToken, &line(|p| p.retained)));
    }
    if theory {
        let estimate = slope(Metric::KvPerTokenTheory, &line(|p| p.theory));
        // The theory is exact at every context: the spread around its line is none of measuring.
        let estimate = Estimate { interval: None, ..estimate };
        estimates.extend((measured || estimate.value.is_some()).then_some(estimate));
    }
    estimates
}

fn slope(metric: Metric, points: &[(f64, f64)]) -> Estimate {
    let mut contexts: Vec<_> = points.iter().map(|p| p.0).collect();
    contexts.sort_unstable_by(f64::total_cmp);
    contexts.dedup();
    let missing = MIN_CONTEXTS.saturating_sub(contexts.len());
    let line = (missing == 0).then(|| least_squares(points)).flatten();
    Estimate {
        metric,
        scope: None,
        stat: Stat::Value,
        value: line.map(|l| l.slope),
        interval: line.map(|l| l.interval),
        instrument_error: None,
        n: points.len() as u64,
        missing: missing as u64,
        missing_reason: if missing > 0 { format!("too_few_contexts: {missing}") } else { String::new() },
        bounded: None,
    }
}
