//! From a plan's model to one that runs, with its prompts and sizes.
//!
//! What a model needs, and whether it fits, is asked of `bench-engine`: nothing is read before that is known.

use crate::shape::{self, load_options};
use bench_core::plan::{Cell, Dtypes, ModelPlan, Plan, derive_seed};
use bench_core::shape::ModelFacts;
use bench_core::spec::Chat;
use bench_core::target::TargetError;
use bench_engine::place::Place;
use bench_engine::session::{self, ChatOptions, OpenOptions, Session};
use bench_engine::source::ModelRef;
use bench_engine::text::harmony::ReasoningEffort;
use bench_engine::text::{PromptBuilder, Split};
use bench_engine::{Error, LoadOptions, Model, preflight};

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

/// What a model in memory depends on; models of a plan that differ in label or sampling only are one.
#[derive(Clone, PartialEq)]
pub(super) struct Key {
    id: String,
    layers: Option<u32>,
    dtypes: Dtypes,
}

impl Key {
    pub(super) fn of(model: &ModelPlan) -> Self {
        Self { id: model.id.clone(), layers: model.layers, dtypes: model.dtypes() }
    }
}

/// A model ready to run, with the prompts that it is given.
pub(super) struct Loaded {
    pub(super) key: Key,
    pub(super) model: Model,
    pub(super) prompts: PromptBuilder,
    pub(super) warmup_prompts: PromptBuilder,
    /// Ids that are never sampled, so that an output is as long as asked.
    pub(super) suppressed: Vec<u32>,
    pub(super) facts: ModelFacts,
}

/// Loads `model` with the plan's settings, by `load`; `progress` is told the fraction that is done.
///
/// # Errors
/// What cannot be opened, does not fit, or has no tokenizer, with the model's name.
pub(super) fn load(
    plan: &Plan,
    model: &ModelPlan,
    load: LoadOptions,
    progress: &mut dyn FnMut(f64),
) -> Result<Loaded, TargetError> {
    let fail = |e: Error| TargetError(format!("model \"{}\": {e}", model.label));
    let options = OpenOptions { load, ..options(plan, model).map_err(fail)? };
    let mut fraction = |p: bench_engine::Progress| progress(p.done as f64 / p.total.max(1) as f64);
    let session = session::open(&model.id, &options, &mut fraction).map_err(fail)?;
    let prompts = |split| prompts(plan, &session, split).map_err(fail);
    Ok(Loaded {
        key: Key::of(model),
        prompts: prompts(Split::Measured)?,
        warmup_prompts: prompts(Split::Warmup)?,
        suppressed: suppressed(&session),
        facts: ModelFacts {
            weights_bytes: session.model.weights_bytes(),
            pass_rows: pass_rows(plan, model, &session.model),
            ..shape::facts(session.model.config(), &options.load)
        },
        model: session.model,
    })
}

/// Whether all models of the plan fit at once in half of what is free and already loaded (`loaded` bytes). A
/// model that is not understood does not count: its own load will say why.
pub(super) fn fit_together(plan: &Plan, loaded: u64, place: &Place) -> bool {
    let need = |model: &ModelPlan| -> Result<u64, Error> {
        let mut options = options(plan, model)?;
        options.load.place = place.clone();
        let mut config = ModelRef::parse(&model.id)?.config()?;
        if let Some(layers) = options.load.num_layers {
            config = config.with_layers(layers)?;
        }
        Ok(preflight::check(&config, &options.need(false), None).required_bytes)
    };
    let is_first = |(i, model): &(usize, &ModelPlan)| {
        plan.models[..*i].iter().all(|earlier| Key::of(earlier) != Key::of(model))
    };
    let distinct = plan.models.iter().enumerate().filter(is_first);
    let needed: u64 = distinct.filter_map(|(_, model)| need(model).ok()).sum();
    preflight::available(place).is_some_and(|free| needed <= u64::midpoint(free, loaded))
}

/// The plan's settings; context and batch are the largest of the cells that this model in memory serves.
fn options(plan: &Plan, model: &ModelPlan) -> Result<OpenOptions, Error> {
    let target = &plan.target;
    let own = || cells(plan, model);
    let chat = ChatOptions { date: target.date.parse()?, reasoning_effort: ReasoningEffort::Medium };
    Ok(OpenOptions {
        load: load_options(model.dtypes(), model.layers),
        seed: derive_seed(plan.seed, "weights"),
        context_tokens: own().map(|c| (c.prompt_tokens + c.output_tokens) as usize).max().unwrap_or(0),
        batch: own().map(|c| c.batch as usize).max().unwrap_or(1),
        prefill_chunk: target.prefill_chunk as usize,
        chat: (target.chat == Chat::Auto).then_some(chat),
    })
}

/// The cells that this model in memory serves.
fn cells<'p>(plan: &'p Plan, model: &ModelPlan) -> impl Iterator<Item = &'p Cell> {
    let same = plan.models.iter().filter(|m| Key::of(m) == Key::of(model));
    let labels: Vec<&str> = same.map(|m| m.label.as_str()).collect();
    plan.cells.iter().filter(move |c| labels.contains(&c.model.as_str()))
}

/// Rows of one pass, where the plan has a prefill that is divided.
fn pass_rows(plan: &Plan, model: &ModelPlan, loaded: &Model) -> Option<u64> {
    let chunk = plan.target.prefill_chunk;
    let largest =
        cells(plan, model).map(|c| u64::from(c.batch) * u64::from(c.prompt_tokens.min(chunk))).max()?;
    loaded.pass_rows().map(|most| most as u64).filter(|most| largest > *most)
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
        let exact = LoadOptions::default();
        let loaded = load(&plan, &plan.models[0], exact, &mut |f| fractions.push(f)).unwrap();
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
        let exact = LoadOptions::default();
        let loaded = load(&plan, &plan.models[0], exact, &mut |_| panic!("nothing is loaded"));
        let error = loaded.err().unwrap();
        let error = error.to_string();
        assert!(error.starts_with("model \"gpt-oss-120b\": ") && error.contains("GiB"), "{error}");
        assert!(!fit_together(&plan, 0, &Place::Host));
    }
}
