//! One batch through the engine: prefill of all sequences, then a token for each per step.
//!
//! A token is stamped in the engine's thread as soon as its id is known. No text is decoded here.

use super::load::Loaded;
use crate::targets::mock::counted;
use bench_core::event::{Channel, EventKind, FailureKind, FinishReason};
use bench_core::plan::{Sampling, TargetPlan};
use bench_core::target::{Recorder, Request, StopFlag};
use bench_engine::sampling::{Sampler, SamplingParams};
use bench_engine::{Hooks, Result, Sequence};

/// One request on its way.
struct Running {
    slot: usize,
    sequence: Sequence,
    sampler: Sampler,
    last: u32,
    left: u32,
}

/// Runs `requests` to their ends. The error holds the slots that have no end yet, and why.
pub(super) fn generate(
    loaded: &Loaded,
    target: &TargetPlan,
    requests: &[Request],
    recorder: &mut Recorder<'_>,
    stop: &StopFlag,
) -> Result<(), (Vec<usize>, String)> {
    let all = || (0..requests.len()).collect();
    let mut running = begin(loaded, target, requests).map_err(|e| (all(), e.to_string()))?;
    let mut step = prefill(loaded, target, requests, &mut running)
        .and_then(|logits| take(loaded, requests, &mut running, &logits, recorder));
    while step.is_ok() && !running.is_empty() {
        if stop.is_set() {
            interrupt(&running, recorder);
            return Ok(());
        }
        step = decode(loaded, &mut running)
            .and_then(|logits| take(loaded, requests, &mut running, &logits, recorder));
    }
    step.map_err(|e| (running.iter().map(|r| r.slot).collect(), e.to_string()))
}

/// Rows of logits, one per running request.
type Logits = Vec<Vec<f32>>;

/// An empty sequence and a sampler for each request.
fn begin(loaded: &Loaded, target: &TargetPlan, requests: &[Request]) -> Result<Vec<Running>> {
    let begin = |(slot, request): (usize, &Request)| {
        let sampler = Sampler::new(params(&target.sampling, request.seed))?;
        Ok(Running { slot, sequence: loaded.model.sequence(), sampler, last: 0, left: request.output_tokens })
    };
    requests.iter().enumerate().map(begin).collect()
}

/// Runs every prompt of the batch; logits of their last positions.
fn prefill(
    loaded: &Loaded,
    target: &TargetPlan,
    requests: &[Request],
    running: &mut [Running],
) -> Result<Logits> {
    let ids: Vec<&[u32]> = requests.iter().map(|r| r.prompt.as_slice()).collect();
    let mut sequences: Vec<_> = running.iter_mut().map(|r| &mut r.sequence).collect();
    let chunk = target.prefill_chunk as usize;
    Ok(loaded.model.prefill(&mut sequences, &ids, chunk, &mut Hooks::none())?.to_vec2()?)
}

/// Feeds each running request its last token.
fn decode(loaded: &Loaded, running: &mut [Running]) -> Result<Logits> {
    let ids: Vec<u32> = running.iter().map(|r| r.last).collect();
    let mut sequences: Vec<_> = running.iter_mut().map(|r| &mut r.sequence).collect();
    Ok(loaded.model.decode_step(&mut sequences, &ids, &mut Hooks::none())?.to_vec2()?)
}

/// Chooses and stamps a token for each running request, and ends those that have as many as they asked for.
fn take(
    loaded: &Loaded,
    requests: &[Request],
    running: &mut Vec<Running>,
    logits: &Logits,
    recorder: &mut Recorder<'_>,
) -> Result<()> {
    for (request, row) in running.iter_mut().zip(logits) {
        request.last = request.sampler.sample(row, &loaded.suppressed)?;
        request.left -= 1;
        recorder.record(request.slot, EventKind::Tokens { count: 1, channel: Channel::Unknown });
    }
    running.retain(|r| {
        if r.left == 0 {
            recorder.kv_allocated(r.slot, r.sequence.kv_bytes());
            recorder.record(r.slot, counted(&requests[r.slot]));
            recorder.record(r.slot, EventKind::Done { finish: FinishReason::Length });
        }
        r.left > 0
    });
    Ok(())
}

fn interrupt(running: &[Running], recorder: &mut Recorder<'_>) {
    for request in running {
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
