//! A `libcuda.so.1` that runs the project's CUDA kernels on the CPU: the kernels' own source, compiled for
//! the host.
//!
//! Threads of a block are fibers; barriers, operations of a warp and tensor-core products mean what they mean
//! on a GPU. As a cdylib it offers the functions of the CUDA driver that the project calls, as a script lets
//! them behave; as an rlib it gives the emulator itself, the script's types, and ways to load the library.
//! Nothing here is fast, and nothing is shown about time.

#![allow(unsafe_code)]

mod driver;
pub mod emulate;
mod ffi;
mod install;
mod memory;
mod script;

pub use install::{Loaded, SCRIPT_VARIABLE, install, library, preload};
pub use script::{Device, Failure, Report, Script, code};
