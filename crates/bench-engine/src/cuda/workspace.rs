//! What forward passes on a device work in: one block of memory cut into places, and the graphs of decode steps over it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bench_kernels::cuda::Gpu;
use bench_kernels::cuda::attention::{Cache, DecodeWorkspace, Span};
use bench_kernels::cuda::device::{Buffer, Category, Device, Graph};
use bench_kernels::cuda::vectors::{self, RowDraw};

use crate::cuda::choose::Choice;
use crate::cuda::{DeviceCache, Shape, gpu_error};
use crate::error::{Error, Result};
use crate::hooks::Routing;

/// Fewest keys that attention is laid out for.
const LEAST_KEYS: usize = 256;

/// How much a pass needs: its rows, sequences, rows that are unembedded, and for how many keys attention is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Size {
    pub(crate) rows: usize,
    pub(crate) sequences: usize,
    pub(crate) kept: usize,
    pub(crate) keys: usize,
}

impl Size {
    fn max(self, other: Self) -> Self {
        Self {
            rows: self.rows.max(other.rows),
            sequences: self.sequences.max(other.sequences),
            kept: self.kept.max(other.kept),
            keys: self.keys.max(other.keys),
        }
    }
}

/// Keys that attention is laid out for in contexts of up to `tokens`: a power of two, so that a graph serves many
/// steps.
pub(crate) fn keys(tokens: usize) -> usize {
    tokens.next_power_of_two().max(LEAST_KEYS)
}

/// Addresses of the places; T rows, S sequences, C experts that a token chose, K that are computed for it, P planes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Places {
    /// u32 `[T]`
    pub(crate) ids: u64,
    /// `Span [S]`
    pub(crate) spans: u64,
    /// `Cache [layers, S]`
    pub(crate) caches: u64,
    /// The residual stream, f32 `[T, hidden]`, and what is added to it.
    pub(crate) x: u64,
    pub(crate) y: u64,
    /// What a norm makes of it, f32; for hooks and small passes.
    pub(crate) t: u64,
    /// bf16 `[P, T, widest input]`
    pub(crate) planes: u64,
    /// f32 `[T, q + k + v]`
    pub(crate) qkv: u64,
    /// q, k and v in bf16 as tensor cores take them, `[T, q + k + v]`, in models of bf16.
    pub(crate) copies: u64,
    /// f32 `[T, q]`
    pub(crate) attn: u64,
    pub(crate) partials: u64,
    pub(crate) counters: u64,
    /// f32 `[T, experts]`
    pub(crate) router: u64,
    /// u32 and f32 `[T, C]`
    pub(crate) choice: u64,
    pub(crate) weights: u64,
    /// u32 and f32 `[T, K]`: where all experts are computed, otherwise what the two before are.
    pub(crate) slots: u64,
    pub(crate) slot_weights: u64,
    /// u32 `[T · K]` and `[experts + 1]`
    pub(crate) order: u64,
    pub(crate) offsets: u64,
    /// f32 `[K, intermediate]` or `[T, intermediate]` of small passes; bf16 planes `[P, T · K, intermediate]` of others.
    pub(crate) act: u64,
    /// f32 `[T · K, hidden]`
    pub(crate) rows: u64,
    /// u32 `[kept]`: rows of x that are unembedded; f32 `[kept, hidden]`.
    pub(crate) kept_rows: u64,
    pub(crate) kept: u64,
    /// f32 `[kept, vocab]`
    pub(crate) logits: u64,
    /// u32 `[kept]`, then for each row how many logits are not finite.
    pub(crate) chosen: u64,
    /// The largest logit of each row, f32 `[kept]`.
    pub(crate) best: u64,
    /// `RowDraw [kept]`: by what tokens are drawn.
    pub(crate) draws: u64,
    /// What top-k and top-p leave of each row; zeros at first, as the next.
    pub(crate) cuts: u64,
    /// Of the choice.
    pub(crate) select: u64,
    /// u64 `[3]`: layer passes, distinct experts, tokens.
    pub(crate) routing: u64,
}

impl Places {
    /// Cuts memory that begins at `base`; also its size in bytes.
    pub(super) fn cut(base: u64, shape: &Shape, size: Size) -> (Self, usize) {
        let mut at = base;
        let mut take = |bytes: usize| {
            let place = at;
            at += bytes.next_multiple_of(256) as u64;
            place
        };
        let (t, s, n) = (size.rows, size.sequences, size.kept);
        let partials = decode_workspace(shape, s, size.keys);
        let (chosen, slots) = (t * shape.chosen, t * shape.slots);
        let widest = shape.hidden.max(shape.q);
        let all = if shape.computes_all() { 4 * slots } else { 0 };
        let mut places = Self {
            ids: take(4 * t),
            spans: take(size_of::<Span>() * s),
            caches: take(size_of::<Cache>() * s * shape.layers),
            x: take(4 * t * shape.hidden),
            y: take(4 * t * shape.hidden),
            t: take(4 * t.max(n) * shape.hidden),
            planes: take(2 * shape.planes * t.max(n) * widest),
            qkv: take(4 * t * shape.qkv),
            copies: take(if shape.on_tensor_cores() { 2 * t * shape.qkv } else { 0 }),
            attn: take(4 * t * shape.q),
            partials: take(partials.partial_bytes),
            counters: take(partials.counter_bytes),
            router: take(4 * t * shape.experts),
            choice: take(4 * chosen),
            weights: take(4 * chosen),
            slots: take(all),
            slot_weights: take(all),
            order: take(4 * slots),
            offsets: take(4 * (shape.experts + 1)),
            act: take((2 * shape.planes).max(4) * slots * shape.intermediate),
            rows: take(if shape.experts > 0 { 4 * slots * shape.hidden } else { 0 }),
            kept_rows: take(4 * n),
            kept: take(4 * n * shape.hidden),
            logits: take(4 * n * shape.vocab),
            chosen: take(8 * n),
            best: take(4 * n),
            draws: take(size_of::<RowDraw>() * n),
            cuts: take(vectors::cut_bytes(n)),
            select: take(vectors::scratch_bytes(n)),
            routing: take(24),
        };
        if !shape.computes_all() {
            (places.slots, places.slot_weights) = (places.choice, places.weights);
        }
        (places, (at - base) as usize)
    }
}

/// What attention of up to `sequences` sequences takes: fewer of them are split into more parts.
fn decode_workspace(shape: &Shape, sequences: usize, keys: usize) -> DecodeWorkspace {
    let mut most = DecodeWorkspace { partial_bytes: 0, counter_bytes: 0 };
    for n in 1..=sequences {
        let one = DecodeWorkspace::of(&shape.attention(None, n, keys));
        most.partial_bytes = most.partial_bytes.max(one.partial_bytes);
        most.counter_bytes = most.counter_bytes.max(one.counter_bytes);
    }
    most
}

/// Workspaces that nobody uses at the moment.
#[derive(Clone, Default)]
pub(crate) struct Idle(Arc<Mutex<Vec<DeviceWorkspace>>>);

impl Idle {
    fn list(&self) -> MutexGuard<'_, Vec<DeviceWorkspace>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of them, or a `new` one.
    pub(crate) fn lease(&self, new: impl FnOnce() -> DeviceWorkspace) -> Leased {
        let found = self.list().pop();
        found.iter().for_each(DeviceWorkspace::forget_routing);
        Leased { workspace: Some(found.unwrap_or_else(new)), idle: self.clone() }
    }
}

/// A workspace that goes back to the idle ones when it is dropped.
pub(crate) struct Leased {
    /// Taken when it is dropped.
    workspace: Option<DeviceWorkspace>,
    idle: Idle,
}

impl Leased {
    pub(crate) fn get(&mut self) -> Option<&mut DeviceWorkspace> {
        self.workspace.as_mut()
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.idle.list().extend(self.workspace.take());
    }
}

impl std::fmt::Debug for Leased {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a workspace on a device")
    }
}

/// Memory, what is in it, and what was recorded over it.
pub(crate) struct DeviceWorkspace {
    pub(crate) device: Device,
    shape: Shape,
    memory: Option<Buffer>,
    size: Size,
    pub(crate) places: Places,
    /// States of the caches whose addresses stand in `places.caches`.
    caches: Vec<u64>,
    /// Graphs of decode steps, by their size.
    pub(crate) graphs: HashMap<Size, Graph>,
    /// Sizes of steps that ran once without a graph.
    pub(crate) seen: Vec<Size>,
    /// Rows of logits of the last pass.
    pub(crate) kept: usize,
    /// Logits of the last pass on the host, if they were asked for.
    host_logits: Vec<f32>,
    fetched: bool,
    pub(crate) suppressed_ids: Option<Buffer>,
    pub(crate) choice: Choice,
}

impl DeviceWorkspace {
    pub(crate) fn new(device: &Device, shape: Shape) -> Self {
        Self {
            device: device.clone(),
            shape,
            memory: None,
            size: Size::default(),
            places: Places::default(),
            caches: Vec::new(),
            graphs: HashMap::new(),
            seen: Vec::new(),
            kept: 0,
            host_logits: Vec::new(),
            fetched: false,
            suppressed_ids: None,
            choice: Choice::default(),
        }
    }

    /// Makes room for `size`; what was recorded over smaller memory is forgotten.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn fit(&mut self, size: Size) -> Result<()> {
        let wanted = self.size.max(size);
        if self.memory.is_some() && wanted == self.size {
            return Ok(());
        }
        let routing = self.take_routing()?;
        self.graphs.clear();
        self.seen.clear();
        self.caches.clear();
        // Given back first: both together might not fit.
        self.memory = None;
        let (_, bytes) = Places::cut(0, &self.shape, wanted);
        let memory = self.device.buffer(bytes, Category::Activations).map_err(gpu_error)?;
        (self.places, _) = Places::cut(memory.address(), &self.shape, wanted);
        (self.memory, self.size) = (Some(memory), wanted);
        let counts = [routing.layer_passes, routing.experts, routing.tokens];
        self.device.write(self.places.routing, bytemuck::cast_slice(&counts)).map_err(gpu_error)
    }

    /// Keys that attention is laid out for: those of graphs, which must not change with every token.
    pub(crate) fn keys(&self) -> usize {
        self.size.keys
    }

    /// Rows of the residual stream that there is room for.
    pub(crate) fn rows(&self) -> usize {
        self.size.rows
    }

    /// The page tables of `layer`, where `sequences` sequences were written.
    pub(crate) fn layer_caches(&self, layer: usize, sequences: usize) -> u64 {
        self.places.caches + (layer * sequences * size_of::<Cache>()) as u64
    }

    /// Writes the page tables of all layers, unless they are there already.
    pub(crate) fn write_caches(&mut self, caches: &[&DeviceCache]) -> Result<()> {
        let states: Vec<u64> = caches.iter().map(|cache| cache.state()).collect();
        if states == self.caches {
            return Ok(());
        }
        let of_layer = |layer| caches.iter().map(move |cache| cache.layer(layer));
        let all: Vec<Cache> = (0..self.shape.layers).flat_map(of_layer).collect();
        self.device.write(self.places.caches, bytemuck::cast_slice(&all)).map_err(gpu_error)?;
        self.caches = states;
        Ok(())
    }

    /// Begins to count anew, where a batch ended before it asked.
    fn forget_routing(&self) {
        if self.memory.is_some() {
            // A device that fails here fails at the next call too, which can say so.
            let _ = self.device.set_zero(self.places.routing, size_of::<[u64; 3]>());
        }
    }

    /// Experts that passes touched since the last call.
    pub(crate) fn take_routing(&mut self) -> Result<Routing> {
        if self.memory.is_none() {
            return Ok(Routing::default());
        }
        let mut counts = [0_u64; 3];
        self.device.read(self.places.routing, bytemuck::cast_slice_mut(&mut counts)).map_err(gpu_error)?;
        self.device.write(self.places.routing, &[0; 24]).map_err(gpu_error)?;
        let [layer_passes, experts, tokens] = counts;
        Ok(Routing { layer_passes, experts, tokens })
    }

    pub(crate) fn vocab(&self) -> usize {
        self.shape.vocab
    }

    /// There will be other logits than before.
    pub(crate) fn forget_logits(&mut self) {
        self.fetched = false;
        self.choice.forget();
    }

    /// The logits of the last pass on the host, copied when they are asked for first.
    ///
    /// # Errors
    /// Values that are not finite.
    pub(crate) fn logits(&mut self) -> Result<&[f32]> {
        if !self.fetched {
            self.host_logits.resize(self.kept * self.shape.vocab, 0.0);
            let bytes = bytemuck::cast_slice_mut(&mut self.host_logits);
            self.device.read(self.places.logits, bytes).map_err(gpu_error)?;
            let count = self.host_logits.iter().filter(|l| !l.is_finite()).count();
            self.check_finite(count)?;
            self.fetched = true;
        }
        Ok(&self.host_logits)
    }

    /// An error of so many logits that are not finite.
    pub(super) fn check_finite(&self, count: usize) -> Result<()> {
        match count {
            0 => Ok(()),
            count => Err(Error::NonFiniteLogits { site: format!("{} positions", self.kept), count }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ExpertMode, LoadOptions};

    /// A model of experts, of which all are computed or those that a token chose.
    fn shape(expert_mode: ExpertMode) -> Shape {
        let config = crate::preset::config("gpt-oss-tiny").unwrap();
        Shape::of(&config, &LoadOptions { expert_mode, ..LoadOptions::default() }, 2)
    }

    #[test]
    fn all_experts_have_slots_of_their_own_and_rows_to_match() {
        let size = Size { rows: 32, sequences: 2, kept: 2, keys: 256 };
        let [routed, all] = [ExpertMode::Routed, ExpertMode::DenseAll].map(shape);
        assert_eq!((routed.chosen, routed.slots, all.chosen, all.slots), (2, 2, 2, 8));
        let (few, few_bytes) = Places::cut(0, &routed, size);
        let (many, many_bytes) = Places::cut(0, &all, size);
        assert_eq!((few.slots, few.slot_weights), (few.choice, few.weights));
        assert!(many.slots >= many.weights + 4 * 32 * 2 && many.slot_weights >= many.slots + 4 * 32 * 8);
        // Six experts more: slots and their weights anew, longer order, rows that go in between and out.
        let rows = 32 * 6 * (2 * 3 * 32 + 4 * 64);
        assert_eq!(many_bytes - few_bytes, rows + 4 * 32 * (8 + 8 + 6));
    }

    #[test]
    fn attention_is_laid_out_for_powers_of_two() {
        assert_eq!([1, 256, 257, 1000, 2048].map(keys), [256, 256, 512, 1024, 2048]);
    }
}
