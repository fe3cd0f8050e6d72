//! From the text of a `config.json` to a validated `ModelConfig`.
//!
//! Every check that keeps later arithmetic safe stands here: nothing downstream divides by zero or overflows.

use serde_json::{Value, json};

use super::fields::Fields;
use super::{Architecture, LayerType, ModelConfig, MoeConfig, RopeScaling};
use crate::Error;
use crate::error::excerpt;

/// `swiglu_alpha` of the gpt-oss reference (openai/gpt-oss `gpt_oss/torch/model.py`); in no checkpoint's config.
const SWIGLU_ALPHA: f64 = 1.702;
/// More layers than any model has; bounds what a hostile config can make us allocate.
const MAX_LAYERS: usize = 4096;
/// An MXFP4 block holds 32 values along the input dimension.
const MXFP4_BLOCK: usize = 32;
/// A checkpoint of more parameters than this is a mistake in the config.
const MAX_PARAMETERS: u128 = 1 << 50;

pub(super) fn config(json: &str, file: &str) -> Result<ModelConfig, Error> {
    let value = root(json, file)?;
    let fields = top(&value, file)?;
    let architecture = architecture(&fields)?;
    refuse_unimplemented(&fields)?;
    let num_hidden_layers = fields.size("num_hidden_layers")?;
    if num_hidden_layers > MAX_LAYERS {
        return Err(
            fields.error(format!("\"num_hidden_layers\" is {num_hidden_layers}, more than {MAX_LAYERS}"))
        );
    }
    let hidden_size = fields.size("hidden_size")?;
    let num_attention_heads = fields.size("num_attention_heads")?;
    let vocab_size = fields.size("vocab_size")?;
    let sliding_window = sliding_window(&fields, architecture)?;
    let (rope_theta, rope_scaling) = rope(&fields)?;
    let moe = moe(&fields, architecture)?;
    let config = ModelConfig {
        architecture,
        hidden_size,
        intermediate_size: fields.size("intermediate_size")?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: fields.size("num_key_value_heads")?,
        head_dim: head_dim(&fields, architecture, hidden_size, num_attention_heads)?,
        vocab_size,
        max_position_embeddings: fields.size("max_position_embeddings")?,
        rms_norm_eps: fields.positive("rms_norm_eps")?,
        tie_word_embeddings: fields.boolean("tie_word_embeddings")?,
        attention_bias: attention_bias(&fields, architecture)?,
        layer_types: layer_types(&fields, architecture, num_hidden_layers, sliding_window)?,
        sliding_window,
        rope_theta,
        rope_scaling,
        mxfp4: mxfp4(&fields, moe.is_some())?,
        moe,
        eos_token_ids: fields.token_ids("eos_token_id", vocab_size)?,
    };
    validate(&config, &fields)?;
    Ok(config)
}

/// The stop tokens of a `generation_config.json`.
pub(super) fn generation_eos(json: &str, file: &str, config: &ModelConfig) -> Result<Vec<u32>, Error> {
    let value = root(json, file)?;
    top(&value, file)?.token_ids("eos_token_id", config.vocab_size)
}

fn root(json: &str, file: &str) -> Result<Value, Error> {
    // serde_json refuses nesting deeper than 128, so that a hostile file cannot exhaust the stack.
    serde_json::from_str(json)
        .map_err(|e| Error::Config { file: file.to_owned(), reason: format!("not valid JSON: {e}") })
}

fn top<'a>(value: &'a Value, file: &'a str) -> Result<Fields<'a>, Error> {
    match value {
        Value::Object(object) => Ok(Fields::new(file, object)),
        _ => Err(Error::Config { file: file.to_owned(), reason: "expected a JSON object".to_owned() }),
    }
}

fn architecture(fields: &Fields) -> Result<Architecture, Error> {
    let found = fields.text("model_type")?;
    let unsupported = |found: &str| Error::UnsupportedModelType {
        file: fields.file.to_owned(),
        found: excerpt(found.to_owned()),
        supported: Architecture::ALL.map(Architecture::model_type).join(", "),
    };
    let architecture = Architecture::ALL.into_iter().find(|a| a.model_type() == found);
    let architecture = architecture.ok_or_else(|| unsupported(found))?;
    // A reward or classification model shares the model type but lacks the language-model head.
    if let Some(classes) = fields.optional_list("architectures")? {
        let is_ours = |class: &Value| class.as_str() == Some(architecture.class_name());
        if !classes.iter().any(is_ours) {
            let found = classes.first().map_or_else(|| "an empty list".to_owned(), Value::to_string);
            return Err(unsupported(&found));
        }
    }
    Ok(architecture)
}

fn refuse_unimplemented(fields: &Fields) -> Result<(), Error> {
    fields.only("hidden_act", &json!("silu"))?;
    fields.only("mlp_bias", &json!(false))?;
    // Tensor-parallel slicing of a Llama pre-training run changes the order of its sums.
    fields.only("pretraining_tp", &json!(1))
}

/// Llama and Yi configs from before transformers 4.46 do not have the key: there it is hidden / heads.
fn head_dim(fields: &Fields, arch: Architecture, hidden: usize, heads: usize) -> Result<usize, Error> {
    match fields.optional_size("head_dim")? {
        Some(head_dim) => Ok(head_dim),
        None if arch != Architecture::Llama => fields.size("head_dim"),
        None if hidden.is_multiple_of(heads) => Ok(hidden / heads),
        None => Err(fields.error(format!(
            "no \"head_dim\", and \"hidden_size\" {hidden} is not a multiple of \"num_attention_heads\" {heads}"
        ))),
    }
}

/// Llama and Yi configs from before transformers 4.34 do not have the key, because no such model had biases.
fn attention_bias(fields: &Fields, architecture: Architecture) -> Result<bool, Error> {
    match architecture {
        Architecture::Llama => Ok(fields.optional_boolean("attention_bias")?.unwrap_or(false)),
        _ => fields.boolean("attention_bias"),
    }
}

fn sliding_window(fields: &Fields, architecture: Architecture) -> Result<Option<usize>, Error> {
    match architecture {
        Architecture::GptOss => fields.size("sliding_window").map(Some),
        // Qwen3 configs carry a window that counts only when it is switched on.
        Architecture::Qwen3 if fields.optional_boolean("use_sliding_window")? == Some(true) => {
            fields.size("sliding_window").map(Some)
        }
        Architecture::Qwen3 | Architecture::Llama => Ok(None),
    }
}

fn layer_types(
    fields: &Fields,
    architecture: Architecture,
    layers: usize,
    window: Option<usize>,
) -> Result<Vec<LayerType>, Error> {
    let Some(list) = fields.optional_list("layer_types")? else {
        return default_layer_types(fields, architecture, layers, window);
    };
    if list.len() != layers {
        let n = list.len();
        return Err(
            fields.error(format!("\"layer_types\" has {n} entries for {layers} \"num_hidden_layers\""))
        );
    }
    let parse = |value: &Value| match value.as_str() {
        Some("full_attention") => Ok(LayerType::Full),
        Some("sliding_attention") if window.is_some() => Ok(LayerType::Sliding),
        Some("sliding_attention") => {
            Err(fields.error("\"layer_types\" has \"sliding_attention\" without a sliding window".to_owned()))
        }
        _ => Err(fields.error(format!(
            "\"layer_types\" has {value}, expected \"sliding_attention\" or \"full_attention\""
        ))),
    };
    list.iter().map(parse).collect()
}

/// What transformers does for configs without the key: gpt-oss alternates, sliding first; Qwen3 slides from
/// `max_window_layers` on; Llama never does.
fn default_layer_types(
    fields: &Fields,
    architecture: Architecture,
    layers: usize,
    window: Option<usize>,
) -> Result<Vec<LayerType>, Error> {
    let first_sliding = match (architecture, window) {
        (Architecture::Qwen3, Some(_)) => fields.size("max_window_layers")?,
        _ => layers,
    };
    let slides = |layer: usize| match architecture {
        Architecture::GptOss => layer.is_multiple_of(2),
        _ => layer >= first_sliding,
    };
    Ok((0..layers).map(|l| if slides(l) { LayerType::Sliding } else { LayerType::Full }).collect())
}

/// `rope_theta` and the scaling, from either spelling. Where both spellings stand, they must agree.
fn rope(fields: &Fields) -> Result<(f64, RopeScaling), Error> {
    let new = fields.optional_object("rope_parameters", "rope_parameters.")?;
    let old = fields.optional_object("rope_scaling", "rope_scaling.")?;
    let scaling = new.or(old);
    let top = fields.optional_positive("rope_theta")?;
    let inner = scaling.as_ref().map(|s| s.optional_positive("rope_theta")).transpose()?.flatten();
    let theta = match (top, inner) {
        (Some(a), Some(b)) if (a - b).abs() > f64::EPSILON * a => {
            return Err(fields.error(format!("two values of \"rope_theta\", {a} and {b}")));
        }
        (Some(theta), _) | (None, Some(theta)) => theta,
        (None, None) => return fields.positive("rope_theta").map(|theta| (theta, RopeScaling::None)),
    };
    Ok((theta, scaling.map_or(Ok(RopeScaling::None), |s| rope_scaling(&s))?))
}

fn rope_scaling(fields: &Fields) -> Result<RopeScaling, Error> {
    // "type" is the spelling before transformers 4.43.
    let kind = match fields.optional_text("rope_type")? {
        Some(kind) => kind,
        None if fields.get("type").is_some() => fields.text("type")?,
        None => fields.text("rope_type")?,
    };
    let factor = || {
        let factor = fields.positive("factor")?;
        if factor < 1.0 {
            Err(fields.error(format!("rope \"factor\" is {factor}, below 1")))
        } else {
            Ok(factor)
        }
    };
    match kind {
        "default" => Ok(RopeScaling::None),
        "yarn" => {
            for key in ["attention_factor", "mscale", "mscale_all_dim"] {
                if fields.get(key).is_some() {
                    return Err(fields.error(format!("yarn with \"{key}\" is not supported")));
                }
            }
            Ok(RopeScaling::Yarn {
                factor: factor()?,
                beta_fast: fields.positive("beta_fast")?,
                beta_slow: fields.positive("beta_slow")?,
                original_max_position_embeddings: fields.size("original_max_position_embeddings")?,
                truncate: fields.boolean("truncate")?,
            })
        }
        "llama3" => {
            let (low, high) = (fields.positive("low_freq_factor")?, fields.positive("high_freq_factor")?);
            if low >= high {
                let reason = format!("\"low_freq_factor\" {low} is not below \"high_freq_factor\" {high}");
                return Err(fields.error(reason));
            }
            Ok(RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: fields.size("original_max_position_embeddings")?,
            })
        }
        other => Err(fields.error(format!("rope type {other:?}, expected one of default, yarn, llama3"))),
    }
}

fn moe(fields: &Fields, architecture: Architecture) -> Result<Option<MoeConfig>, Error> {
    if architecture != Architecture::GptOss {
        return Ok(None);
    }
    let moe = MoeConfig {
        num_local_experts: fields.size("num_local_experts")?,
        num_experts_per_tok: fields.size("num_experts_per_tok")?,
        swiglu_limit: fields.positive("swiglu_limit")?,
        swiglu_alpha: fields.optional_positive("swiglu_alpha")?.unwrap_or(SWIGLU_ALPHA),
    };
    if moe.num_experts_per_tok > moe.num_local_experts {
        return Err(fields.error(format!(
            "\"num_experts_per_tok\" {} is more than \"num_local_experts\" {}",
            moe.num_experts_per_tok, moe.num_local_experts
        )));
    }
    Ok(Some(moe))
}

fn mxfp4(fields: &Fields, is_moe: bool) -> Result<bool, Error> {
    let Some(quantization) = fields.optional_object("quantization_config", "quantization_config.")? else {
        return Ok(false);
    };
    match quantization.text("quant_method")? {
        "mxfp4" if is_moe => Ok(true),
        other => Err(fields.error(format!(
            "quantization method {other:?} is not supported; gpt-oss experts in mxfp4 and plain bf16 are"
        ))),
    }
}

fn validate(config: &ModelConfig, fields: &Fields) -> Result<(), Error> {
    let fail = |reason: String| Err(fields.error(reason));
    let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
    if !heads.is_multiple_of(kv_heads) {
        return fail(format!(
            "\"num_attention_heads\" {heads} is not a multiple of \"num_key_value_heads\" {kv_heads}"
        ));
    }
    if !config.head_dim.is_multiple_of(2) {
        return fail(format!("\"head_dim\" {} is odd; rotary embeddings need pairs", config.head_dim));
    }
    if config.mxfp4 {
        for (key, size) in
            [("hidden_size", config.hidden_size), ("intermediate_size", config.intermediate_size)]
        {
            if !size.is_multiple_of(MXFP4_BLOCK) {
                return fail(format!("\"{key}\" {size} is not a multiple of 32, the size of an MXFP4 block"));
            }
        }
    }
    let parameters = parameter_bound(config);
    if parameters > MAX_PARAMETERS {
        return fail(format!("the sizes make {parameters} parameters, more than {MAX_PARAMETERS}"));
    }
    Ok(())
}

/// An upper bound of the number of parameters, in arithmetic that cannot overflow: each size is below 2^24.
fn parameter_bound(config: &ModelConfig) -> u128 {
    let n = |size: usize| size as u128;
    let hidden = n(config.hidden_size);
    let attention = 4 * n(config.num_attention_heads) * n(config.head_dim) * (hidden + 1);
    let experts = config.moe.as_ref().map_or(1, |moe| n(moe.num_local_experts));
    let mlp = 3 * experts * (n(config.intermediate_size) + 1) * (hidden + 1) + experts * (hidden + 1);
    let layer = attention + mlp + 4 * hidden;
    2 * n(config.vocab_size) * hidden + n(config.num_hidden_layers) * layer
}
