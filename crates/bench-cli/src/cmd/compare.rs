//! `ossbench compare`: finds the runs of both sides, reads the cells that match, one at a time, and prints
//! what they come to.
//!
//! Nothing is computed here: samples come from the metric crates, tests from `bench_core::stats`, verdicts
//! and gates from `bench_report`.

mod gather;
mod sides;

use crate::args::{CompareArgs, Wanted};
use crate::{CliError, Io};
use bench_core::metric::Metric;
use bench_core::sample::Stat;
use bench_core::stats::{Measured, compare};
use bench_report::{Compared, Comparisons, Gate, render_comparisons};
use gather::CellSide;
use sides::{Matched, Side};

const USUAL: [Metric; 9] = [
    Metric::Ttft,
    Metric::Tpot,
    Metric::Itl,
    Metric::E2el,
    Metric::DecodeRate,
    Metric::SystemTokenRate,
    Metric::JoulesPerToken,
    Metric::PeakBytes,
    Metric::KvRetained,
];

pub(crate) fn run(args: &CompareArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    let mut a = Side::open(&args.results, &args.a, "A")?;
    let b = Side::open(&args.results, &args.b, "B")?;
    a.rename(&args.renames)?;
    let wanted = wanted(args);
    let Matched { pairs, only_a, only_b } = sides::matched(&a, &b);
    let mut found = Comparisons {
        a: a.run_ids(),
        b: b.run_ids(),
        notes: sides::notes(&a, &b),
        only_a,
        only_b,
        margin: args.equivalence,
        gates: gates(args),
        lines: Vec::new(),
    };
    for (key, of_a, of_b) in &pairs {
        let sides = [gather::cell(&a, of_a, &wanted)?, gather::cell(&b, of_b, &wanted)?];
        for wanted in &wanted {
            found.lines.extend(lines(key, *wanted, &sides));
        }
    }
    let unmeasured = |w: &&Wanted| !found.lines.iter().any(|l| l.metric == w.metric);
    let named = args.metrics.iter().filter(unmeasured);
    let absent: Vec<_> =
        named.map(|w| format!("{} was measured on neither side", w.metric.def().key)).collect();
    if !pairs.is_empty() {
        found.notes.extend(absent);
    }
    write!(io.out, "{}", render_comparisons(args.output, &found)?)?;
    conclude(&a, &b, pairs.is_empty(), &found)
}

/// What was asked for, each once, with what gates need.
fn wanted(args: &CompareArgs) -> Vec<Wanted> {
    let named =
        if args.metrics.is_empty() { USUAL.map(Wanted::usual).to_vec() } else { args.metrics.clone() };
    let mut all: Vec<Wanted> = Vec::new();
    for wanted in named.into_iter().chain(args.fail_on_regression.iter().map(|(wanted, _)| *wanted)) {
        if !all.contains(&wanted) {
            all.push(wanted);
        }
    }
    all
}

fn gates(args: &CompareArgs) -> Vec<Gate> {
    let gate = |(wanted, limit): &(Wanted, f64)| Gate {
        metric: wanted.metric,
        stat: wanted.stat.key(),
        limit: *limit,
    };
    args.fail_on_regression.iter().map(gate).collect()
}

/// One line for each scope of the metric; none where neither side has it.
fn lines(key: &bench_report::CellKey, wanted: Wanted, [a, b]: &[CellSide; 2]) -> Vec<Compared> {
    let Wanted { metric, stat } = wanted;
    let mut scopes: Vec<&String> = a.scopes(metric).chain(b.scopes(metric)).collect();
    scopes.sort();
    scopes.dedup();
    let line = |scope: &String| {
        let (of_a, of_b) = (a.measured(metric, scope), b.measured(metric, scope));
        let p = if let Stat::Quantile(p) = stat { p } else { 0.5 };
        Compared {
            cell: key.clone(),
            metric,
            scope: scope.clone(),
            stat: stat.key(),
            comparison: compare(of_a, of_b, p).ok_or_else(|| lacking(of_a, of_b, &stat.key())),
            invalid: side_texts("A", &a.invalid).chain(side_texts("B", &b.invalid)).collect(),
            notes: cell_notes(a, b),
        }
    };
    scopes.into_iter().map(line).collect()
}

fn lacking(a: &[Measured], b: &[Measured], stat: &str) -> String {
    match (a.is_empty(), b.is_empty()) {
        (true, _) => "A has no figure".to_owned(),
        (_, true) => "B has no figure".to_owned(),
        _ => format!("too few samples for {stat}"),
    }
}

fn side_texts<'a>(side: &'a str, texts: &'a [String]) -> impl Iterator<Item = String> + 'a {
    texts.iter().map(move |text| format!("{side}: {text}"))
}

fn cell_notes(a: &CellSide, b: &CellSide) -> Vec<String> {
    let mut notes: Vec<String> = side_texts("A", &a.notes).chain(side_texts("B", &b.notes)).collect();
    let sources = [&a.token_sources, &b.token_sources].map(|s| s.join(" and "));
    if sources[0] != sources[1] {
        notes.push(format!("tokens of A are counted by {}, of B by {}", sources[0], sources[1]));
    }
    notes
}

/// What the exit code says.
fn conclude(a: &Side, b: &Side, nothing: bool, found: &Comparisons) -> Result<(), CliError> {
    let failed = found.failed_gates();
    if !failed.is_empty() {
        return Err(CliError::Gate(format!("regression gate failed:\n  {}", failed.join("\n  "))));
    }
    if nothing {
        return Err(CliError::Failed(format!(
            "no cell is on both sides: models of A are {}, of B {}; rename with --map A=B, or compare runs with the \
             same lengths and load",
            a.labels().join(", "),
            b.labels().join(", ")
        )));
    }
    Ok(())
}
