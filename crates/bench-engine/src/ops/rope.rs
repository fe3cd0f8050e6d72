//! Rotation of queries and keys by their positions.

use bench_kernels::rope::rotate_halves;
use candle_core::{DType, Tensor};

use crate::error::Result;
use crate::ops::{from_f32, kernel_error, round_bf16, to_f32};

/// Cosines and sines of the tokens of one forward pass, each `[T, head_dim / 2]`.
pub(crate) struct Angles {
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
}

impl Angles {
    /// x `[T, heads, head_dim]`, rotated; x itself is freed.
    pub(crate) fn rotate(&self, x: Tensor) -> Result<Tensor> {
        let ((tokens, heads, head_dim), dtype) = (x.dims3()?, x.dtype());
        let mut values = to_f32("rope", &x)?;
        drop(x);
        let rotated = match dtype {
            DType::BF16 => rotate_halves(&mut values, &self.cos, &self.sin, heads, head_dim, round_bf16),
            _ => rotate_halves(&mut values, &self.cos, &self.sin, heads, head_dim, |v| v),
        };
        rotated.map_err(kernel_error("rope"))?;
        from_f32(values, &[tokens, heads, head_dim], dtype)
    }
}
