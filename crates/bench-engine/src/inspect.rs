//! Logits and inner activations for given token ids, as named tensors, to hold against another implementation.
//!
//! Runs prefill and greedy steps through the public API with reading hooks; writes safetensors.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::hooks::Hooks;
use crate::model::Model;
use crate::{Error, Result};

/// What to run and what to keep.
#[derive(Debug, Clone)]
pub struct Inspection<'a> {
    pub ids: &'a [u32],
    /// Greedy steps after the prompt.
    pub greedy: usize,
    /// Names of hook sites, `resid_post.0`, `router.1`.
    pub sites: &'a [&'a str],
    pub prefill_chunk: usize,
}

/// Runs `inspection` on `model`.
///
/// Gives `ids.prompt` i64 [T], `ids.greedy` i64 [N], `logits.steps` f32 [N + 1, vocab] (row 0 after the prompt,
/// row i after feeding greedy id i - 1), and per site its values over the prompt under its own name and over
/// the N fed tokens as `decode.<site>`, f32 (indices i64), rows in order of position. Attention probabilities
/// differ in width from step to step and are kept one tensor a step: `decode.<site>.<step>`.
pub fn inspect(model: &Model, inspection: &Inspection<'_>) -> Result<BTreeMap<String, Tensor>> {
    let mut kept = BTreeMap::new();
    let mut hooks = Hooks::read(inspection.sites)?;
    let mut sequence = model.sequence();
    let logits =
        model.prefill(&mut [&mut sequence], &[inspection.ids], inspection.prefill_chunk, &mut hooks)?;
    for site in inspection.sites {
        keep(&mut kept, site, &hooks.take(site))?;
    }
    let mut steps = vec![logits];
    let mut greedy: Vec<u32> = Vec::with_capacity(inspection.greedy);
    while greedy.len() < inspection.greedy {
        let id = argmax(&steps[steps.len() - 1])?;
        greedy.push(id);
        steps.push(model.decode_step(&mut [&mut sequence], &[id], &mut hooks)?);
    }
    for site in inspection.sites {
        keep(&mut kept, &format!("decode.{site}"), &hooks.take(site))?;
    }
    kept.insert("logits.steps".to_owned(), Tensor::cat(&steps, 0)?);
    kept.insert("ids.prompt".to_owned(), ids_tensor(inspection.ids)?);
    if !greedy.is_empty() {
        kept.insert("ids.greedy".to_owned(), ids_tensor(&greedy)?);
    }
    Ok(kept)
}

/// Writes `tensors` to `path`, whole or not at all.
pub fn save(tensors: &BTreeMap<String, Tensor>, path: &Path) -> Result<()> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".part");
    let temporary = Path::new(&temporary);
    let tensors: HashMap<&str, Tensor> = tensors.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    candle_core::safetensors::save(&tensors, temporary)?;
    std::fs::rename(temporary, path).map_err(failed)
}

fn keep(kept: &mut BTreeMap<String, Tensor>, name: &str, values: &[Tensor]) -> Result<()> {
    let mut values = values.iter().map(plain).collect::<Result<Vec<_>>>()?;
    let rows_alike = values.windows(2).all(|w| w[0].dims().get(1..) == w[1].dims().get(1..));
    let one_by_one = !rows_alike || name.contains("attn_probs");
    if values.len() > 1 && one_by_one {
        for (step, value) in values.into_iter().enumerate() {
            kept.insert(format!("{name}.{step}"), value);
        }
        return Ok(());
    }
    match values.len() {
        0 => {}
        1 => _ = kept.insert(name.to_owned(), values.remove(0)),
        _ => _ = kept.insert(name.to_owned(), Tensor::cat(&values, 0)?),
    }
    Ok(())
}

/// f32 for numbers, i64 for indices.
fn plain(value: &Tensor) -> Result<Tensor> {
    Ok(match value.dtype() {
        DType::U8 | DType::U32 | DType::I64 => value.to_dtype(DType::I64)?,
        _ => value.to_dtype(DType::F32)?,
    })
}

fn argmax(logits: &Tensor) -> Result<u32> {
    let row = logits.flatten_all()?.to_vec1::<f32>()?;
    let mut best = 0;
    for (id, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = id;
        }
    }
    Ok(best as u32)
}

fn ids_tensor(ids: &[u32]) -> Result<Tensor> {
    let ids: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
    Ok(Tensor::new(ids, &Device::Cpu)?)
}
