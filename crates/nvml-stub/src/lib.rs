//! A `libnvidia-ml.so` that replays a script, so that the power probe is tested through the real FFI without
//! a GPU.
//!
//! As a cdylib it offers the C symbols that `nvml-wrapper` loads, and answers from `<its own path>.json`;
//! each test copies it under a name of its own and so has an instance of its own. As an rlib it gives the
//! script's types and the copying. It knows no benchmark, and nothing that is shipped depends on it.
#![allow(unsafe_code)]

mod ffi;
mod install;
mod replay;
mod script;

pub use install::{install, library};
pub use script::{Device, Energy, Failure, Instant, Process, Script, TimeAxis, Wave, code};
