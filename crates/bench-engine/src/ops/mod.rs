//! The model's operations on tensors: they pick the kernels of the device and round to the activation dtype.
//!
//! Rounding happens where the bf16 reference rounds, between operations; inside one, arithmetic is f32.

pub(crate) mod attention;
pub(crate) mod linear;
pub(crate) mod mlp;
pub(crate) mod moe;
pub(crate) mod norm;
pub(crate) mod rope;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use half::bf16;

use crate::error::{Error, Result};

/// What a kernel refuses: sizes that a model was built with, or that a hook gave.
pub(crate) fn kernel_error(what: &str) -> impl Fn(bench_kernels::Error) -> Error {
    let what = what.to_owned();
    move |e| Error::InvalidModel { what: what.clone(), problem: e.to_string() }
}

/// Calls `f` with the elements of `x` as f32, row-major; bf16 is widened, f32 is not copied.
pub(crate) fn with_f32<R>(what: &'static str, x: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    if !x.device().is_cpu() {
        return Err(Error::UnsupportedDevice { what, device: format!("{:?}", x.device().location()) });
    }
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let range = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(data)) => f(&data[range]),
        Storage::Cpu(CpuStorage::BF16(data)) => {
            let widened: Vec<f32> =
                data[range].iter().map(|x| f32::from_bits(u32::from(x.to_bits()) << 16)).collect();
            f(&widened)
        }
        _ => Err(Error::InvalidModel {
            what: what.to_owned(),
            problem: format!("activations have dtype {:?}, expected F32 or BF16", x.dtype()),
        }),
    }
}

/// A copy of the elements of `x` as f32.
pub(crate) fn to_f32(what: &'static str, x: &Tensor) -> Result<Vec<f32>> {
    with_f32(what, x, |x| Ok(x.to_vec()))
}

/// A tensor of `shape`, rounded to `dtype`.
pub(crate) fn from_f32(values: Vec<f32>, shape: &[usize], dtype: DType) -> Result<Tensor> {
    if dtype == DType::BF16 {
        let rounded: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
        return Ok(Tensor::from_vec(rounded, shape, &Device::Cpu)?);
    }
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// The nearest bf16 as f32.
#[inline]
pub(crate) fn round_bf16(value: f32) -> f32 {
    bf16::from_f32(value).to_f32()
}
