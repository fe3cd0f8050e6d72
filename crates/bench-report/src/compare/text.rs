//! A comparison in every format that `-o` knows: a sentence on top, the table, then what must be known to
//! read it.
//!
//! Only words and digits: what counts as a change is decided by the parent.

use super::{CellKey, Comparisons, Counts, FAMILY_PERCENT, Judged, Outcome};
use crate::grid::footnote_sign;
use crate::latex::escape;
use crate::load::LoadText;
use crate::round::round;
use crate::table::{escape_markdown, one_line};
use crate::{Error, Format};
use bench_core::metric::Better;
use bench_core::stats::{ALPHA, Bounded, Comparison, Test, Unit, smallest_p};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// The comparison as text, ending with a line break. CSV holds the lines alone; JSON holds everything.
pub fn render_comparisons(format: Format, found: &Comparisons) -> Result<String, Error> {
    let judged = found.judged();
    Ok(match format {
        Format::Table => plain(found, &judged),
        Format::Md => markdown(found, &judged),
        Format::Latex => latex(found, &judged),
        Format::Csv => csv(&judged)?,
        Format::Json => format!("{:#}\n", whole(found, &judged)),
        Format::Jsonl => judged.iter().fold(String::new(), |mut text, line| {
            let _ = writeln!(text, "{}", Value::Object(object(line)));
            text
        }),
    })
}

/// A cell in one line: `gpt-oss, 128 + 64 tokens, batch 1`.
pub(super) fn cell(cell: &CellKey) -> String {
    let CellKey { model, prompt_tokens, output_tokens, .. } = cell;
    one_line(&format!("{model}, {prompt_tokens} + {output_tokens} tokens, {}", load(cell)))
}

fn load(cell: &CellKey) -> String {
    let (kind, batch, concurrency, rate) = (&cell.load, cell.batch, cell.concurrency, cell.request_rate);
    LoadText { kind, batch, concurrency, rate }.to_string()
}

/// `+5.1 %`, with the digits of a share.
pub(super) fn percent(share: f64) -> String {
    let value = share * 100.0;
    let decimals = if value.abs() >= 9.95 { 1 } else { 2 };
    let text = format!("{value:+.decimals$} %");
    // A rounded zero has no sign.
    if text.bytes().any(|b| b.is_ascii_digit() && b != b'0') { text } else { text[1..].to_owned() }
}

/// `5 %`.
pub(super) fn plain_percent(share: f64) -> String {
    // Rounding to a millionth takes off what binary fractions add to 0.07 * 100.
    format!("{} %", (share * 1e8).round() / 1e6)
}

pub(super) fn p_value(p: f64) -> String {
    if p < 0.0001 { "<0.0001".to_owned() } else { format!("{p:.4}") }
}

pub(super) fn too_few(c: &Comparison) -> String {
    let what = match c.unit {
        Unit::Run => "runs",
        Unit::Round => "rounds",
        Unit::Repeat => "repeats",
    };
    let units = |units: usize| if units == 0 { "no".to_owned() } else { units.to_string() };
    match c.unit {
        Unit::Round if c.a.units.max(c.b.units) < 2 => {
            "one figure for each run; join several runs of each side with commas".to_owned()
        }
        Unit::Repeat if smallest_p(c.a.units, c.b.units) <= ALPHA => {
            "too few samples to bound the interval towards 0".to_owned()
        }
        _ => format!("{} and {} {what} are too few to show any change", units(c.a.units), units(c.b.units)),
    }
}

fn plural(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// The sentence on top.
fn summary(found: &Comparisons, judged: &[Judged<'_>]) -> String {
    let counts = Counts::of(judged);
    let mut cells: Vec<&CellKey> = Vec::new();
    for line in judged {
        if !cells.contains(&&line.line.cell) {
            cells.push(&line.line.cell);
        }
    }
    let decided = counts.improved + counts.regressed + counts.changed + counts.no_change;
    let mut text = format!(
        "{} over {}: {} improved, {} regressed, {} no change",
        plural(decided, "comparison"),
        plural(cells.len(), "cell"),
        counts.improved,
        counts.regressed,
        counts.no_change
    );
    for (n, what) in [
        (counts.changed, "changed"),
        (counts.not_tested, "not tested"),
        (counts.invalid, "INVALID"),
        (counts.missing, "missing on one side"),
    ] {
        if n > 0 {
            let _ = write!(text, ", {n} {what}");
        }
    }
    let _ = write!(
        text,
        ". p-values are corrected for {} by Holm: an error anywhere in {FAMILY_PERCENT} % of cases.",
        plural(counts.tested, "test")
    );
    let lacking = found.only_a.len() + found.only_b.len();
    if lacking > 0 {
        let _ = write!(text, " {} on one side only, see below.", plural(lacking, "cell"));
    }
    text
}

/// What stands in the columns of one line; numbers as text.
struct Cells {
    entries: Vec<String>,
    signs: Vec<usize>,
}

const HEAD: [&str; 12] =
    ["Model", "Prompt", "Output", "Load", "Metric", "A", "B", "B vs A", "p", "P(better)", "n", "Verdict"];

/// Columns that read from the left.
const LEFT: [usize; 4] = [0, 3, 4, 11];

/// Footnotes, each text once.
#[derive(Default)]
struct Notes(Vec<String>);

impl Notes {
    fn sign(&mut self, text: String) -> usize {
        self.0.iter().position(|t| *t == text).unwrap_or_else(|| {
            self.0.push(text);
            self.0.len() - 1
        })
    }
}

fn entries(judged: &Judged<'_>, notes: &mut Notes) -> Cells {
    let line = judged.line;
    let def = line.metric.def();
    let (unit, factor) = if def.unit == "B" { ("MiB", 1.0 / f64::from(1 << 20)) } else { (def.unit, 1.0) };
    let scope = if line.scope.is_empty() { String::new() } else { format!(" {}", line.scope) };
    let unit = if unit == "1" { String::new() } else { format!(" ({unit})") };
    let name = def.split_unit().0;
    let stat = if line.stat == "value" { String::new() } else { format!(" {}", line.stat) };
    let mut entries = vec![
        line.cell.model.clone(),
        line.cell.prompt_tokens.to_string(),
        line.cell.output_tokens.to_string(),
        load(&line.cell),
        format!("{name}{scope}{stat}{unit}"),
    ];
    let mut signs: Vec<usize> =
        line.invalid.iter().map(|why| notes.sign(format!("INVALID, {why}"))).collect();
    signs.extend(line.notes.iter().map(|note| notes.sign(note.clone())));
    match &line.comparison {
        Ok(c) => {
            entries.extend([with_ends(c.a.figure, factor), with_ends(c.b.figure, factor)]);
            entries.push(match c.ratio {
                Some(ratio) => with_percent(ratio),
                None => with_ends(c.difference, factor),
            });
            entries.push(judged.p_corrected.map_or_else(String::new, p_value));
            entries.push(better(c, def.better).map_or_else(String::new, |p| format!("{p:.2}")));
            entries.push(format!("{}/{}", c.a.n, c.b.n));
            if judged.outcome == Outcome::NotTested {
                signs.push(notes.sign(format!("not tested: {}", too_few(c))));
            }
            signs.extend(remarks(c).map(|remark| notes.sign(remark)));
        }
        Err(why) => {
            signs.push(notes.sign(why.clone()));
            entries.extend(std::iter::repeat_n(String::new(), 6));
        }
    }
    entries.push(verdict(judged));
    signs.sort_unstable();
    signs.dedup();
    Cells { entries, signs }
}

fn verdict(judged: &Judged<'_>) -> String {
    match (judged.outcome, judged.equal) {
        (Outcome::NoChange, Some(true)) => "equal".to_owned(),
        (outcome, Some(true)) => format!("{}, within margin", outcome.key()),
        (outcome, _) => outcome.key().to_owned(),
    }
}

/// What must be known of how a line was tested.
fn remarks(c: &Comparison) -> impl Iterator<Item = String> {
    let rounds = c.rounds_differ.map(|_| {
        match c.unit {
            Unit::Round => {
                "rounds of one run differ by more than chance, so rounds are the units of test and interval: \
                 few rounds give wide intervals"
            }
            _ => {
                "rounds of one run differ by more than chance: the interval of this quantile leaves that out"
            }
        }
        .to_owned()
    });
    let ratio = c.ratio.is_none().then(|| "no percentage of a figure that is not above 0: B - A".to_owned());
    rounds.into_iter().chain(ratio)
}

/// Probability that B is better, or larger where neither is.
fn better(c: &Comparison, better: Better) -> Option<f64> {
    let larger = c.superiority?;
    Some(if better == Better::Lower { 1.0 - larger } else { larger })
}

fn with_ends(figure: Bounded, factor: f64) -> String {
    let scaled = |v: f64| v * factor;
    let rounded = round(scaled(figure.value), figure.low.map(scaled), figure.high.map(scaled));
    let end = |end: Option<String>| end.unwrap_or_else(|| "-".to_owned());
    match rounded.interval {
        Some((low, high)) => format!("{} [{}, {}]", rounded.value, end(low), end(high)),
        None => rounded.value,
    }
}

fn with_percent(ratio: Bounded) -> String {
    let short = |share: f64| percent(share).trim_end_matches(" %").to_owned();
    let end = |end: Option<f64>| end.map_or_else(|| "-".to_owned(), short);
    match (ratio.low, ratio.high) {
        (None, None) => percent(ratio.value),
        (low, high) => format!("{} % [{}, {}]", short(ratio.value), end(low), end(high)),
    }
}

/// Lines below the table: what columns mean, who lacks what, what differs between the sides.
fn closing(found: &Comparisons, judged: &[Judged<'_>]) -> Vec<String> {
    let mut lines = vec![
        format!("A: {}", found.a.join(", ")),
        format!("B: {}", found.b.join(", ")),
        "A, B: figure with its 95 % interval; B vs A: B / A - 1 with its 95 % interval, not corrected; \
         p: corrected; P(better): probability that a unit of B is better than one of A (0.5: neither), ties \
         counted half."
            .to_owned(),
    ];
    lines.extend(tests_used(judged));
    if let Some(margin) = found.margin {
        let margin = plain_percent(margin);
        lines.push(format!(
            "equal, within margin: the interval of B vs A lies within {margin} to both sides."
        ));
    }
    if found.a.len() == 1 && found.b.len() == 1 {
        lines.push(
            "One run a side: what differs between two runs of the same (other load, heat, placement of \
             memory), or between the rounds of one unless they visibly differ, is in no interval and no p-value \
             here. To have it there, join several runs of each side with commas, or measure six rounds or more."
                .to_owned(),
        );
    }
    lines.extend(found.only_a.iter().map(|c| format!("only in A: {}", cell(c))));
    lines.extend(found.only_b.iter().map(|c| format!("only in B: {}", cell(c))));
    lines.extend(found.notes.iter().map(|note| format!("Note: {note}")));
    lines
}

/// Which tests made the p-values.
fn tests_used(judged: &[Judged<'_>]) -> Option<String> {
    let mut names: Vec<&str> = Vec::new();
    let valid = judged.iter().filter(|j| j.p_corrected.is_some());
    for test in valid.filter_map(|j| j.line.comparison.as_ref().ok()?.test) {
        let name = match test {
            Test::MannWhitney { .. } => "Mann-Whitney's on the medians of repeats",
            Test::StudentT => "Student's t on runs, rounds or means",
            Test::Rearrangement => "rearrangement of figures without any spread",
            Test::Interval => "the interval, for quantiles beside the median",
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    (!names.is_empty()).then(|| format!("Tests: {}.", names.join("; ")))
}

fn rows(judged: &[Judged<'_>], notes: &mut Notes) -> Vec<Vec<String>> {
    let row = |line| {
        let Cells { mut entries, signs } = entries(line, notes);
        let signs: Vec<String> = signs.into_iter().map(footnote_sign).collect();
        if let Some(last) = entries.last_mut().filter(|_| !signs.is_empty()) {
            let _ = write!(last, " ({})", signs.join(","));
        }
        entries
    };
    judged.iter().map(row).collect()
}

fn plain(found: &Comparisons, judged: &[Judged<'_>]) -> String {
    let mut notes = Notes::default();
    let mut lines = vec![HEAD.map(str::to_owned).to_vec()];
    lines.extend(rows(judged, &mut notes));
    let mut text = format!("{}\n", summary(found, judged));
    if lines.len() > 1 {
        text.push('\n');
        let width = |i: usize| lines.iter().map(|l| one_line(&l[i]).chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
        for line in &lines {
            let padded = line.iter().zip(&widths).enumerate().map(|(i, (entry, width))| {
                let entry = one_line(entry);
                if LEFT.contains(&i) { format!("{entry:<width$}") } else { format!("{entry:>width$}") }
            });
            text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
    }
    text.push('\n');
    for (index, note) in notes.0.iter().enumerate() {
        let _ = writeln!(text, "({}) {}", footnote_sign(index), one_line(note));
    }
    for line in closing(found, judged) {
        let _ = writeln!(text, "{}", one_line(&line));
    }
    text
}

fn markdown(found: &Comparisons, judged: &[Judged<'_>]) -> String {
    let mut notes = Notes::default();
    let line = |entries: &[String]| format!("| {} |\n", entries.join(" | "));
    let rule = (0..HEAD.len()).map(|i| if LEFT.contains(&i) { ":---" } else { "---:" }.to_owned());
    let mut text = format!("{}\n\n", escape_markdown(&summary(found, judged)));
    text.push_str(&line(&HEAD.map(str::to_owned)));
    text.push_str(&line(&rule.collect::<Vec<_>>()));
    for row in rows(judged, &mut notes) {
        text.push_str(&line(&row.iter().map(|e| escape_markdown(e)).collect::<Vec<_>>()));
    }
    for (index, note) in notes.0.iter().enumerate() {
        let _ = write!(text, "\n({}) {}\n", footnote_sign(index), escape_markdown(note));
    }
    for line in closing(found, judged) {
        let _ = write!(text, "\n{}\n", escape_markdown(&line));
    }
    text
}

fn latex(found: &Comparisons, judged: &[Judged<'_>]) -> String {
    let mut notes = Notes::default();
    let columns: String = (0..HEAD.len()).map(|i| if LEFT.contains(&i) { 'l' } else { 'r' }).collect();
    let line = |entries: &[String]| {
        format!("{} \\\\\n", entries.iter().map(|e| escape(e)).collect::<Vec<_>>().join(" & "))
    };
    let mut text = String::from("% generated by `ossbench compare` from results/raw; do not edit\n");
    text.push_str("\\begin{table*}[tb]\n\\centering\n");
    let _ = writeln!(text, "\\caption{{{}}}", escape(&summary(found, judged)));
    text.push_str("\\scriptsize\n\\setlength{\\tabcolsep}{3pt}\n");
    let _ = writeln!(text, "\\begin{{tabular}}{{{columns}}}\n\\toprule");
    text.push_str(&line(&HEAD.map(str::to_owned)));
    text.push_str("\\midrule\n");
    for row in rows(judged, &mut notes) {
        text.push_str(&line(&row));
    }
    text.push_str("\\bottomrule\n\\end{tabular}\n\n\\smallskip\n\\parbox{\\linewidth}{\\scriptsize\n");
    for (index, note) in notes.0.iter().enumerate() {
        let _ = writeln!(text, "({}) {}\\\\", footnote_sign(index), escape(note));
    }
    for line in closing(found, judged) {
        let _ = writeln!(text, "{}\\\\", escape(&line));
    }
    text + "}\n\\end{table*}\n"
}

/// Every number of a line under its column, in file order; what is missing is null.
fn object(judged: &Judged<'_>) -> Map<String, Value> {
    let line = judged.line;
    let def = line.metric.def();
    let c = line.comparison.as_ref().ok();
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| _ = object.insert(key.to_owned(), value);
    put("model", json!(line.cell.model));
    put("prompt_tokens", json!(line.cell.prompt_tokens));
    put("output_tokens", json!(line.cell.output_tokens));
    put("batch", json!(line.cell.batch));
    put("load", json!(line.cell.load));
    put("concurrency", json!(line.cell.concurrency));
    put("request_rate", json!(line.cell.request_rate));
    put("metric", json!(def.key));
    put("scope", json!(line.scope));
    put("unit", json!(def.unit));
    put("stat", json!(line.stat));
    for (side, name) in [(c.map(|c| c.a), "a"), (c.map(|c| c.b), "b")] {
        ends(&mut put, name, side.map(|s| s.figure), 1.0);
        put(&format!("{name}_n"), json!(side.map(|s| s.n)));
        put(&format!("{name}_units"), json!(side.map(|s| s.units)));
    }
    ends(&mut put, "difference", c.map(|c| c.difference), 1.0);
    ends(&mut put, "difference_pct", c.and_then(|c| c.ratio), 100.0);
    put("shift", json!(c.and_then(|c| c.shift)));
    put("p_better", json!(c.and_then(|c| better(c, def.better))));
    put("p", json!(c.and_then(|c| c.p)));
    put("p_corrected", json!(judged.p_corrected));
    put("test", json!(c.and_then(|c| c.test).map(test_key)));
    put("unit_of_test", json!(c.map(|c| unit_key(c.unit))));
    put("rounds_differ_p", json!(c.and_then(|c| c.rounds_differ)));
    put("verdict", json!(judged.outcome.key()));
    put("equal_within_margin", json!(judged.equal));
    let why = line.comparison.as_ref().err().into_iter().chain(&line.invalid).chain(&line.notes);
    put("reason", json!(why.cloned().collect::<Vec<_>>().join("; ")));
    object
}

fn ends(put: &mut impl FnMut(&str, Value), name: &str, figure: Option<Bounded>, factor: f64) {
    put(name, json!(figure.map(|f| f.value * factor)));
    put(&format!("{name}_ci_low"), json!(figure.and_then(|f| f.low).map(|v| v * factor)));
    put(&format!("{name}_ci_high"), json!(figure.and_then(|f| f.high).map(|v| v * factor)));
}

fn test_key(test: Test) -> &'static str {
    match test {
        Test::MannWhitney { exact: true } => "mann_whitney_exact",
        Test::MannWhitney { exact: false } => "mann_whitney",
        Test::StudentT => "student_t",
        Test::Rearrangement => "rearrangement",
        Test::Interval => "interval",
    }
}

fn unit_key(unit: Unit) -> &'static str {
    match unit {
        Unit::Run => "run",
        Unit::Round => "round",
        Unit::Repeat => "repeat",
    }
}

/// Columns of the CSV, in order; `serde_json` sorts the keys of its objects.
const COLUMNS: [&str; 38] = [
    "model",
    "prompt_tokens",
    "output_tokens",
    "batch",
    "load",
    "concurrency",
    "request_rate",
    "metric",
    "scope",
    "unit",
    "stat",
    "a",
    "a_ci_low",
    "a_ci_high",
    "a_n",
    "a_units",
    "b",
    "b_ci_low",
    "b_ci_high",
    "b_n",
    "b_units",
    "difference",
    "difference_ci_low",
    "difference_ci_high",
    "difference_pct",
    "difference_pct_ci_low",
    "difference_pct_ci_high",
    "shift",
    "p_better",
    "p",
    "p_corrected",
    "test",
    "unit_of_test",
    "rounds_differ_p",
    "verdict",
    "equal_within_margin",
    "reason",
    "valid",
];

fn csv(judged: &[Judged<'_>]) -> Result<String, Error> {
    let failed = |e: &dyn std::fmt::Display| Error::Comparison { message: e.to_string() };
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(COLUMNS).map_err(|e| failed(&e))?;
    for line in judged {
        let mut object = object(line);
        object.insert("valid".to_owned(), json!(line.line.invalid.is_empty()));
        let text = |value: &Value| match value {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let record = COLUMNS.map(|column| object.get(column).map_or_else(String::new, text));
        writer.write_record(&record).map_err(|e| failed(&e))?;
    }
    let bytes = writer.into_inner().map_err(|e| failed(&e))?;
    String::from_utf8(bytes).map_err(|e| failed(&e))
}

fn whole(found: &Comparisons, judged: &[Judged<'_>]) -> Value {
    let counts = Counts::of(judged);
    let cells = |cells: &[CellKey]| cells.iter().map(cell).collect::<Vec<_>>();
    let gates = found.gates.iter().map(|g| {
        json!({ "metric": g.metric.def().key, "stat": g.stat, "limit_pct": (g.limit * 1e8).round() / 1e6 })
    });
    json!({
        "a": found.a,
        "b": found.b,
        "summary": summary(found, judged),
        "counts": {
            "tested": counts.tested, "improved": counts.improved, "regressed": counts.regressed,
            "changed": counts.changed, "no_change": counts.no_change, "not_tested": counts.not_tested,
            "invalid": counts.invalid, "missing": counts.missing,
        },
        "correction": "holm",
        "family_wise_error": FAMILY_PERCENT / 100.0,
        "margin": found.margin,
        "lines": judged.iter().map(object).collect::<Vec<_>>(),
        "only_a": cells(&found.only_a),
        "only_b": cells(&found.only_b),
        "notes": found.notes,
        "gates": gates.collect::<Vec<_>>(),
        "failed_gates": found.failed_gates(),
    })
}
