//! From a plan's model to one that runs: checkpoint, memory check, tokenizer, prompts, sizes.
//!
//! Nothing is read before the arithmetic says that it fits.

use crate::provenance;
use bench_core::plan::{Cell, ModelPlan, Plan, derive_seed};
use bench_core::shape::ModelFacts;
use bench_core::spec::{self, Chat};
use bench_core::target::TargetError;
use bench_engine::checkpoint::Folder;
use bench_engine::config::{Architecture, ExpertDtype, ModelConfig};
use bench_engine::text::harmony::ReasoningEffort;
use bench_engine::text::{ChatFormat, ChatTemplate, Date, PromptBuilder, Split, Tokenizer};
use bench_engine::weights::WeightSource;
use bench_engine::{ActivationDtype, LoadOptions, Model, layout};
use std::path::{Path, PathBuf};

/// Of the free memory, what a run may plan with: activations, logits and the rest of the system take some.
const USABLE: f64 = 0.9;
/// Tokens at which a turn or text ends, in the formats that are in use.
const END_TOKENS: [&str; 8] = [
    "<|return|>",
    "<|call|>",
    "<|end|>",
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "</s>",
];

/// A model ready to run, with the prompts that it is given.
pub(super) struct Loaded {
    pub(super) label: String,
    pub(super) model: Model,
    pub(super) prompts: PromptBuilder,
    pub(super) warmup_prompts: PromptBuilder,
    /// Ids that are never sampled, so that an output is as long as asked.
    pub(super) suppressed: Vec<u32>,
    pub(super) facts: ModelFacts,
}

/// A checkpoint that is known but not read.
struct Source {
    config: ModelConfig,
    weights: Box<dyn WeightSource>,
    /// `None` for generated weights.
    folder: Option<PathBuf>,
}

/// Loads `model` with the plan's settings; `progress` is told the fraction of layers that are built.
pub(super) fn load(
    plan: &Plan,
    model: &ModelPlan,
    progress: &mut dyn FnMut(f64),
) -> Result<Loaded, TargetError> {
    let fail = |e: String| TargetError(format!("model \"{}\" ({}): {e}", model.label, model.id));
    let options = options(plan, model);
    let source = open(plan, model).map_err(fail)?;
    if let Some(free) = provenance::machine().memory_available_bytes {
        check_memory(plan, model, &source.config, free).map_err(fail)?;
    }
    let (format, tokenizer) = text(plan, &source).map_err(|e| fail(e.to_string()))?;
    let seed = derive_seed(plan.seed, "prompts");
    let prompts =
        |split| PromptBuilder::new(&tokenizer, &format, seed, split).map_err(|e| fail(e.to_string()));
    let (prompts, warmup_prompts) = (prompts(Split::Measured)?, prompts(Split::Warmup)?);
    let suppressed = suppressed(&format, &tokenizer, &source.config);
    let built = Model::build(source.config, &*source.weights, &options, &mut |p| {
        progress(p.done as f64 / p.total.max(1) as f64);
    });
    let built = built.map_err(|e| fail(e.to_string()))?;
    let facts = facts(&built, &options);
    Ok(Loaded { label: model.label.clone(), model: built, prompts, warmup_prompts, suppressed, facts })
}

/// Whether all models of the plan fit in memory at once with room to spare; a model that cannot be opened
/// does not count, its own load will say why.
pub(super) fn fit_together(plan: &Plan) -> bool {
    let needs = plan.models.iter().filter_map(|m| Some(need(plan, m, &open(plan, m).ok()?.config)));
    let needed: u64 = needs.sum();
    provenance::machine().memory_bytes.is_some_and(|total| needed <= total / 2)
}

fn options(plan: &Plan, model: &ModelPlan) -> LoadOptions {
    LoadOptions {
        activation_dtype: match plan.target.activation_dtype {
            spec::ActivationDtype::F32 => ActivationDtype::F32,
            spec::ActivationDtype::Bf16 => ActivationDtype::Bf16,
        },
        expert_dtype: match plan.target.expert_dtype {
            spec::ExpertDtype::Native => ExpertDtype::Native,
            spec::ExpertDtype::Bf16 => ExpertDtype::Bf16,
        },
        num_layers: model.layers.map(|l| l as usize),
    }
}

fn open(plan: &Plan, model: &ModelPlan) -> Result<Source, String> {
    let layers = model.layers.map(|l| l as usize);
    if let Some(preset) = model.id.strip_prefix("dummy:") {
        let seed = derive_seed(plan.seed, "weights");
        let dummy = bench_engine::dummy::Dummy::new(preset, seed, layers).map_err(|e| e.to_string())?;
        return Ok(Source { config: dummy.config().clone(), weights: Box::new(dummy), folder: None });
    }
    let folder = Path::new(&model.id);
    let config = ModelConfig::from_folder(folder).map_err(|e| e.to_string())?;
    let config = match layers {
        Some(layers) => config.with_layers(layers).map_err(|e| e.to_string())?,
        None => config,
    };
    let weights = Folder::open(folder).map_err(|e| e.to_string())?;
    weights.check(&config).map_err(|e| e.to_string())?;
    Ok(Source { config, weights: Box::new(weights), folder: Some(folder.to_owned()) })
}

/// Bytes of weights, and of the KV cache of the plan's largest batch.
fn need(plan: &Plan, model: &ModelPlan, config: &ModelConfig) -> u64 {
    let options = options(plan, model);
    let value = options.activation_dtype.size();
    let kv = |cell: &Cell| {
        let tokens = (cell.prompt_tokens + cell.output_tokens) as usize;
        layout::kv_bytes(config, tokens, value, true) * u64::from(cell.batch)
    };
    let own = plan.cells.iter().filter(|c| c.model == model.label);
    layout::weights_bytes(config, options.expert_dtype) + own.map(kv).max().unwrap_or(0)
}

/// Refuses what cannot fit in `free` bytes, and names the number of layers that would.
fn check_memory(plan: &Plan, model: &ModelPlan, config: &ModelConfig, free: u64) -> Result<(), String> {
    let budget = (free as f64 * USABLE) as u64;
    let needed = need(plan, model, config);
    if needed <= budget {
        return Ok(());
    }
    let fits = |layers: &usize| {
        config.clone().with_layers(*layers).is_ok_and(|cut| need(plan, model, &cut) <= budget)
    };
    let advice = match (1..config.num_hidden_layers).rev().find(fits) {
        Some(layers) => format!("`layers = {layers}` of {} would fit", config.num_hidden_layers),
        None => "not even one layer would fit".to_owned(),
    };
    Err(format!(
        "weights and KV cache need {:.1} GiB, of the {:.1} GiB that are free {:.1} can be used; {advice}",
        gib(needed),
        gib(free),
        gib(budget)
    ))
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// The chat format that the plan asks for, and the checkpoint's tokenizer; generated models have that of gpt-oss.
fn text(plan: &Plan, source: &Source) -> Result<(ChatFormat, Tokenizer), bench_engine::text::TextError> {
    let date: Date = plan.target.date.parse()?;
    let tokenizer = match &source.folder {
        Some(folder) => Tokenizer::from_folder(folder)?,
        None => Tokenizer::o200k_truncated(source.config.vocab_size)?,
    };
    if plan.target.chat == Chat::Plain {
        return Ok((ChatFormat::Plain, tokenizer));
    }
    let template = match &source.folder {
        Some(folder) => ChatTemplate::from_folder(folder, date)?,
        None => None,
    };
    let is_gpt_oss = source.config.architecture == Architecture::GptOss;
    let format = ChatFormat::for_model(is_gpt_oss, template, ReasoningEffort::Medium, date);
    Ok((format, tokenizer))
}

fn suppressed(format: &ChatFormat, tokenizer: &Tokenizer, config: &ModelConfig) -> Vec<u32> {
    let mut ids = format.stop_ids(tokenizer, &config.eos_token_ids);
    ids.extend(END_TOKENS.iter().filter_map(|name| tokenizer.special_id(name)));
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn facts(model: &Model, options: &LoadOptions) -> ModelFacts {
    let config = model.config();
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
        weights_bytes: model.weights_bytes(),
        kv_bytes_per_token: layout::kv_bytes(config, 1, options.activation_dtype.size(), false),
        activation_dtype: options.activation_dtype.name().to_owned(),
        expert_dtype: experts.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bench_core::spec::RunSpec;

    fn plan(id: &str) -> Plan {
        let text = format!("[workload]\nchat = \"plain\"\nbatch = [4]\n[[models]]\nid = \"{id}\"\n");
        RunSpec::from_toml("t", &text).unwrap().resolve().unwrap()
    }

    #[test]
    fn end_tokens_are_suppressed_and_prompts_exact() {
        let plan = plan(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/gpt-oss-tiny"));
        let mut fractions = Vec::new();
        let loaded = load(&plan, &plan.models[0], &mut |f| fractions.push(f)).unwrap();
        // golden/README.md: `<|return|>` 494, `<|end|>` 499, `<|call|>` 504.
        assert!([494, 499, 504].iter().all(|id| loaded.suppressed.contains(id)), "{:?}", loaded.suppressed);
        assert_eq!(fractions, [0.25, 0.5, 0.75, 1.0]);
        let lengths = [1, 17, 300].map(|n| loaded.prompts.build(3, n).unwrap().ids.len());
        assert_eq!(lengths, [1, 17, 300]);
        // 2 x 2 kv heads x 64 values x 4 bytes in each of 4 layers.
        assert_eq!(loaded.facts.kv_bytes_per_token, 4 * 2 * 2 * 64 * 4);
        assert_eq!(
            (loaded.facts.expert_dtype.as_str(), loaded.facts.activation_dtype.as_str()),
            ("mxfp4", "f32")
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let plan = plan("dummy:gpt-oss-120b");
        let source = open(&plan, &plan.models[0]).unwrap();
        let check = |free: u64| check_memory(&plan, &plan.models[0], &source.config, free);
        check(100 << 30).unwrap();
        let error = check(32 << 30).unwrap_err();
        assert!(error.contains("32.0 GiB that are free") && error.contains("of 36 would fit"), "{error}");
        let layers: u32 =
            error.split("layers = ").nth(1).unwrap().split('`').next().unwrap().parse().unwrap();
        assert!((10..20).contains(&layers), "about half of the memory, about half of the layers: {error}");
        assert!(check(1 << 30).unwrap_err().contains("not even one layer"));
    }
}
