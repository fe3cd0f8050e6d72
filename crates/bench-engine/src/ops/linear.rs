//! Products with weights as they are kept in memory, and the rows of an embedding table.

use bench_kernels::matmul::{Bf16Matrix, F32Matrix, Weights};
use bench_kernels::packed::{PackedFormat, PackedMatrix};
use bench_kernels::product::product;
use bench_kernels::rows::IntPrecision;

use crate::error::Result;
use crate::model::{MatmulPrecision, Step};
use crate::ops::kernel_error;
use crate::ops::rows::{Form, Rows};
use crate::weights::{HostTensor, TensorDtype};

/// More rows than this in a product, and arithmetic is its limit, not memory.
const BANDWIDTH_ROWS: usize = 4;

/// A matrix `[rows, cols]` = `[out, in]`.
#[derive(Clone)]
pub(crate) struct Matrix {
    store: Store,
    rows: usize,
    cols: usize,
}

#[derive(Clone)]
enum Store {
    /// f32 or bf16, row by row.
    Plain(HostTensor),
    Packed {
        format: PackedFormat,
        codes: HostTensor,
        scales: HostTensor,
    },
}

impl Matrix {
    /// `tensor` has rank 2 and dtype f32 or bf16.
    pub(crate) fn plain(tensor: HostTensor) -> Self {
        let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
        Self { store: Store::Plain(tensor), rows, cols }
    }

    /// Panels of `format`, as bytes.
    pub(crate) fn packed(
        format: PackedFormat,
        codes: HostTensor,
        scales: HostTensor,
        rows: usize,
        cols: usize,
    ) -> Self {
        Self { store: Store::Packed { format, codes, scales }, rows, cols }
    }

    fn name(&self) -> &str {
        match &self.store {
            Store::Plain(tensor) | Store::Packed { codes: tensor, .. } => &tensor.name,
        }
    }

    fn weights(&self) -> Result<Weights<'_>> {
        let (rows, cols) = (self.rows, self.cols);
        let view = match &self.store {
            Store::Packed { format, codes, scales } => {
                let (codes, scales) = (codes.as_u8()?, scales.as_u8()?);
                PackedMatrix::new(*format, codes, scales, rows, cols).map(Weights::Packed)
            }
            Store::Plain(t) if t.dtype == TensorDtype::F32 => {
                F32Matrix::new(t.as_f32()?, rows, cols).map(Weights::F32)
            }
            Store::Plain(t) => Bf16Matrix::new(t.as_bf16()?, rows, cols).map(Weights::Bf16),
        };
        view.map_err(kernel_error(self.name()))
    }

    /// x `[T, in]` to `[T, out]`.
    pub(crate) fn product(
        &self,
        step: &Step<'_, '_, '_>,
        x: &mut Rows,
        bias: Option<&[f32]>,
        out: &mut Rows,
    ) -> Result<()> {
        self.product_in(step, x, bias, out, step.precision)
    }

    fn product_in(
        &self,
        step: &Step<'_, '_, '_>,
        x: &mut Rows,
        bias: Option<&[f32]>,
        out: &mut Rows,
        precision: MatmulPrecision,
    ) -> Result<()> {
        let tokens = x.rows();
        let weights = self.weights()?;
        let x = x.input(step.exec, form(&weights, tokens, precision))?;
        let out = out.reshape(tokens, self.rows);
        product(step.exec, x, tokens, weights, bias, out).map_err(kernel_error(self.name()))?;
        step.settle(out);
        Ok(())
    }

    /// Rows `ids`, which are below `rows`, of a plain matrix.
    pub(crate) fn gather(&self, ids: &[u32], out: &mut Rows) -> Result<()> {
        let Store::Plain(tensor) = &self.store else { return Err(not_plain(self.name())) };
        let out = out.reshape(ids.len(), self.cols);
        for (&id, out) in ids.iter().zip(out.chunks_exact_mut(self.cols)) {
            let range = id as usize * self.cols..(id as usize + 1) * self.cols;
            match tensor.dtype {
                TensorDtype::F32 => out.copy_from_slice(&tensor.as_f32()?[range]),
                _ => {
                    for (out, w) in out.iter_mut().zip(&tensor.as_bf16()?[range]) {
                        *out = w.to_f32();
                    }
                }
            }
        }
        Ok(())
    }
}

fn not_plain(name: &str) -> crate::Error {
    crate::Error::InvalidModel {
        what: name.to_owned(),
        problem: "is quantized, expected f32 or bf16 rows".to_owned(),
    }
}

/// How finely a product of `rows` rows takes its activations where they are not taken as they are.
pub(crate) fn precision(asked: MatmulPrecision, rows: usize) -> Option<IntPrecision> {
    match asked {
        MatmulPrecision::F32 => None,
        MatmulPrecision::Int8 if rows > BANDWIDTH_ROWS => Some(IntPrecision::Int8),
        MatmulPrecision::Int8 | MatmulPrecision::Int16 => Some(IntPrecision::Int16),
    }
}

/// How a product of `rows` rows with `weights` takes its activations.
pub(crate) fn form(weights: &Weights<'_>, rows: usize, asked: MatmulPrecision) -> Form {
    match (weights, precision(asked, rows)) {
        (Weights::Packed(_), Some(precision)) => Form::Int(precision),
        (Weights::Bf16(_), Some(IntPrecision::Int8)) => Form::Bf16,
        _ => Form::F32,
    }
}

/// `x · wᵀ + bias`.
pub(crate) struct Linear {
    pub(crate) weight: Matrix,
    pub(crate) bias: Option<Vec<f32>>,
}

impl Linear {
    pub(crate) fn forward(&self, step: &Step<'_, '_, '_>, x: &mut Rows, out: &mut Rows) -> Result<()> {
        self.weight.product(step, x, self.bias.as_deref(), out)
    }

    /// In f32, whatever the precision of the others.
    pub(crate) fn exact(&self, step: &Step<'_, '_, '_>, x: &mut Rows, out: &mut Rows) -> Result<()> {
        self.weight.product_in(step, x, self.bias.as_deref(), out, MatmulPrecision::F32)
    }
}
