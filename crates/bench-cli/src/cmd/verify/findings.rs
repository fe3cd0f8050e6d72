//! What `verify` found, as text and as JSON.

use crate::{CliError, Io};
use bench_report::Format;
use bench_report::verify::{Place, RowChange, RowDifference};
use bench_runner::store::SumFinding;
use serde_json::{Map, Value, json};
use std::path::Path;

/// How many findings of a kind are printed; JSON holds all.
const SHOWN: usize = 30;

/// All findings, and how much was looked at.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) runs: Vec<Checked>,
    /// Rows that were computed again.
    pub(super) rows: u64,
    /// Derived files that were made again.
    pub(super) files: u64,
    pub(super) all: Vec<Finding>,
}

/// Raw files of one run, and their bytes, that were held against their sums; `None` where there are no sums.
pub(super) struct Checked {
    pub(super) run: String,
    pub(super) sums: Option<(u64, u64)>,
}

/// One finding: which stage, about what, and what is said of it.
pub(super) struct Finding {
    kind: Kind,
    /// Run and file, file, or run, cell and figure.
    about: String,
    says: String,
    detail: Map<String, Value>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Raw,
    Run,
    Row,
    File,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Raw, Self::Run, Self::Row, Self::File];

    fn key(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Run => "run",
            Self::Row => "row",
            Self::File => "file",
        }
    }
}

impl Finding {
    /// A raw file that is not as it was written.
    pub(super) fn raw(run: &str, finding: &SumFinding) -> Self {
        let (problem, says) = match finding {
            SumFinding::Changed { listed, found, .. } => {
                let short = |sum: &str| sum.get(..12).unwrap_or(sum).to_owned();
                ("changed", format!("changed: SHA-256 {}.., written as {}..", short(found), short(listed)))
            }
            SumFinding::Missing { .. } => ("missing", "missing: it is listed in SHA256SUMS".to_owned()),
            SumFinding::Unlisted { .. } => ("unlisted", "not listed in SHA256SUMS".to_owned()),
            SumFinding::Unreadable { line, .. } => {
                ("unreadable", format!("line {line} is not a sum and a path of its own"))
            }
        };
        let path = finding.path();
        let detail = json!({ "run_id": run, "path": path, "problem": problem });
        Self::new(Kind::Raw, format!("{run}/{path}"), says, detail)
    }

    /// A run whose rows cannot be computed.
    pub(super) fn run(path: &Path, error: &CliError) -> Self {
        let about = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let detail = json!({ "run_id": about, "problem": "unreadable" });
        Self::new(Kind::Run, about, format!("its rows cannot be computed: {error}"), detail)
    }

    /// A figure of the stored table that is not what raw files give.
    pub(super) fn row(difference: RowDifference) -> Self {
        let RowDifference { run_id, cell, metric, scope, stat, what } = difference;
        let mut detail = json!({
            "run_id": run_id, "cell": cell, "metric": metric, "scope": scope, "stat": stat,
        });
        let shown = |text: &str| if text.is_empty() { "empty".to_owned() } else { format!("\"{text}\"") };
        let (says, more) = match &what {
            RowChange::Field { column, stored, recomputed } => (
                format!("{column} is {}, recomputed {}", shown(stored), shown(recomputed)),
                json!({ "problem": "changed", "column": column, "stored": stored, "recomputed": recomputed }),
            ),
            RowChange::Missing => ("missing in unified.csv".to_owned(), json!({ "problem": "missing" })),
            RowChange::Extra => {
                ("in unified.csv, but raw files do not give it".to_owned(), json!({ "problem": "extra" }))
            }
        };
        if let (Some(detail), Value::Object(more)) = (detail.as_object_mut(), more) {
            detail.extend(more);
        }
        let figure =
            [metric, scope, stat].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join(" ");
        Self::new(Kind::Row, format!("{run_id}: {cell}: {figure}"), says, detail)
    }

    /// A stored table that cannot be compared row by row.
    pub(super) fn table(path: &Path, problem: String) -> Self {
        Self::derived(path, problem, json!({ "problem": "unreadable" }))
    }

    /// A derived file that differs.
    pub(super) fn file(path: &Path, at: Place) -> Self {
        match at {
            Place::Line { line, stored, expected } => {
                let shown = |text: Option<&str>| match text {
                    Some(text) => format!("`{text}`"),
                    None => "nothing".to_owned(),
                };
                let says = format!(
                    "line {line} is {}, expected {}",
                    shown(stored.as_deref()),
                    shown(expected.as_deref())
                );
                let detail = json!({
                    "problem": "changed", "line": line, "stored": stored, "expected": expected,
                });
                Self::derived(path, says, detail)
            }
            Place::Offset(offset) => {
                let says = format!("differs from byte {offset} on");
                Self::derived(path, says, json!({ "problem": "changed", "offset": offset }))
            }
        }
    }

    /// A derived file that is not there.
    pub(super) fn absent(path: &Path) -> Self {
        let says = "missing: `ossbench report` writes it".to_owned();
        Self::derived(path, says, json!({ "problem": "missing" }))
    }

    fn derived(path: &Path, says: String, mut detail: Value) -> Self {
        let about = path.display().to_string();
        detail["path"] = Value::from(about.clone());
        Self::new(Kind::File, about, says, detail)
    }

    fn new(kind: Kind, about: String, says: String, detail: Value) -> Self {
        let detail = match detail {
            Value::Object(map) => map,
            other => Map::from_iter([("detail".to_owned(), other)]),
        };
        Self { kind, about, says, detail }
    }
}

impl Findings {
    pub(super) fn print(&self, format: Format, io: &mut Io<'_>) -> Result<(), CliError> {
        match format {
            Format::Json => writeln!(io.out, "{:#}", self.json())?,
            _ => write!(io.out, "{}", self.text())?,
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let run = |checked: &Checked| {
            json!({
                "run_id": checked.run,
                "sums": checked.sums.is_some(),
                "raw_files": checked.sums.map(|s| s.0),
                "raw_bytes": checked.sums.map(|s| s.1),
            })
        };
        let finding = |finding: &Finding| {
            let mut all = Map::from_iter([("kind".to_owned(), Value::from(finding.kind.key()))]);
            all.extend(finding.detail.clone());
            all.insert("message".to_owned(), Value::from(format!("{}: {}", finding.about, finding.says)));
            Value::Object(all)
        };
        json!({
            "equal": self.all.is_empty(),
            "runs": self.runs.iter().map(run).collect::<Vec<_>>(),
            "rows": self.rows,
            "files": self.files,
            "findings": self.all.iter().map(finding).collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> String {
        let mut lines = Vec::new();
        for Checked { run, sums } in &self.runs {
            lines.push(match sums {
                Some((files, bytes)) => format!("raw   {run}: {files} files, {bytes} bytes held against their sums"),
                None => format!(
                    "raw   {run}: an earlier version wrote it without SHA256SUMS; its raw files cannot be checked, \
                     the rest is"
                ),
            });
        }
        lines.push(format!("rows  {} recomputed from raw files", self.rows));
        lines.push(format!("files {} derived files made again", self.files));
        for kind in Kind::ALL {
            let own: Vec<_> = self.all.iter().filter(|f| f.kind == kind).collect();
            lines
                .extend(own.iter().take(SHOWN).map(|f| format!("{:<5} {}: {}", kind.key(), f.about, f.says)));
            if own.len() > SHOWN {
                lines.push(format!(
                    "{:<5} and {} more; all with --output json",
                    kind.key(),
                    own.len() - SHOWN
                ));
            }
        }
        lines.push(if self.all.is_empty() { "equal".to_owned() } else { "not equal".to_owned() });
        lines.join("\n") + "\n"
    }
}
