//! Which tensors a checkpoint of a given config has, and what they weigh.
//!
//! The Hugging Face layout is written down once, here; counts of parameters, weight bytes and KV bytes are sums
//! over it. Nothing is read or allocated.

use crate::config::{Architecture, ExpertDtype, ModelConfig};
use crate::dtype::Stored;
use crate::model::KvDtype;
use crate::weights::TensorDtype;

/// What a tensor is for; the groups of [`ParameterCounts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    Embedding,
    LmHead,
    Norm,
    /// Projections, their biases, q/k norms and sinks.
    Attention,
    Router,
    /// MXFP4 codes of the experts, two to a byte.
    ExpertBlocks,
    /// Exponents that belong to the codes; no parameters of their own.
    ExpertScales,
    /// Expert matrices in bf16.
    ExpertMatrix,
    ExpertBias,
    /// Dense MLP.
    Mlp,
}

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub dtype: TensorDtype,
    pub shape: Vec<usize>,
    pub role: Role,
    /// `None` for what stands outside of the layers.
    pub layer: Option<usize>,
}

impl TensorSpec {
    /// Bytes in the checkpoint.
    pub fn bytes(&self) -> u64 {
        self.elements() * self.dtype.size() as u64
    }

    /// Stored elements; a config that passed validation cannot overflow it.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|n| *n as u64).product()
    }

    /// Model parameters: one per MXFP4 nibble, none for scales.
    pub fn parameters(&self) -> u64 {
        match self.role {
            Role::ExpertBlocks => 2 * self.elements(),
            Role::ExpertScales => 0,
            _ => self.elements(),
        }
    }

    fn is_expert(&self) -> bool {
        use Role::{ExpertBias, ExpertBlocks, ExpertMatrix, ExpertScales};
        matches!(self.role, ExpertBlocks | ExpertScales | ExpertMatrix | ExpertBias)
    }
}

/// Collects the tensors of one layer (or of none).
struct Specs {
    list: Vec<TensorSpec>,
    layer: Option<usize>,
}

impl Specs {
    fn add_as(&mut self, dtype: TensorDtype, role: Role, name: &str, shape: &[usize]) {
        let name = match self.layer {
            Some(layer) => format!("model.layers.{layer}.{name}"),
            None => name.to_owned(),
        };
        self.list.push(TensorSpec { name, dtype, shape: shape.to_vec(), role, layer: self.layer });
    }

    fn add(&mut self, role: Role, name: &str, shape: &[usize]) {
        self.add_as(TensorDtype::Bf16, role, name, shape);
    }
}

/// Every tensor of the checkpoint: embedding, the layers in order, last norm, `lm_head` unless it is tied.
pub fn tensors(config: &ModelConfig) -> Vec<TensorSpec> {
    let mut specs = Specs { list: Vec::new(), layer: None };
    specs.add(Role::Embedding, "model.embed_tokens.weight", &[config.vocab_size, config.hidden_size]);
    for layer in 0..config.num_hidden_layers {
        specs.layer = Some(layer);
        specs.add(Role::Norm, "input_layernorm.weight", &[config.hidden_size]);
        attention(config, &mut specs);
        specs.add(Role::Norm, "post_attention_layernorm.weight", &[config.hidden_size]);
        mlp(config, &mut specs);
    }
    specs.layer = None;
    specs.add(Role::Norm, "model.norm.weight", &[config.hidden_size]);
    if !config.tie_word_embeddings {
        specs.add(Role::LmHead, "lm_head.weight", &[config.vocab_size, config.hidden_size]);
    }
    specs.list
}

fn attention(config: &ModelConfig, specs: &mut Specs) {
    let hidden = config.hidden_size;
    let q = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    for (name, outputs, inputs) in
        [("q_proj", q, hidden), ("k_proj", kv, hidden), ("v_proj", kv, hidden), ("o_proj", hidden, q)]
    {
        specs.add(Role::Attention, &format!("self_attn.{name}.weight"), &[outputs, inputs]);
        if config.attention_bias {
            specs.add(Role::Attention, &format!("self_attn.{name}.bias"), &[outputs]);
        }
    }
    match config.architecture {
        Architecture::GptOss => {
            specs.add(Role::Attention, "self_attn.sinks", &[config.num_attention_heads]);
        }
        Architecture::Qwen3 => {
            specs.add(Role::Attention, "self_attn.q_norm.weight", &[config.head_dim]);
            specs.add(Role::Attention, "self_attn.k_norm.weight", &[config.head_dim]);
        }
        Architecture::Llama => {}
    }
}

fn mlp(config: &ModelConfig, specs: &mut Specs) {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let Some(moe) = &config.moe else {
        specs.add(Role::Mlp, "mlp.gate_proj.weight", &[inner, hidden]);
        specs.add(Role::Mlp, "mlp.up_proj.weight", &[inner, hidden]);
        specs.add(Role::Mlp, "mlp.down_proj.weight", &[hidden, inner]);
        return;
    };
    let experts = moe.num_local_experts;
    specs.add(Role::Router, "mlp.router.weight", &[experts, hidden]);
    specs.add(Role::Router, "mlp.router.bias", &[experts]);
    for (name, outputs, inputs) in [("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)] {
        let name = format!("mlp.experts.{name}");
        if config.mxfp4 {
            let (blocks, scales) = (format!("{name}_blocks"), format!("{name}_scales"));
            let groups = inputs / 32;
            specs.add_as(TensorDtype::U8, Role::ExpertBlocks, &blocks, &[experts, outputs, groups, 16]);
            specs.add_as(TensorDtype::U8, Role::ExpertScales, &scales, &[experts, outputs, groups]);
        } else {
            // The bf16 layout of transformers is the transpose, [expert, input, output].
            specs.add(Role::ExpertMatrix, &name, &[experts, inputs, outputs]);
        }
        specs.add(Role::ExpertBias, &format!("{name}_bias"), &[experts, outputs]);
    }
}

/// Parameters by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ParameterCounts {
    pub total: u64,
    /// The input embedding table.
    pub embedding: u64,
    /// 0 when the embedding table is also the unembedding.
    pub lm_head: u64,
    /// Matrices and biases of all experts.
    pub experts: u64,
    /// Dense MLPs.
    pub mlp: u64,
    /// Projections, biases, q/k norms, sinks.
    pub attention: u64,
    pub router: u64,
    pub norms: u64,
    /// What one token passes through: all but the input embedding table, and of the experts only those that a
    /// token uses. A tied table works as the unembedding and counts.
    pub active_per_token: u64,
    /// The same with the whole input embedding table, as some model cards count.
    pub active_with_embedding: u64,
}

/// Counts the parameters of a config exactly.
pub fn parameter_counts(config: &ModelConfig) -> ParameterCounts {
    let mut counts = ParameterCounts::default();
    for spec in tensors(config) {
        let parameters = spec.parameters();
        counts.total += parameters;
        let group = match spec.role {
            Role::Embedding => &mut counts.embedding,
            Role::LmHead => &mut counts.lm_head,
            Role::Norm => &mut counts.norms,
            Role::Attention => &mut counts.attention,
            Role::Router => &mut counts.router,
            Role::Mlp => &mut counts.mlp,
            Role::ExpertBlocks | Role::ExpertScales | Role::ExpertMatrix | Role::ExpertBias => {
                &mut counts.experts
            }
        };
        *group += parameters;
    }
    let idle = counts.experts - used_experts(config, counts.experts);
    counts.active_with_embedding = counts.total - idle;
    let table = if config.tie_word_embeddings { 0 } else { counts.embedding };
    counts.active_per_token = counts.active_with_embedding - table;
    counts
}

/// The share of `n` (a count over all experts) that one token uses; exact, since experts are alike.
fn used_experts(config: &ModelConfig, n: u64) -> u64 {
    match &config.moe {
        Some(moe) => n / moe.num_local_experts as u64 * moe.num_experts_per_tok as u64,
        None => n,
    }
}

/// Bytes of all weights in memory, in the given form. Cut the config with `with_layers` for fewer layers.
pub fn weights_bytes(config: &ModelConfig, stored: impl Into<Stored>) -> u64 {
    let stored = stored.into();
    let tensors: u64 = tensors(config).iter().map(|spec| resident_bytes(spec, stored)).sum();
    tensors + unembedding_copy_bytes(config, stored)
}

/// Bytes of one tensor in memory: as in the checkpoint, unless MXFP4 codes are dequantized or a dense matrix is
/// quantized.
pub fn resident_bytes(spec: &TensorSpec, stored: impl Into<Stored>) -> u64 {
    let stored = stored.into();
    match (stored.experts, spec.role, spec.shape.as_slice()) {
        (ExpertDtype::Bf16, Role::ExpertBlocks | Role::ExpertScales, _) => 2 * spec.parameters(),
        (_, Role::Attention | Role::Mlp | Role::LmHead, [rows, cols]) => {
            stored.dense_bytes(*rows, *cols).unwrap_or(spec.bytes())
        }
        _ => spec.bytes(),
    }
}

/// What a tied embedding takes once more to be multiplied with: rows of it are looked up as they are, so that a
/// quantized one stands beside them. 0 where there is no such copy.
pub fn unembedding_copy_bytes(config: &ModelConfig, stored: impl Into<Stored>) -> u64 {
    let copy = || stored.into().dense_bytes(config.vocab_size, config.hidden_size);
    if config.tie_word_embeddings { copy().unwrap_or(0) } else { 0 }
}

/// Weight bytes that decoding one token at batch 1 reads: the active parameters in their stored form, and one
/// row of the embedding table.
pub fn decode_read_bytes(config: &ModelConfig, stored: impl Into<Stored>) -> u64 {
    let stored = stored.into();
    let row = config.hidden_size as u64 * 2;
    let copy = unembedding_copy_bytes(config, stored);
    let read = |spec: &TensorSpec| {
        let bytes = resident_bytes(spec, stored);
        match spec.role {
            Role::Embedding if !config.tie_word_embeddings || copy > 0 => 0,
            _ if spec.is_expert() => used_experts(config, bytes),
            _ => bytes,
        }
    };
    tensors(config).iter().map(read).sum::<u64>() + copy + row
}

/// Bytes of the KV cache of one sequence of `tokens` positions. `windowed`: sliding layers keep their window
/// only; without, as an engine that ignores windows would need.
pub fn kv_bytes(config: &ModelConfig, tokens: usize, dtype: impl Into<KvDtype>, windowed: bool) -> u64 {
    let per_position = 2 * config.num_key_value_heads * dtype.into().row_bytes(config.head_dim);
    let positions = |layer| if windowed { config.kept_positions(layer, tokens) } else { tokens };
    (0..config.num_hidden_layers).map(|layer| positions(layer) as u64 * per_position as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DenseDtype;
    use crate::preset;

    fn read(name: &str, dense: DenseDtype) -> u64 {
        decode_read_bytes(&preset::config(name).unwrap(), Stored { experts: ExpertDtype::Native, dense })
    }

    /// By hand, of gpt-oss-20b: 24 layers of 4096 x 2880 (q, o) and 2 x 512 x 2880 (k, v), 201,088 x 2880 to unembed.
    #[test]
    fn a_token_of_gpt_oss_20b_reads_what_its_formats_take() {
        let matrices = 24 * (2 * 4096 * 2880 + 2 * 512 * 2880) + 201_088 * 2880_u64;
        let bf16 = read("gpt-oss-20b", DenseDtype::Native);
        let q8 = read("gpt-oss-20b", DenseDtype::Q8_0);
        let q6 = read("gpt-oss-20b", DenseDtype::Q6_0);
        assert_eq!(bf16 - q8, matrices * 2 - matrices / 32 * 34);
        assert_eq!(bf16 - q6, matrices * 2 - matrices / 32 * 26);
        let gb = |bytes: u64| (bytes as f64 / 1e7).round() / 100.0;
        assert_eq!((gb(bf16), gb(q8), gb(q6)), (3.71, 2.57, 2.26));
    }

    #[test]
    fn weights_shrink_by_what_is_quantized_and_the_rest_stays() {
        let config = preset::config("gpt-oss-20b").unwrap();
        let bytes = |dense| weights_bytes(&config, Stored { experts: ExpertDtype::Native, dense });
        assert_eq!(bytes(DenseDtype::Native), 13_761_264_768);
        let matrices = 24 * (2 * 4096 * 2880 + 2 * 512 * 2880) + 201_088 * 2880_u64;
        assert_eq!(bytes(DenseDtype::Q8_0), 13_761_264_768 - matrices / 16 * 15);
        for spec in tensors(&config) {
            let dense = matches!(spec.role, Role::Attention | Role::LmHead) && spec.shape.len() == 2;
            let q8 = resident_bytes(&spec, Stored { dense: DenseDtype::Q8_0, ..Stored::default() });
            assert_eq!(q8 < spec.bytes(), dense, "{}", spec.name);
        }
    }

    #[test]
    fn a_tied_embedding_gets_a_quantized_copy_beside_it() {
        let mut config = preset::config("dense-tiny").unwrap();
        config.tie_word_embeddings = true;
        let (vocab, hidden) = (config.vocab_size as u64, config.hidden_size as u64);
        let stored = |dense| Stored { dense, ..Stored::default() };
        let layers: u64 = tensors(&config)
            .iter()
            .filter(|s| s.role != Role::Embedding)
            .map(|s| resident_bytes(s, stored(DenseDtype::Q8_0)))
            .sum();
        let copy = vocab * hidden / 32 * 34;
        assert_eq!(weights_bytes(&config, stored(DenseDtype::Q8_0)), layers + 2 * vocab * hidden + copy);
        assert_eq!(decode_read_bytes(&config, stored(DenseDtype::Q8_0)), layers + copy + 2 * hidden);
        assert_eq!(unembedding_copy_bytes(&config, stored(DenseDtype::Native)), 0);
    }

    #[test]
    fn a_matrix_that_does_not_divide_stays_as_it_is() {
        let spec = |shape: &[usize]| TensorSpec {
            name: "w".to_owned(),
            dtype: TensorDtype::Bf16,
            shape: shape.to_vec(),
            role: Role::Mlp,
            layer: Some(0),
        };
        let q6 = Stored { dense: DenseDtype::Q6_0, ..Stored::default() };
        for (shape, bytes) in
            [([16, 32], 16 * 26), ([24, 32], 24 * 64), ([16, 48], 16 * 96), ([32, 64], 64 * 26)]
        {
            assert_eq!(resident_bytes(&spec(&shape), q6), bytes, "{shape:?}");
        }
    }

    #[test]
    fn a_quantized_cache_has_34_bytes_for_32_values() {
        let config = preset::config("gpt-oss-20b").unwrap();
        let token = |dtype| kv_bytes(&config, 1, dtype, false);
        assert_eq!(token(KvDtype::Bf16), 24 * 2 * 8 * 128);
        assert_eq!(token(KvDtype::Q8_0), 24 * 2 * 8 * 68);
    }
}
