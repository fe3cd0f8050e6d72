//! Kernels for NVIDIA GPUs: for each, its arguments, how it is launched, and a check against plain arithmetic.
//!
//! The device code stands in `crates/bench-kernels/cuda`. Everything here works on addresses of device memory and on any
//! [`Gpu`]; nothing allocates or waits but the checks.

pub mod attention;
pub mod check;
#[cfg(feature = "cuda")]
pub mod device;
mod device_error;
mod gpu;
pub mod panel;
pub mod route;
pub mod suite;
pub mod tiles;
pub mod vectors;

pub use check::CheckRow;
pub use device_error::{CudaVersion, DeviceError, OLDEST_CAPABILITY, OLDEST_DRIVER};
pub use gpu::{Gpu, GpuError, Memory};

/// Flags of kernels: results are rounded to bf16 where the engine rounds.
pub const BF16: u32 = 1;
/// The norm rounds before it multiplies by its weight.
pub const ROUND_FIRST: u32 = 2;
/// Gate and up are clamped, as gpt-oss has it.
pub const CLAMPED: u32 = 4;
