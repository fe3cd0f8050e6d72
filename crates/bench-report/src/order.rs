//! The one order of rows, so that equal content is equal bytes however it was gathered.

use crate::Error;
use crate::load::LoadText;
use bench_core::metric::Metric;
use bench_core::row::Row;
use std::cmp::Ordering;

/// Place of a statistic within its metric; quantiles by their percentage, unknown ones last.
fn stat_rank(stat: &str) -> (u8, f64) {
    match stat {
        "mean" => (0, 0.0),
        "stddev" => (1, 0.0),
        "min" => (2, 0.0),
        "max" => (4, 0.0),
        "value" => (5, 0.0),
        quantile => quantile_percent(quantile).map_or((6, 0.0), |percent| (3, percent)),
    }
}

/// 99.9 for `p99.9`; `None` for what is not a quantile's key.
fn quantile_percent(stat: &str) -> Option<f64> {
    let percent: f64 = stat.strip_prefix('p')?.parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(percent)
}

/// Whether the text can stand in the `stat` column.
pub(crate) fn is_stat(stat: &str) -> bool {
    stat_rank(stat).0 < 6
}

fn metric_rank(key: &str) -> usize {
    Metric::ALL.iter().position(|m| m.def().key == key).unwrap_or(Metric::ALL.len())
}

/// Orders by the cell alone.
pub(crate) fn by_cell(a: &Row, b: &Row) -> Ordering {
    let sizes = |r: &Row| (r.prompt_tokens, r.output_tokens, r.batch);
    (&a.run_id, &a.model, sizes(a))
        .cmp(&(&b.run_id, &b.model, sizes(b)))
        .then_with(|| by_load(a, b))
        .then_with(|| a.target.cmp(&b.target))
}

/// By level within a kind of load; no level comes first.
fn by_load(a: &Row, b: &Row) -> Ordering {
    let rate = |r: &Row| r.request_rate.unwrap_or(f64::NEG_INFINITY);
    a.load
        .cmp(&b.load)
        .then_with(|| rate(a).total_cmp(&rate(b)))
        .then_with(|| a.concurrency.cmp(&b.concurrency))
}

fn by_statistic(a: &Row, b: &Row) -> Ordering {
    let (rank_a, rank_b) = (stat_rank(&a.stat), stat_rank(&b.stat));
    metric_rank(a.metric)
        .cmp(&metric_rank(b.metric))
        .then_with(|| a.scope.cmp(&b.scope))
        .then(rank_a.0.cmp(&rank_b.0))
        .then(rank_a.1.total_cmp(&rank_b.1))
        .then_with(|| a.stat.cmp(&b.stat))
}

/// Rows by run, model, prompt, output, batch, load, target, metric, scope, statistic; the same figure twice is an error,
/// because nothing could say which one holds.
pub(crate) fn sorted<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Result<Vec<&'a Row>, Error> {
    let mut rows: Vec<&Row> = rows.into_iter().collect();
    rows.sort_by(|a, b| by_cell(a, b).then_with(|| by_statistic(a, b)));
    let twice = rows.windows(2).find(|w| by_cell(w[0], w[1]).then_with(|| by_statistic(w[0], w[1])).is_eq());
    match twice {
        None => Ok(rows),
        Some(pair) => Err(Error::Duplicate {
            run_id: pair[0].run_id.clone(),
            model: pair[0].model.clone(),
            prompt_tokens: pair[0].prompt_tokens,
            output_tokens: pair[0].output_tokens,
            load: LoadText::of(pair[0]).to_string(),
            metric: pair[0].metric,
            stat: pair[0].stat.clone(),
        }),
    }
}
