//! Published tables held against their own arithmetic and against physics.
//!
//! Texts of CSV files and column maps come in, findings go out: each names its rule, the cells, what was
//! published and what it should have been where that can be computed. No file is opened here, and the sizes
//! of models are asked of the caller. What a table cannot show is listed as not checkable, never claimed.

mod book;
mod error;
mod finding;
mod formula;
mod map;
mod rules;
mod text;
mod value;

pub use book::{Book, KvBytes, ModelSizes, Physics, Sheet};
pub use error::Error;
pub use finding::{CellRef, Corrected, Finding, Rule, Severity};
pub use map::{BUILT_IN, ColumnMap};
pub use text::render;
pub use value::Table;

/// What an audit found in all its tables.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Audit {
    /// Each table that was read: file, name of its map, rows.
    pub tables: Vec<Audited>,
    pub findings: Vec<Finding>,
    /// Rules that had something to look at.
    pub rules_applied: Vec<&'static str>,
    /// What these tables cannot show, and what would be needed.
    pub not_checkable: Vec<String>,
}

/// A table that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Audited {
    pub file: String,
    /// Name of the column map.
    pub map: String,
    pub about: String,
    pub rows: usize,
    /// Fields and rows that could not be used, each with file, line and reason.
    pub problems: Vec<String>,
}

/// Applies every rule to all tables together: some compare tables with each other.
pub fn audit(book: &Book<'_>) -> Audit {
    let mut audit = Audit {
        tables: book.sheets.iter().map(Sheet::audited).collect(),
        not_checkable: rules::not_checkable(book),
        ..Audit::default()
    };
    for (rules, check) in rules::ALL {
        if let Some(findings) = check(book) {
            audit.rules_applied.extend(rules.iter().map(|rule| rule.id));
            audit.findings.extend(findings);
        }
    }
    let place = |f: &Finding| book.sheets.iter().position(|sheet| sheet.is_of(&f.file));
    audit
        .findings
        .sort_by_key(|f| (f.rule.study_error.unwrap_or(u8::MAX), f.rule.severity, f.rule.id, place(f)));
    audit
}
