//! Keys and values of the tokens that a sequence has seen: one page where their number is known, more as it grows,
//! up to a ring for sliding layers.
//!
//! What a page looks like inside is the kernels' matter; nothing here computes.

use bench_kernels::attention::{KvBlock, KvDtype, KvPage, KvStore};

use crate::config::{LayerType, ModelConfig};
#[cfg(feature = "cuda")]
use crate::cuda::DeviceCache;
use crate::error::{Error, Result};

/// Positions by which layers grow beyond what was reserved; a smaller window is a single page.
pub(crate) const PAGE: usize = 256;

/// One conversation's state: the keys and values of every layer.
pub struct Sequence {
    /// Empty where the caches are a device's.
    layers: Vec<LayerCache>,
    dtype: KvDtype,
    #[cfg(feature = "cuda")]
    device: Option<DeviceCache>,
    len: usize,
    /// Set while a forward pass runs; still set afterwards if it failed in between.
    interrupted: bool,
}

impl Sequence {
    pub(crate) fn new(config: &ModelConfig, dtype: KvDtype) -> Self {
        let layers = Slots::of(config)
            .map(|slots| LayerCache {
                slots,
                kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
                dtype,
                pages: Vec::new(),
                len: 0,
            })
            .collect();
        Self {
            layers,
            dtype,
            #[cfg(feature = "cuda")]
            device: None,
            len: 0,
            interrupted: false,
        }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn on_device(cache: DeviceCache, dtype: KvDtype) -> Self {
        Self { layers: Vec::new(), dtype, device: Some(cache), len: 0, interrupted: false }
    }

    /// The cache on the device.
    ///
    /// # Errors
    /// A sequence of a model on the host.
    #[cfg(feature = "cuda")]
    pub(crate) fn device_cache(&mut self) -> Result<&mut DeviceCache> {
        self.device.as_mut().ok_or(Error::OtherSequence)
    }

    /// As [`Self::device_cache`], to read.
    #[cfg(feature = "cuda")]
    pub(crate) fn device_pages(&self) -> Result<&DeviceCache> {
        self.device.as_ref().ok_or(Error::OtherSequence)
    }

    /// Says how many tokens the sequence will have seen at its end: each layer then takes memory for exactly
    /// those that it keeps, in one page, when its first token comes. More tokens than that take pages. Without
    /// effect once there are tokens.
    pub fn reserve(&mut self, tokens: usize) {
        #[cfg(feature = "cuda")]
        if let Some(cache) = &mut self.device {
            cache.reserve(tokens);
        }
        for layer in self.layers.iter_mut().filter(|layer| layer.pages.is_empty()) {
            layer.slots.reserved = tokens.max(1);
        }
    }

    /// Takes `tokens` tokens as seen, with keys and values from a seed, near ±1: for measuring what comes after a
    /// context without running it. What the model then answers means nothing.
    ///
    /// # Errors
    /// No memory for a page.
    pub fn assume(&mut self, tokens: usize, seed: u64) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(cache) = &mut self.device {
            cache.assume(self.len, tokens, seed)?;
        }
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

    pub fn kv_dtype(&self) -> KvDtype {
        self.dtype
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
        #[cfg(feature = "cuda")]
        if let Some(cache) = &self.device {
            return cache.bytes();
        }
        self.layers.iter().flat_map(|l| &l.pages).map(|page| page.bytes() as u64).sum()
    }

    /// Bytes of those that hold the tokens seen.
    pub fn kv_used_bytes(&self) -> u64 {
        #[cfg(feature = "cuda")]
        if let Some(cache) = &self.device {
            return cache.used_bytes(self.len);
        }
        self.layers.iter().map(|l| (l.slots.kept(l.len) * l.row_bytes()) as u64).sum()
    }

    /// Forgets all tokens and what was reserved, and frees their memory.
    pub fn reset(&mut self) {
        #[cfg(feature = "cuda")]
        if let Some(cache) = &mut self.device {
            cache.reset();
        }
        for layer in &mut self.layers {
            layer.pages = Vec::new();
            layer.slots.reserved = PAGE;
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

/// Where the positions of a layer stand. A position has slot `position`, or `position % window` of a ring; slots
/// are numbered through the pages. A ring grows too, so that a window beyond all need costs nothing; its pages have
/// no more rows than its window together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slots {
    pub(crate) window: Option<usize>,
    /// Rows of the first page, unless the window is smaller.
    pub(crate) reserved: usize,
}

impl Slots {
    /// One for each layer, with a page's rows reserved.
    pub(crate) fn of(config: &ModelConfig) -> impl Iterator<Item = Self> + '_ {
        let layers = config.layer_types.iter().take(config.num_hidden_layers);
        let window = |layer: &LayerType| config.sliding_window.filter(|_| *layer == LayerType::Sliding);
        layers.map(move |layer| Self { window: window(layer), reserved: PAGE })
    }

    fn slot(self, position: usize) -> usize {
        self.window.map_or(position, |window| position % window)
    }

    /// Rows that are kept of `tokens` tokens.
    pub(crate) fn kept(self, tokens: usize) -> usize {
        self.window.map_or(tokens, |window| tokens.min(window))
    }

    /// Rows of the first page.
    pub(crate) fn first_rows(self) -> usize {
        self.window.map_or(self.reserved, |window| window.min(self.reserved))
    }

    /// Page and row of a slot.
    pub(crate) fn place(self, slot: usize) -> (usize, usize) {
        match slot.checked_sub(self.first_rows()) {
            None => (0, slot),
            Some(beyond) => (1 + beyond / PAGE, beyond % PAGE),
        }
    }

    /// Rows of page number `page`.
    pub(crate) fn page_rows(self, page: usize) -> usize {
        let first = self.first_rows();
        match page {
            0 => first,
            n => self.window.map_or(PAGE, |window| PAGE.min(window - first - (n - 1) * PAGE)),
        }
    }
}

/// Keys and values of one layer.
pub(crate) struct LayerCache {
    slots: Slots,
    kv_heads: usize,
    head_dim: usize,
    dtype: KvDtype,
    pages: Vec<KvPage>,
    len: usize,
}

impl LayerCache {
    fn row_bytes(&self) -> usize {
        2 * self.kv_heads * self.dtype.row_bytes(self.head_dim)
    }

    fn add_page(&mut self) -> Result<()> {
        let rows = self.slots.page_rows(self.pages.len());
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
        let skip = self.slots.window.map_or(0, |w| tokens.saturating_sub(w));
        for token in skip..tokens {
            let (page, row) = self.slots.place(self.slots.slot(self.len + token));
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
        self.slots.window.map_or(0, |window| self.len.saturating_sub(window))
    }

    /// Number of blocks: one for each page, and where a ring begins inside a page, one more for the rows before it.
    fn blocks(&self) -> usize {
        if self.len == 0 {
            return 0;
        }
        let (_, row) = self.slots.place(self.slots.slot(self.oldest()));
        self.pages.len() + usize::from(row > 0)
    }

    /// Blocks are in the order of their positions.
    fn block(&self, index: usize) -> KvBlock<'_> {
        let oldest = self.oldest();
        let start = self.slots.slot(oldest);
        let (first, row) = self.slots.place(start);
        let at = (first + index) % self.pages.len();
        let page = &self.pages[at];
        let (from, to) = match index {
            0 => (row, page.rows()),
            i if i == self.pages.len() => (0, row),
            _ => (0, page.rows()),
        };
        let slot = match at {
            0 => from,
            n => self.slots.first_rows() + (n - 1) * PAGE + from,
        };
        // A ring that wraps is full: its slots follow each other round and round.
        let behind = if slot >= start { slot - start } else { slot + self.slots.window.unwrap_or(0) - start };
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
            slots: Slots { window, reserved: PAGE },
            kv_heads: 2,
            head_dim: 1,
            dtype: KvDtype::F32,
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
                cache.slots.reserved = reserved;
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
