//! Integration tests.

// Tests print the largest differences that they found.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod ablate;
mod ape;
mod audit;
mod checkpoint;
mod cli;
mod cli_http;
mod compare;
mod cpu;
mod cuda;
mod cuda_choice;
mod cuda_failures;
mod cuda_memory;
mod cuda_products;
mod cuda_run;
mod cuda_split;
mod energy;
mod fidelity;
mod golden_model;
mod golden_units;
mod hostile;
mod html;
mod hub;
mod latency;
mod llama;
mod packed_cache;
mod presets;
mod real_layout;
mod report;
mod report_views;
mod resume;
mod runner;
mod safety;
mod study_tables;
mod text;
mod text_prompt;
mod verify;
