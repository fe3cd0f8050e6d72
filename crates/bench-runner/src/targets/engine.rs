//! The built-in engine as a target: loads what the plan names, makes its prompts, runs its batches.
//!
//! A thin adapter. What the engine computes, and whether a model fits in memory, is known to `bench-engine`.

mod device;
mod generate;
mod load;

use crate::shape;
use bench_core::event::{EventKind, FailureKind};
use bench_core::plan::{Cell, ModelPlan, Plan, Sampling};
use bench_core::shape::ModelFacts;
use bench_core::target::{Recorder, Request, StopFlag, Target, TargetError};
use bench_engine::place::Place;
use bench_engine::{Exec, LoadNotes, LoadOptions, PackedCache, system};
use device::Meter;
use generate::generate;
use load::{Key, Loaded};

pub struct EngineTarget {
    plan: Plan,
    /// Instruction set and threads, the same for all models.
    exec: Exec,
    place: Place,
    packed_cache: Option<PackedCache>,
    /// Loaded models, the one in use last. More than one only when all of the plan fit in memory together.
    loaded: Vec<Loaded>,
    /// That of the model prepared last; another label of the same model may sample differently.
    sampling: Option<Sampling>,
    /// Of the last load, until it is asked for.
    notes: LoadNotes,
    /// Whether what is to be said of the place was said.
    noted: bool,
}

impl EngineTarget {
    /// Takes the plan's settings; loads nothing yet.
    ///
    /// # Errors
    /// A device that the engine does not run on, or threads that cannot be started.
    pub fn new(plan: &Plan) -> Result<Self, TargetError> {
        let place = Place::open(&plan.target.device).map_err(|e| TargetError(e.to_string()))?;
        Self::at(plan, place)
    }

    /// As [`EngineTarget::new`] on a device that is open already, whatever the plan names.
    ///
    /// # Errors
    /// Threads that cannot be started.
    pub fn at(plan: &Plan, place: Place) -> Result<Self, TargetError> {
        let threads = plan.target.threads.map(|t| t as usize);
        let exec = system::exec(threads, plan.target.pin_threads).map_err(|e| TargetError(e.to_string()))?;
        Ok(Self {
            plan: plan.clone(),
            exec,
            place,
            packed_cache: None,
            loaded: Vec::new(),
            sampling: None,
            notes: LoadNotes::default(),
            noted: false,
        })
    }

    /// Keeps quantized weights for the next start where the user's variables say; without this nothing is kept.
    ///
    /// # Errors
    /// A variable with a value that means nothing.
    pub fn with_packed_cache_of_user(self) -> Result<Self, TargetError> {
        let cache = PackedCache::from_env().map_err(|e| TargetError(e.to_string()))?;
        Ok(self.with_packed_cache(cache))
    }

    /// Keeps quantized weights for the next start in `cache`.
    #[must_use]
    pub fn with_packed_cache(self, cache: Option<PackedCache>) -> Self {
        Self { packed_cache: cache, ..self }
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
        if let Some(at) = self.loaded.iter().position(|l| l.key == Key::of(model)) {
            let model = self.loaded.remove(at);
            self.loaded.push(model);
        } else {
            let held = self.loaded.iter().map(|l| l.facts.weights_bytes).sum();
            if !load::fit_together(&self.plan, held, &self.place) {
                self.loaded.clear();
            }
            let load = LoadOptions {
                exec: self.exec.clone(),
                place: self.place.clone(),
                packed_cache: self.packed_cache.clone(),
                ..shape::load_options(model.dtypes(), model.layers)
            };
            let loaded = load::load(&self.plan, model, load, progress)?;
            let LoadNotes { packed, warnings } = loaded.model.load_notes().clone();
            self.notes.packed = packed;
            self.notes.warnings.extend(warnings.into_iter().map(|note| format!("{}: {note}", model.label)));
            if let Some(rows) = loaded.facts.pass_rows {
                self.notes.warnings.push(format!(
                    "{}: prompts of a batch run in parts of at most {rows} tokens, which is what the GPU holds at once",
                    model.label
                ));
            }
            self.loaded.push(loaded);
        }
        self.sampling = Some(model.sampling.clone());
        progress(1.0);
        Ok(Some(self.current()?.facts.clone()))
    }

    fn how_loaded(&mut self) -> Option<String> {
        self.notes.packed.take()
    }

    fn notes(&mut self) -> Vec<String> {
        let place = self.place.note().filter(|_| !self.noted);
        self.noted |= place.is_some();
        std::mem::take(&mut self.notes.warnings).into_iter().chain(place).collect()
    }

    fn lost(&self) -> Option<String> {
        self.place.lost().map(|error| error.to_string())
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
        if let Some(meter) = self.place.meter() {
            recorder.watch_device(Box::new(Meter::new(meter)));
        }
        let ran = match (self.loaded.last(), &self.sampling) {
            (Some(loaded), Some(sampling)) => {
                let target = &self.plan.target;
                generate(loaded, sampling, target, requests, recorder, stop)
            }
            _ => Err(((0..requests.len()).collect(), "no model is loaded".to_owned())),
        };
        if let Err((open, message)) = ran {
            for slot in open {
                let failure = FailureKind::Engine;
                recorder.record(slot, EventKind::Failed { failure, message: message.clone() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bench_core::clock::MonotonicClock;
    use bench_core::memory::{Heap, ProcessMemory};
    use bench_core::probe::MemoryProbe;
    use bench_core::shape::ExpertUse;
    use bench_core::spec::RunSpec;
    use bench_engine::layout;
    use std::sync::atomic::{AtomicU64, Ordering};

    const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/gpt-oss-tiny");

    fn plan(models: &str) -> Plan {
        let text = format!(
            "[target]\nprefill_chunk = 16\n[workload]\nchat = \"plain\"\nbatch = [2]\nprompt_tokens = [40]\n\
             output_tokens = [5]\n{models}"
        );
        RunSpec::from_toml("t", &text).unwrap().resolve().unwrap()
    }

    /// Counts its readings.
    #[derive(Default)]
    struct Readings(AtomicU64);

    impl MemoryProbe for Readings {
        fn heap(&self) -> Option<Heap> {
            let n = self.0.fetch_add(1, Ordering::Relaxed);
            Some(Heap { live_bytes: n, peak_bytes: n })
        }
        fn reset_heap_peak(&self) {}
        fn process(&self) -> Option<ProcessMemory> {
            None
        }
        fn reset_process_peak(&self) {}
    }

    fn requests(target: &mut EngineTarget, cell: &Cell) -> Vec<Request> {
        let mut request = |slot: u32| {
            let prompt = target.prompt(cell, u64::from(slot), false).unwrap();
            // The second request ends two tokens earlier.
            Request { repeat: 0, slot, prompt, output_tokens: 5 - 2 * slot, seed: 1 }
        };
        vec![request(0), request(1)]
    }

    #[test]
    fn a_batch_is_read_at_its_first_and_last_token_and_keeps_its_caches() {
        let plan = plan(&format!("[[models]]\nid = \"{TINY}\"\n"));
        let mut target = EngineTarget::new(&plan).unwrap();
        target.prepare(&plan.models[0], &mut |_| (), &StopFlag::new()).unwrap();
        let requests = requests(&mut target, &plan.cells[0]);
        let (clock, probe) = (MonotonicClock::default(), Readings::default());
        let mut recorder = Recorder::new(&clock, 2, 5).watching(Some(&probe), 0);
        target.run(&requests, &mut recorder, &StopFlag::new());
        let (memory, experts) = recorder.machine();
        let memory = memory.unwrap();
        let read = [memory.before, memory.first_token, memory.held, memory.released];
        assert_eq!(read.map(|heap| heap.map(|h| h.live_bytes)), [Some(0), Some(1), Some(2), Some(3)]);

        // Three chunks of the prompts; four steps, of two requests and then of one.
        let layers = 4;
        let ExpertUse { prefill, decode, .. } = experts.unwrap();
        assert_eq!((prefill.layer_passes, prefill.tokens), (3 * layers, 2 * 40 * layers));
        assert_eq!((decode.layer_passes, decode.tokens), (4 * layers, (2 * 2 + 2) * layers));
        assert!(prefill.experts > 3 * layers && decode.experts > 4 * layers, "{prefill:?} {decode:?}");

        let config = target.current().unwrap().model.config();
        for (slot, (events, kv)) in recorder.into_parts().into_iter().enumerate() {
            assert!(matches!(events.last().unwrap().kind, EventKind::Done { .. }), "{events:?}");
            assert_eq!(
                kv,
                Some(layout::kv_bytes(config, 40 + 5 - 2 * slot - 1, bench_engine::KvDtype::F32, true)),
                "{slot}"
            );
        }
    }

    #[test]
    fn labels_of_one_model_share_it_unless_they_load_it_otherwise() {
        let models = format!(
            "[[models]]\nid = \"{TINY}\"\nlabel = \"greedy\"\n[[models]]\nid = \"{TINY}\"\nlabel = \"warm\"\n\
             temperature = 0.9\n[[models]]\nid = \"{TINY}\"\nlabel = \"half\"\nactivation_dtype = \"bf16\"\n\
             [[models]]\nid = \"{TINY}\"\nexpert_mode = \"dense-all\"\n"
        );
        let plan = plan(&models);
        let mut target = EngineTarget::new(&plan).unwrap();
        for (model, loaded) in plan.models.iter().zip([1, 1, 2, 3]) {
            target.prepare(model, &mut |_| (), &StopFlag::new()).unwrap();
            assert_eq!(target.loaded.len(), loaded, "{}", model.label);
            assert_eq!(target.sampling.as_ref(), Some(&model.sampling));
        }
        let facts = target.prepare(&plan.models[1], &mut |_| (), &StopFlag::new()).unwrap().unwrap();
        assert_eq!((target.loaded.len(), facts.activation_dtype.as_str()), (3, "f32"));
        let all = &plan.models[3];
        let facts = target.prepare(all, &mut |_| (), &StopFlag::new()).unwrap().unwrap();
        assert_eq!((all.label.as_str(), facts.computes_all_experts()), ("gpt-oss-tiny-dense-all", true));
    }

    #[test]
    fn all_experts_of_a_dense_model_are_an_error_that_names_the_model() {
        let plan = plan("[[models]]\nid = \"dummy:dense-tiny\"\nexpert_mode = \"dense-all\"\n");
        let mut target = EngineTarget::new(&plan).unwrap();
        let error = target.prepare(&plan.models[0], &mut |_| panic!("loaded"), &StopFlag::new()).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("model \"dense-tiny-dense-all\": expert mode dense-all"), "{error}");
        assert!(error.contains("has no experts"), "{error}");
    }
}
