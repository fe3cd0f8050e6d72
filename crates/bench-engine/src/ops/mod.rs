//! The model's operations on rows of activations: they pick the kernels, and round to the activation dtype.
//!
//! Rounding happens where the bf16 reference rounds, between operations; inside one, arithmetic is f32. Tensors
//! appear only where a hook is registered.

pub(crate) mod attention;
pub(crate) mod linear;
pub(crate) mod mlp;
pub(crate) mod moe;
pub(crate) mod norm;
pub(crate) mod rope;
pub(crate) mod rows;

use candle_core::{DType, Device, Tensor};
use half::bf16;

use crate::error::{Error, Result};

/// What a kernel refuses: sizes that a model was built with, or that a hook gave.
pub(crate) fn kernel_error(what: &str) -> impl Fn(bench_kernels::Error) -> Error {
    move |e| Error::InvalidModel { what: what.to_owned(), problem: e.to_string() }
}

/// A tensor of `shape` with these values, rounded to `dtype`.
pub(crate) fn tensor(values: &[f32], shape: &[usize], dtype: DType) -> Result<Tensor> {
    if dtype == DType::BF16 {
        let rounded: Vec<bf16> = values.iter().copied().map(bf16::from_f32).collect();
        return Ok(Tensor::from_vec(rounded, shape, &Device::Cpu)?);
    }
    Ok(Tensor::from_slice(values, shape, &Device::Cpu)?)
}
