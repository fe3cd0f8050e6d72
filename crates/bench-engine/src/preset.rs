//! Model shapes that are known by name: what `dummy:<preset>` and `synth` generate.
//!
//! Each is a `config.json` as the hub has it, read by the same parser as a checkpoint's. No weights here.

use serde_json::{Value, json};

use crate::Error;
use crate::config::ModelConfig;

struct Preset {
    name: &'static str,
    config: &'static str,
    /// Stop tokens that only `generation_config.json` names, as in the real gpt-oss.
    more_eos: &'static [u32],
}

/// The embedded config of a preset.
macro_rules! preset {
    ($name:literal, $more_eos:expr) => {
        Preset { name: $name, config: include_str!(concat!("presets/", $name, ".json")), more_eos: $more_eos }
    };
}

/// The published models first; `nano` runs fast on a laptop, `tiny` in tests. A `dense` preset has the
/// parameters of the `gpt-oss` preset of the same size, within 2 %, so that the two can be compared. The small
/// vocabularies end in the Harmony specials, in their real order.
static PRESETS: [Preset; 9] = [
    preset!("gpt-oss-20b", &[199_999, 200_012]),
    preset!("gpt-oss-120b", &[199_999, 200_012]),
    preset!("qwen3-32b", &[]),
    preset!("yi-34b", &[]),
    preset!("llama-3.1-70b", &[]),
    preset!("gpt-oss-nano", &[16_364, 16_377]),
    preset!("dense-nano", &[16_364]),
    preset!("gpt-oss-tiny", &[1004, 1017]),
    preset!("dense-tiny", &[1004]),
];

/// All preset names.
pub fn names() -> Vec<&'static str> {
    PRESETS.iter().map(|p| p.name).collect()
}

/// The config of a preset, its stop tokens complete.
///
/// # Errors
/// [`Error::UnknownPreset`] lists the valid names.
pub fn config(name: &str) -> Result<ModelConfig, Error> {
    let preset = find(name)?;
    let mut config = ModelConfig::from_json(preset.config)?;
    config.join_eos(preset.more_eos);
    Ok(config)
}

/// The texts of `config.json` and `generation_config.json` of a preset cut to `layers` layers (`None`: all).
///
/// # Errors
/// [`Error::UnknownPreset`], or [`Error::Layers`] for a number of layers that the preset does not have.
pub fn config_files(name: &str, layers: Option<usize>) -> Result<(String, String), Error> {
    let preset = find(name)?;
    let mut config: Value = serde_json::from_str(preset.config)
        .map_err(|e| Error::Config { file: preset.name.to_owned(), reason: e.to_string() })?;
    let parsed = self::config(name)?;
    let eos = parsed.eos_token_ids.clone();
    if let Some(layers) = layers {
        parsed.with_layers(layers)?;
        config["num_hidden_layers"] = json!(layers);
        if let Some(list) = config.get_mut("layer_types").and_then(Value::as_array_mut) {
            list.truncate(layers);
        }
    }
    let mut generation = json!({ "do_sample": true, "eos_token_id": eos });
    for key in ["bos_token_id", "pad_token_id"] {
        if let Some(id) = config.get(key).filter(|id| !id.is_null()) {
            generation[key] = id.clone();
        }
    }
    Ok((format!("{config:#}\n"), format!("{generation:#}\n")))
}

fn find(name: &str) -> Result<&'static Preset, Error> {
    PRESETS
        .iter()
        .find(|p| p.name == name)
        .ok_or_else(|| Error::UnknownPreset { name: name.to_owned(), valid: names().join(", ") })
}
