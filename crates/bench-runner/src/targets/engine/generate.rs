//! One batch through the engine: prefill of all sequences, then a token for each per step.
//!
//! A token is stamped in the engine's thread as soon as its id is known. No text is decoded here.

use super::load::Loaded;
use crate::targets::mock::counted;
use bench_core::event::{Channel, EventKind, FailureKind, FinishReason};
use bench_core::plan::{Sampling, TargetPlan};
use bench_core::shape::Touched;
use bench_core::target::{Recorder, Request, StopFlag};
use bench_engine::sampling::{Sampler, SamplingParams};
use bench_engine::{Hooks, Logits, Result, Routing, Sequence, Workspace};

/// One request on its way, kept to the end of its batch: its cache is what the memory of the batch is.
struct Running {
    slot: usize,
    sequence: Sequence,
    sampler: Sampler,
    last: u32,
    /// Tokens still to come.
    left: u32,
    /// Its end is recorded.
    ended: bool,
}

/// The experts that the prefill and the decode steps touched.
#[derive(Default)]
struct Passes {
    prefill: Routing,
    decode: Routing,
}

/// Runs `requests` to their ends. The error holds the slots that have no end yet, and why.
pub(super) fn generate(
    loaded: &Loaded,
    sampling: &Sampling,
    target: &TargetPlan,
    requests: &[Request],
    recorder: &mut Recorder<'_>,
    stop: &StopFlag,
) -> Result<(), (Vec<usize>, String)> {
    let all = || (0..requests.len()).collect();
    let mut running = begin(loaded, sampling, requests).map_err(|e| (all(), e.to_string()))?;
    let mut hooks = Hooks::none();
    // Kept for the batch alone: what it takes is part of the batch's memory.
    let mut workspace = loaded.model.workspace();
    let mut step = prefill(loaded, target, requests, &mut running, &mut workspace, &mut hooks)
        .and_then(|logits| take(loaded, requests, &mut running, logits, recorder));
    let mut passes = Passes::default();
    if step.is_ok() {
        recorder.prefilled();
        step = loaded.model.take_routing(&mut workspace, &mut hooks).map(|touched| passes.prefill = touched);
    }
    while step.is_ok() && running.iter().any(is_open) {
        if stop.is_set() {
            interrupt(&running, recorder);
            return Ok(());
        }
        step = decode(loaded, &mut running, &mut workspace, &mut hooks)
            .and_then(|logits| take(loaded, requests, &mut running, logits, recorder));
    }
    recorder.decoded();
    let open = || running.iter().filter(|r| is_open(r)).map(|r| r.slot).collect();
    let decoded = step.and_then(|()| loaded.model.take_routing(&mut workspace, &mut hooks));
    passes.decode = decoded.map_err(|e| (open(), e.to_string()))?;
    // What is held from here on is the caches.
    drop(workspace);
    recorder.held();
    passes.report(recorder);
    Ok(())
}

fn is_open(request: &Running) -> bool {
    request.left > 0
}

impl Passes {
    /// Nothing is said of models without experts.
    fn report(&self, recorder: &mut Recorder<'_>) {
        let touched = |routing: Routing| {
            let Routing { layer_passes, experts, tokens } = routing;
            Touched { layer_passes, experts, tokens }
        };
        if self.prefill.layer_passes > 0 {
            recorder.experts(touched(self.prefill), touched(self.decode));
        }
    }
}

/// A sequence and a sampler for each request. The last token is never fed, so that it takes no room.
fn begin(loaded: &Loaded, sampling: &Sampling, requests: &[Request]) -> Result<Vec<Running>> {
    let begin = |(slot, request): (usize, &Request)| {
        let sampler = Sampler::new(params(sampling, request.seed))?;
        let mut sequence = loaded.model.sequence();
        sequence.reserve((request.prompt.len() + request.output_tokens as usize).saturating_sub(1));
        Ok(Running { slot, sequence, sampler, last: 0, left: request.output_tokens, ended: false })
    };
    requests.iter().enumerate().map(begin).collect()
}

/// Runs every prompt of the batch; logits of their last positions.
fn prefill<'w>(
    loaded: &Loaded,
    target: &TargetPlan,
    requests: &[Request],
    running: &mut [Running],
    workspace: &'w mut Workspace,
    hooks: &mut Hooks<'_>,
) -> Result<Logits<'w>> {
    let ids: Vec<&[u32]> = requests.iter().map(|r| r.prompt.as_slice()).collect();
    let mut sequences: Vec<_> = running.iter_mut().map(|r| &mut r.sequence).collect();
    let chunk = target.prefill_chunk as usize;
    loaded.model.prefill_in(workspace, &mut sequences, &ids, chunk, hooks)
}

/// Feeds each open request its last token; logits of those, in their order.
fn decode<'w>(
    loaded: &Loaded,
    running: &mut [Running],
    workspace: &'w mut Workspace,
    hooks: &mut Hooks<'_>,
) -> Result<Logits<'w>> {
    let open = running.iter_mut().filter(|r| is_open(r));
    let (mut sequences, ids): (Vec<_>, Vec<u32>) = open.map(|r| (&mut r.sequence, r.last)).unzip();
    loaded.model.decode_step_in(workspace, &mut sequences, &ids, hooks)
}

/// Chooses and stamps a token for each open request, and ends those that have as many as they asked for.
fn take(
    loaded: &Loaded,
    requests: &[Request],
    running: &mut [Running],
    mut logits: Logits<'_>,
    recorder: &mut Recorder<'_>,
) -> Result<()> {
    let slots: Vec<usize> = running.iter().filter(|r| is_open(r)).map(|r| r.slot).collect();
    let mut ids = Vec::with_capacity(slots.len());
    let samplers = running.iter_mut().filter(|r| is_open(r)).map(|r| &mut r.sampler);
    logits.sample_all(samplers, &loaded.suppressed, |row, id| {
        recorder.record(slots[row], EventKind::Tokens { count: 1, channel: Channel::Unknown });
        ids.push(id);
    })?;
    for (request, id) in running.iter_mut().filter(|r| is_open(r)).zip(ids) {
        request.last = id;
        request.left -= 1;
    }
    for request in running.iter_mut().filter(|r| !is_open(r) && !r.ended) {
        request.ended = true;
        recorder.kv_allocated(request.slot, request.sequence.kv_bytes());
        recorder.record(request.slot, counted(&requests[request.slot]));
        recorder.record(request.slot, EventKind::Done { finish: FinishReason::Length });
    }
    Ok(())
}

fn interrupt(running: &[Running], recorder: &mut Recorder<'_>) {
    for request in running.iter().filter(|r| is_open(r)) {
        let message = "the run was stopped".to_owned();
        recorder.record(request.slot, EventKind::Failed { failure: FailureKind::Interrupted, message });
    }
}

/// The plan's sampling with the request's own seed.
fn params(sampling: &Sampling, seed: u64) -> SamplingParams {
    SamplingParams {
        temperature: sampling.temperature as f32,
        top_k: sampling.top_k.map(|k| k as usize),
        top_p: sampling.top_p.map_or(1.0, |p| p as f32),
        seed,
    }
}
