//! Numeric kernels on host memory: slices in, slices out.
//!
//! This is the only crate with `unsafe` code. It knows neither tensors nor models; the engine's ops call it and
//! decide where activations are rounded.

#![allow(unsafe_code)]
// Bodies must end up inside the function that enables their instructions; otherwise each intrinsic is a call.
#![allow(clippy::inline_always)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod activation;
pub mod attention;
pub mod bandwidth;
pub mod cuda;
pub mod draw;
pub mod error;
pub mod exec;
pub mod heap;
pub mod host;
mod lanes;
mod math;
pub mod matmul;
pub mod mxfp4;
pub mod norm;
pub mod packed;
pub mod peaks;
mod pieces;
pub mod pool;
pub mod product;
pub mod rope;
pub mod route;
pub mod rows;
mod scratch;
mod shared;
pub mod suite;
pub mod variant;
pub mod vectors;
pub mod weights;

pub use error::{Error, Result};
pub use exec::Exec;
pub use variant::Variant;
