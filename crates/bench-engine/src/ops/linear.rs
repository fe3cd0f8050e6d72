//! Products with weights as the checkpoint stores them, and the rows of an embedding table.

use bench_kernels::matmul::{Bf16Matrix, F32Matrix, Weights, matmul};
use candle_core::{DType, Tensor};

use crate::error::Result;
use crate::ops::{from_f32, kernel_error, with_f32};
use crate::weights::{HostTensor, TensorDtype};

/// A matrix `[rows, cols]` = `[out, in]` in f32 or bf16.
#[derive(Clone)]
pub(crate) struct Matrix {
    tensor: HostTensor,
    rows: usize,
    cols: usize,
}

impl Matrix {
    /// `tensor` has rank 2 and dtype f32 or bf16.
    pub(crate) fn new(tensor: HostTensor) -> Self {
        let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
        Self { tensor, rows, cols }
    }

    fn weights(&self) -> Result<Weights<'_>> {
        let (rows, cols) = (self.rows, self.cols);
        let view = match self.tensor.dtype {
            TensorDtype::F32 => F32Matrix::new(self.tensor.as_f32()?, rows, cols).map(Weights::F32),
            _ => Bf16Matrix::new(self.tensor.as_bf16()?, rows, cols).map(Weights::Bf16),
        };
        view.map_err(kernel_error(&self.tensor.name))
    }

    /// x `[T, in]` to `[T, out]` in `dtype`.
    pub(crate) fn product(&self, x: &Tensor, bias: Option<&[f32]>, dtype: DType) -> Result<Tensor> {
        let tokens = x.dim(0)?;
        let mut out = vec![0.0; tokens * self.rows];
        with_f32("matrix product", x, |x| {
            matmul(x, tokens, &self.weights()?, bias, &mut out).map_err(kernel_error(&self.tensor.name))
        })?;
        from_f32(out, &[tokens, self.rows], dtype)
    }

    /// Rows `ids`, which are below `rows`, as `[ids, cols]` in `dtype`.
    pub(crate) fn gather(&self, ids: &[u32], dtype: DType) -> Result<Tensor> {
        let mut out = Vec::with_capacity(ids.len() * self.cols);
        for &id in ids {
            let id = id as usize;
            let range = id * self.cols..(id + 1) * self.cols;
            match self.tensor.dtype {
                TensorDtype::F32 => out.extend_from_slice(&self.tensor.as_f32()?[range]),
                _ => out.extend(self.tensor.as_bf16()?[range].iter().map(|w| w.to_f32())),
            }
        }
        from_f32(out, &[ids.len(), self.cols], dtype)
    }
}

/// `x · wᵀ + bias`.
pub(crate) struct Linear {
    pub(crate) weight: Matrix,
    pub(crate) bias: Option<Vec<f32>>,
}

impl Linear {
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.weight.product(x, self.bias.as_deref(), x.dtype())
    }
}
