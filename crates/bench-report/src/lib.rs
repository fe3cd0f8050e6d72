//! Rows of finished runs to CSV, figures and tables.
//!
//! The last stage of the line: it sees rows and nothing before them, neither raw events nor a target. What it
//! writes is a view: made again from the same rows it has the same bytes, whatever their order.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
mod figure;
mod file;
mod grid;
mod latex;
mod load;
mod order;
mod rebuild;
mod round;
mod study;
mod table;
pub mod unified;
mod view;
mod wide;

pub use error::Error;
pub use rebuild::{ReportFiles, ReportInputs, ReportPaths, RunInput, latest, rebuild, write_csv};
pub use table::{Format, render};

/// Name of a study as part of a file name or label: letters, digits, `.`, `-`.
fn file_stem(study_name: &str) -> String {
    study_name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect()
}
