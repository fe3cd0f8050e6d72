//! Stored files against the same files made again: which figure differs, and where a file first does.
//!
//! Bytes in, differences out. It compares text, not numbers, since a digit that a float does not hold may
//! still have been changed; it opens no file and does not know which side is right.

use std::collections::{BTreeMap, BTreeSet};

/// Columns that together name a row of `unified.csv`.
const KEY: [&str; 12] = [
    "run_id",
    "target",
    "model",
    "prompt_tokens",
    "output_tokens",
    "batch",
    "load",
    "concurrency",
    "request_rate",
    "metric",
    "scope",
    "stat",
];

/// One row or field of `unified.csv` that is not what was computed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowDifference {
    pub run_id: String,
    /// Model, sizes and load of the cell.
    pub cell: String,
    pub metric: String,
    pub scope: String,
    pub stat: String,
    pub what: RowChange,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowChange {
    /// A field, as it stands in the file and as it was computed again.
    Field { column: String, stored: String, recomputed: String },
    /// Computed again, and not in the file.
    Missing,
    /// In the file, and not computed again.
    Extra,
}

/// Two tables of rows side by side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowsCompared {
    /// How many rows were computed again, and what differs, in the order of the names of rows.
    Rows { recomputed: u64, differences: Vec<RowDifference> },
    /// The stored file cannot be compared row by row, and why.
    Unreadable(String),
}

/// Where two files first differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A line of text, from 1, cut around the first difference; `None`: that file has ended before.
    Line { line: u64, stored: Option<String>, expected: Option<String> },
    /// A byte, from 0.
    Offset(u64),
}

/// Compares two versions of `unified.csv`, field by field, in the rows of `runs`; in all rows where it is
/// `None`.
pub fn rows(stored: &[u8], recomputed: &[u8], runs: Option<&BTreeSet<String>>) -> RowsCompared {
    let (stored, made) = match (Rows::read(stored), Rows::read(recomputed)) {
        (Ok(stored), Ok(made)) => (stored, made),
        (Err(problem), _) | (_, Err(problem)) => return RowsCompared::Unreadable(problem),
    };
    if stored.columns != made.columns {
        let problem =
            format!("its columns are {}; expected {}", stored.columns.join(","), made.columns.join(","));
        return RowsCompared::Unreadable(problem);
    }
    if let (Some(found), Some(expected)) = (stored.one_version(), made.one_version())
        && found != expected
    {
        return RowsCompared::Unreadable(format!(
            "its rows are of schema version {found}, expected {expected}"
        ));
    }
    let wanted = |key: &[String]| runs.is_none_or(|runs| runs.contains(&key[0]));
    let mut differences = Vec::new();
    let keys: BTreeSet<_> = stored.rows.keys().chain(made.rows.keys()).filter(|key| wanted(key)).collect();
    for key in keys {
        let of = |rows: &Rows| rows.rows.get(key).cloned().unwrap_or_default();
        let (old, new) = (of(&stored), of(&made));
        for (old, new) in old.iter().zip(&new) {
            differences.extend(fields(key, &made.columns, old, new));
        }
        differences.extend(new.iter().skip(old.len()).map(|_| difference(key, RowChange::Missing)));
        differences.extend(old.iter().skip(new.len()).map(|_| difference(key, RowChange::Extra)));
    }
    let recomputed = made.rows.iter().filter(|(key, _)| wanted(key)).map(|(_, rows)| rows.len() as u64).sum();
    RowsCompared::Rows { recomputed, differences }
}

/// Where `stored` first differs from `expected`; `None` if they are the same bytes.
pub fn first_difference(stored: &[u8], expected: &[u8]) -> Option<Place> {
    if stored == expected {
        return None;
    }
    let same = stored.iter().zip(expected).take_while(|(a, b)| a == b).count();
    let (Ok(old), Ok(new)) = (std::str::from_utf8(stored), std::str::from_utf8(expected)) else {
        return Some(Place::Offset(same as u64));
    };
    // A line break that is there in one of them only belongs to the line before it.
    let line = stored[..same].split(|b| *b == b'\n').count();
    let column = same - stored[..same].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let cut = |text: &str| text.split_inclusive('\n').nth(line - 1).map(|l| around(l, column));
    Some(Place::Line { line: line as u64, stored: cut(old), expected: cut(new) })
}

/// At most 80 characters of a line, those before byte `column` and after it.
fn around(line: &str, column: usize) -> String {
    let before = line.char_indices().take_while(|(at, _)| *at < column).count();
    line.chars().skip(before.saturating_sub(40)).take(80).collect::<String>().escape_debug().to_string()
}

fn fields<'a>(
    key: &'a [String],
    columns: &'a [String],
    old: &'a [String],
    new: &'a [String],
) -> impl Iterator<Item = RowDifference> + 'a {
    let pairs = columns.iter().zip(old.iter().zip(new)).filter(|(_, (old, new))| old != new);
    pairs.map(|(column, (old, new))| {
        let (column, stored, recomputed) = (column.clone(), old.clone(), new.clone());
        difference(key, RowChange::Field { column, stored, recomputed })
    })
}

fn difference(key: &[String], what: RowChange) -> RowDifference {
    let [run_id, _, model, prompt, output, batch, load, concurrency, rate, metric, scope, stat] =
        std::array::from_fn(|i| key[i].clone());
    let load = match (load.as_str(), concurrency.as_str(), rate.as_str()) {
        ("batch", ..) => format!("b{batch}"),
        (_, "", "") => load,
        (_, "", rate) => format!("{load} r{rate}"),
        (_, concurrency, "") => format!("{load} c{concurrency}"),
        (_, concurrency, rate) => format!("{load} c{concurrency} r{rate}"),
    };
    RowDifference { run_id, cell: format!("{model} p{prompt} n{output} {load}"), metric, scope, stat, what }
}

/// A table as text.
struct Rows {
    columns: Vec<String>,
    /// By the values of `KEY`; more than one of a key where rows were repeated.
    rows: BTreeMap<Vec<String>, Vec<Vec<String>>>,
}

impl Rows {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut reader = csv::ReaderBuilder::new().has_headers(true).flexible(false).from_reader(bytes);
        let text = |record: &csv::ByteRecord| -> Vec<String> {
            record.iter().map(|field| String::from_utf8_lossy(field).into_owned()).collect()
        };
        let bad = |e: csv::Error| format!("it is not a table: {e}");
        let columns = text(reader.byte_headers().map_err(bad)?);
        let place = |name: &&str| columns.iter().position(|c| c == name);
        let places: Option<Vec<usize>> = KEY.iter().map(place).collect();
        let places = places.ok_or_else(|| format!("its columns are {}", columns.join(",")))?;
        let mut rows = BTreeMap::<_, Vec<_>>::new();
        for record in reader.byte_records() {
            let row = text(&record.map_err(bad)?);
            let key = places.iter().map(|&place| row[place].clone()).collect();
            rows.entry(key).or_default().push(row);
        }
        Ok(Self { columns, rows })
    }

    /// The schema version, where all rows are of one.
    fn one_version(&self) -> Option<&str> {
        let place = self.columns.iter().position(|c| c == "schema_version")?;
        let mut all = self.rows.values().flatten().map(|row| row[place].as_str());
        let first = all.next()?;
        all.all(|version| version == first).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "run_id,target,model,prompt_tokens,output_tokens,batch,load,concurrency,request_rate,\
                          metric,scope,stat,value,schema_version\n";

    fn table(lines: &[&str]) -> Vec<u8> {
        (HEADER.to_owned() + &lines.join("\n") + "\n").into_bytes()
    }

    fn differences(stored: &[&str], made: &[&str]) -> Vec<String> {
        let RowsCompared::Rows { differences, .. } = rows(&table(stored), &table(made), None) else {
            panic!("not compared")
        };
        let text = |d: &RowDifference| format!("{} {} {} {:?}", d.cell, d.metric, d.stat, d.what);
        differences.iter().map(text).collect()
    }

    #[test]
    fn a_field_a_missing_and_an_extra_row_are_each_named() {
        let a = "r,mock,m,16,8,1,batch,,,ttft_ms,,p50,1.5,3";
        let changed = "r,mock,m,16,8,1,batch,,,ttft_ms,,p50,1.50,3";
        let b = "r,http,m,16,8,1,poisson,4,2.5,ttft_ms,,p50,2,3";
        assert_eq!(differences(&[a, b], &[b, a]), Vec::<String>::new());
        let field = r#"m p16 n8 b1 ttft_ms p50 Field { column: "value", stored: "1.50", recomputed: "1.5" }"#;
        assert_eq!(differences(&[changed], &[a]), [field], "equal as numbers, not as text");
        assert_eq!(differences(&[a], &[a, b]), ["m p16 n8 poisson c4 r2.5 ttft_ms p50 Missing"]);
        assert_eq!(differences(&[a, a], &[a]), ["m p16 n8 b1 ttft_ms p50 Extra"]);
    }

    #[test]
    fn a_table_of_another_kind_is_one_finding() {
        let says = |stored: &[u8]| match rows(stored, &table(&["r,mock,m,1,1,1,batch,,,a,,p50,1,3"]), None) {
            RowsCompared::Unreadable(problem) => problem,
            RowsCompared::Rows { .. } => panic!("compared"),
        };
        assert!(says(b"a,b\n1,2\n").contains("its columns are a,b"));
        assert!(says(&table(&["r,mock"])).contains("not a table"));
        let old = says(&table(&["r,mock,m,1,1,1,batch,,,a,,p50,1,2", "r,mock,m,1,1,1,batch,,,b,,p50,1,2"]));
        assert_eq!(old, "its rows are of schema version 2, expected 3");
    }

    #[test]
    fn only_rows_of_the_wanted_runs_are_compared() {
        let [a, b] = ["a", "b"].map(|run| format!("{run},mock,m,1,1,1,batch,,,x,,p50,1,3"));
        let wanted = BTreeSet::from(["a".to_owned()]);
        let compared = rows(&table(&[&a]), &table(&[&a, &b]), Some(&wanted));
        assert_eq!(compared, RowsCompared::Rows { recomputed: 1, differences: vec![] });
    }

    #[test]
    fn the_first_difference_is_a_line_of_text_or_a_byte() {
        let line = |n: u64, a: Option<&str>, b: Option<&str>| {
            Some(Place::Line { line: n, stored: a.map(Into::into), expected: b.map(Into::into) })
        };
        assert_eq!(first_difference(b"a\nb\n", b"a\nb\n"), None);
        assert_eq!(first_difference(b"a\nc\n", b"a\nb\n"), line(2, Some("c\\n"), Some("b\\n")));
        assert_eq!(first_difference(b"a\n", b"a\nb\n"), line(2, None, Some("b\\n")));
        assert_eq!(first_difference(b"", b"a\n"), line(1, None, Some("a\\n")));
        assert_eq!(first_difference(b"\xff\x00\x01", b"\xff\x00\x02"), Some(Place::Offset(2)));
        let (old, new) = ("é".repeat(200) + "1", "é".repeat(200) + "2");
        let cut = |digit: &str| "é".repeat(40) + digit;
        assert_eq!(
            first_difference(old.as_bytes(), new.as_bytes()),
            line(1, Some(&cut("1")), Some(&cut("2")))
        );
    }
}
