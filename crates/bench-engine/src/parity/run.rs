//! Passes of a model over given tokens, as a server makes them: in one workspace, step by step.

use candle_core::Tensor;

use crate::cache::Sequence;
use crate::error::{Error, Result};
use crate::hooks::Hooks;
use crate::model::Model;
use crate::sampling::{Sampler, SamplingParams};

/// Of each layer with experts what every pass chose, `[T, k]`.
pub type Routing = Vec<Vec<Tensor>>;

/// Logits of each sequence, one vector each `[1 + fed, vocab]`: after its prompt, `chunk` tokens at a time, and after
/// each of its `fed`, of which all sequences have equally many.
///
/// # Errors
/// Those of a forward pass.
pub fn steps(model: &Model, prompts: &[&[u32]], fed: &[&[u32]], chunk: usize) -> Result<Vec<Vec<f32>>> {
    let mut sequences: Vec<Sequence> = prompts.iter().map(|_| model.sequence()).collect();
    let mut sequences: Vec<&mut Sequence> = sequences.iter_mut().collect();
    let (mut workspace, mut hooks) = (model.workspace(), Hooks::none());
    let vocab = model.config().vocab_size;
    let logits = model.prefill_in(&mut workspace, &mut sequences, prompts, chunk, &mut hooks)?;
    let mut rows: Vec<Vec<f32>> = logits.values()?.chunks(vocab).map(<[f32]>::to_vec).collect();
    for i in 0..fed.first().map_or(0, |fed| fed.len()) {
        let ids: Vec<u32> = fed.iter().map(|f| f[i]).collect();
        let logits = model.decode_step_in(&mut workspace, &mut sequences, &ids, &mut hooks)?;
        for (row, logits) in rows.iter_mut().zip(logits.values()?.chunks(vocab)) {
            row.extend_from_slice(logits);
        }
    }
    Ok(rows)
}

/// `n` greedy ids for each prompt, chosen where the model runs.
///
/// # Errors
/// Those of a forward pass.
pub fn greedy(model: &Model, prompts: &[&[u32]], n: usize, chunk: usize) -> Result<Vec<Vec<u32>>> {
    let mut sampler = Sampler::new(SamplingParams::default())?;
    let mut sequences: Vec<Sequence> = prompts.iter().map(|_| model.sequence()).collect();
    let mut sequences: Vec<&mut Sequence> = sequences.iter_mut().collect();
    let (mut workspace, mut hooks) = (model.workspace(), Hooks::none());
    let mut chosen: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
    let mut logits = model.prefill_in(&mut workspace, &mut sequences, prompts, chunk, &mut hooks)?;
    loop {
        for (row, ids) in chosen.iter_mut().enumerate() {
            ids.push(logits.sample(row, &mut sampler, &[])?);
        }
        if chosen.iter().all(|ids| ids.len() >= n) {
            return Ok(chosen);
        }
        let ids: Vec<u32> = chosen.iter().filter_map(|ids| ids.last().copied()).collect();
        logits = model.decode_step_in(&mut workspace, &mut sequences, &ids, &mut hooks)?;
    }
}

/// Logits of a prompt's positions, all in one pass, `[ids, vocab]`.
///
/// # Errors
/// Those of a forward pass.
pub fn prefill(model: &Model, ids: &[u32]) -> Result<Vec<f32>> {
    let all = model.forward_all(&mut [&mut model.sequence()], &[ids], usize::MAX, &mut Hooks::none())?;
    Ok(all.flatten_all()?.to_vec1()?)
}

/// As [`steps`] of one prompt in one chunk, with the experts of `forced` where given; and the experts used.
///
/// # Errors
/// Those of a forward pass; a routing of fewer passes.
pub fn routed_steps(
    model: &Model,
    prompt: &[u32],
    fed: &[u32],
    forced: Option<&Routing>,
) -> Result<(Vec<f32>, Routing)> {
    let layers = if model.config().moe.is_some() { model.config().num_hidden_layers } else { 0 };
    let sites: Vec<String> = (0..layers).map(|l| format!("expert_index.{l}")).collect();
    let names: Vec<&str> = sites.iter().map(String::as_str).collect();
    let mut hooks = Hooks::read(&names)?;
    for (site, choices) in sites.iter().zip(forced.into_iter().flatten()) {
        let mut next = choices.iter();
        let short = || Error::InvalidModel {
            what: "forced routing".to_owned(),
            problem: format!("has {} passes: expected {}", choices.len(), 1 + fed.len()),
        };
        hooks = hooks.replace(site, move |_| next.next().cloned().ok_or_else(short))?;
    }
    let (mut workspace, mut sequence) = (model.workspace(), model.sequence());
    let logits =
        model.prefill_in(&mut workspace, &mut [&mut sequence], &[prompt], prompt.len(), &mut hooks)?;
    let mut rows = logits.values()?.to_vec();
    for &id in fed {
        let logits = model.decode_step_in(&mut workspace, &mut [&mut sequence], &[id], &mut hooks)?;
        rows.extend_from_slice(logits.values()?);
    }
    Ok((rows, names.iter().map(|site| hooks.take(site)).collect()))
}
