//! From checkpoint tensors to the model's parts: names in, linear maps, norms and experts out.
//!
//! Matrices stay where they are (mapped or generated); vectors are widened to f32. Experts are transposed or
//! dequantized only when the checkpoint or the options ask for it.

use std::sync::Arc;

use bench_kernels::host::AlignedBytes;
use bench_kernels::mxfp4;
use bench_kernels::norm::WeightOrder;
use bench_kernels::packed::{PackedFormat, is_packable};
use half::bf16;

use crate::config::{ExpertDtype, ModelConfig, MoeConfig};
use crate::error::{Error, Result};
use crate::model::packed_cache::{LoadNotes, Packing};
use crate::model::{DenseDtype, ExpertMode, LoadOptions, Progress, pack};
use crate::ops::kernel_error;
use crate::ops::linear::{Linear, Matrix};
use crate::ops::moe::{ExpertMatrix, ExpertStore, Experts};
use crate::ops::norm::RmsNorm;
use crate::weights::{HostBytes, HostTensor, TensorDtype, WeightSource};

pub(crate) struct Loader<'a> {
    source: &'a dyn WeightSource,
    options: &'a LoadOptions,
    packing: Packing,
    progress: &'a mut dyn FnMut(Progress),
    done: u64,
    total: u64,
    bytes: u64,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(
        source: &'a dyn WeightSource,
        options: &'a LoadOptions,
        layers: usize,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Self {
        let packing = Packing::new(options, source);
        Self { source, options, packing, progress, done: 0, total: layers as u64, bytes: 0 }
    }

    /// All is loaded: how many bytes it has, and what there is to tell.
    pub(crate) fn finish(self) -> (u64, LoadNotes) {
        (self.bytes, self.packing.finish(self.source))
    }

    pub(crate) fn layer_done(&mut self) {
        self.done += 1;
        (self.progress)(Progress { done: self.done, total: self.total, unit: "layers" });
    }

    pub(crate) fn linear(&mut self, name: &str, rows: usize, cols: usize, bias: bool) -> Result<Linear> {
        let weight = self.dense_matrix(&format!("{name}.weight"), rows, cols)?;
        let bias = bias.then(|| self.vector(&format!("{name}.bias"), &[rows])).transpose()?;
        Ok(Linear { weight, bias })
    }

    /// A product that decides between experts, and is small: its weights stay as they are.
    pub(crate) fn small_linear(&mut self, name: &str, rows: usize, cols: usize) -> Result<Linear> {
        let weight = self.matrix(&format!("{name}.weight"), rows, cols)?;
        Ok(Linear { weight, bias: Some(self.vector(&format!("{name}.bias"), &[rows])?) })
    }

    pub(crate) fn embedding(&mut self, config: &ModelConfig) -> Result<Matrix> {
        self.matrix("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
    }

    /// The embedding itself where they are tied.
    pub(crate) fn unembedding(&mut self, config: &ModelConfig, embedding: &Matrix) -> Result<Matrix> {
        let (rows, cols) = (config.vocab_size, config.hidden_size);
        match config.tie_word_embeddings {
            true if self.dense_format(rows, cols).is_none() => Ok(embedding.clone()),
            true => self.dense_matrix("model.embed_tokens.weight", rows, cols),
            false => self.dense_matrix("lm_head.weight", rows, cols),
        }
    }

    /// What matrices of this size are quantized to; `None`: they stay as they are.
    fn dense_format(&self, rows: usize, cols: usize) -> Option<PackedFormat> {
        let format = match self.options.dense_dtype {
            DenseDtype::Native => None,
            DenseDtype::Q8_0 => Some(PackedFormat::Q8_0),
            DenseDtype::Q6_0 => Some(PackedFormat::Q6_0),
        };
        format.filter(|_| is_packable(rows, cols))
    }

    /// A matrix that every token reads whole.
    fn dense_matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
        let Some(format) = self.dense_format(rows, cols) else { return self.matrix(name, rows, cols) };
        let tensor = self.source.tensor(name, &[rows, cols])?;
        if !matches!(tensor.dtype, TensorDtype::F32 | TensorDtype::Bf16) {
            return self.matrix(name, rows, cols);
        }
        let (codes, scales) = self.packing.matrix(&tensor, format)?;
        self.bytes += (codes.as_bytes().len() + scales.as_bytes().len()) as u64;
        Ok(Matrix::packed(format, codes, scales, rows, cols))
    }

    pub(crate) fn norm(&mut self, name: &str, width: usize, eps: f64, order: WeightOrder) -> Result<RmsNorm> {
        Ok(RmsNorm { weight: self.vector(&format!("{name}.weight"), &[width])?, eps: eps as f32, order })
    }

    /// A small tensor as f32.
    pub(crate) fn vector(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.tensor(name, shape)?.to_f32_vec()
    }

    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<HostTensor> {
        let tensor = self.source.tensor(name, shape)?;
        self.bytes += tensor.as_bytes().len() as u64;
        Ok(tensor)
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
        let tensor = self.tensor(name, &[rows, cols])?;
        match tensor.dtype {
            TensorDtype::F32 | TensorDtype::Bf16 => Ok(Matrix::plain(tensor)),
            TensorDtype::F16 => {
                self.bytes += tensor.as_bytes().len() as u64;
                let values = tensor.to_f32_vec()?;
                let widened =
                    new_tensor::<f32>(&tensor, TensorDtype::F32, vec![rows, cols], cols, |row, out| {
                        out.copy_from_slice(&values[row * cols..][..cols]);
                    });
                Ok(Matrix::plain(widened?))
            }
            TensorDtype::U8 => Err(bad(&tensor, "has dtype U8, expected F32, F16 or BF16")),
        }
    }

    pub(crate) fn experts(&mut self, config: &ModelConfig, moe: &MoeConfig, layer: usize) -> Result<Experts> {
        let (e, hidden, width) = (moe.num_local_experts, config.hidden_size, config.intermediate_size);
        let prefix = format!("model.layers.{layer}.mlp.experts");
        Ok(Experts {
            layer,
            hidden,
            intermediate: width,
            gate_up: self.expert_matrix(&format!("{prefix}.gate_up_proj"), [e, 2 * width, hidden])?,
            gate_up_bias: self.vector(&format!("{prefix}.gate_up_proj_bias"), &[e, 2 * width])?,
            down: self.expert_matrix(&format!("{prefix}.down_proj"), [e, hidden, width])?,
            down_bias: self.vector(&format!("{prefix}.down_proj_bias"), &[e, hidden])?,
            alpha: moe.swiglu_alpha as f32,
            limit: moe.swiglu_limit as f32,
            mode: self.expert_mode(),
        })
    }

    pub(crate) fn expert_mode(&self) -> ExpertMode {
        self.options.expert_mode
    }

    /// `[experts, out, in]`: MXFP4 blocks and scales, or bf16 that is stored as `[experts, in, out]`.
    fn expert_matrix(&mut self, name: &str, shape: [usize; 3]) -> Result<ExpertMatrix> {
        let [_, rows, cols] = shape;
        Ok(ExpertMatrix { store: self.expert_store(name, shape)?, rows, cols })
    }

    fn expert_store(&mut self, name: &str, shape: [usize; 3]) -> Result<ExpertStore> {
        let [e, rows, cols] = shape;
        if !self.source.contains(&format!("{name}_blocks")) {
            let stored = self.tensor(name, &[e, cols, rows])?;
            return Ok(ExpertStore::Bf16(transpose(&stored, shape)?));
        }
        let groups = cols / mxfp4::BLOCK;
        let blocks = self.source.tensor(&format!("{name}_blocks"), &[e, rows, groups, mxfp4::BLOCK_BYTES])?;
        let scales = self.source.tensor(&format!("{name}_scales"), &[e, rows, groups])?;
        for tensor in [&blocks, &scales] {
            tensor.as_u8()?;
        }
        if self.options.expert_dtype == ExpertDtype::Native {
            self.bytes += (blocks.as_bytes().len() + scales.as_bytes().len()) as u64;
            if !is_packable(rows, cols) {
                return Ok(ExpertStore::Mxfp4 { blocks, scales });
            }
            let (codes, scales) = pack::mxfp4(&self.options.exec, blocks, scales, cols)?;
            return Ok(ExpertStore::Packed { codes, scales });
        }
        let dequantized = dequantize(&blocks, &scales, shape)?;
        self.bytes += dequantized.as_bytes().len() as u64;
        Ok(ExpertStore::Bf16(dequantized))
    }
}

/// MXFP4 to bf16, which is exact but for the smallest and largest scales.
fn dequantize(blocks: &HostTensor, scales: &HostTensor, shape: [usize; 3]) -> Result<HostTensor> {
    let [_, _, cols] = shape;
    let (codes, row_scales) = (blocks.as_u8()?, scales.as_u8()?);
    let (code_bytes, groups) = (cols / 2, cols / mxfp4::BLOCK);
    // The kernel refuses only sizes, which are the same for every row: ask it once.
    mxfp4::dequantize(&codes[..code_bytes], &row_scales[..groups], &mut vec![0.0; cols])
        .map_err(kernel_error(&blocks.name))?;
    new_tensor::<bf16>(blocks, TensorDtype::Bf16, shape.to_vec(), cols, |row, out| {
        let mut values = vec![0.0; cols];
        let (codes, scales) =
            (&codes[row * code_bytes..][..code_bytes], &row_scales[row * groups..][..groups]);
        if mxfp4::dequantize(codes, scales, &mut values).is_ok() {
            for (out, value) in out.iter_mut().zip(values) {
                *out = bf16::from_f32(value);
            }
        }
    })
}

/// bf16 `[experts, in, out]` to `[experts, out, in]`.
pub(crate) fn transpose(stored: &HostTensor, shape: [usize; 3]) -> Result<HostTensor> {
    let [_, rows, cols] = shape;
    let from = stored.as_bf16()?;
    new_tensor::<bf16>(stored, TensorDtype::Bf16, shape.to_vec(), cols, |row, out| {
        let (expert, row) = (row / rows, row % rows);
        let from = &from[expert * rows * cols + row..];
        for (out, value) in out.iter_mut().zip(from.iter().step_by(rows)) {
            *out = *value;
        }
    })
}

/// A tensor in new memory whose rows of `cols` elements `fill` writes, in parallel.
fn new_tensor<T: bytemuck::Pod>(
    like: &HostTensor,
    dtype: TensorDtype,
    shape: Vec<usize>,
    cols: usize,
    fill: impl Fn(usize, &mut [T]) + Sync,
) -> Result<HostTensor> {
    let bytes = shape.iter().product::<usize>() * size_of::<T>();
    let mut buffer = AlignedBytes::zeroed(bytes)?;
    buffer.fill_chunks(cols * size_of::<T>(), |row, chunk| fill(row, bytemuck::cast_slice_mut(chunk)));
    let bytes = HostBytes::Owned { buffer: Arc::new(buffer), start: 0, end: bytes };
    HostTensor::new(Arc::clone(&like.name), Arc::clone(&like.origin), dtype, shape, bytes)
}

fn bad(tensor: &HostTensor, problem: &str) -> Error {
    Error::BadTensor {
        tensor: tensor.name.to_string(),
        file: tensor.origin.to_string(),
        problem: problem.to_owned(),
    }
}
