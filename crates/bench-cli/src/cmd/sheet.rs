//! A small table in every format that `-o` knows: rounded for people, with every digit for programs.
//!
//! What stands in it is decided by the caller. The wide tables of a run are `bench-report`'s.

use crate::CliError;
use bench_report::Format;
use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// One table, twice.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Sheet {
    pub(crate) title: String,
    /// Head and lines for people.
    pub(crate) head: Vec<String>,
    pub(crate) lines: Vec<Vec<String>>,
    /// What is to be said below.
    pub(crate) notes: Vec<String>,
    /// Columns and values for programs.
    pub(crate) columns: Vec<String>,
    pub(crate) values: Vec<Vec<Value>>,
}

/// All `sheets` as one document, ending with a line break. Several CSVs follow each other, each with its head.
pub(crate) fn render(format: Format, sheets: &[Sheet]) -> String {
    let each = |one: fn(&Sheet) -> String| sheets.iter().map(one).collect::<Vec<_>>().join("\n");
    match format {
        Format::Table => each(plain),
        Format::Md => each(markdown),
        Format::Csv => each(csv),
        Format::Latex => each(latex),
        Format::Json => {
            let tables = sheets.iter().map(|s| (s.title.clone(), Value::Array(objects(s).collect())));
            format!("{:#}\n", Value::Object(tables.collect::<Map<_, _>>()))
        }
        Format::Jsonl => sheets.iter().flat_map(objects).fold(String::new(), |mut text, object| {
            let _ = writeln!(text, "{object}");
            text
        }),
    }
}

fn objects(sheet: &Sheet) -> impl Iterator<Item = Value> {
    let object = |values: &Vec<Value>| {
        Value::Object(sheet.columns.iter().cloned().zip(values.iter().cloned()).collect::<Map<_, _>>())
    };
    sheet.values.iter().map(object)
}

/// Columns and values; nothing for what is missing.
pub(crate) fn csv(sheet: &Sheet) -> String {
    let mut text = csv_line(&sheet.columns);
    for values in &sheet.values {
        let fields = values.iter().map(|value| match value {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        text.push_str(&csv_line(&fields.collect::<Vec<_>>()));
    }
    text
}

/// A line of CSV, quoted where it has to be.
pub(crate) fn csv_line(fields: &[String]) -> String {
    let quoted = |field: &String| {
        if field.contains(['"', ',', '\n', '\r']) {
            format!("\"{}\"", field.replace('"', "\"\""))
        } else {
            field.clone()
        }
    };
    fields.iter().map(quoted).collect::<Vec<_>>().join(",") + "\n"
}

/// First column to the left, last one as long as it is, the others to the right.
fn plain(sheet: &Sheet) -> String {
    let lines: Vec<&Vec<String>> = [&sheet.head].into_iter().chain(&sheet.lines).collect();
    let columns = sheet.head.len();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = format!("{}\n", sheet.title);
    for line in lines {
        let entries = line.iter().zip(&widths).enumerate().map(|(i, (entry, width))| match i {
            0 => format!("{entry:<width$}"),
            i if i + 1 == columns => entry.clone(),
            _ => format!("{entry:>width$}"),
        });
        let _ = writeln!(text, "{}", entries.collect::<Vec<_>>().join("  ").trim_end());
    }
    text + &notes(sheet)
}

fn notes(sheet: &Sheet) -> String {
    sheet.notes.iter().flat_map(|note| ["note: ", note, "\n"]).collect()
}

fn markdown(sheet: &Sheet) -> String {
    let line = |entries: &[String]| {
        let escaped: Vec<_> = entries.iter().map(|e| e.replace('|', "\\|").replace('\n', " ")).collect();
        format!("| {} |\n", escaped.join(" | "))
    };
    let rule: Vec<String> =
        (0..sheet.head.len()).map(|i| if i == 0 { ":---" } else { "---:" }.to_owned()).collect();
    let mut text = format!("### {}\n\n", sheet.title) + &line(&sheet.head) + &line(&rule);
    for entries in &sheet.lines {
        text.push_str(&line(entries));
    }
    for note in &sheet.notes {
        let _ = write!(text, "\n{note}\n");
    }
    text
}

fn latex(sheet: &Sheet) -> String {
    let columns = sheet.head.len();
    let spec = format!("l{}", "r".repeat(columns.saturating_sub(1)));
    let mut text = format!("% {}\n\\begin{{tabular}}{{{spec}}}\n\\toprule\n", sheet.title);
    for (i, line) in [&sheet.head].into_iter().chain(&sheet.lines).enumerate() {
        let _ = writeln!(text, "{} \\\\", line.iter().map(|e| escape(e)).collect::<Vec<_>>().join(" & "));
        if i == 0 {
            text.push_str("\\midrule\n");
        }
    }
    text.push_str("\\bottomrule\n\\end{tabular}\n");
    for note in &sheet.notes {
        let _ = writeln!(text, "\\par {}", escape(note));
    }
    text
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '%' | '_' | '&' | '#' | '$' | '{' | '}' => {
                escaped.push('\\');
                escaped.push(c);
            }
            // A bracket after a line break would be read as its option.
            '[' | ']' => _ = write!(escaped, "{{{c}}}"),
            '\\' => escaped.push_str("\\textbackslash{}"),
            '~' => escaped.push_str("\\textasciitilde{}"),
            '^' => escaped.push_str("\\textasciicircum{}"),
            '<' => escaped.push_str("\\textless{}"),
            '>' => escaped.push_str("\\textgreater{}"),
            '\u{d7}' => escaped.push_str("$\\times$"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Four significant digits; `-` where there is no figure.
pub(crate) fn figure(value: Option<f64>) -> String {
    let Some(value) = value else { return "-".to_owned() };
    let whole = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    format!("{value:.*}", (3 - whole).clamp(0, 6) as usize)
}

/// A figure with its interval behind it, where it has one.
pub(crate) fn with_interval(value: Option<f64>, low: Option<f64>, high: Option<f64>) -> String {
    match (value, low, high) {
        (Some(_), None, None) | (None, ..) => figure(value),
        _ => format!("{} [{}, {}]", figure(value), figure(low), figure(high)),
    }
}

/// Replaces `path` by `text` in one step; folders on the way are made.
pub(crate) fn write_whole(path: &Path, text: &str) -> Result<(), CliError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = path.with_file_name(format!(".{name}.tmp"));
    let write = || {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(&draft, text)?;
        fs::rename(&draft, path)
    };
    write().map_err(|e| CliError::Failed(format!("cannot write {}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sheet() -> Sheet {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        Sheet {
            title: "t".to_owned(),
            head: words(&["variant", "tok/s", "remark"]),
            lines: vec![words(&["a", "10.0 [9, 11]", ""]), words(&["b_1", "-", "50 % | less"])],
            notes: words(&["one, two"]),
            columns: words(&["variant", "tok_s"]),
            values: vec![vec![json!("a"), json!(10.0)], vec![json!("b, \"1\""), Value::Null]],
        }
    }

    #[test]
    fn every_format_says_the_same() {
        for (format, expected) in [
            (
                Format::Table,
                "t\nvariant         tok/s  remark\na        10.0 [9, 11]\nb_1                 -  50 % | less\nnote: one, two\n",
            ),
            (
                Format::Md,
                "### t\n\n| variant | tok/s | remark |\n| :--- | ---: | ---: |\n| a | 10.0 [9, 11] |  |\n\
                 | b_1 | - | 50 % \\| less |\n\none, two\n",
            ),
            (Format::Csv, "variant,tok_s\na,10.0\n\"b, \"\"1\"\"\",\n"),
            (
                Format::Jsonl,
                "{\"variant\":\"a\",\"tok_s\":10.0}\n{\"variant\":\"b, \\\"1\\\"\",\"tok_s\":null}\n",
            ),
        ] {
            assert_eq!(render(format, &[sheet()]), expected);
        }
        let latex = render(Format::Latex, &[sheet()]);
        assert!(
            latex.contains("b\\_1 & - & 50 \\% | less \\\\\n") && latex.contains("{[}9, 11{]}"),
            "{latex}"
        );
        let json: Value = serde_json::from_str(&render(Format::Json, &[sheet()])).unwrap();
        assert_eq!(json["t"][0]["tok_s"], 10.0);
    }
}
