//! Why no power can be read where it was asked for, each with what to try.
//!
//! A reading that fails later is no error: it is a sample without a value.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no GPU power: NVML library \"{library}\": {reason}")]
    Nvml { library: String, reason: String },
    #[error("no GPU {index}: NVML knows {known}; choose among them with energy.gpus")]
    Gpu { index: u32, known: String },
    #[error("no CPU power: {}: {reason}", root.display())]
    Rapl { root: PathBuf, reason: String },
    #[error("power trace \"{}\": {reason}", path.display())]
    Trace { path: PathBuf, reason: String },
}
