//! Keys and values of the tokens that a sequence has seen: pages that grow, up to a ring for sliding layers.
//!
//! Rows are kept in the activation dtype, head by head, so that attention reads each head's keys in a row.

use bench_kernels::attention::{KvBlock, KvData};
use half::bf16;

use crate::config::{LayerType, ModelConfig};
use crate::error::{Error, Result};
use crate::model::ActivationDtype;

/// Positions by which layers grow; a smaller window is a single page.
const PAGE: usize = 256;

/// One conversation's state: the keys and values of every layer.
pub struct Sequence {
    layers: Vec<LayerCache>,
    len: usize,
    /// Set while a forward pass runs; still set afterwards if it failed in between.
    interrupted: bool,
}

impl Sequence {
    pub(crate) fn new(config: &ModelConfig, dtype: ActivationDtype) -> Self {
        let layers = config.layer_types.iter().take(config.num_hidden_layers);
        let window = |layer: &LayerType| config.sliding_window.filter(|_| *layer == LayerType::Sliding);
        let layers = layers
            .map(|layer| LayerCache {
                window: window(layer),
                kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
                dtype,
                pages: Vec::new(),
                len: 0,
            })
            .collect();
        Self { layers, len: 0, interrupted: false }
    }

    /// Tokens seen.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes allocated for keys and values.
    pub fn kv_bytes(&self) -> u64 {
        self.layers.iter().map(|l| (l.pages.len() * 2 * l.page_elements() * l.dtype.size()) as u64).sum()
    }

    /// Bytes of those that hold the tokens seen.
    pub fn kv_used_bytes(&self) -> u64 {
        let row = |l: &LayerCache| 2 * l.kv_heads * l.head_dim * l.dtype.size();
        self.layers.iter().map(|l| (row(l) * l.window.map_or(l.len, |w| l.len.min(w))) as u64).sum()
    }

    /// Forgets all tokens and frees their memory.
    pub fn reset(&mut self) {
        for layer in &mut self.layers {
            layer.pages = Vec::new();
            layer.len = 0;
        }
        (self.len, self.interrupted) = (0, false);
    }

    /// Marks the start of a forward pass.
    pub(crate) fn begin(&mut self) -> Result<()> {
        if self.interrupted {
            return Err(Error::InterruptedSequence);
        }
        self.interrupted = true;
        Ok(())
    }

    /// Marks the end of a forward pass over `tokens`, which every layer has appended.
    pub(crate) fn finish(&mut self, tokens: usize) {
        self.len += tokens;
        self.interrupted = false;
    }

    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[layer]
    }
}

impl std::fmt::Debug for Sequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sequence of {} tokens, {} bytes", self.len, self.kv_bytes())
    }
}

/// Keys and values of one layer. A position stands in slot `position`, or `position % window` of a ring; slots
/// are numbered through the pages. A ring grows too, so that a window beyond all need costs nothing.
pub(crate) struct LayerCache {
    window: Option<usize>,
    kv_heads: usize,
    head_dim: usize,
    dtype: ActivationDtype,
    pages: Vec<Page>,
    len: usize,
}

/// Rows `[kv_heads, rows, head_dim]`.
struct Page {
    k: KvBuffer,
    v: KvBuffer,
}

enum KvBuffer {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl KvBuffer {
    fn new(dtype: ActivationDtype, elements: usize) -> Self {
        match dtype {
            ActivationDtype::F32 => Self::F32(vec![0.0; elements]),
            ActivationDtype::Bf16 => Self::Bf16(vec![bf16::ZERO; elements]),
        }
    }

    fn from(&self, at: usize) -> KvData<'_> {
        match self {
            Self::F32(data) => KvData::F32(&data[at..]),
            Self::Bf16(data) => KvData::Bf16(&data[at..]),
        }
    }

    fn write(&mut self, at: usize, values: &[f32]) {
        match self {
            Self::F32(data) => data[at..at + values.len()].copy_from_slice(values),
            Self::Bf16(data) => {
                for (to, value) in data[at..].iter_mut().zip(values) {
                    *to = bf16::from_f32(*value);
                }
            }
        }
    }
}

impl LayerCache {
    fn page_rows(&self) -> usize {
        self.window.unwrap_or(PAGE).min(PAGE)
    }

    fn slot(&self, position: usize) -> usize {
        self.window.map_or(position, |window| position % window)
    }

    fn page_elements(&self) -> usize {
        self.page_rows() * self.kv_heads * self.head_dim
    }

    /// Appends k and v `[tokens, kv_heads, head_dim]`; a ring keeps the last `window` of them.
    pub(crate) fn append(&mut self, k: &[f32], v: &[f32]) {
        let width = self.kv_heads * self.head_dim;
        let tokens = k.len() / width;
        let rows = self.page_rows();
        let skip = self.window.map_or(0, |w| tokens.saturating_sub(w));
        for token in skip..tokens {
            let slot = self.slot(self.len + token);
            let (page, row) = (slot / rows, slot % rows);
            while self.pages.len() <= page {
                let (dtype, n) = (self.dtype, self.page_elements());
                self.pages.push(Page { k: KvBuffer::new(dtype, n), v: KvBuffer::new(dtype, n) });
            }
            let page = &mut self.pages[page];
            for head in 0..self.kv_heads {
                let to = (head * rows + row) * self.head_dim;
                let from = token * width + head * self.head_dim;
                page.k.write(to, &k[from..from + self.head_dim]);
                page.v.write(to, &v[from..from + self.head_dim]);
            }
        }
        self.len += tokens;
    }

    /// The rows that are held, as blocks in the order of their positions.
    pub(crate) fn blocks(&self) -> Vec<KvBlock<'_>> {
        let rows = self.page_rows();
        let mut blocks = Vec::new();
        let mut position = self.window.map_or(0, |window| self.len.saturating_sub(window));
        while position < self.len {
            let slot = self.slot(position);
            let to_page_end = rows - slot % rows;
            let to_ring_end = self.window.map_or(to_page_end, |window| window - slot);
            let run = to_page_end.min(to_ring_end).min(self.len - position);
            blocks.push(self.block(slot / rows, slot % rows, position, run));
            position += run;
        }
        blocks
    }

    fn block(&self, page: usize, row: usize, first_position: usize, len: usize) -> KvBlock<'_> {
        let at = row * self.head_dim;
        KvBlock {
            k: self.pages[page].k.from(at),
            v: self.pages[page].v.from(at),
            first_position,
            len,
            head_stride: self.page_rows() * self.head_dim,
            row_stride: self.head_dim,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(window: Option<usize>) -> LayerCache {
        LayerCache {
            window,
            kv_heads: 2,
            head_dim: 1,
            dtype: ActivationDtype::F32,
            pages: Vec::new(),
            len: 0,
        }
    }

    /// The positions held, and that each row has the value of its position for both heads.
    fn positions(cache: &LayerCache) -> Vec<usize> {
        let mut held = Vec::new();
        for block in cache.blocks() {
            let (KvData::F32(k), KvData::F32(v)) = (block.k, block.v) else { panic!("f32") };
            for row in 0..block.len {
                let position = block.first_position + row;
                assert_eq!(k[row * block.row_stride].to_bits(), (position as f32).to_bits());
                let v = v[block.head_stride + row * block.row_stride];
                assert_eq!(v.to_bits(), (-(position as f32) - 0.5).to_bits());
                held.push(position);
            }
        }
        held
    }

    #[test]
    fn rings_hold_the_last_window_and_pages_hold_all() {
        for chunks in [vec![1; 40], vec![7, 16, 3, 33, 1, 1], vec![300, 2, 299]] {
            let (mut ring, mut full, mut n) = (layer(Some(16)), layer(None), 0);
            // Its pages are of 256 rows, and the last one is used in part.
            let mut wide = layer(Some(PAGE + 100));
            for chunk in chunks {
                let rows =
                    |f: fn(usize) -> f32| (n..n + chunk).flat_map(|p| [f(p), f(p)]).collect::<Vec<f32>>();
                let k = rows(|p| p as f32);
                let mut v = rows(|p| -(p as f32));
                v.iter_mut().skip(1).step_by(2).for_each(|v| *v -= 0.5);
                ring.append(&k, &v);
                full.append(&k, &v);
                wide.append(&k, &v);
                n += chunk;
                assert_eq!(positions(&ring), (n.saturating_sub(16)..n).collect::<Vec<_>>());
                assert_eq!(positions(&wide), (n.saturating_sub(PAGE + 100)..n).collect::<Vec<_>>());
                assert_eq!(wide.pages.len(), n.div_ceil(PAGE).min(2));
                assert_eq!(positions(&full), (0..n).collect::<Vec<_>>());
                assert_eq!(full.pages.len(), n.div_ceil(PAGE));
            }
        }
    }
}
