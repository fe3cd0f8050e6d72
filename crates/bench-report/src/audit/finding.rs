//! What a rule says: which cells, what they hold, what they should hold.

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// A published number is wrong, or is not what it is called.
    Error,
    /// A number is right but misleads, or two cells do not fit together.
    Warning,
    /// A name or a rounding.
    Note,
}

impl Severity {
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// A rule that tables are held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub id: &'static str,
    pub severity: Severity,
    /// Which of the six errors of arXiv 2508.16700 it is about.
    pub study_error: Option<u8>,
    /// What is wrong, in one line.
    pub title: &'static str,
}

/// One rule broken in one file.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    pub rule: &'static Rule,
    pub file: String,
    pub sentence: String,
    pub cells: Vec<CellRef>,
}

/// A cell of a published table.
#[derive(Debug, Clone, PartialEq)]
pub struct CellRef {
    /// Counted from 1, the header's line included.
    pub line: u64,
    pub column: String,
    /// Model and lengths, `gpt-oss-20b 2048+64`.
    pub label: String,
    pub published: Option<f64>,
    pub unit: &'static str,
    pub corrected: Vec<Corrected>,
}

/// What a cell should hold, or what it is held against.
#[derive(Debug, Clone, PartialEq)]
pub struct Corrected {
    pub name: &'static str,
    pub value: f64,
    pub unit: &'static str,
}

impl CellRef {
    /// Adds a corrected value, where there is one.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: Option<f64>, unit: &'static str) -> Self {
        self.corrected.extend(value.map(|value| Corrected { name, value, unit }));
        self
    }
}
