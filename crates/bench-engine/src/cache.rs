//! Keys and values of the tokens that a sequence has seen: one page where their number is known, more as it grows,
//! up to a ring for sliding layers.
//!
//! Rows are kept in the activation dtype, head by head, so that attention reads each head's keys in a row.

use bench_kernels::attention::{KvBlock, KvData};
use half::bf16;

use crate::config::{LayerType, ModelConfig};
use crate::error::{Error, Result};
use crate::model::ActivationDtype;

/// Positions by which layers grow beyond what was reserved; a smaller window is a single page.
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
                reserved: PAGE,
                pages: Vec::new(),
                len: 0,
            })
            .collect();
        Self { layers, len: 0, interrupted: false }
    }

    /// Says how many tokens the sequence will have seen at its end: each layer then takes memory for exactly
    /// those that it keeps, in one page, when its first token comes. More tokens than that take pages. Without
    /// effect once there are tokens.
    pub fn reserve(&mut self, tokens: usize) {
        for layer in self.layers.iter_mut().filter(|layer| layer.pages.is_empty()) {
            layer.reserved = tokens.max(1);
        }
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
        let rows = |l: &LayerCache| l.pages.iter().map(|p| p.rows).sum::<usize>();
        self.layers.iter().map(|l| (rows(l) * l.row_bytes()) as u64).sum()
    }

    /// Bytes of those that hold the tokens seen.
    pub fn kv_used_bytes(&self) -> u64 {
        let rows = |l: &LayerCache| l.window.map_or(l.len, |w| l.len.min(w));
        self.layers.iter().map(|l| (rows(l) * l.row_bytes()) as u64).sum()
    }

    /// Forgets all tokens and what was reserved, and frees their memory.
    pub fn reset(&mut self) {
        for layer in &mut self.layers {
            layer.pages = Vec::new();
            layer.reserved = PAGE;
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
/// are numbered through the pages. A ring grows too, so that a window beyond all need costs nothing; its pages have
/// no more rows than its window together.
pub(crate) struct LayerCache {
    window: Option<usize>,
    kv_heads: usize,
    head_dim: usize,
    dtype: ActivationDtype,
    /// Rows of the first page, unless the window is smaller.
    reserved: usize,
    pages: Vec<Page>,
    len: usize,
}

/// Keys and values, each `[kv_heads, rows, head_dim]`.
struct Page {
    rows: usize,
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
    fn row_bytes(&self) -> usize {
        2 * self.kv_heads * self.head_dim * self.dtype.size()
    }

    fn slot(&self, position: usize) -> usize {
        self.window.map_or(position, |window| position % window)
    }

    /// Rows of the first page.
    fn first_rows(&self) -> usize {
        self.window.map_or(self.reserved, |window| window.min(self.reserved))
    }

    /// Page and row of a slot.
    fn place(&self, slot: usize) -> (usize, usize) {
        match slot.checked_sub(self.first_rows()) {
            None => (0, slot),
            Some(beyond) => (1 + beyond / PAGE, beyond % PAGE),
        }
    }

    fn add_page(&mut self) {
        let first = self.first_rows();
        let rows = match self.pages.len() {
            0 => first,
            n => self.window.map_or(PAGE, |window| PAGE.min(window - first - (n - 1) * PAGE)),
        };
        let elements = rows * self.kv_heads * self.head_dim;
        let buffer = || KvBuffer::new(self.dtype, elements);
        self.pages.push(Page { rows, k: buffer(), v: buffer() });
    }

    /// Appends k and v `[tokens, kv_heads, head_dim]`; a ring keeps the last `window` of them.
    pub(crate) fn append(&mut self, k: &[f32], v: &[f32]) {
        let width = self.kv_heads * self.head_dim;
        let tokens = k.len() / width;
        let skip = self.window.map_or(0, |w| tokens.saturating_sub(w));
        for token in skip..tokens {
            let (page, row) = self.place(self.slot(self.len + token));
            while self.pages.len() <= page {
                self.add_page();
            }
            let page = &mut self.pages[page];
            for head in 0..self.kv_heads {
                let to = (head * page.rows + row) * self.head_dim;
                let from = token * width + head * self.head_dim;
                page.k.write(to, &k[from..from + self.head_dim]);
                page.v.write(to, &v[from..from + self.head_dim]);
            }
        }
        self.len += tokens;
    }

    /// The rows that are held, as blocks in the order of their positions.
    pub(crate) fn blocks(&self) -> Vec<KvBlock<'_>> {
        let mut blocks = Vec::new();
        let mut position = self.window.map_or(0, |window| self.len.saturating_sub(window));
        while position < self.len {
            // A ring ends with its last page.
            let (page, row) = self.place(self.slot(position));
            let page = &self.pages[page];
            let run = (page.rows - row).min(self.len - position);
            blocks.push(self.block(page, row, position, run));
            position += run;
        }
        blocks
    }

    fn block<'a>(&self, page: &'a Page, row: usize, first_position: usize, len: usize) -> KvBlock<'a> {
        let at = row * self.head_dim;
        KvBlock {
            k: page.k.from(at),
            v: page.v.from(at),
            first_position,
            len,
            head_stride: page.rows * self.head_dim,
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
            reserved: PAGE,
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

    /// Appends `tokens` rows with the values of their positions.
    fn append(cache: &mut LayerCache, tokens: usize) {
        let rows = |f: fn(usize) -> f32| {
            (cache.len..cache.len + tokens).flat_map(|p| [f(p), f(p)]).collect::<Vec<f32>>()
        };
        let k = rows(|p| p as f32);
        let mut v = rows(|p| -(p as f32));
        v.iter_mut().skip(1).step_by(2).for_each(|v| *v -= 0.5);
        cache.append(&k, &v);
    }

    fn rows(cache: &LayerCache) -> Vec<usize> {
        cache.pages.iter().map(|page| page.rows).collect()
    }

    #[test]
    fn rings_hold_the_last_window_and_pages_hold_all() {
        for chunks in [vec![1; 40], vec![7, 16, 3, 33, 1, 1], vec![300, 2, 299]] {
            let (mut ring, mut full, mut n) = (layer(Some(16)), layer(None), 0);
            // Its last page is cut to the window.
            let mut wide = layer(Some(PAGE + 100));
            for chunk in chunks {
                append(&mut ring, chunk);
                append(&mut full, chunk);
                append(&mut wide, chunk);
                n += chunk;
                assert_eq!(positions(&ring), (n.saturating_sub(16)..n).collect::<Vec<_>>());
                assert_eq!(positions(&wide), (n.saturating_sub(PAGE + 100)..n).collect::<Vec<_>>());
                assert_eq!(rows(&wide), &[PAGE, 100][..n.div_ceil(PAGE).min(2)]);
                assert_eq!(positions(&full), (0..n).collect::<Vec<_>>());
                assert_eq!(full.pages.len(), n.div_ceil(PAGE));
            }
        }
    }

    #[test]
    fn what_was_reserved_is_one_page_and_more_takes_pages() {
        for window in [None, Some(16), Some(100), Some(PAGE + 300)] {
            for reserved in [1, 15, 16, 17, 143, 600] {
                let mut cache = layer(window);
                cache.reserved = reserved;
                for tokens in [1, reserved - 1] {
                    append(&mut cache, tokens);
                    assert_eq!(rows(&cache), [window.map_or(reserved, |w| w.min(reserved))]);
                }
                append(&mut cache, 700);
                let n = cache.len;
                let kept = window.map_or(n, |w| w.min(n));
                assert_eq!(positions(&cache), (n - kept..n).collect::<Vec<_>>(), "{window:?} {reserved}");
                let held: usize = rows(&cache).iter().sum();
                assert!(held >= kept && held < kept + PAGE && window.is_none_or(|w| held <= w));
            }
        }
    }

    #[test]
    fn reserved_sequences_hold_exactly_what_theory_says() {
        for (preset, contexts) in
            [("gpt-oss-nano", [1, 127, 128, 129, 143, 4096]), ("dense-nano", [1, 2, 255, 256, 257, 1000])]
        {
            let config = crate::preset::config(preset).unwrap();
            for dtype in [ActivationDtype::F32, ActivationDtype::Bf16] {
                for tokens in contexts {
                    let mut sequence = Sequence::new(&config, dtype);
                    sequence.reserve(tokens);
                    let width = config.num_key_value_heads * config.head_dim;
                    let rows = vec![1.0; tokens * width];
                    for layer in 0..config.num_hidden_layers {
                        sequence.layer_mut(layer).append(&rows, &rows);
                    }
                    let theory = crate::layout::kv_bytes(&config, tokens, dtype.size(), true);
                    assert_eq!(sequence.kv_bytes(), theory, "{preset} {tokens}");
                    assert_eq!(sequence.kv_used_bytes(), theory, "{preset} {tokens}");
                    sequence.reset();
                    assert_eq!(sequence.kv_bytes(), 0);
                }
            }
        }
    }
}
