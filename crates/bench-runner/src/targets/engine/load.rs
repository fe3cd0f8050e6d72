//! From a plan's model to one that runs, with its prompts and sizes.
//!
//! What a model needs, and whether it fits, is asked of `bench-engine`: nothing is read before that is known.

use bench_core::plan::{ModelPlan, Plan, derive_seed};
use bench_core::shape::ModelFacts;
use bench_core::spec::{self, Chat};
use bench_core::target::TargetError;
use bench_engine::config::ExpertDtype;
use bench_engine::session::{self, ChatOptions, OpenOptions, Session};
use bench_engine::source::ModelRef;
use bench_engine::text::harmony::ReasoningEffort;
use bench_engine::text::{PromptBuilder, Split};
use bench_engine::{ActivationDtype, Error, LoadOptions, Model, layout, preflight, system};

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

/// Loads `model` with the plan's settings; `progress` is told the fraction that is done.
///
/// # Errors
/// What cannot be opened, does not fit, or has no tokenizer, with the model's name.
pub(super) fn load(
    plan: &Plan,
    model: &ModelPlan,
    progress: &mut dyn FnMut(f64),
) -> Result<Loaded, TargetError> {
    let fail = |e: Error| TargetError(format!("model \"{}\": {e}", model.label));
    let options = options(plan, model).map_err(fail)?;
    let mut fraction = |p: bench_engine::Progress| progress(p.done as f64 / p.total.max(1) as f64);
    let session = session::open(&model.id, &options, &mut fraction).map_err(fail)?;
    let prompts = |split| prompts(plan, &session, split).map_err(fail);
    Ok(Loaded {
        label: model.label.clone(),
        prompts: prompts(Split::Measured)?,
        warmup_prompts: prompts(Split::Warmup)?,
        suppressed: suppressed(&session),
        facts: facts(&session.model, &options.load),
        model: session.model,
    })
}

/// Whether all models of the plan fit at once in half of what is free and already loaded (`loaded` bytes). A
/// model that is not understood does not count: its own load will say why.
pub(super) fn fit_together(plan: &Plan, loaded: u64) -> bool {
    let need = |model: &ModelPlan| -> Result<u64, Error> {
        let options = options(plan, model)?;
        let mut config = ModelRef::parse(&model.id)?.config()?;
        if let Some(layers) = options.load.num_layers {
            config = config.with_layers(layers)?;
        }
        Ok(preflight::check(&config, &options.need(false), None).required_bytes)
    };
    let needed: u64 = plan.models.iter().filter_map(|m| need(m).ok()).sum();
    system::available_memory().is_some_and(|free| needed <= u64::midpoint(free, loaded))
}

/// The plan's settings; context and batch are the largest of the model's cells.
fn options(plan: &Plan, model: &ModelPlan) -> Result<OpenOptions, Error> {
    let target = &plan.target;
    let own = || plan.cells.iter().filter(|c| c.model == model.label);
    let chat = ChatOptions { date: target.date.parse()?, reasoning_effort: ReasoningEffort::Medium };
    Ok(OpenOptions {
        load: LoadOptions {
            activation_dtype: match target.activation_dtype {
                spec::ActivationDtype::F32 => ActivationDtype::F32,
                spec::ActivationDtype::Bf16 => ActivationDtype::Bf16,
            },
            expert_dtype: match target.expert_dtype {
                spec::ExpertDtype::Native => ExpertDtype::Native,
                spec::ExpertDtype::Bf16 => ExpertDtype::Bf16,
            },
            num_layers: model.layers.map(|l| l as usize),
        },
        seed: derive_seed(plan.seed, "weights"),
        context_tokens: own().map(|c| (c.prompt_tokens + c.output_tokens) as usize).max().unwrap_or(0),
        batch: own().map(|c| c.batch as usize).max().unwrap_or(1),
        prefill_chunk: target.prefill_chunk as usize,
        chat: (target.chat == Chat::Auto).then_some(chat),
    })
}

fn prompts(plan: &Plan, session: &Session, split: Split) -> Result<PromptBuilder, Error> {
    let seed = derive_seed(plan.seed, "prompts");
    Ok(PromptBuilder::new(&session.tokenizer, &session.format, seed, split)?)
}

fn suppressed(session: &Session) -> Vec<u32> {
    let mut ids = session.stop_ids.clone();
    ids.extend(END_TOKENS.iter().filter_map(|name| session.tokenizer.special_id(name)));
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
        kernels: system::kernel_variant().to_owned(),
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
        assert!(fractions.is_sorted() && fractions.last() == Some(&1.0), "{fractions:?}");
        let lengths = [1, 17, 300].map(|n| loaded.prompts.build(3, n).unwrap().ids.len());
        assert_eq!(lengths, [1, 17, 300]);
        // 2 x 2 kv heads x 64 values x 4 bytes in each of 4 layers.
        assert_eq!(loaded.facts.kv_bytes_per_token, 4 * 2 * 2 * 64 * 4);
        assert_eq!(
            (loaded.facts.expert_dtype.as_str(), loaded.facts.activation_dtype.as_str()),
            ("mxfp4", "f32")
        );
    }

    /// A machine with 2 TB of memory would run it: layers and batch are there to make it too large anywhere.
    #[test]
    fn what_does_not_fit_is_refused_before_it_is_loaded() {
        let mut plan = plan("dummy:gpt-oss-120b");
        for cell in &mut plan.cells {
            (cell.prompt_tokens, cell.batch) = (100_000, 10_000);
        }
        let error = load(&plan, &plan.models[0], &mut |_| panic!("nothing is loaded")).err().unwrap();
        let error = error.to_string();
        assert!(error.starts_with("model \"gpt-oss-120b\": ") && error.contains("GiB"), "{error}");
        assert!(!fit_together(&plan, 0));
    }
}
