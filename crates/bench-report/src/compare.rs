//! Two sides held against each other, cell by cell: which change counts, which gate fails, and the table of
//! it.
//!
//! The numbers come from `bench_core::stats`; here p-values are corrected for all of them, directions get
//! their meaning from the metric, and nothing that one side lacks is dropped. No samples and no files are
//! seen.

mod text;

pub use text::render_comparisons;

use bench_core::metric::{Better, Metric};
use bench_core::plan::Cell;
use bench_core::stats::{ALPHA, Change, Comparison, holm};

/// What cells of two runs are matched by.
#[derive(Debug, Clone, PartialEq)]
pub struct CellKey {
    pub model: String,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
    pub batch: u32,
    /// The `load` column.
    pub load: String,
    pub concurrency: Option<u32>,
    pub request_rate: Option<f64>,
}

impl CellKey {
    /// What its rows say of a cell.
    pub fn of(cell: &Cell) -> Self {
        Self {
            model: cell.model.clone(),
            prompt_tokens: cell.prompt_tokens,
            output_tokens: cell.output_tokens,
            batch: cell.batch,
            load: cell.load.key(),
            concurrency: cell.load.concurrency(),
            request_rate: cell.load.rate(),
        }
    }
}

/// One figure of one cell on both sides.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    pub cell: CellKey,
    pub metric: Metric,
    /// Empty where the metric has one scope only.
    pub scope: String,
    /// The statistic: `p50`, `mean`, `value`.
    pub stat: String,
    /// Why there is none where there is none.
    pub comparison: Result<Comparison, String>,
    /// Why the cell is INVALID, each with its side; empty where it is valid on both.
    pub invalid: Vec<String>,
    /// What must be known to read the line.
    pub notes: Vec<String>,
}

/// A limit that a metric must not get worse by.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    pub metric: Metric,
    pub stat: String,
    /// As a share of A: 0.05.
    pub limit: f64,
}

/// Everything that was compared.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Comparisons {
    /// Run ids of each side.
    pub a: Vec<String>,
    pub b: Vec<String>,
    pub notes: Vec<String>,
    /// Cells that the other side lacks.
    pub only_a: Vec<CellKey>,
    pub only_b: Vec<CellKey>,
    pub lines: Vec<Compared>,
    /// Ratios whose interval lies within this share of 0 are called equal.
    pub margin: Option<f64>,
    pub gates: Vec<Gate>,
}

/// What one line comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Improved,
    Regressed,
    /// Of a metric of which neither direction is better.
    Changed,
    NoChange,
    /// Too few runs, rounds or repeats to show any change.
    NotTested,
    /// INVALID on a side: not to be believed, and not counted.
    Invalid,
    /// One side has no figure.
    Missing,
}

impl Outcome {
    /// As it is written in tables.
    pub fn key(self) -> &'static str {
        match self {
            Self::Improved => "improved",
            Self::Regressed => "regressed",
            Self::Changed => "changed",
            Self::NoChange => "no change",
            Self::NotTested => "not tested",
            Self::Invalid => "INVALID",
            Self::Missing => "missing",
        }
    }
}

/// A line with what it comes to.
#[derive(Debug, Clone)]
pub struct Judged<'a> {
    pub line: &'a Compared,
    /// Corrected for all tests of valid cells.
    pub p_corrected: Option<f64>,
    pub outcome: Outcome,
    /// The interval of the ratio lies within the margin; `None` where that is not asked or cannot be said.
    pub equal: Option<bool>,
}

impl Comparisons {
    /// Corrects the p-values of all lines of valid cells by Holm, and says what each line comes to.
    pub fn judged(&self) -> Vec<Judged<'_>> {
        let p = |line: &Compared| line.tested().and_then(|c| c.p);
        let mut corrected = holm(&self.lines.iter().filter_map(p).collect::<Vec<_>>()).into_iter();
        let judge = |line| {
            let p_corrected = p(line).and_then(|_| corrected.next());
            let margin = self.margin.and_then(|m| line.tested()?.equal_within(m));
            Judged { line, p_corrected, outcome: line.outcome(p_corrected), equal: margin }
        };
        self.lines.iter().map(judge).collect()
    }

    /// Why gates fail, one text for each reason; empty where none does.
    ///
    /// A gate fails where its metric regressed after correction and is worse by more than the limit as
    /// estimated; and where that cannot be said: the cell is INVALID or missing in B, has no figure, or too
    /// few units. Cells that only B has fail no gate.
    pub fn failed_gates(&self) -> Vec<String> {
        let judged = self.judged();
        let mut reasons = Vec::new();
        for gate in &self.gates {
            let name = format!("{} {}", gate.metric.def().key, gate.stat);
            let own = judged.iter().filter(|j| j.line.metric == gate.metric && j.line.stat == gate.stat);
            let before = reasons.len();
            let mut seen = 0;
            for judged in own {
                seen += 1;
                let reason = judged.fails(gate.limit);
                reasons.extend(reason.map(|why| format!("{name}, {}: {why}", judged.line.place())));
            }
            for cell in &self.only_a {
                reasons.push(format!("{name}, {}: missing in B", text::cell(cell)));
            }
            if seen == 0 && reasons.len() == before {
                reasons.push(format!("{name}: in no cell of both sides, nothing was held against the limit"));
            }
        }
        reasons
    }
}

impl Compared {
    /// The comparison, where the cell is valid.
    fn tested(&self) -> Option<&Comparison> {
        self.comparison.as_ref().ok().filter(|_| self.invalid.is_empty())
    }

    fn place(&self) -> String {
        let scope = if self.scope.is_empty() { String::new() } else { format!(", {}", self.scope) };
        format!("{}{scope}", text::cell(&self.cell))
    }

    fn outcome(&self, corrected: Option<f64>) -> Outcome {
        if !self.invalid.is_empty() {
            return Outcome::Invalid;
        }
        let Ok(comparison) = &self.comparison else { return Outcome::Missing };
        match (comparison.change(corrected), self.metric.def().better) {
            (Change::None, _) => Outcome::NoChange,
            (Change::Unknown, _) => Outcome::NotTested,
            (_, Better::Neutral) => Outcome::Changed,
            (Change::Lower, Better::Lower) | (Change::Higher, Better::Higher) => Outcome::Improved,
            (Change::Lower, Better::Higher) | (Change::Higher, Better::Lower) => Outcome::Regressed,
        }
    }
}

impl Judged<'_> {
    fn fails(&self, limit: f64) -> Option<String> {
        let percent = text::percent;
        let c = match (&self.line.comparison, self.outcome) {
            (_, Outcome::Invalid) => {
                return Some(format!("INVALID, cannot be judged: {}", self.line.invalid.join("; ")));
            }
            (Err(why), _) => return Some(format!("cannot be judged: {why}")),
            (Ok(c), Outcome::NotTested) => {
                return Some(format!("cannot be judged: {}", text::too_few(c)));
            }
            (Ok(c), Outcome::Regressed) => c,
            (Ok(_), _) => return None,
        };
        let p = self.p_corrected.map_or_else(String::new, |p| format!(", corrected p {}", text::p_value(p)));
        let Some(ratio) = c.ratio else {
            return Some(format!("regressed from {}{p}; of that there is no percentage", c.a.figure.value));
        };
        let worse = match self.line.metric.def().better {
            Better::Higher => -ratio.value,
            _ => ratio.value,
        };
        let end = |end: Option<f64>| end.map_or_else(|| "-".to_owned(), percent);
        (worse > limit).then(|| {
            format!(
                "regressed by {} [{}, {}], the limit is {}{p}",
                percent(ratio.value),
                end(ratio.low),
                end(ratio.high),
                text::plain_percent(limit)
            )
        })
    }
}

/// How many lines came to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub tested: usize,
    pub improved: usize,
    pub regressed: usize,
    pub changed: usize,
    pub no_change: usize,
    pub not_tested: usize,
    pub invalid: usize,
    pub missing: usize,
}

impl Counts {
    pub fn of(judged: &[Judged<'_>]) -> Self {
        let count = |outcome| judged.iter().filter(|j| j.outcome == outcome).count();
        Self {
            tested: judged.iter().filter(|j| j.p_corrected.is_some()).count(),
            improved: count(Outcome::Improved),
            regressed: count(Outcome::Regressed),
            changed: count(Outcome::Changed),
            no_change: count(Outcome::NoChange),
            not_tested: count(Outcome::NotTested),
            invalid: count(Outcome::Invalid),
            missing: count(Outcome::Missing),
        }
    }
}

/// The family-wise error of the verdicts, in percent.
pub(crate) const FAMILY_PERCENT: f64 = ALPHA * 100.0;
