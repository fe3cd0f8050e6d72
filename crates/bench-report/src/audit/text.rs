//! An audit as text: for people grouped by rule, for programs one record of each cell.

use super::finding::{CellRef, Finding, Severity};
use super::{Audit, rules};
use crate::table::{Format, escape_markdown};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// Columns of the CSV: one line of each cell and corrected value.
const CSV: &str = "rule,severity,study_error,file,line,column,cell,published,unit,\
                   corrected_name,corrected,corrected_unit\n";

/// The audit in a format; LaTeX and JSON lines are not among them.
pub fn render(format: Format, audit: &Audit) -> String {
    match format {
        Format::Json | Format::Jsonl => format!("{:#}\n", object(audit)),
        Format::Csv => csv(audit),
        Format::Md => people(audit, &Style { markdown: true }),
        Format::Table | Format::Latex => people(audit, &Style { markdown: false }),
    }
}

/// Three significant digits, whole numbers from 1000 on.
pub(super) fn short_number(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return "0".to_owned();
    }
    if value.abs() < 1e-3 {
        return format!("{value:.2e}");
    }
    let before = value.abs().log10().floor() as i32;
    let text = format!("{value:.*}", (2 - before).max(0) as usize);
    // 9.999 rounds to a digit more.
    let carried = text.parse::<f64>().is_ok_and(|rounded| rounded.abs() >= 10_f64.powi(before + 1));
    if carried { format!("{value:.*}", (1 - before).max(0) as usize) } else { text }
}

/// Control characters, line breaks among them, become blanks.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

struct Style {
    markdown: bool,
}

impl Style {
    fn escaped(&self, text: &str) -> String {
        if self.markdown { escape_markdown(text) } else { one_line(text) }
    }

    fn head(&self, text: &str) -> String {
        if self.markdown {
            format!("\n## {}\n\n", self.escaped(text))
        } else {
            format!("\n{}\n\n", one_line(text))
        }
    }

    fn item(&self, text: &str) -> String {
        if self.markdown { format!("- {}\n", self.escaped(text)) } else { format!("  {}\n", one_line(text)) }
    }

    fn grid(&self, rows: &[Vec<String>]) -> String {
        if self.markdown { self.pipes(rows) } else { aligned(rows) }
    }

    fn pipes(&self, rows: &[Vec<String>]) -> String {
        let mut text = String::new();
        for (index, row) in rows.iter().enumerate() {
            let fields: Vec<String> = row.iter().map(|field| self.escaped(field)).collect();
            let _ = writeln!(text, "| {} |", fields.join(" | "));
            if index == 0 {
                let _ = writeln!(text, "|{}", " --- |".repeat(row.len()));
            }
        }
        text
    }
}

/// Text to the left, what begins with a digit to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|f| one_line(f)).collect()).collect();
    let width = |c: usize| rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0);
    let numeric = |c: usize| {
        rows.iter()
            .skip(1)
            .all(|row| row[c].is_empty() || row[c].starts_with(|d: char| d.is_ascii_digit() || d == '-'))
    };
    let shape: Vec<_> = (0..columns).map(|c| (width(c), numeric(c))).collect();
    let mut text = String::new();
    for row in &rows {
        let fields = row.iter().zip(&shape).map(|(field, &(width, numeric))| {
            if numeric { format!("{field:>width$}") } else { format!("{field:<width$}") }
        });
        let line = fields.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "  {}", line.trim_end());
    }
    text
}

fn people(audit: &Audit, style: &Style) -> String {
    let mut text = summary(audit, style);
    if !audit.findings.is_empty() {
        text.push_str(&style.head("Findings"));
        text.push_str(&style.grid(&overview(audit)));
    }
    for finding in &audit.findings {
        text.push_str(&style.head(&heading(finding)));
        let _ = writeln!(text, "{}\n", style.escaped(&format!("{}: {}.", finding.file, finding.sentence)));
        text.push_str(&cells(finding, style));
    }
    if !audit.not_checkable.is_empty() {
        text.push_str(&style.head("Not checkable from these tables"));
        for open in &audit.not_checkable {
            text.push_str(&style.item(open));
        }
    }
    text
}

fn heading(finding: &Finding) -> String {
    let of_study = finding.rule.study_error.map(|error| format!(", error {error} of arXiv 2508.16700"));
    format!("{} ({}{})", finding.rule.id, finding.rule.severity.name(), of_study.unwrap_or_default())
}

fn summary(audit: &Audit, style: &Style) -> String {
    let count = |severity: Severity| audit.findings.iter().filter(|f| f.rule.severity == severity).count();
    let rows: usize = audit.tables.iter().map(|table| table.rows).sum();
    let mut text = format!(
        "{} with {}, {} applied: {} ({}, {}, {})\n",
        counted(audit.tables.len(), "table"),
        counted(rows, "row"),
        counted(audit.rules_applied.len(), "rule"),
        counted(audit.findings.len(), "finding"),
        counted(count(Severity::Error), "error"),
        counted(count(Severity::Warning), "warning"),
        counted(count(Severity::Note), "note"),
    );
    text.push('\n');
    for table in &audit.tables {
        text.push_str(&style.item(&format!(
            "{}: {} ({}), {}",
            table.file,
            table.map,
            table.about,
            counted(table.rows, "row")
        )));
        for problem in table.problems.iter().take(PROBLEMS) {
            text.push_str(&style.item(&format!("{}: {problem}", table.file)));
        }
        if let Some(more) = table.problems.len().checked_sub(PROBLEMS + 1) {
            text.push_str(&style.item(&format!("{}: and {} more such fields", table.file, more + 1)));
        }
    }
    text
}

/// Fields of one table that are told before the rest is only counted.
const PROBLEMS: usize = 8;

fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

fn overview(audit: &Audit) -> Vec<Vec<String>> {
    let head = ["error", "severity", "rule", "cells", "file", "what"].map(str::to_owned).to_vec();
    let of_finding = |f: &Finding| {
        vec![
            f.rule.study_error.map_or_else(String::new, |error| error.to_string()),
            f.rule.severity.name().to_owned(),
            f.rule.id.to_owned(),
            f.cells.len().to_string(),
            f.file.clone(),
            f.rule.title.to_owned(),
        ]
    };
    std::iter::once(head).chain(audit.findings.iter().map(of_finding)).collect()
}

/// Cells with their corrected values as a table; without any, only where they are.
fn cells(finding: &Finding, style: &Style) -> String {
    let mut names: Vec<(&str, &str)> = Vec::new();
    for corrected in finding.cells.iter().flat_map(|cell| &cell.corrected) {
        if !names.contains(&(corrected.name, corrected.unit)) {
            names.push((corrected.name, corrected.unit));
        }
    }
    if names.is_empty() {
        return style.item(&places(&finding.cells));
    }
    let with_unit =
        |name: &str, unit: &str| if unit.is_empty() { name.to_owned() } else { format!("{name} [{unit}]") };
    let mut head = vec!["line".to_owned(), "cell".to_owned(), "column".to_owned()];
    head.push(with_unit("published", finding.cells.first().map_or("", |cell| cell.unit)));
    head.extend(names.iter().map(|(name, unit)| with_unit(name, unit)));
    let row = |cell: &CellRef| {
        let published = cell.published.map_or_else(String::new, short_number);
        let mut row = vec![cell.line.to_string(), cell.label.clone(), cell.column.clone(), published];
        row.extend(names.iter().map(|name| {
            let value = cell.corrected.iter().find(|c| (c.name, c.unit) == *name);
            value.map_or_else(String::new, |c| short_number(c.value))
        }));
        row
    };
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(finding.cells.iter().map(row)).collect();
    style.grid(&rows)
}

/// `p99_ms, lines 2-13, 20`.
fn places(cells: &[CellRef]) -> String {
    let mut columns: Vec<&str> = Vec::new();
    for cell in cells {
        if !columns.contains(&cell.column.as_str()) {
            columns.push(&cell.column);
        }
    }
    let of_column = |column: &&str| {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for line in cells.iter().filter(|cell| cell.column == *column).map(|cell| cell.line) {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == line => *last = line,
                _ => ranges.push((line, line)),
            }
        }
        let range = |(a, b): &(u64, u64)| if a == b { a.to_string() } else { format!("{a}-{b}") };
        format!("{column}, lines {}", ranges.iter().map(range).collect::<Vec<_>>().join(", "))
    };
    columns.iter().map(of_column).collect::<Vec<_>>().join("; ")
}

fn csv(audit: &Audit) -> String {
    let mut text = CSV.to_owned();
    for finding in &audit.findings {
        for cell in &finding.cells {
            let number = |value: Option<f64>| value.map_or_else(String::new, |v| v.to_string());
            let start = vec![
                finding.rule.id.to_owned(),
                finding.rule.severity.name().to_owned(),
                finding.rule.study_error.map_or_else(String::new, |e| e.to_string()),
                finding.file.clone(),
                cell.line.to_string(),
                cell.column.clone(),
                cell.label.clone(),
                number(cell.published),
                cell.unit.to_owned(),
            ];
            if cell.corrected.is_empty() {
                text.push_str(&line(&[start.clone(), vec![String::new(); 3]].concat()));
            }
            for c in &cell.corrected {
                let end = vec![c.name.to_owned(), c.value.to_string(), c.unit.to_owned()];
                text.push_str(&line(&[start.clone(), end].concat()));
            }
        }
    }
    text
}

fn line(fields: &[String]) -> String {
    let quoted = |field: &String| {
        if field.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", field.replace('"', "\"\""))
        } else {
            field.clone()
        }
    };
    fields.iter().map(quoted).collect::<Vec<_>>().join(",") + "\n"
}

fn object(audit: &Audit) -> Value {
    json!({
        "schema_version": 1,
        "tables": audit.tables.iter().map(table_object).collect::<Vec<_>>(),
        "rules_applied": audit.rules_applied,
        "findings": audit.findings.iter().map(finding_object).collect::<Vec<_>>(),
        "not_checkable": audit.not_checkable,
        "rules": rules::ALL.iter().flat_map(|(rules, _)| rules.iter()).map(|r| r.id).collect::<Vec<_>>(),
    })
}

fn table_object(t: &super::Audited) -> Value {
    json!({"file": t.file, "map": t.map, "about": t.about, "rows": t.rows, "problems": t.problems})
}

fn finding_object(finding: &Finding) -> Value {
    let corrected = |c: &super::Corrected| json!({"name": c.name, "value": c.value, "unit": c.unit});
    let cell = |cell: &CellRef| {
        json!({
            "line": cell.line,
            "column": cell.column,
            "cell": cell.label,
            "published": cell.published,
            "unit": cell.unit,
            "corrected": cell.corrected.iter().map(corrected).collect::<Vec<_>>(),
        })
    };
    json!({
        "rule": finding.rule.id,
        "severity": finding.rule.severity.name(),
        "study_error": finding.rule.study_error,
        "title": finding.rule.title,
        "file": finding.file,
        "sentence": finding.sentence,
        "cells": finding.cells.iter().map(cell).collect::<Vec<_>>(),
    })
}
