//! RMS normalization of rows, or of the heads within them.

use bench_kernels::norm::{WeightOrder, rms_norm_into};

use crate::error::Result;
use crate::model::Step;
use crate::ops::kernel_error;

pub(crate) struct RmsNorm {
    pub(crate) weight: Vec<f32>,
    pub(crate) eps: f32,
    pub(crate) order: WeightOrder,
}

impl RmsNorm {
    /// x, in rows of the weight's width, to `out`.
    pub(crate) fn forward(&self, step: &Step<'_, '_, '_>, x: &[f32], out: &mut [f32]) -> Result<()> {
        rms_norm_into(step.exec, x, &self.weight, self.eps, self.order, step.bf16, out)
            .map_err(kernel_error("rms norm"))?;
        step.settle(out);
        Ok(())
    }

    /// As `forward`, in place.
    pub(crate) fn apply(&self, step: &Step<'_, '_, '_>, x: &mut [f32]) -> Result<()> {
        bench_kernels::norm::rms_norm(x, &self.weight, self.eps, self.order, step.bf16)
            .map_err(kernel_error("rms norm"))?;
        step.settle(x);
        Ok(())
    }
}
