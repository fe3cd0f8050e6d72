//! The points of a search as a table, in every format that `-o` knows, and the answer in sentences.

use super::decide::{Answer, knee, saturation, violations};
use super::point::{Point, clear_from};
use super::{End, Found};
use crate::args::Over;
use bench_report::Format;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// Columns of the CSV, in file order.
pub(super) const COLUMNS: &[&str] = &[
    "over",
    "level",
    "run_id",
    "requests",
    "requests_met",
    "attainment",
    "attainment_ci_low",
    "attainment_ci_high",
    "attainment_wanted",
    "decision",
    "decision_clear",
    "success_rate",
    "system_req_s",
    "system_tok_s",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "tpot_mean_ms",
    "e2el_from_schedule_mean_ms",
    "power_req_s2",
    "verdict",
    "verdict_reason",
];

fn object(over: Over, point: &Point) -> Map<String, Value> {
    let interval = point.interval();
    let values = [
        json!(over.key()),
        json!(point.level),
        json!(point.run_id),
        json!(point.attainment.started),
        json!(point.attainment.met),
        json!(point.attainment.share()),
        json!(interval.map(|i| i.0)),
        json!(interval.map(|i| i.1)),
        json!(point.threshold),
        json!(point.decision.key()),
        json!(point.is_clear()),
        json!(point.success_rate),
        json!(point.system_req_s),
        json!(point.system_tok_s),
        json!(point.ttft_p50_ms),
        json!(point.ttft_p99_ms),
        json!(point.tpot_mean_ms),
        json!(point.latency_mean_ms),
        json!(point.flow().map(|f| f.power())),
        json!(point.verdict),
        json!(point.reason),
    ];
    COLUMNS.iter().map(|c| (*c).to_owned()).zip(values).collect()
}

/// The CSV of the points, by level.
pub(super) fn csv(found: &Found) -> String {
    let mut text = COLUMNS.join(",");
    for point in found.by_level() {
        let fields = object(found.over, point).into_iter().map(|(_, value)| match value {
            Value::Null => String::new(),
            Value::String(text) if text.contains(['"', ',', '\n', '\r']) => {
                format!("\"{}\"", text.replace('"', "\"\""))
            }
            Value::String(text) => text,
            other => other.to_string(),
        });
        text.push('\n');
        text.push_str(&fields.collect::<Vec<_>>().join(","));
    }
    text + "\n"
}

/// The points as `format`, ending with a line break.
pub(super) fn render(format: Format, found: &Found) -> String {
    let objects = || found.by_level().into_iter().map(|point| Value::Object(object(found.over, point)));
    match format {
        Format::Table => aligned(&lines(found)),
        Format::Md => markdown(&lines(found)),
        Format::Csv => csv(found),
        Format::Json => {
            let answer = json!({ "sentences": sentences(found), "level": found.level() });
            format!("{:#}\n", json!({ "answer": answer, "points": objects().collect::<Vec<_>>() }))
        }
        Format::Jsonl => objects().flat_map(|o| [o.to_string(), "\n".to_owned()]).collect(),
        Format::Latex => latex(&lines(found)),
    }
}

/// Head and rows of the tables for people.
fn lines(found: &Found) -> Vec<Vec<String>> {
    let head = [
        found.over.key(),
        "n",
        "req/s",
        "tok/s",
        "TTFT p50 ms",
        "TTFT p99 ms",
        "TPOT mean ms",
        "attainment",
        "decision",
        "power",
        "verdict",
    ];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for point in found.by_level() {
        let attainment = match (point.attainment.share(), point.interval()) {
            (Some(share), Some((low, high))) => format!("{share:.4} [{low:.4}, {high:.4}]"),
            _ => "-".to_owned(),
        };
        let unclear = if point.is_clear() { "" } else { ", not clear" };
        let reason = if point.reason.is_empty() { String::new() } else { format!(": {}", point.reason) };
        lines.push(vec![
            point.level.to_string(),
            point.attainment.started.to_string(),
            figure(point.system_req_s),
            figure(point.system_tok_s),
            figure(point.ttft_p50_ms),
            figure(point.ttft_p99_ms),
            figure(point.tpot_mean_ms),
            attainment,
            format!("{}{unclear}", point.decision.key()),
            figure(point.flow().map(|f| f.power())),
            format!("{}{reason}", point.verdict),
        ]);
    }
    lines
}

/// Four significant digits; `-` where there is no figure.
fn figure(value: Option<f64>) -> String {
    let Some(value) = value else { return "-".to_owned() };
    let whole = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    format!("{value:.*}", (3 - whole).clamp(0, 6) as usize)
}

/// Columns as wide as their widest entry, numbers to the right.
fn aligned(lines: &[Vec<String>]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let columns = lines.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let entries = line.iter().zip(&widths).enumerate().map(|(i, (entry, width))| {
            if i + 1 == columns { entry.clone() } else { format!("{entry:>width$}") }
        });
        let _ = writeln!(text, "{}", entries.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}

fn markdown(lines: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (i, line) in lines.iter().enumerate() {
        let line: Vec<_> = line.iter().map(|entry| entry.replace('|', "\\|")).collect();
        let _ = writeln!(text, "| {} |", line.join(" | "));
        if i == 0 {
            let _ = writeln!(text, "| {} |", vec!["---:"; line.len()].join(" | "));
        }
    }
    text
}

fn latex(lines: &[Vec<String>]) -> String {
    let escape = |entry: &String| {
        let mut text = String::new();
        for c in entry.chars() {
            if matches!(c, '%' | '_' | '&' | '#' | '$' | '{' | '}') {
                text.push('\\');
            }
            text.push(c);
        }
        text
    };
    let columns = "r".repeat(lines.first().map_or(0, Vec::len));
    let mut text = format!("\\begin{{tabular}}{{{columns}}}\n\\hline\n");
    for (i, line) in lines.iter().enumerate() {
        let line: Vec<String> = line.iter().map(escape).collect();
        let _ = writeln!(text, "{} \\\\", line.join(" & "));
        if i == 0 {
            text.push_str("\\hline\n");
        }
    }
    text + "\\hline\n\\end{tabular}\n"
}

/// What was found, one sentence each: the answer, how sure it is, the knee, where throughput ends to grow.
pub(super) fn sentences(found: &Found) -> Vec<String> {
    let over = found.over.key();
    let mut said = vec![answer(found)];
    said.extend(certainty(found));
    let passing = found.level().and_then(|level| found.points.iter().find(|p| p.level == level));
    // A note of a valid cell, such as an open loop whose requests pile up.
    said.extend(
        passing.filter(|p| !p.reason.is_empty()).map(|p| format!("at {over} {}: {}", p.level, p.reason)),
    );
    let against = violations(&found.tested());
    if !against.is_empty() {
        let levels: Vec<_> = against.iter().map(f64::to_string).collect();
        said.push(format!(
            "not monotone: {over} {} passed above a level that failed; more requests per level would tell",
            levels.join(", ")
        ));
    }
    let flows: Vec<_> = found.by_level().into_iter().filter_map(Point::flow).collect();
    said.extend(knee(&flows).map(|level| {
        format!(
            "knee at {over} {level}: the greatest power (throughput / mean latency) of {} levels",
            flows.len()
        )
    }));
    said.push(match saturation(&flows) {
        Some(level) => format!("beyond {over} {level} throughput grows by less than 5 % per doubling"),
        None => "throughput still grows by 5 % or more per doubling, as far as was measured".to_owned(),
    });
    said
}

fn answer(found: &Found) -> String {
    let over = found.over.key();
    let wanted = format!("{} % of requests within [slo]", found.threshold * 100.0);
    match &found.end {
        End::NoClaim { level, reason } => {
            format!("no claim: the run at {over} {level} may not be believed ({reason})")
        }
        End::Answer(Answer::Between { pass, fail }) => {
            format!("highest {over} with {wanted}: {pass}; {fail} fails")
        }
        End::Answer(Answer::BelowMin { fail }) => {
            format!("{over} {fail}, the lowest tried, already fails ({wanted}): try a lower --min")
        }
        End::Answer(Answer::AtMax { pass }) => {
            format!("{over} {pass}, the highest tried, still has {wanted}: try a higher --max")
        }
        End::Answer(Answer::Unfinished { pass, fail }) => {
            let level = |level: &Option<f64>| level.map_or_else(|| "unknown".to_owned(), |l| l.to_string());
            format!(
                "--steps are used up: highest {over} with {wanted} is at least {} and below {}",
                level(pass),
                level(fail)
            )
        }
    }
}

/// Whether the two levels of the answer decide clearly, and what would.
fn certainty(found: &Found) -> Option<String> {
    let End::Answer(answer) = &found.end else { return None };
    let (pass, fail) = match *answer {
        Answer::Between { pass, fail } => (Some(pass), Some(fail)),
        Answer::BelowMin { fail } => (None, Some(fail)),
        Answer::AtMax { pass } => (Some(pass), None),
        Answer::Unfinished { pass, fail } => (pass, fail),
    };
    let levels = [pass, fail].into_iter().flatten();
    let unclear: Vec<String> = levels
        .filter_map(|level| found.points.iter().find(|p| p.level == level && !p.is_clear()))
        .map(|point| format!("{} (n = {})", point.level, point.attainment.started))
        .collect();
    if unclear.is_empty() {
        return Some("statistically clear: the 95 % intervals exclude the wanted share".to_owned());
    }
    let enough = clear_from(found.threshold).map_or_else(
        || "no number of requests can show a share of 1".to_owned(),
        |n| format!("more requests would tell, {n} at least, if all of them pass"),
    );
    Some(format!("not statistically clear at {}: {enough}", unclear.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::super::point::tests::point;
    use super::*;

    fn found() -> Found {
        Found {
            over: Over::Rate,
            threshold: 0.99,
            points: vec![
                point(1.0, 1_000, 1_000, "VALID", 500.0),
                point(2.0, 1_000, 1_000, "VALID", 600.0),
                point(4.0, 100, 1_000, "VALID", 9_000.0),
                point(2.828, 985, 1_000, "VALID", 700.0),
            ],
            end: End::Answer(Answer::Between { pass: 2.0, fail: 2.828 }),
        }
    }

    #[test]
    fn the_table_is_by_level_with_every_figure() {
        assert_eq!(render(Format::Table, &found()), include_str!("table_by_level.txt"));
    }

    #[test]
    fn sentences_say_what_is_claimed_and_how_sure_it_is() {
        let said = sentences(&found());
        let expected = [
            "highest rate with 99 % of requests within [slo]: 2; 2.828 fails",
            "not statistically clear at 2.828 (n = 1000): more requests would tell, 381 at least, if all of them pass",
            "knee at rate 2.828: the greatest power (throughput / mean latency) of 4 levels",
            "throughput still grows by 5 % or more per doubling, as far as was measured",
        ];
        assert_eq!(said, expected);
        let clear = Found { end: End::Answer(Answer::AtMax { pass: 2.0 }), ..found() };
        assert!(sentences(&clear)[1].starts_with("statistically clear"));
        let reason = "schedule lag p99 12 ms over 10 ms".to_owned();
        let none = sentences(&Found { end: End::NoClaim { level: 8.0, reason }, ..found() });
        assert_eq!(
            none[0],
            "no claim: the run at rate 8 may not be believed (schedule lag p99 12 ms over 10 ms)"
        );
        assert!(none[1].starts_with("knee"), "nothing is said of how clear it is");
        let mut noisy = found();
        noisy.points.push(point(3.0, 1_000, 1_000, "VALID", 700.0));
        assert!(sentences(&noisy).iter().any(|s| s.starts_with("not monotone: rate 3 passed")));
    }

    #[test]
    fn csv_quotes_and_leaves_out_what_is_missing() {
        let mut one = found();
        one.points.truncate(1);
        one.points[0].reason = "late, \"very\"".to_owned();
        let text = csv(&one);
        let expected = "rate,1.0,demo-run,1000,1000,1.0,0.996173,1.0,0.99,pass,true,1.0,1.0,100.0,125.0,,12.5,500.0,2.0,\
                        VALID,\"late, \"\"very\"\"\"";
        let row = text.lines().nth(1).unwrap();
        // The interval's digits are the statistics' matter.
        let low = |row: &str| row.split(',').nth(6).unwrap().parse::<f64>().unwrap();
        assert!((low(row) - low(expected)).abs() < 1e-5, "{row}");
        let without = |row: &str| {
            row.split(',').enumerate().filter(|(i, _)| *i != 6).map(|(_, f)| f.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(without(row), without(expected));
        assert_eq!(text.lines().next().unwrap().split(',').count(), COLUMNS.len());
    }

    #[test]
    fn every_format_is_written_and_json_is_json() {
        let found = found();
        let json: Value = serde_json::from_str(&render(Format::Json, &found)).unwrap();
        assert_eq!(
            (json["answer"]["level"].clone(), json["points"][3]["decision"].clone()),
            (json!(2.0), json!("fail"))
        );
        let lines = render(Format::Jsonl, &found);
        let objects: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!((objects.len(), &objects[0]["ttft_p99_ms"]), (4, &Value::Null));
        assert!(render(Format::Md, &found).starts_with("| rate | n |"));
        assert!(
            render(Format::Latex, &found).contains("99 & ")
                || render(Format::Latex, &found).contains("1000 & ")
        );
        assert_eq!(render(Format::Csv, &found), csv(&found));
    }
}
