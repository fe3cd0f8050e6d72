//! Keys and values of the tokens that a sequence has seen: one page where their number is known, more as it grows,
//! up to a ring for sliding layers.
//!
//! What a page looks like inside is the kernels' matter; nothing here computes.

use bench_kernels::attention::{KvBlock, KvDtype, KvPage, KvStore};

use crate::config::{LayerType, ModelConfig};
use crate::error::{Error, Result};

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
    pub(crate) fn new(config: &ModelConfig, dtype: KvDtype) -> Self {
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

    /// Takes `tokens` tokens as seen, with keys and values from a seed, near ±1: for measuring what comes after a
    /// context without running it. What the model then answers means nothing.
    ///
    /// # Errors
    /// No memory for a page.
    pub fn assume(&mut self, tokens: usize, seed: u64) -> Result<()> {
        let mut state = seed.wrapping_mul(2).wrapping_add(1);
        for layer in &mut self.layers {
            let width = layer.kv_heads * layer.head_dim;
            let mut row = || -> Vec<f32> {
                // Multiplicative congruential generator (L'Ecuyer 1999, modulus 2^64).
                let mut value = || {
                    state = state.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(3_037_000_493);
                    (state >> 40) as f32 / (1 << 23) as f32 - 1.0
                };
                (0..width).map(|_| value()).collect()
            };
            for _ in 0..tokens {
                let (k, v) = (row(), row());
                layer.append(&k, &v)?;
            }
        }
        self.len += tokens;
        Ok(())
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
        self.layers.iter().flat_map(|l| &l.pages).map(|page| page.bytes() as u64).sum()
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
    dtype: KvDtype,
    /// Rows of the first page, unless the window is smaller.
    reserved: usize,
    pages: Vec<KvPage>,
    len: usize,
}

impl LayerCache {
    fn row_bytes(&self) -> usize {
        2 * self.kv_heads * self.dtype.row_bytes(self.head_dim)
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

    fn add_page(&mut self) -> Result<()> {
        let first = self.first_rows();
        let rows = match self.pages.len() {
            0 => first,
            n => self.window.map_or(PAGE, |window| PAGE.min(window - first - (n - 1) * PAGE)),
        };
        self.pages.push(KvPage::new(self.dtype, self.kv_heads, self.head_dim, rows)?);
        Ok(())
    }

    /// Appends k and v `[tokens, kv_heads, head_dim]`; a ring keeps the last `window` of them.
    ///
    /// # Errors
    /// No memory for a page.
    pub(crate) fn append(&mut self, k: &[f32], v: &[f32]) -> Result<()> {
        let width = self.kv_heads * self.head_dim;
        let tokens = k.len() / width;
        let skip = self.window.map_or(0, |w| tokens.saturating_sub(w));
        for token in skip..tokens {
            let (page, row) = self.place(self.slot(self.len + token));
            while self.pages.len() <= page {
                self.add_page()?;
            }
            let values = token * width..(token + 1) * width;
            self.pages[page].write(row, &k[values.clone()], &v[values]);
        }
        self.len += tokens;
        Ok(())
    }

    /// Position of the oldest row.
    fn oldest(&self) -> usize {
        self.window.map_or(0, |window| self.len.saturating_sub(window))
    }

    /// Number of blocks: one for each page, and where a ring begins inside a page, one more for the rows before it.
    fn blocks(&self) -> usize {
        if self.len == 0 {
            return 0;
        }
        let (_, row) = self.place(self.slot(self.oldest()));
        self.pages.len() + usize::from(row > 0)
    }

    /// Blocks are in the order of their positions.
    fn block(&self, index: usize) -> KvBlock<'_> {
        let oldest = self.oldest();
        let start = self.slot(oldest);
        let (first, row) = self.place(start);
        let at = (first + index) % self.pages.len();
        let page = &self.pages[at];
        let (from, to) = match index {
            0 => (row, page.rows()),
            i if i == self.pages.len() => (0, row),
            _ => (0, page.rows()),
        };
        let slot = match at {
            0 => from,
            n => self.first_rows() + (n - 1) * PAGE + from,
        };
        // A ring that wraps is full: its slots follow each other round and round.
        let behind = if slot >= start { slot - start } else { slot + self.window.unwrap_or(0) - start };
        let first_position = oldest + behind;
        KvBlock { page, first_row: from, first_position, len: (to - from).min(self.len - first_position) }
    }
}

/// The caches of one layer, for the kernels.
pub(crate) struct LayerCaches<'a, 's> {
    pub(crate) sequences: &'a [&'s mut Sequence],
    pub(crate) layer: usize,
}

impl KvStore for LayerCaches<'_, '_> {
    fn blocks(&self, sequence: usize) -> usize {
        self.sequences[sequence].layers[self.layer].blocks()
    }

    fn block(&self, sequence: usize, index: usize) -> KvBlock<'_> {
        self.sequences[sequence].layers[self.layer].block(index)
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
            dtype: KvDtype::F32,
            reserved: PAGE,
            pages: Vec::new(),
            len: 0,
        }
    }

    /// The positions held, and that each row has the value of its position for both heads.
    fn positions(cache: &LayerCache) -> Vec<usize> {
        let mut held = Vec::new();
        for block in (0..cache.blocks()).map(|i| cache.block(i)) {
            for row in 0..block.len {
                let position = block.first_position + row;
                let mut found = [[0.0; 2]; 2];
                for (head, found) in found.iter_mut().enumerate() {
                    block.page.read(head, block.first_row + row, |_, k, v| *found = [k, v]);
                }
                let p = position as f32;
                assert_eq!(found, [[p, -p], [p, -p - 0.5]]);
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
        cache.append(&k, &v).unwrap();
    }

    fn rows(cache: &LayerCache) -> Vec<usize> {
        cache.pages.iter().map(KvPage::rows).collect()
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
            for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Q8_0] {
                for tokens in contexts {
                    let mut sequence = Sequence::new(&config, dtype);
                    sequence.reserve(tokens);
                    let width = config.num_key_value_heads * config.head_dim;
                    let rows = vec![1.0; tokens * width];
                    for layer in 0..config.num_hidden_layers {
                        sequence.layer_mut(layer).append(&rows, &rows).unwrap();
                    }
                    let theory = crate::layout::kv_bytes(&config, tokens, dtype, true);
                    assert_eq!(sequence.kv_bytes(), theory, "{preset} {tokens}");
                    assert_eq!(sequence.kv_used_bytes(), theory, "{preset} {tokens}");
                    sequence.reset();
                    assert_eq!(sequence.kv_bytes(), 0);
                }
            }
        }
    }
}
