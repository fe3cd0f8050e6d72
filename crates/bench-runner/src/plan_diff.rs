//! Which part of a plan differs from another: the text of the error that refuses a resume.

use bench_core::plan::Plan;
use serde_json::Value;
use std::fmt::Write as _;

/// At most this many differences are listed.
const LISTED: usize = 4;

/// `repeats: 20 before, 10 now; target.threads: null before, 2 now; and 3 more`.
pub(crate) fn describe(stored: &Plan, given: &Plan) -> String {
    let value = |plan| serde_json::to_value(plan).unwrap_or_default();
    let mut found = Vec::new();
    compare("", &value(stored), &value(given), &mut found);
    // Cells and trials follow from the settings; they say more only when no setting differs.
    let (derived, settings): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|d| d.starts_with("cells") || d.starts_with("trials"));
    let shown = if settings.is_empty() { derived } else { settings };
    let more = shown.len().saturating_sub(LISTED);
    let mut text = shown.into_iter().take(LISTED).collect::<Vec<_>>().join("; ");
    if more > 0 {
        let _ = write!(text, "; and {more} more");
    }
    text
}

fn compare(path: &str, stored: &Value, given: &Value, found: &mut Vec<String>) {
    match (stored, given) {
        (Value::Object(a), Value::Object(b)) => {
            let mut keys: Vec<_> = a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))).collect();
            keys.dedup();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(&path, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&format!("{path}[{i}]"), a, b, found);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            found.push(format!("{path}: {} entries before, {} now", a.len(), b.len()));
        }
        (a, b) if a != b => found.push(format!("{path}: {a} before, {b} now")),
        _ => {}
    }
}
