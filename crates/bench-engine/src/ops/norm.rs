//! RMS normalization over the last dimension.

use bench_kernels::norm::{WeightOrder, rms_norm};
use candle_core::{DType, Tensor};

use crate::error::Result;
use crate::ops::{from_f32, kernel_error, to_f32};

pub(crate) struct RmsNorm {
    pub(crate) weight: Vec<f32>,
    pub(crate) eps: f32,
    pub(crate) order: WeightOrder,
}

impl RmsNorm {
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut values = to_f32("rms norm", x)?;
        rms_norm(&mut values, &self.weight, self.eps, self.order, x.dtype() == DType::BF16)
            .map_err(kernel_error("rms norm"))?;
        from_f32(values, x.dims(), x.dtype())
    }
}
