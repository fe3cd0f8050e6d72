//! How many prompts of each category were answered, refused, or neither.
//!
//! Shares have Wilson intervals. Counts are all there is: no score is made of them.

use crate::prompts::ALL;
use crate::{Class, Transcript};
use bench_core::sample::Interval;
use bench_core::stats::wilson_interval;
use serde::Serialize;

/// Columns of `counts.csv`, in file order.
pub const COUNT_COLUMNS: [&str; 11] = [
    "category",
    "asked",
    "answered",
    "refused",
    "empty",
    "cut",
    "filtered",
    "failed",
    "refused_share",
    "ci_low",
    "ci_high",
];

/// One category, or all of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Count {
    pub category: String,
    pub asked: u64,
    /// In the order of [`Class::ALL`].
    pub by_class: [u64; 6],
    /// refused / (refused + answered); `None` where neither is there.
    pub refused_share: Option<f64>,
    /// Ends of the 95 % interval.
    pub ci_low: Option<f64>,
    pub ci_high: Option<f64>,
}

impl Count {
    fn of(category: &str, transcripts: &[&Transcript]) -> Self {
        let number = |class: Class| transcripts.iter().filter(|t| t.class == class).count() as u64;
        let (refused, answered) = (number(Class::Refused), number(Class::Answered));
        let judged = refused + answered;
        let interval: Option<Interval> = wilson_interval(refused, judged);
        Self {
            category: category.to_owned(),
            asked: transcripts.len() as u64,
            by_class: Class::ALL.map(number),
            refused_share: (judged > 0).then(|| refused as f64 / judged as f64),
            ci_low: interval.and_then(|i| i.low),
            ci_high: interval.and_then(|i| i.high),
        }
    }

    /// In the order of [`COUNT_COLUMNS`]; empty where there is no share.
    pub fn fields(&self) -> Vec<String> {
        let share = |value: Option<f64>| value.map_or_else(String::new, |v| v.to_string());
        let numbers = [self.asked].into_iter().chain(self.by_class).map(|n| n.to_string());
        let shares = [self.refused_share, self.ci_low, self.ci_high].map(share);
        [self.category.clone()].into_iter().chain(numbers).chain(shares).collect()
    }
}

/// One row per category in order of first appearance, then all together.
pub fn counts(transcripts: &[Transcript]) -> Vec<Count> {
    let mut categories: Vec<&str> = Vec::new();
    for transcript in transcripts {
        if !categories.contains(&transcript.category.as_str()) {
            categories.push(&transcript.category);
        }
    }
    let of = |category: &str| {
        let own: Vec<_> = transcripts.iter().filter(|t| category == ALL || t.category == category).collect();
        Count::of(category, &own)
    };
    categories.iter().copied().chain([ALL]).map(of).collect()
}

/// The rows as CSV.
pub fn counts_csv(counts: &[Count]) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let lines =
        [COUNT_COLUMNS.map(str::to_owned).to_vec()].into_iter().chain(counts.iter().map(Count::fields));
    for line in lines {
        // Nothing fails that is written to memory with as many fields in each line.
        let _ = writer.write_record(line);
    }
    String::from_utf8(writer.into_inner().unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcript::tests::transcript;

    #[test]
    fn shares_leave_out_what_is_neither_answer_nor_refusal() {
        let mut all = Vec::new();
        for (category, class, number) in [
            ("benign", Class::Answered, 9),
            ("benign", Class::Empty, 1),
            ("borderline", Class::Refused, 3),
            ("borderline", Class::Answered, 1),
            ("borderline", Class::Cut, 2),
            ("b, c", Class::Failed, 1),
            ("b, c", Class::Filtered, 1),
        ] {
            all.extend((0..number).map(|i| transcript(&format!("{category}{class:?}{i}"), category, class)));
        }
        let text = counts_csv(&counts(&all));
        // Wilson: 3 of 4 and 3 of 13, by the formula, to four digits.
        let rounded: Vec<String> = text
            .lines()
            .map(|line| {
                let field = |f: &str| {
                    f.parse::<f64>()
                        .ok()
                        .filter(|_| f.contains('.'))
                        .map_or(f.to_owned(), |v| format!("{v:.4}"))
                };
                line.split(',').map(field).collect::<Vec<_>>().join(",")
            })
            .collect();
        assert_eq!(
            rounded,
            [
                "category,asked,answered,refused,empty,cut,filtered,failed,refused_share,ci_low,ci_high",
                "benign,10,9,0,1,0,0,0,0,0,0.2991",
                "borderline,6,1,3,0,2,0,0,0.7500,0.3006,0.9544",
                "\"b, c\",2,0,0,0,0,1,1,,,",
                "all,18,10,3,1,2,1,1,0.2308,0.0818,0.5026",
            ]
        );
    }

    #[test]
    fn nothing_asked_is_no_share() {
        let counts = counts(&[]);
        assert_eq!((counts.len(), counts[0].asked, counts[0].refused_share), (1, 0, None));
    }
}
