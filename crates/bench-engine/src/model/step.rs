//! What the layers of one forward pass share, and the memory that they work in.

use bench_kernels::Exec;
use bench_kernels::attention::AttentionScratch;
pub(crate) use bench_kernels::attention::Span;
use bench_kernels::route::add_into;
use bench_kernels::vectors::round_bf16;
use candle_core::DType;

use crate::cache::Sequence;
use crate::error::Result;
use crate::hooks::{Hooks, Site};
use crate::model::MatmulPrecision;
use crate::ops::moe::MoeRows;
use crate::ops::rope::Angles;
use crate::ops::rows::Rows;
use crate::ops::{kernel_error, tensor};

/// Memory of forward passes: it grows to what the largest needs and is kept until it is dropped, so that a step
/// like the one before takes nothing from the heap.
#[derive(Debug, Default)]
pub struct Workspace {
    /// The residual stream `[T, hidden]`.
    pub(crate) x: Rows,
    /// What a norm makes of it.
    pub(crate) t: Rows,
    pub(crate) q: Rows,
    pub(crate) k: Rows,
    pub(crate) v: Rows,
    pub(crate) attn: Rows,
    pub(crate) scratch: AttentionScratch,
    /// What attention or MLP add to the residual stream.
    pub(crate) y: Rows,
    pub(crate) gate: Rows,
    pub(crate) up: Rows,
    pub(crate) act: Rows,
    pub(crate) moe: MoeRows,
    /// Rows of the residual stream that are unembedded.
    pub(crate) kept: Rows,
    /// `[kept, vocab]`
    pub(crate) logits: Rows,
    pub(crate) spans: Vec<Span>,
    pub(crate) ids: Vec<u32>,
    pub(crate) angles: Angles,
    /// What a device works in, of models that run on one.
    #[cfg(feature = "cuda")]
    pub(crate) device: Option<crate::cuda::Leased>,
}

impl Workspace {
    /// What the device works in.
    ///
    /// # Errors
    /// A workspace of a model on the host.
    #[cfg(feature = "cuda")]
    pub(crate) fn device(&mut self) -> Result<&mut crate::cuda::DeviceWorkspace> {
        let leased = self.device.as_mut().and_then(crate::cuda::Leased::get);
        leased.ok_or(crate::Error::OtherSequence)
    }
}

/// One forward pass.
pub(crate) struct Step<'a, 's, 'h> {
    pub(crate) exec: &'a Exec,
    pub(crate) precision: MatmulPrecision,
    /// Whether values are rounded to bf16 between operations.
    pub(crate) bf16: bool,
    pub(crate) spans: &'a [Span],
    pub(crate) angles: &'a Angles,
    pub(crate) sequences: &'a mut [&'s mut Sequence],
    pub(crate) hooks: &'a mut Hooks<'h>,
}

impl Step<'_, '_, '_> {
    /// Rounds to the activation dtype.
    pub(crate) fn settle(&self, values: &mut [f32]) {
        if self.bf16 {
            round_bf16(self.exec, values);
        }
    }

    /// x += y, in the activation dtype.
    pub(crate) fn add(&self, x: &mut Rows, y: &Rows) -> Result<()> {
        let x = x.values_mut();
        add_into(self.exec, x, y.values()).map_err(kernel_error("residual"))?;
        self.settle(x);
        Ok(())
    }

    /// Rotates x `[T, heads · head_dim]` by the positions of its tokens.
    pub(crate) fn rotate(&self, x: &mut Rows, heads: usize, head_dim: usize) -> Result<()> {
        self.angles.rotate(self.exec, x.values_mut(), heads, head_dim, self.bf16)
    }

    /// Offers rows `[T, cols]` to the hooks; what they replace is written back.
    pub(crate) fn at(&mut self, site: Site, rows: &mut Rows) -> Result<()> {
        if !self.hooks.wants(site) {
            return Ok(());
        }
        let shape = [rows.rows(), rows.cols()];
        self.offer(site, rows.values_mut(), &shape)
    }

    /// As [`Step::at`], as `[T, heads, cols / heads]`.
    pub(crate) fn at_heads(&mut self, site: Site, rows: &mut Rows, heads: usize) -> Result<()> {
        if !self.hooks.wants(site) {
            return Ok(());
        }
        let shape = [rows.rows(), heads, rows.cols() / heads];
        self.offer(site, rows.values_mut(), &shape)
    }

    /// Offers values of any shape.
    pub(crate) fn offer(&mut self, site: Site, values: &mut [f32], shape: &[usize]) -> Result<()> {
        if !self.hooks.wants(site) {
            return Ok(());
        }
        let dtype = if self.bf16 && site != Site::Logits { DType::BF16 } else { DType::F32 };
        let value = self.hooks.at(site, tensor(values, shape, dtype)?)?;
        if self.hooks.replaces(site) {
            values.copy_from_slice(&value.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(())
    }
}
