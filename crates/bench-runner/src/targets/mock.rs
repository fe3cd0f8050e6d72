//! A target with scripted times on a scripted clock: every figure of its run is exact and takes no time.
//!
//! It loads nothing and generates nothing; the events of a request are whatever its script says.

use bench_core::clock::ScriptedClock;
use bench_core::event::{Channel, CountSource, EventKind, FailureKind, FinishReason};
use bench_core::plan::{Cell, MockPlan, ModelPlan, Plan};
use bench_core::shape::ModelFacts;
use bench_core::target::{Recorder, Request, StopFlag, Target, TargetError};
use bench_core::unit::Nanos;
use std::sync::Arc;

/// Events of one request: distance from the call, and what happens then. `Sent` is among them if it is to be.
pub type Script = Vec<(Nanos, EventKind)>;

type ScriptFn = Box<dyn FnMut(&Request) -> Script>;
type PrepareFn = Box<dyn FnMut(&ModelPlan) -> Result<Option<ModelFacts>, TargetError>>;
type StopFn = Box<dyn FnMut(&Request)>;

pub struct MockTarget {
    clock: Arc<ScriptedClock>,
    script: ScriptFn,
    prepare: PrepareFn,
    before: StopFn,
}

impl MockTarget {
    /// The script of the plan's `[mock]` table.
    pub fn from_plan(plan: &Plan) -> Self {
        let default = MockPlan { ttft_us: 0, gap_us: 0, tokens_per_chunk: 1 };
        let times = plan.target.mock.clone().unwrap_or(default);
        Self::new(move |request| steady(&times, request))
    }

    /// A script of one's own.
    pub fn new(script: impl FnMut(&Request) -> Script + 'static) -> Self {
        Self {
            clock: Arc::new(ScriptedClock::default()),
            script: Box::new(script),
            prepare: Box::new(|_| Ok(None)),
            before: Box::new(|_| {}),
        }
    }

    /// What making a model ready answers.
    #[must_use]
    pub fn with_prepare(
        mut self,
        prepare: impl FnMut(&ModelPlan) -> Result<Option<ModelFacts>, TargetError> + 'static,
    ) -> Self {
        self.prepare = Box::new(prepare);
        self
    }

    /// Called before each request's script: to set the stop flag at a known place, or to block.
    #[must_use]
    pub fn with_before(mut self, before: impl FnMut(&Request) + 'static) -> Self {
        self.before = Box::new(before);
        self
    }

    /// The clock to run on.
    pub fn clock(&self) -> Arc<ScriptedClock> {
        Arc::clone(&self.clock)
    }
}

impl Target for MockTarget {
    fn key(&self) -> &'static str {
        "mock"
    }

    fn prepare(
        &mut self,
        model: &ModelPlan,
        progress: &mut dyn FnMut(f64),
        _stop: &StopFlag,
    ) -> Result<Option<ModelFacts>, TargetError> {
        let facts = (self.prepare)(model)?;
        progress(1.0);
        Ok(facts)
    }

    fn prompt(&mut self, cell: &Cell, index: u64, warmup: bool) -> Result<Vec<u32>, TargetError> {
        Ok(numbered_prompt(cell, index, warmup))
    }

    fn run(&mut self, requests: &[Request], recorder: &mut Recorder<'_>, stop: &StopFlag) {
        let start = recorder.now();
        let mut due = Vec::new();
        for (slot, request) in requests.iter().enumerate() {
            (self.before)(request);
            due.extend((self.script)(request).into_iter().map(|(after, kind)| (start + after, slot, kind)));
        }
        // Stable: events of one instant stay in the order of the script.
        due.sort_by_key(|(at, _, _)| *at);
        let mut open = vec![true; requests.len()];
        for (at, slot, kind) in due {
            if stop.is_set() {
                break;
            }
            self.clock.advance_to(at);
            open[slot] &= !matches!(kind, EventKind::Done { .. } | EventKind::Failed { .. });
            recorder.record_at(slot, at, kind);
        }
        if stop.is_set() {
            for slot in (0..requests.len()).filter(|s| open[*s]) {
                let message = "the run was stopped".to_owned();
                recorder.record(slot, EventKind::Failed { failure: FailureKind::Interrupted, message });
            }
        }
    }
}

/// First chunk after `ttft_us`, the next ones `gap_us` apart, the last one shorter if need be.
pub fn steady(times: &MockPlan, request: &Request) -> Script {
    let per_chunk = times.tokens_per_chunk.max(1);
    let mut script = vec![(Nanos(0), EventKind::Sent)];
    let mut at = Nanos(times.ttft_us * 1_000);
    let mut left = request.output_tokens;
    while left > 0 {
        let count = left.min(per_chunk);
        script.push((at, EventKind::Tokens { count, channel: Channel::Unknown }));
        left -= count;
        if left > 0 {
            at = at + Nanos(times.gap_us * 1_000);
        }
    }
    script.push((at, counted(request)));
    script.push((at, EventKind::Done { finish: FinishReason::Length }));
    script
}

/// The count that a target with token ids gives when the output is as long as asked.
pub(super) fn counted(request: &Request) -> EventKind {
    EventKind::Counted {
        prompt_tokens: request.prompt.len() as u32,
        output_tokens: request.output_tokens,
        cached_prompt_tokens: None,
        source: CountSource::TokenIds,
    }
}

/// A prompt of the right length that no other request of the cell has.
pub(super) fn numbered_prompt(cell: &Cell, index: u64, warmup: bool) -> Vec<u32> {
    let number = index * 2 + u64::from(warmup);
    (0..cell.prompt_tokens).map(|i| if i == 0 { number as u32 } else { i }).collect()
}
