//! The gated activation of dense models.

use bench_kernels::activation::swiglu;

use crate::error::Result;
use crate::model::Step;
use crate::ops::kernel_error;
use crate::ops::rows::Rows;

/// `silu(gate) · up`, `[T, intermediate]`.
pub(crate) fn gated_silu(step: &Step<'_, '_, '_>, gate: &Rows, up: &Rows, out: &mut [f32]) -> Result<()> {
    swiglu(step.exec, gate.values(), up.values(), out, step.bf16).map_err(kernel_error("swiglu"))
}
