//! Integration tests.

#![allow(clippy::unwrap_used)]

mod checkpoint;
mod text;
mod text_prompt;
