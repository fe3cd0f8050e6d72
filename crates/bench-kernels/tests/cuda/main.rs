//! The CUDA kernels' own source, run on the CPU, against plain arithmetic: see `crates/cuda-stub`.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

mod attention;
mod emulator;
mod panel;
mod route;
mod suite;
mod tiles;
mod vectors;
