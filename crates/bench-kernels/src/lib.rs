//! Numeric kernels on host memory: slices in, slices out.
//!
//! This is the only crate with `unsafe` code. It knows neither tensors nor models; the engine's ops call it and
//! decide where activations are rounded.

#![allow(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod host;
