//! What one model's reference files say: prompts, the tokens that follow, their logits, the experts chosen.

use std::path::Path;

use candle_core::{Device, Tensor};

use super::golden::Golden;
use super::run::Routing;
use crate::checkpoint::Folder;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::model::{LoadOptions, Model};

/// The checkpoints of a folder of references.
pub const MODELS: [&str; 4] = ["gpt-oss-tiny", "gpt-oss-tiny-bf16", "qwen3-tiny", "llama-tiny"];

/// Prompts with a file of their own; p9 and p23 stand in `batch2` too.
const SINGLE: [&str; 3] = ["p1", "p9", "p70"];
const BATCH: [&str; 2] = ["p9", "p23"];

/// One prompt and what follows it.
#[derive(Debug)]
pub struct Prompt {
    pub name: &'static str,
    pub ids: Vec<u32>,
    pub greedy: Vec<u32>,
    /// `[1 + greedy, vocab]`, f32: after the prompt, and after each greedy id.
    pub steps: Vec<f32>,
    /// `[ids, vocab]`; `None` of the prompt that has no file of its own.
    pub prefill: Option<Vec<f32>>,
    /// `None` in dense models, and of the prompt that has no file of its own.
    pub routing: Option<Routing>,
    /// `[1 + greedy, vocab]` of the reference in bf16, with these experts where there are some.
    pub bf16: Vec<f32>,
}

/// The references of one model.
pub struct Case {
    pub config: ModelConfig,
    weights: Folder,
    /// p1, p9, p70 and p23.
    pub prompts: Vec<Prompt>,
}

impl Case {
    /// Reads `<golden>/<model>` and `<golden>/goldens/<model>`; the model with experts in bf16 has the references of
    /// the one with MXFP4.
    ///
    /// # Errors
    /// A folder, file or tensor that is missing, by name.
    pub fn open(golden: &Path, model: &str) -> Result<Self> {
        let checkpoint = golden.join(model);
        if !checkpoint.is_dir() {
            let problem = format!(
                "has no checkpoint {model}: expected a folder like tests/golden, with {} and goldens/",
                MODELS.join(", ")
            );
            return Err(Error::BadFile { path: golden.to_owned(), problem });
        }
        let config = ModelConfig::from_folder(&checkpoint)?;
        let files = golden.join("goldens").join(model.trim_end_matches("-bf16"));
        let open = |name: &str| Golden::open(&files.join(format!("{name}.safetensors")));
        let (bf16, moe) = (open("bf16")?, config.moe.is_some());
        let reference = |prompt: &str| {
            let suffix = if moe { "_f32_routing" } else { "" };
            Ok::<_, Error>(bf16.get(&format!("{prompt}.logits.steps{suffix}"))?.to_vec())
        };
        let mut prompts = Vec::new();
        for name in SINGLE {
            let file = open(name)?;
            prompts.push(Prompt {
                name,
                ids: file.ids("ids.prompt")?,
                greedy: file.ids("ids.greedy")?,
                steps: file.get("logits.steps")?.to_vec(),
                prefill: Some(file.get("logits.prefill")?.to_vec()),
                routing: if moe { Some(routing(&file, config.num_hidden_layers)?) } else { None },
                bf16: reference(name)?,
            });
        }
        let [_, (ids, greedy)] = batch_of_two(&open("batch2")?)?;
        let steps = open("batch2")?.get("logits.steps")?.to_vec();
        let steps = steps[steps.len() / 2..].to_vec();
        let name = BATCH[1];
        prompts.push(Prompt {
            name,
            ids,
            greedy,
            steps,
            prefill: None,
            routing: None,
            bf16: reference(name)?,
        });
        Ok(Self { config, weights: Folder::open(&checkpoint)?, prompts })
    }

    /// # Errors
    /// Those of building a model.
    pub fn build(&self, options: &LoadOptions) -> Result<Model> {
        Model::build(self.config.clone(), &self.weights, options, &mut |_| ())
    }

    /// The two prompts that the reference ran as one batch.
    pub fn batch(&self) -> Vec<&Prompt> {
        BATCH.iter().filter_map(|name| self.prompts.iter().find(|p| p.name == *name)).collect()
    }
}

/// Of each layer the experts of the prompt `[T, k]` and of each greedy id `[1, k]`.
fn routing(file: &Golden, layers: usize) -> Result<Routing> {
    let mut routing = Vec::new();
    for layer in 0..layers {
        let mut passes = Vec::new();
        for (name, at_once) in [("router.topk_index", true), ("decode.router.topk_index", false)] {
            let name = format!("{name}.layer{layer}");
            let (ids, shape) = (file.ids(&name)?, file.shape(&name)?);
            let &[tokens, k] = shape else {
                let problem = format!("has the shape {shape:?}: expected two dimensions");
                return Err(Error::InvalidModel { what: name, problem });
            };
            let rows = if at_once { tokens } else { 1 };
            for part in ids.chunks(rows * k) {
                passes.push(Tensor::from_slice(part, &[rows, k], &Device::Cpu)?);
            }
        }
        routing.push(passes);
    }
    Ok(routing)
}

/// The two prompts of `batch2` without their padding, each with its greedy continuation.
///
/// # Errors
/// A tensor that is missing.
pub fn batch_of_two(file: &Golden) -> Result<[(Vec<u32>, Vec<u32>); 2]> {
    let (ids, mask, greedy) = (file.ids("ids.input")?, file.ids("ids.mask")?, file.ids("ids.greedy")?);
    let row = |i: usize| {
        let half = |values: &[u32]| values[i * values.len() / 2..(i + 1) * values.len() / 2].to_vec();
        let (ids, mask) = (half(&ids), half(&mask));
        let kept = ids.iter().zip(&mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id).collect();
        (kept, half(&greedy))
    };
    Ok([row(0), row(1)])
}
