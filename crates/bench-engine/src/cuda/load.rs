//! From checkpoint tensors to device memory: matrices as the checkpoint has them, vectors in f32.
//!
//! Generated tensors are made on the device, with the bits that the host would make.

use std::sync::Arc;

use bench_kernels::cuda::device::{Buffer, Category, Device};
use bench_kernels::cuda::tiles::Format;
use bench_kernels::cuda::vectors;
use bench_kernels::mxfp4;

use crate::config::{Architecture, ExpertDtype, LayerType, ModelConfig, MoeConfig};
use crate::cuda::{Attention, Idle, Layer, Matrix, Mlp, Shape, Transformer, Vector, buffer_of, gpu_error};
use crate::error::{Error, Result};
use crate::model::load::transpose;
use crate::model::{DenseDtype, KvDtype, LoadOptions, MatmulPrecision, Progress};
use crate::rope::RotaryEmbedding;
use crate::weights::{Fill, HostTensor, TensorDtype, WeightSource};

/// Largest e8m0 scale (2^1) that kernels expand exactly in one product.
const LARGEST_SCALE: u8 = 128;

pub(super) fn build(
    device: &Device,
    config: &ModelConfig,
    shape: Shape,
    source: &dyn WeightSource,
    options: &LoadOptions,
    rope: &RotaryEmbedding,
    progress: &mut dyn FnMut(Progress),
) -> Result<Transformer> {
    if options.dense_dtype == DenseDtype::Q6_0 {
        return Err(Error::OnDevice { what: "dense dtype q6_0", instead: "native, q8_0" });
    }
    if options.kv() == KvDtype::Q8_0 {
        return Err(Error::OnDevice { what: "KV cache dtype q8_0", instead: "f32, bf16" });
    }
    if options.matmul_precision != MatmulPrecision::F32 {
        return Err(Error::OnDevice { what: "matmul precision int16 or int8", instead: "f32" });
    }
    let mut loader = Loader { device, source, options, bytes: 0 };
    let (hidden, vocab) = (config.hidden_size, config.vocab_size);
    let embedding = loader.plain(&[("model.embed_tokens.weight", vocab)], hidden)?;
    let quantized = options.dense_dtype == DenseDtype::Q8_0;
    let unembedding = match config.tie_word_embeddings {
        true if !quantized => embedding.clone(),
        true => loader.dense(&[("model.embed_tokens.weight", vocab)], hidden)?,
        false => loader.dense(&[("lm_head.weight", vocab)], hidden)?,
    };
    let mut layers = Vec::with_capacity(config.num_hidden_layers);
    for layer in 0..config.num_hidden_layers {
        layers.push(loader.layer(config, &shape, layer)?);
        let (done, total) = (layer as u64 + 1, config.num_hidden_layers as u64);
        progress(Progress { done, total, unit: "layers" });
    }
    let norm = loader.vector("model.norm.weight", &[hidden])?;
    let (cos, sin) = angles(device, config, shape.bf16, rope)?;
    device.synchronize().map_err(gpu_error)?;
    let weights_bytes = loader.bytes;
    Ok(Transformer {
        device: device.clone(),
        shape,
        embedding,
        layers,
        norm,
        unembedding,
        cos,
        sin,
        weights_bytes,
        idle: Idle::default(),
        pool: device.pool(),
    })
}

/// Cosines and sines of every position that the model has.
fn angles(
    device: &Device,
    config: &ModelConfig,
    bf16: bool,
    rope: &RotaryEmbedding,
) -> Result<(Buffer, Buffer)> {
    let (mut cos, mut sin) = (Vec::new(), Vec::new());
    rope.cos_sin_into(0..config.max_position_embeddings, bf16, &mut cos, &mut sin);
    let upload = |values: &[f32]| -> Result<Buffer> {
        buffer_of(device, bytemuck::cast_slice(values), Category::Workspace)
    };
    Ok((upload(&cos)?, upload(&sin)?))
}

struct Loader<'a> {
    device: &'a Device,
    source: &'a dyn WeightSource,
    options: &'a LoadOptions,
    bytes: u64,
}

impl Loader<'_> {
    fn layer(&mut self, config: &ModelConfig, shape: &Shape, layer: usize) -> Result<Layer> {
        let prefix = format!("model.layers.{layer}");
        let hidden = config.hidden_size;
        let mlp = if let Some(moe) = &config.moe {
            self.experts(config, moe, layer)?
        } else {
            let width = config.intermediate_size;
            let mut dense = |name: &str, rows, cols| {
                self.dense(&[(format!("{prefix}.mlp.{name}_proj.weight").as_str(), rows)], cols)
            };
            let (gate, up) = (dense("gate", width, hidden)?, dense("up", width, hidden)?);
            Mlp::Dense { gate, up, down: dense("down", hidden, width)? }
        };
        Ok(Layer {
            attention: self.attention(config, shape, layer)?,
            mlp_norm: self.vector(&format!("{prefix}.post_attention_layernorm.weight"), &[hidden])?,
            mlp,
        })
    }

    fn attention(&mut self, config: &ModelConfig, shape: &Shape, layer: usize) -> Result<Attention> {
        let name = |part: &str| format!("model.layers.{layer}.self_attn.{part}");
        let (hidden, d) = (config.hidden_size, config.head_dim);
        let kv = config.num_key_value_heads * d;
        let (q_name, k_name, v_name) = (name("q_proj.weight"), name("k_proj.weight"), name("v_proj.weight"));
        let qkv = self.dense(&[(&q_name, shape.q), (&k_name, kv), (&v_name, kv)], hidden)?;
        let out = self.dense(&[(&name("o_proj.weight"), hidden)], shape.q)?;
        let bias = config.attention_bias;
        let mut qkv_bias = None;
        let mut out_bias = None;
        if bias {
            let parts = [("q_proj.bias", shape.q), ("k_proj.bias", kv), ("v_proj.bias", kv)];
            let mut values = Vec::with_capacity(shape.qkv);
            for (part, rows) in parts {
                values.extend(self.host_vector(&name(part), &[rows])?);
            }
            qkv_bias = Some(self.upload(&values)?);
            out_bias = self.vector(&name("o_proj.bias"), &[hidden])?;
        }
        let norms = config.architecture == Architecture::Qwen3;
        let mut head_norm = |part: &str| if norms { self.vector(&name(part), &[d]) } else { Ok(None) };
        let (q_norm, k_norm) = (head_norm("q_norm.weight")?, head_norm("k_norm.weight")?);
        let sinks = match config.architecture {
            Architecture::GptOss => self.vector(&name("sinks"), &[config.num_attention_heads])?,
            _ => None,
        };
        let norm = self.vector(&format!("model.layers.{layer}.input_layernorm.weight"), &[hidden])?;
        let window = config.sliding_window.filter(|_| config.layer_types[layer] == LayerType::Sliding);
        Ok(Attention { norm, qkv, qkv_bias, q_norm, k_norm, sinks, out, out_bias, window })
    }

    fn experts(&mut self, config: &ModelConfig, moe: &MoeConfig, layer: usize) -> Result<Mlp> {
        let (e, hidden, width) = (moe.num_local_experts, config.hidden_size, config.intermediate_size);
        let name = |part: &str| format!("model.layers.{layer}.mlp.{part}");
        Ok(Mlp::Experts {
            router: self.plain(&[(&name("router.weight"), e)], hidden)?,
            router_bias: self.vector(&name("router.bias"), &[e])?,
            up: self.expert_matrix(&name("experts.gate_up_proj"), [e, 2 * width, hidden])?,
            up_bias: self.vector(&name("experts.gate_up_proj_bias"), &[e, 2 * width])?,
            down: self.expert_matrix(&name("experts.down_proj"), [e, hidden, width])?,
            down_bias: self.vector(&name("experts.down_proj_bias"), &[e, hidden])?,
        })
    }

    fn expert_matrix(&mut self, name: &str, shape: [usize; 3]) -> Result<Matrix> {
        let [e, rows, cols] = shape;
        let (blocks, scales) = (format!("{name}_blocks"), format!("{name}_scales"));
        if !self.source.contains(&blocks) {
            let stored = self.source.tensor(name, &[e, cols, rows])?;
            let codes = self.copy(&transpose(&stored, shape)?)?;
            return Ok(Matrix { format: Format::Bf16, codes: Arc::new(codes), scales: None, rows, cols });
        }
        let groups = cols / mxfp4::BLOCK;
        let code_bytes = e * rows * cols / 2;
        let codes = self.memory(code_bytes)?;
        self.bring(&blocks, &[e, rows, groups, mxfp4::BLOCK_BYTES], TensorDtype::U8, &codes, 0)?;
        let scale_buffer = self.memory(e * rows * groups)?;
        self.bring(&scales, &[e, rows, groups], TensorDtype::U8, &scale_buffer, 0)?;
        if self.options.expert_dtype == ExpertDtype::Native {
            self.bytes += (code_bytes + e * rows * groups) as u64;
            let (codes, scales) = (Arc::new(codes), Some(Arc::new(scale_buffer)));
            return Ok(Matrix { format: Format::Mxfp4, codes, scales, rows, cols });
        }
        let wide = self.memory(2 * e * rows * cols)?;
        self.bytes += wide.bytes() as u64;
        let blocks = (e * rows * groups) as u64;
        let (from, scales) = (codes.address(), scale_buffer.address());
        let args = vectors::ExpandArgs { codes: from, scales, out: wide.address(), blocks };
        vectors::expand_mxfp4(self.device, &args).map_err(gpu_error)?;
        // What it was made from is given back when this returns.
        self.device.synchronize().map_err(gpu_error)?;
        Ok(Matrix { format: Format::Bf16, codes: Arc::new(wide), scales: None, rows, cols })
    }

    /// Matrices of `cols` columns one below the other, as every token reads them: quantized if that was asked for.
    fn dense(&mut self, parts: &[(&str, usize)], cols: usize) -> Result<Matrix> {
        let before = self.bytes;
        let plain = self.plain(parts, cols)?;
        if self.options.dense_dtype != DenseDtype::Q8_0 {
            return Ok(plain);
        }
        let (rows, groups) = (plain.rows, cols / 32);
        let (codes, scales) = (self.memory(rows * cols)?, self.memory(2 * rows * groups)?);
        let args = vectors::QuantizeArgs {
            weights: plain.codes(),
            codes: codes.address(),
            scales: scales.address(),
            blocks: (rows * groups) as u64,
        };
        vectors::quantize_q8(self.device, &args).map_err(gpu_error)?;
        self.device.synchronize().map_err(gpu_error)?;
        self.bytes = before + (codes.bytes() + scales.bytes()) as u64;
        Ok(Matrix { format: Format::Q8, codes: Arc::new(codes), scales: Some(Arc::new(scales)), rows, cols })
    }

    /// Matrices of `cols` columns one below the other, in bf16.
    fn plain(&mut self, parts: &[(&str, usize)], cols: usize) -> Result<Matrix> {
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        let buffer = self.memory(2 * rows * cols)?;
        let mut first = 0;
        for (name, rows) in parts {
            self.bring(name, &[*rows, cols], TensorDtype::Bf16, &buffer, 2 * first * cols)?;
            first += rows;
        }
        self.bytes += buffer.bytes() as u64;
        Ok(Matrix { format: Format::Bf16, codes: Arc::new(buffer), scales: None, rows, cols })
    }

    /// Brings a tensor to `offset` of `to`.
    fn bring(
        &self,
        name: &str,
        shape: &[usize],
        dtype: TensorDtype,
        to: &Buffer,
        offset: usize,
    ) -> Result<()> {
        let at = to.address() + offset as u64;
        let bytes = shape.iter().product::<usize>() * dtype.size();
        if let Some(recipe) = self.source.recipe(name) {
            let fill = recipe.fill.into();
            return vectors::fill(self.device, fill, recipe.key, 0, at, bytes as u64).map_err(gpu_error);
        }
        let tensor = self.source.tensor(name, shape)?;
        if tensor.dtype != dtype {
            let problem = format!(
                "has dtype {}: on a GPU matrices are {}; run it with --device cpu",
                tensor.dtype.name(),
                dtype.name()
            );
            return Err(bad(&tensor, problem));
        }
        if name.ends_with("_scales") {
            check_scales(&tensor)?;
        }
        self.device.upload(at, tensor.as_bytes()).map_err(gpu_error)?;
        tensor.release(0..bytes);
        Ok(())
    }

    /// A copy of a tensor on the device.
    fn copy(&mut self, tensor: &HostTensor) -> Result<Buffer> {
        let buffer = buffer_of(self.device, tensor.as_bytes(), Category::Weights)?;
        self.bytes += buffer.bytes() as u64;
        Ok(buffer)
    }

    fn host_vector(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.source.tensor(name, shape)?;
        self.bytes += tensor.as_bytes().len() as u64;
        tensor.to_f32_vec()
    }

    /// A small tensor in f32.
    fn vector(&mut self, name: &str, shape: &[usize]) -> Result<Vector> {
        let values = self.host_vector(name, shape)?;
        self.upload(&values).map(Some)
    }

    fn upload(&self, values: &[f32]) -> Result<Buffer> {
        buffer_of(self.device, bytemuck::cast_slice(values), Category::Weights)
    }

    fn memory(&self, bytes: usize) -> Result<Buffer> {
        self.device.buffer(bytes, Category::Weights).map_err(gpu_error)
    }
}

/// What a device makes of a recipe; bit for bit what the host makes.
impl From<Fill> for vectors::Fill {
    fn from(fill: Fill) -> Self {
        match fill {
            Fill::Uniform { mean, std } => Self::Uniform { mean, std },
            Fill::Codes => Self::Codes,
            Fill::Exponents { low, high_of_256 } => Self::Exponents { low, high_of_256 },
        }
    }
}

/// Weights of 12 and more in a block do not occur in models; kernels expand smaller ones exactly.
fn check_scales(tensor: &HostTensor) -> Result<()> {
    match tensor.as_u8()?.iter().find(|scale| **scale > LARGEST_SCALE) {
        None => Ok(()),
        Some(scale) => {
            let problem = format!(
                "has a scale of 2^{}: on a GPU scales are at most 2; run it with --device cpu",
                i32::from(*scale) - 127
            );
            Err(bad(tensor, problem))
        }
    }
}

fn bad(tensor: &HostTensor, problem: String) -> Error {
    Error::BadTensor { tensor: tensor.name.to_string(), file: tensor.origin.to_string(), problem }
}
