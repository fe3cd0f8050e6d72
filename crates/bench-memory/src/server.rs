//! What a server's own figures say of its KV cache: the tokens that it holds, times the bytes of a token.
//!
//! Pools are allocated whole before the first request, so that the memory of the device says nothing of it.

use crate::estimate::Reading;
use crate::theory::kv_theory_bytes;
use bench_core::client::Scrape;
use bench_core::shape::ModelFacts;

/// The most that any reading of a cell said.
#[derive(Debug, Default)]
pub(crate) struct Held {
    usage_seen: bool,
    /// By the capacity that the server states for whole sequences.
    tokens: Option<f64>,
    /// By blocks of one layer group times their size: the tokens of whole sequences only where all layers keep all.
    block_tokens: Option<f64>,
}

impl Held {
    /// Names are those of `bench_core::client::Scrape`.
    pub(crate) fn add(&mut self, scrape: &Scrape) {
        let figure = |name: &str| scrape.values.get(name).copied().filter(|v| v.is_finite() && *v >= 0.0);
        let Some(usage) = figure("kv_cache_usage") else { return };
        self.usage_seen = true;
        let most = |before: Option<f64>, capacity: Option<f64>| {
            let held = capacity.map(|capacity| usage * capacity);
            before.into_iter().chain(held).reduce(f64::max)
        };
        self.tokens = most(self.tokens, figure("kv_capacity_tokens"));
        self.block_tokens = most(self.block_tokens, figure("kv_block_tokens"));
    }

    /// `None` where the server told no usage.
    pub(crate) fn bytes(&self, facts: Option<&ModelFacts>) -> Option<Reading> {
        self.usage_seen.then(|| {
            let facts = facts.ok_or("shape_unknown")?;
            let shape = &facts.shape;
            let longest = u64::from(shape.max_context_tokens.max(1));
            if shape.windows.iter().flatten().all(|window| u64::from(*window) >= longest) {
                let tokens = self.tokens.or(self.block_tokens).ok_or("capacity_unknown")?;
                return Ok(tokens * facts.kv_bytes_per_token as f64);
            }
            if self.tokens.is_none() && self.block_tokens.is_some() {
                // Groups of layers share the blocks; how many there are is not told.
                return Err("blocks_shared_by_windowed_layers");
            }
            let mean_bytes = kv_theory_bytes(shape, longest) as f64 / longest as f64;
            self.tokens.map(|tokens| tokens * mean_bytes).ok_or("capacity_unknown")
        })
    }
}
