//! Power and energy: what draws how much while a trial runs, and the joules of windows.
//!
//! `probe` reads meters on a thread of its own and hands over raw samples on the run's clock. It computes no
//! joule and knows no request; `analysis` does, from recorded traces, and touches no device.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod analysis;
mod error;
pub mod probe;

pub use analysis::{Analysis, Analyzed, Code};
pub use error::Error;
pub use probe::{Opened, open};
