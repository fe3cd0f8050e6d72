//! The kernels at the shapes of a model that is known by name: its sizes, and whether memory is there for them.
//!
//! The measuring itself is in the kernels' crate. No model is built, and no weights are read.

pub use bench_kernels::bandwidth::HostBandwidth;
pub use bench_kernels::peaks::Peak;
pub use bench_kernels::suite::{Bound, KernelTime, Line, Roofs};

use std::path::Path;
use std::sync::Arc;

use bench_kernels::pool::{Pool, PoolOptions};
use bench_kernels::suite::{self, Experts, Shapes, SuiteError, SuiteOptions};
use bench_kernels::{Exec, Variant};

use super::bandwidth::{array_bytes, cache_bytes};
use crate::Error;
use crate::config::ModelConfig;
use crate::preflight::gib;
use crate::preset;

/// What is measured, and on what.
#[derive(Debug, Clone)]
pub struct KernelOptions {
    /// A preset's name.
    pub model: String,
    /// `None`: one for each core.
    pub threads: Option<usize>,
    pub pin: bool,
    pub seconds_per_kernel: f64,
    /// Part of the names of the kernels to measure; `None`: all.
    pub filter: Option<String>,
}

/// What was found.
#[derive(Debug, Clone)]
pub struct KernelFindings {
    pub variant: &'static str,
    pub threads: usize,
    pub roofs: Roofs,
    pub lines: Vec<Line>,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum KernelsError {
    #[error(transparent)]
    Model(#[from] Error),
    #[error(transparent)]
    Suite(#[from] SuiteError),
    #[error(transparent)]
    Threads(#[from] bench_kernels::Error),
    #[error("memory for the weights of the kernels: {0}")]
    Memory(String),
    #[error(transparent)]
    Gpu(#[from] bench_kernels::cuda::GpuError),
}

impl KernelsError {
    /// Whether other arguments would help.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Threads(_)
                | Self::Suite(SuiteError::Filter { .. })
                | Self::Model(Error::UnknownPreset { .. })
        )
    }
}

/// Measures the roofs of this machine and then each kernel. `done` is told the roofs and each kernel as soon as they
/// are there.
///
/// # Errors
/// An unknown preset or filter, threads that cannot be started, too little memory.
pub fn kernels(
    options: &KernelOptions,
    mut done: impl FnMut(&Roofs, Option<&Line>),
) -> Result<KernelFindings, KernelsError> {
    let shapes = shapes(&preset::config(&options.model)?);
    let available = super::available_memory();
    let set_bytes = array_bytes(cache_bytes(Path::new("/")), available).map_err(KernelsError::Memory)?;
    let suite = SuiteOptions {
        seconds_per_kernel: options.seconds_per_kernel,
        set_bytes: set_bytes as usize,
        filter: options.filter.clone(),
    };
    check_memory(suite::needed_bytes(&shapes, &suite)?, available)?;
    let pool = Pool::new(PoolOptions { threads: options.threads, pin: options.pin })?;
    let _pinned = pool.pin_caller()?;
    let exec = Exec::new(Variant::active(), Arc::new(pool));
    let roofs = Roofs::measure(&exec, suite.set_bytes)?;
    done(&roofs, None);
    let lines = suite::run(&exec, &shapes, &suite, |line| done(&roofs, Some(line)))?;
    Ok(KernelFindings { variant: exec.variant().name(), threads: exec.threads(), roofs, lines })
}

/// What kernels see of a model.
pub(super) fn shapes(config: &ModelConfig) -> Shapes {
    Shapes {
        hidden: config.hidden_size,
        intermediate: config.intermediate_size,
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        window: config.sliding_window,
        experts: config
            .moe
            .as_ref()
            .map(|moe| Experts { count: moe.num_local_experts, per_token: moe.num_experts_per_tok }),
    }
}

fn check_memory(needed: u64, available: Option<u64>) -> Result<(), KernelsError> {
    match available {
        Some(available) if available < needed => Err(KernelsError::Memory(format!(
            "{} are needed, {} are available; free some, or choose smaller kernels with a filter",
            gib(needed),
            gib(available)
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_those_of_the_preset() {
        let moe = shapes(&preset::config("gpt-oss-20b").unwrap());
        assert_eq!((moe.hidden, moe.intermediate, moe.heads, moe.kv_heads), (2880, 2880, 64, 8));
        assert_eq!(
            (moe.head_dim, moe.window, moe.experts),
            (64, Some(128), Some(Experts { count: 32, per_token: 4 }))
        );
        let dense = shapes(&preset::config("qwen3-32b").unwrap());
        assert_eq!((dense.hidden, dense.window, dense.experts), (5120, None, None));
    }

    #[test]
    fn too_little_memory_is_told_with_both_sizes() {
        assert!(check_memory(1 << 30, None).is_ok() && check_memory(5, Some(5)).is_ok());
        let error = check_memory(3 << 30, Some(1 << 30)).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&gib(3 << 30)) && text.contains(&gib(1 << 30)) && text.contains("filter"),
            "{text}"
        );
        assert!(!error.is_usage());
    }
}
