//! A target that answers at once, on the real clock: what its run measures is the harness itself.
//!
//! Its gap between tokens is the cost of recording one token, its time to first token that of a call.

use super::mock::{counted, numbered_prompt};
use bench_core::event::{Channel, EventKind, FailureKind, FinishReason};
use bench_core::plan::{Cell, ModelPlan};
use bench_core::shape::ModelFacts;
use bench_core::target::{Recorder, Request, StopFlag, Target, TargetError};

#[derive(Debug, Clone, Copy, Default)]
pub struct NullTarget;

impl Target for NullTarget {
    fn key(&self) -> &'static str {
        "null"
    }

    fn prepare(
        &mut self,
        _model: &ModelPlan,
        progress: &mut dyn FnMut(f64),
        _stop: &StopFlag,
    ) -> Result<Option<ModelFacts>, TargetError> {
        progress(1.0);
        Ok(None)
    }

    fn prompt(&mut self, cell: &Cell, index: u64, warmup: bool) -> Result<Vec<u32>, TargetError> {
        Ok(numbered_prompt(cell, index, warmup))
    }

    /// Steps like the engine: one token for each request, with one look at the stop flag.
    fn run(&mut self, requests: &[Request], recorder: &mut Recorder<'_>, stop: &StopFlag) {
        for slot in 0..requests.len() {
            recorder.record(slot, EventKind::Sent);
        }
        let steps = requests.iter().map(|r| r.output_tokens).max().unwrap_or(0);
        for step in 0..steps {
            if stop.is_set() {
                for slot in 0..requests.len() {
                    let message = "the run was stopped".to_owned();
                    recorder.record(slot, EventKind::Failed { failure: FailureKind::Interrupted, message });
                }
                return;
            }
            for (slot, _) in requests.iter().enumerate().filter(|(_, r)| step < r.output_tokens) {
                recorder.record(slot, EventKind::Tokens { count: 1, channel: Channel::Unknown });
            }
        }
        for (slot, request) in requests.iter().enumerate() {
            recorder.record(slot, counted(request));
            recorder.record(slot, EventKind::Done { finish: FinishReason::Length });
        }
    }
}
