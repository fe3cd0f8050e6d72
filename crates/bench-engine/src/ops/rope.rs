//! Rotation of queries and keys by their positions.

use bench_kernels::rope::rotate_halves;

use crate::error::Result;
use crate::ops::kernel_error;

/// Cosines and sines of the tokens of one forward pass, each `[T, head_dim / 2]`.
#[derive(Debug, Default)]
pub(crate) struct Angles {
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
}

impl Angles {
    /// Rotates x `[T, heads, head_dim]` in place; rounds as bf16 arithmetic does if asked to.
    pub(crate) fn rotate(
        &self,
        exec: &bench_kernels::Exec,
        x: &mut [f32],
        heads: usize,
        head_dim: usize,
        bf16: bool,
    ) -> Result<()> {
        rotate_halves(exec, x, &self.cos, &self.sin, heads, head_dim, bf16).map_err(kernel_error("rope"))
    }
}
