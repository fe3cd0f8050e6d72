//! The first table of a study: one line per model, at the one shape that most of them have figures for.

use super::raw::RawFiles;
use super::sheet::Number;
use super::words::clean;
use crate::load::LoadText;
use crate::order::by_cell;
use crate::round::round;
use bench_core::metric::Metric;
use bench_core::row::Row;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Lines, at most.
const MAX_MODELS: usize = 50;

#[derive(Debug, Serialize)]
pub(super) struct Headline {
    /// The shape, and how it was chosen.
    pub caption: String,
    pub columns: Vec<Column>,
    pub lines: Vec<Line>,
    /// Models with a valid cell of another shape only, or none.
    pub without: Vec<String>,
    pub more: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct Column {
    pub name: &'static str,
    pub rest: &'static str,
    pub tip: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct Line {
    pub model: String,
    pub figures: Vec<Entry>,
}

/// A figure, or why there is none.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    pub number: Option<Number>,
    pub missing: String,
}

/// One column: where it finds its figure, and what stands there if it does not.
struct Source {
    metric: Metric,
    stat: &'static str,
    /// The first that has a figure is shown; empty for any.
    scopes: &'static [&'static str],
    factor: f64,
    missing: &'static str,
    column: Column,
}

const MIB: f64 = 1.0 / (1 << 20) as f64;

const SOURCES: [Source; 5] = [
    Source {
        metric: Metric::Ttft,
        stat: "p50",
        scopes: &[""],
        factor: 1.0,
        missing: "not measured",
        column: Column { name: "TTFT", rest: "p50 (ms)", tip: "Time to first token, median (ms)" },
    },
    Source {
        metric: Metric::DecodeRate,
        stat: "p50",
        scopes: &[""],
        factor: 1.0,
        missing: "not measured",
        column: Column { name: "Decode rate", rest: "p50 (tok/s)", tip: "Decode rate, median (tok/s)" },
    },
    Source {
        metric: Metric::PeakBytes,
        stat: "max",
        scopes: &["gpu_process", "gpu_allocator", "gpu_device", "process", "allocator"],
        factor: MIB,
        missing: "not measured",
        column: Column { name: "Peak memory", rest: "max (MiB)", tip: "Peak memory, largest (MiB)" },
    },
    Source {
        metric: Metric::JoulesPerToken,
        stat: "mean",
        scopes: &["gpu_board", "system", "cpu_package"],
        factor: 1.0,
        missing: "no energy source",
        column: Column { name: "Energy", rest: "mean (J/tok)", tip: "Energy per output token, mean (J/tok)" },
    },
    Source {
        metric: Metric::ApeDecode,
        stat: "value",
        scopes: &[""],
        factor: 1.0,
        missing: "sizes unknown",
        column: Column {
            name: "APE",
            rest: "decode (tok/s/B)",
            tip: "Decode rate per 10\u{2079} active parameters (tok/s/B)",
        },
    },
];

/// `None` where no cell is VALID.
pub(super) fn headline(sorted: &[&Row], files: &RawFiles) -> Option<Headline> {
    let cells: Vec<&[&Row]> = sorted.chunk_by(|a, b| by_cell(a, b).is_eq()).collect();
    let valid = |rows: &&&[&Row]| rows.iter().all(|r| r.verdict == "VALID");
    let mut shapes: BTreeMap<(u32, u32, u32, String), Vec<&[&Row]>> = BTreeMap::new();
    for rows in cells.iter().filter(valid) {
        shapes.entry(shape(rows[0])).or_default().push(rows);
    }
    // The first of those with most models: prompt, output, batch, load ascending.
    let most = shapes.values().map(|of| models(of).len()).max()?;
    let (shape, chosen) = shapes.iter().find(|(_, of)| models(of).len() == most)?;
    let shown = models(chosen);
    let all = models(&cells);
    let which = if shapes.len() > 1 {
        "the smallest of the shapes that most models have a VALID cell of; the tables below have all"
    } else {
        "the one shape with VALID cells"
    };
    Some(Headline {
        caption: format!("{} prompt and {} output tokens, {}: {which}.", shape.0, shape.1, shape.3),
        columns: SOURCES.map(|s| s.column).into(),
        lines: chosen.iter().take(MAX_MODELS).map(|rows| line(rows, files)).collect(),
        without: all.difference(&shown).take(MAX_MODELS).map(|m| clean(m)).collect(),
        more: chosen.len().saturating_sub(MAX_MODELS),
    })
}

fn models<'a>(cells: &[&[&'a Row]]) -> BTreeSet<&'a str> {
    cells.iter().map(|rows| rows[0].model.as_str()).collect()
}

fn shape(row: &Row) -> (u32, u32, u32, String) {
    (row.prompt_tokens, row.output_tokens, row.batch, LoadText::of(row).to_string())
}

fn line(rows: &[&Row], files: &RawFiles) -> Line {
    let raw = files.of_row(rows[0]);
    let entry = |source: &Source| {
        let of_metric =
            || rows.iter().filter(|r| r.metric == source.metric.def().key && r.stat == source.stat);
        let row = source
            .scopes
            .iter()
            .find_map(|scope| of_metric().find(|r| r.scope == *scope && r.value.is_some()));
        let number = row.and_then(|row| {
            let printed = |value: Option<f64>| value.filter(|v| v.is_finite()).map(|v| v * source.factor);
            let value = printed(row.value)?;
            let rounded = round(value, printed(row.ci_low), printed(row.ci_high));
            Some(Number { scope: row.scope.replace('_', " "), ..Number::new(&rounded, value, row.n, raw) })
        });
        // A row without a figure says why by itself.
        let told = of_metric().find(|r| !r.missing_reason.is_empty());
        Entry {
            number,
            missing: told.map_or_else(|| source.missing.to_owned(), |r| clean(&r.missing_reason)),
        }
    };
    Line { model: clean(&rows[0].model), figures: SOURCES.iter().map(entry).collect() }
}
