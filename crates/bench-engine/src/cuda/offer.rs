//! Values of a forward pass on a device, offered to the hooks: copied to the host, and back where they were replaced.

use bench_kernels::cuda::Gpu;
use candle_core::{DType, Device, Tensor};

use crate::cuda::{Transformer, gpu_error};
use crate::error::{Error, Result};
use crate::hooks::{Hooks, Site};
use crate::ops::moe::check_experts;
use crate::ops::tensor;

/// Where a value lies: rows of `width` at `address`, of which `cols` from column `first` are meant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) address: u64,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) first: usize,
    pub(super) cols: usize,
}

impl Part {
    /// All of `[rows, cols]`.
    pub(super) fn whole(address: u64, rows: usize, cols: usize) -> Self {
        Self { address, rows, width: cols, first: 0, cols }
    }
}

impl Transformer {
    /// Offers f32 rows; `heads` divides their columns, 0 for none.
    pub(super) fn offer(&self, hooks: &mut Hooks<'_>, site: Site, part: Part, heads: usize) -> Result<()> {
        if !hooks.wants(site) {
            return Ok(());
        }
        let mut rows = vec![0.0_f32; part.rows * part.width];
        self.device.read(part.address, bytemuck::cast_slice_mut(&mut rows)).map_err(gpu_error)?;
        let own = |row: &[f32]| row[part.first..part.first + part.cols].to_vec();
        let mut values: Vec<f32> = rows.chunks_exact(part.width).flat_map(own).collect();
        let shape = match heads {
            0 => vec![part.rows, part.cols],
            heads => vec![part.rows, heads, part.cols / heads],
        };
        let dtype = if self.shape.bf16 && site != Site::Logits { DType::BF16 } else { DType::F32 };
        let value = hooks.at(site, tensor(&values, &shape, dtype)?)?;
        if !hooks.replaces(site) {
            return Ok(());
        }
        values = value.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        for (row, new) in rows.chunks_exact_mut(part.width).zip(values.chunks_exact(part.cols)) {
            row[part.first..part.first + part.cols].copy_from_slice(new);
        }
        self.device.write(part.address, bytemuck::cast_slice(&rows)).map_err(gpu_error)
    }

    /// Offers the chosen experts, u32 `[rows, chosen]` at `choice`; whether they were replaced.
    pub(super) fn offer_choice(
        &self,
        hooks: &mut Hooks<'_>,
        choice: u64,
        layer: usize,
        rows: usize,
    ) -> Result<bool> {
        let site = Site::ExpertIndex(layer);
        if !hooks.wants(site) {
            return Ok(false);
        }
        let mut chosen = vec![0_u32; rows * self.shape.chosen];
        self.device.read(choice, bytemuck::cast_slice_mut(&mut chosen)).map_err(gpu_error)?;
        let value = Tensor::from_slice(&chosen, (rows, self.shape.chosen), &Device::Cpu)?;
        let value = hooks.at(site, value)?.flatten_all()?.to_vec1::<u32>()?;
        check_experts(&value, self.shape.experts, layer)?;
        if !hooks.replaces(site) {
            return Ok(false);
        }
        self.device.write(choice, bytemuck::cast_slice(&value)).map_err(gpu_error)?;
        Ok(true)
    }

    /// Refuses sites whose values a fused kernel never writes.
    pub(super) fn check_sites(&self, hooks: &Hooks<'_>) -> Result<()> {
        for layer in 0..self.shape.layers {
            for site in [Site::AttnProbs(layer), Site::MoeGateUp(layer), Site::MoeAct(layer)] {
                if hooks.wants(site) {
                    return Err(Error::SiteOnDevice { site: site.to_string() });
                }
            }
        }
        Ok(())
    }
}
