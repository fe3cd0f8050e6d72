//! The built-in engine as a target: loads what the plan names, makes its prompts, runs its batches.
//!
//! A thin adapter. What the engine computes, and whether a model fits in memory, is known to `bench-engine`.

mod generate;
mod load;

use bench_core::event::{EventKind, FailureKind};
use bench_core::plan::{Cell, ModelPlan, Plan};
use bench_core::shape::ModelFacts;
use bench_core::target::{Recorder, Request, StopFlag, Target, TargetError};
use generate::generate;
use load::Loaded;

pub struct EngineTarget {
    plan: Plan,
    pool: rayon::ThreadPool,
    /// Loaded models, the one in use last. More than one only when all of the plan fit in memory together.
    loaded: Vec<Loaded>,
}

impl EngineTarget {
    /// Takes the plan's settings; loads nothing yet.
    ///
    /// # Errors
    /// A device that the engine does not run on, or threads that cannot be started.
    pub fn new(plan: &Plan) -> Result<Self, TargetError> {
        let device = &plan.target.device;
        if device != "cpu" {
            return Err(TargetError(format!("device \"{device}\" is not supported yet; valid: \"cpu\"")));
        }
        let threads = plan.target.threads.map_or(0, |t| t as usize);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("engine-{i}"))
            .build()
            .map_err(|e| TargetError(format!("cannot start {threads} compute threads: {e}")))?;
        Ok(Self { plan: plan.clone(), pool, loaded: Vec::new() })
    }

    fn current(&self) -> Result<&Loaded, TargetError> {
        self.loaded.last().ok_or_else(|| TargetError("no model is loaded".to_owned()))
    }
}

impl Target for EngineTarget {
    fn key(&self) -> &'static str {
        "engine"
    }

    fn prepare(
        &mut self,
        model: &ModelPlan,
        progress: &mut dyn FnMut(f64),
        _stop: &StopFlag,
    ) -> Result<Option<ModelFacts>, TargetError> {
        if let Some(at) = self.loaded.iter().position(|l| l.label == model.label) {
            let model = self.loaded.remove(at);
            self.loaded.push(model);
        } else {
            let held = self.loaded.iter().map(|l| l.facts.weights_bytes).sum();
            if !load::fit_together(&self.plan, held) {
                self.loaded.clear();
            }
            let loaded = load::load(&self.plan, model, progress)?;
            self.loaded.push(loaded);
        }
        progress(1.0);
        Ok(Some(self.current()?.facts.clone()))
    }

    fn prompt(&mut self, cell: &Cell, index: u64, warmup: bool) -> Result<Vec<u32>, TargetError> {
        let loaded = self.current()?;
        let limit = loaded.model.config().max_position_embeddings;
        let wanted = cell.prompt_tokens as usize + cell.output_tokens as usize;
        if wanted > limit {
            return Err(TargetError(format!(
                "cell {} needs {wanted} positions, but model \"{}\" has max_position_embeddings = {limit}: \
                 ask for shorter prompts or outputs",
                cell.id, cell.model
            )));
        }
        let prompts = if warmup { &loaded.warmup_prompts } else { &loaded.prompts };
        let prompt = prompts.build(index, cell.prompt_tokens as usize);
        prompt.map(|p| p.ids).map_err(|e| TargetError(format!("prompt of cell {}: {e}", cell.id)))
    }

    fn run(&mut self, requests: &[Request], recorder: &mut Recorder<'_>, stop: &StopFlag) {
        for slot in 0..requests.len() {
            recorder.record(slot, EventKind::Sent);
        }
        let ran = match self.loaded.last() {
            Some(loaded) => {
                let target = &self.plan.target;
                self.pool.install(|| generate(loaded, target, requests, recorder, stop))
            }
            None => Err(((0..requests.len()).collect(), "no model is loaded".to_owned())),
        };
        if let Err((open, message)) = ran {
            for slot in open {
                let failure = FailureKind::Engine;
                recorder.record(slot, EventKind::Failed { failure, message: message.clone() });
            }
        }
    }
}
