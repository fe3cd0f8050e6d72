//! Rows of finished runs to CSV, figures and tables.
//!
//! The last stage of the line: it sees rows and nothing before them, neither raw events nor a target. What it
//! writes is a view: made again from the same rows it has the same bytes, whatever their order.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod audit;
mod cell;
mod compare;
mod error;
mod figure;
mod file;
mod grid;
mod html;
mod latex;
mod load;
mod numbers;
mod order;
mod rebuild;
mod round;
mod study;
mod table;
pub mod unified;
pub mod verify;
mod view;
mod wide;

pub use compare::{CellKey, Compared, Comparisons, Counts, Gate, Judged, Outcome, render_comparisons};
pub use error::Error;
pub use rebuild::{ReportFiles, ReportInputs, ReportPaths, RunInput, latest, rebuild, write_csv};
pub use table::{Format, render};

/// Name of a study as part of a file name or label: letters, digits, `.`, `-`.
fn file_stem(study_name: &str) -> String {
    study_name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect()
}
