//! The sizes of a model, from its config: the engine's layout in the words of a measurement.
//!
//! Nothing is loaded; a served model whose config is at hand has sizes too.

use bench_core::plan::{Dtypes, ModelPlan};
use bench_core::shape::{ExpertShape, ModelFacts, ModelShape, Part, WeightShape};
use bench_core::spec;
use bench_core::target::TargetError;
use bench_engine::config::{ExpertDtype, LayerType, ModelConfig};
use bench_engine::layout::{self, Role};
use bench_engine::place::Place;
use bench_engine::source::ModelRef;
use bench_engine::{
    ActivationDtype, DenseDtype, Exec, ExpertMode, KvDtype, LoadOptions, MatmulPrecision, Stored, system,
};

/// The engine's options for dtypes as a study names them, on the threads that this process shares.
pub fn load_options(dtypes: Dtypes, layers: Option<u32>) -> LoadOptions {
    LoadOptions {
        activation_dtype: match dtypes.activation {
            spec::ActivationDtype::F32 => ActivationDtype::F32,
            spec::ActivationDtype::Bf16 => ActivationDtype::Bf16,
        },
        expert_dtype: match dtypes.expert {
            spec::ExpertDtype::Native => ExpertDtype::Native,
            spec::ExpertDtype::Bf16 => ExpertDtype::Bf16,
        },
        expert_mode: match dtypes.expert_mode {
            spec::ExpertMode::Routed => ExpertMode::Routed,
            spec::ExpertMode::DenseAll => ExpertMode::DenseAll,
        },
        dense_dtype: match dtypes.dense {
            spec::DenseDtype::Native => DenseDtype::Native,
            spec::DenseDtype::Q8_0 => DenseDtype::Q8_0,
            spec::DenseDtype::Q6_0 => DenseDtype::Q6_0,
        },
        matmul_precision: match dtypes.matmul {
            spec::MatmulPrecision::F32 => MatmulPrecision::F32,
            spec::MatmulPrecision::Int16 => MatmulPrecision::Int16,
            spec::MatmulPrecision::Int8 => MatmulPrecision::Int8,
        },
        kv_dtype: dtypes.kv.map(|kv| match kv {
            spec::KvDtype::F32 => KvDtype::F32,
            spec::KvDtype::Bf16 => KvDtype::Bf16,
            spec::KvDtype::Q8_0 => KvDtype::Q8_0,
        }),
        num_layers: layers.map(|l| l as usize),
        exec: Exec::shared(),
        place: Place::Host,
        packed_cache: None,
        pass_rows: None,
    }
}

/// Sizes of a model of this `config`, already cut to the layers that are loaded.
pub fn facts(config: &ModelConfig, options: &LoadOptions) -> ModelFacts {
    let counts = layout::parameter_counts(config);
    let experts = match (&config.moe, config.mxfp4, options.expert_dtype) {
        (None, ..) => "none",
        (Some(_), true, ExpertDtype::Native) => "mxfp4",
        (Some(_), ..) => "bf16",
    };
    ModelFacts {
        architecture: config.architecture.class_name().to_owned(),
        num_hidden_layers: config.num_hidden_layers as u32,
        parameters: counts.total,
        active_parameters: counts.active_per_token,
        weights_bytes: layout::weights_bytes(config, options.stored()),
        kv_bytes_per_token: layout::kv_bytes(config, 1, options.kv(), false),
        activation_dtype: options.activation_dtype.name().to_owned(),
        expert_dtype: experts.to_owned(),
        expert_mode: (config.moe.is_some() && options.expert_mode == ExpertMode::DenseAll)
            .then(|| options.expert_mode.name().to_owned()),
        dense_dtype: Some(options.dense_dtype.name().to_owned()),
        matmul_precision: Some(options.matmul_precision.name().to_owned()),
        kv_dtype: Some(options.kv().name().to_owned()),
        pass_rows: None,
        kernels: options.place.title().unwrap_or_else(|| system::kernel_variant().to_owned()),
        shape: shape(config, options),
    }
}

/// Sizes of a served model from what the plan names: `shape`, else `tokenizer`, which need not have any.
///
/// # Errors
/// A `shape` that cannot be read.
pub fn served(model: &ModelPlan) -> Result<Option<ModelFacts>, TargetError> {
    let options = load_options(model.dtypes(), model.layers);
    let read = |name: &str| -> Result<ModelFacts, bench_engine::Error> {
        let mut config = ModelRef::parse(name)?.config()?;
        if let Some(layers) = options.num_layers {
            config = config.with_layers(layers)?;
        }
        // How it multiplies, and in what, the server does not say.
        Ok(ModelFacts { kernels: String::new(), matmul_precision: None, ..facts(&config, &options) })
    };
    match (&model.shape, &model.tokenizer) {
        (Some(name), _) => read(name)
            .map(Some)
            .map_err(|e| TargetError(format!("shape \"{name}\" of model \"{}\": {e}", model.label))),
        (None, Some(name)) => Ok(read(name).ok()),
        (None, None) => Ok(None),
    }
}

fn shape(config: &ModelConfig, options: &LoadOptions) -> ModelShape {
    let window = |layer: &LayerType| config.sliding_window.filter(|_| *layer == LayerType::Sliding);
    let layers = config.layer_types.iter().take(config.num_hidden_layers);
    ModelShape {
        hidden_size: config.hidden_size as u32,
        vocab_size: config.vocab_size as u32,
        num_attention_heads: config.num_attention_heads as u32,
        num_key_value_heads: config.num_key_value_heads as u32,
        head_dim: config.head_dim as u32,
        windows: layers.map(|layer| window(layer).map(|w| w as u32)).collect(),
        kv_value_bytes: match options.kv() {
            KvDtype::F32 => 4,
            KvDtype::Bf16 => 2,
            KvDtype::Q8_0 => 1,
        },
        kv_head_bytes: (options.kv() == KvDtype::Q8_0)
            .then(|| options.kv().row_bytes(config.head_dim) as u32),
        weights: weights(config, options.stored()),
        experts: config.moe.as_ref().map(|moe| ExpertShape {
            num_experts: moe.num_local_experts as u32,
            experts_per_token: moe.num_experts_per_tok as u32,
            layers: config.num_hidden_layers as u32,
        }),
        max_context_tokens: config.max_position_embeddings as u32,
    }
}

fn weights(config: &ModelConfig, stored: Stored) -> WeightShape {
    let mut weights = WeightShape::default();
    for spec in layout::tensors(config) {
        let part: &mut Part = match spec.role {
            Role::Embedding => &mut weights.embedding,
            Role::LmHead => &mut weights.lm_head,
            Role::Norm => &mut weights.norms,
            Role::Attention => &mut weights.attention,
            Role::Router => &mut weights.router,
            Role::Mlp => &mut weights.mlp,
            Role::ExpertBlocks | Role::ExpertScales | Role::ExpertMatrix | Role::ExpertBias => {
                &mut weights.experts
            }
        };
        part.parameters += spec.parameters();
        part.bytes += layout::resident_bytes(&spec, stored);
    }
    weights.lm_head.bytes += layout::unembedding_copy_bytes(config, stored);
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_served_model_has_the_sizes_that_the_plan_names() {
        let of = |keys: &str| {
            let text = format!(
                "[target]\nkind = \"http\"\n[server]\nbase_url = \"http://h\"\n[[models]]\nid = \"m\"\n{keys}"
            );
            let spec = bench_core::spec::RunSpec::from_toml("t", &text).unwrap();
            served(&spec.resolve().unwrap().models[0])
        };
        assert!(of("").unwrap().is_none() && of("tokenizer = \"/no/such\"").unwrap().is_none());
        let named = of("shape = \"dummy:qwen3-32b\"").unwrap().unwrap();
        assert_eq!(named.kv_bytes_per_token, 262_144);
        assert!(of("tokenizer = \"dummy:gpt-oss-20b\"").unwrap().unwrap().shape.experts.is_some());
        let error = of("shape = \"dummy:none\"").unwrap_err().to_string();
        assert!(error.starts_with("shape \"dummy:none\" of model \"m\""), "{error}");
    }

    #[test]
    fn facts_say_how_numbers_are_kept_and_multiplied() {
        let config = bench_engine::preset::config("gpt-oss-20b").unwrap();
        let exact = facts(&config, &load_options(Dtypes::default(), None));
        assert!(exact.shortcuts().is_empty(), "{:?}", exact.shortcuts());
        let dtypes = Dtypes {
            dense: spec::DenseDtype::Q8_0,
            matmul: spec::MatmulPrecision::Int8,
            kv: Some(spec::KvDtype::Q8_0),
            ..Dtypes::default()
        };
        let fast = facts(&config, &load_options(dtypes, None));
        let expected = ["attention and unembedding q8_0", "products int8", "KV cache q8_0"];
        assert_eq!(fast.shortcuts(), expected);
        // 24 layers, 8 heads, keys and values of 64 + 2 · 2 bytes.
        assert_eq!((fast.kv_bytes_per_token, fast.shape.kv_layer_bytes()), (24 * 1088, 1088));
        assert_eq!(exact.shape.kv_layer_bytes(), 4096);
    }

    #[test]
    fn facts_say_that_all_experts_were_computed_and_count_what_that_multiplies() {
        let config = bench_engine::preset::config("gpt-oss-20b").unwrap();
        let all = Dtypes { expert_mode: spec::ExpertMode::DenseAll, ..Dtypes::default() };
        let [routed, all] = [Dtypes::default(), all].map(|d| facts(&config, &load_options(d, None)));
        assert_eq!(all.shortcuts(), ["all experts computed (ablation)"]);
        assert_eq!(all.expert_mode.as_deref(), Some(spec::ExpertMode::DenseAll.key()));
        assert_eq!((routed.expert_mode.as_deref(), all.active_parameters), (None, routed.active_parameters));
        assert_eq!((routed.experts_computed(), all.experts_computed()), (Some(4), Some(32)));
        assert_eq!(routed.multiplied_parameters(), routed.active_parameters);
        // All but the table that ids are looked up in.
        assert_eq!(all.multiplied_parameters(), all.parameters - all.shape.weights.embedding.parameters);
        let json = serde_json::to_value(&routed).unwrap();
        assert!(json.get("expert_mode").is_none());
    }

    #[test]
    fn the_parts_of_every_preset_add_up() {
        for name in ["gpt-oss-20b", "gpt-oss-120b", "qwen3-32b", "yi-34b", "llama-3.1-70b", "gpt-oss-nano"] {
            let config = bench_engine::preset::config(name).unwrap();
            for dense_dtype in [DenseDtype::Native, DenseDtype::Q8_0, DenseDtype::Q6_0] {
                for tie_word_embeddings in [config.tie_word_embeddings, true] {
                    let config = ModelConfig { tie_word_embeddings, ..config.clone() };
                    let facts = facts(&config, &LoadOptions { dense_dtype, ..LoadOptions::default() });
                    let parts = facts.shape.weights.parts();
                    assert_eq!(parts.iter().map(|p| p.parameters).sum::<u64>(), facts.parameters, "{name}");
                    assert_eq!(parts.iter().map(|p| p.bytes).sum::<u64>(), facts.weights_bytes, "{name}");
                }
            }
            let facts = facts(&config, &LoadOptions::default());
            assert_eq!(facts.shape.windows.len(), facts.num_hidden_layers as usize, "{name}");
        }
        let config = bench_engine::preset::config("gpt-oss-20b").unwrap();
        let facts = facts(&config, &LoadOptions::default());
        // As the tensors of the published checkpoint add up.
        assert_eq!((facts.parameters, facts.active_parameters), (20_914_757_184, 3_608_307_264));
        assert_eq!(facts.shape.windows[..2], [Some(128), None]);
    }
}
