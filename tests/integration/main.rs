//! Integration tests.

#![allow(clippy::unwrap_used)]

mod checkpoint;
mod cli;
mod golden_model;
mod golden_units;
mod hostile;
mod latency;
mod presets;
mod report;
mod resume;
mod runner;
mod text;
mod text_prompt;
