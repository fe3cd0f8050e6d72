//! Integration tests.

#![allow(clippy::unwrap_used)]

mod checkpoint;
mod report;
mod resume;
mod runner;
mod text;
mod text_prompt;
