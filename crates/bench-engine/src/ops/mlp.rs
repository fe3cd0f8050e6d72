//! The gated activation of dense models.

use bench_kernels::activation::swiglu;
use candle_core::{DType, Tensor};

use crate::error::Result;
use crate::ops::{from_f32, kernel_error, round_bf16, with_f32};

/// `silu(gate) · up`; both are freed.
pub(crate) fn gated_silu(gate: Tensor, up: Tensor) -> Result<Tensor> {
    let (dims, dtype) = (gate.dims().to_vec(), gate.dtype());
    let mut out = vec![0.0; gate.elem_count()];
    with_f32("swiglu", &gate, |g| {
        with_f32("swiglu", &up, |u| {
            let done = match dtype {
                DType::BF16 => swiglu(g, u, &mut out, round_bf16),
                _ => swiglu(g, u, &mut out, |v| v),
            };
            done.map_err(kernel_error("swiglu"))
        })
    })?;
    drop((gate, up));
    from_f32(out, &dims, dtype)
}
