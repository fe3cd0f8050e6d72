//! Keys and values of one sequence in device memory: the pages of `cache`, and a table of their addresses that kernels
//! read. They come from a pool of the model, so that a batch like the one before asks the driver for nothing.

use std::sync::atomic::{AtomicU64, Ordering};

use bench_kernels::cuda::attention::{self, AttentionArgs, Cache, Span};
use bench_kernels::cuda::device::{Buffer, Category, Device, Pool};

use crate::cache::Slots;
use crate::config::ModelConfig;
use crate::cuda::{Shape, buffer_of, gpu_error};
use crate::error::Result;

/// Rows of pages after the first, as in `cache`.
const PAGE: usize = crate::cache::PAGE;

/// What tells one state of a cache's pages from all others.
static STATES: AtomicU64 = AtomicU64::new(1);

/// Pages of a layer that a table has room for, where one has `most`.
fn capacity(most: usize) -> usize {
    most.next_power_of_two().max(4)
}

/// Bytes of the table of `layers` layers of which one has `most` pages.
pub(super) fn table_bytes(layers: usize, most: usize) -> usize {
    layers * capacity(most) * size_of::<u64>()
}

struct LayerPages {
    slots: Slots,
    pages: Vec<Buffer>,
}

/// The pages of every layer.
pub(crate) struct DeviceCache {
    device: Device,
    pool: Pool,
    shape: Shape,
    layers: Vec<LayerPages>,
    /// Addresses `[layers, capacity]`, in device memory.
    table: Option<Buffer>,
    capacity: usize,
    state: u64,
}

impl DeviceCache {
    pub(crate) fn new(device: &Device, pool: &Pool, config: &ModelConfig, shape: &Shape) -> Self {
        let layers = Slots::of(config).map(|slots| LayerPages { slots, pages: Vec::new() }).collect();
        let (device, pool) = (device.clone(), pool.clone());
        Self { device, pool, shape: *shape, layers, table: None, capacity: 0, state: 0 }
    }

    /// See [`crate::Sequence::reserve`].
    pub(crate) fn reserve(&mut self, tokens: usize) {
        for layer in self.layers.iter_mut().filter(|layer| layer.pages.is_empty()) {
            layer.slots.reserved = tokens.max(1);
        }
    }

    /// Tokens that it was reserved for, or a page.
    pub(crate) fn reserved(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.slots.reserved)
    }

    pub(crate) fn reset(&mut self) {
        for layer in &mut self.layers {
            layer.pages = Vec::new();
            layer.slots.reserved = PAGE;
        }
        (self.table, self.capacity, self.state) = (None, 0, 0);
    }

    /// Bytes of all pages.
    pub(crate) fn bytes(&self) -> u64 {
        self.layers.iter().flat_map(|l| &l.pages).map(|page| page.bytes() as u64).sum()
    }

    /// Bytes of the rows that hold `tokens` tokens.
    pub(crate) fn used_bytes(&self, tokens: usize) -> u64 {
        self.layers.iter().map(|l| (l.slots.kept(tokens) * self.shape.kv_row_bytes()) as u64).sum()
    }

    /// Takes pages for `tokens` tokens.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn grow(&mut self, tokens: usize) -> Result<()> {
        let mut grown = false;
        for layer in &mut self.layers {
            let pages =
                layer.slots.kept(tokens).checked_sub(1).map_or(0, |slot| layer.slots.place(slot).0 + 1);
            while layer.pages.len() < pages {
                let bytes = layer.slots.page_rows(layer.pages.len()) * self.shape.kv_row_bytes();
                // No row is read before it is written: pages need not be zeros.
                let page = self.device.buffer_of(&self.pool, bytes, Category::KvCache).map_err(gpu_error)?;
                layer.pages.push(page);
                grown = true;
            }
        }
        if grown {
            self.write_table()?;
            self.state = STATES.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn write_table(&mut self) -> Result<()> {
        let most = self.layers.iter().map(|l| l.pages.len()).max().unwrap_or(0);
        if most > self.capacity {
            self.capacity = capacity(most);
            let bytes = table_bytes(self.layers.len(), most);
            let table = self.device.buffer_of(&self.pool, bytes, Category::Workspace).map_err(gpu_error)?;
            self.table = Some(table);
        }
        let mut addresses = vec![0_u64; self.layers.len() * self.capacity];
        for (layer, row) in self.layers.iter().zip(addresses.chunks_exact_mut(self.capacity)) {
            for (page, address) in layer.pages.iter().zip(row) {
                *address = page.address();
            }
        }
        let Some(table) = &self.table else { return Ok(()) };
        self.device.upload(table.address(), bytemuck::cast_slice(&addresses)).map_err(gpu_error)
    }

    /// See [`crate::Sequence::assume`].
    pub(crate) fn assume(&mut self, past: usize, tokens: usize, seed: u64) -> Result<()> {
        self.grow(past + tokens)?;
        let small = |bytes: &[u8]| buffer_of(&self.device, bytes, Category::Workspace);
        let span = Span { start: 0, len: tokens as u32, past: past as u32, sequence: 0 };
        let spans = small(bytemuck::bytes_of(&span))?;
        for (number, layer) in self.layers.iter().enumerate() {
            let cache = small(bytemuck::bytes_of(&self.layer(number)))?;
            let args = AttentionArgs {
                spans: spans.address(),
                caches: cache.address(),
                max_len: tokens as u32,
                seed: (seed as u32).wrapping_mul(0x9e37_79b9).wrapping_add(number as u32),
                ..self.shape.attention(layer.slots.window, 1, tokens)
            };
            attention::kv_fill(&self.device, &args).map_err(gpu_error)?;
            // The cache's description is given back behind the launch.
            self.device.synchronize().map_err(gpu_error)?;
        }
        Ok(())
    }

    /// Changes whenever what [`Self::layer`] gives does, and differs between caches.
    pub(crate) fn state(&self) -> u64 {
        self.state
    }

    /// What kernels read of a layer.
    pub(crate) fn layer(&self, layer: usize) -> Cache {
        let table = self.table.as_ref().map_or(0, Buffer::address);
        Cache {
            pages: table + (layer * self.capacity * size_of::<u64>()) as u64,
            first_rows: self.layers[layer].slots.first_rows() as u32,
            page_rows: PAGE as u32,
        }
    }
}
