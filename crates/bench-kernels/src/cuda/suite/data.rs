//! What kernels are measured on: weights that fill more than a cache, sequences with keys, rows sorted by expert.

use half::bf16;

use super::attention::{Cache, Span};
use super::tiles::Format;
use super::vectors::{Fill, fill};
use crate::cuda::check::Values;
use crate::cuda::{Gpu, GpuError, Memory};

/// More copies than this are launches whose weights are small: what they cost is not their bytes.
const MOST_COPIES: usize = 256;
/// Copies start at multiples of this.
const ALIGN: usize = 256;

/// How many things of `bytes` fill a set; at least one.
pub(super) fn copies(bytes: usize, set_bytes: usize) -> usize {
    set_bytes.div_ceil(bytes.max(1)).clamp(1, MOST_COPIES)
}

/// Bytes of codes and of scales of `elements` weights.
pub(super) fn weight_bytes(format: Format, elements: usize) -> (usize, usize) {
    match format {
        Format::Bf16 => (2 * elements, 0),
        Format::Q8 => (elements, elements / 16),
        Format::Mxfp4 => (elements / 2, elements / 32),
    }
}

/// Copies of a matrix, or of a matrix for each expert, with random values.
pub(super) struct Weights<'g> {
    codes: Memory<'g>,
    scales: Memory<'g>,
    pub(super) count: usize,
    code_step: usize,
    scale_step: usize,
}

impl<'g> Weights<'g> {
    pub(super) fn new(
        gpu: &'g dyn Gpu,
        format: Format,
        elements: usize,
        set_bytes: usize,
    ) -> Result<Self, GpuError> {
        let (codes, scales) = weight_bytes(format, elements);
        let count = copies(codes + scales, set_bytes);
        let (code_step, scale_step) = (codes.next_multiple_of(ALIGN), scales.next_multiple_of(ALIGN));
        let random = |bytes: usize, how, key| {
            let memory = Memory::zeroed(gpu, bytes.max(ALIGN))?;
            fill(gpu, how, key, 0, memory.address(), bytes as u64)?;
            Ok::<_, GpuError>(memory)
        };
        // About those of a trained matrix of some thousand columns; read as f16, such bf16 bits are finite.
        let small = Fill::Uniform { mean: 0.0, std: 0.02 };
        let (how_codes, how_scales) = match format {
            Format::Bf16 => (small, small),
            Format::Q8 => (Fill::Codes, small),
            Format::Mxfp4 => (Fill::Codes, Fill::Exponents { low: 118, high_of_256: 128 }),
        };
        Ok(Self {
            codes: random(count * code_step, how_codes, 1)?,
            scales: random(count * scale_step, how_scales, 2)?,
            count,
            code_step,
            scale_step,
        })
    }

    /// Addresses of codes and scales of copy `i`, in turn.
    pub(super) fn at(&self, i: usize) -> (u64, u64) {
        let i = i % self.count;
        let scales =
            if self.scale_step == 0 { 0 } else { self.scales.address() + (i * self.scale_step) as u64 };
        (self.codes.address() + (i * self.code_step) as u64, scales)
    }
}

/// f32 values between -1 and 1.
pub(super) fn reals(gpu: &dyn Gpu, count: usize) -> Result<Memory<'_>, GpuError> {
    Memory::of(gpu, &Values::new(3).reals(count, 1.0))
}

/// The same in bf16.
pub(super) fn planes(gpu: &dyn Gpu, count: usize) -> Result<Memory<'_>, GpuError> {
    Memory::of::<bf16>(gpu, &Values::new(4).bf16s(count, 1.0))
}

/// Slots of `tokens` that go to all experts alike, sorted by expert: order and offsets.
pub(super) fn even_routing(tokens: usize, slots_per_token: usize, experts: usize) -> (Vec<u32>, Vec<u32>) {
    // Tokens start at experts far from each other; their slots go to neighbours.
    let expert = |slot: usize| {
        let (token, choice) = (slot / slots_per_token, slot % slots_per_token);
        (token * slots_per_token + choice) % experts
    };
    let mut order: Vec<u32> = (0..(tokens * slots_per_token) as u32).collect();
    order.sort_by_key(|&slot| expert(slot as usize));
    let mut offsets = vec![0_u32; experts + 1];
    for slot in 0..tokens * slots_per_token {
        offsets[expert(slot) + 1] += 1;
    }
    for e in 0..experts {
        offsets[e + 1] += offsets[e];
    }
    (order, offsets)
}

/// Sequences of one page each, with random keys and values in bf16.
pub(super) struct Sequences<'g> {
    _pages: Memory<'g>,
    _addresses: Memory<'g>,
    caches: Memory<'g>,
    spans: Memory<'g>,
    count: usize,
}

impl<'g> Sequences<'g> {
    /// As many as fill the set, each with `past` tokens in `rows` rows of `row_bytes` for keys and values, and `len` new
    /// ones.
    pub(super) fn new(
        gpu: &'g dyn Gpu,
        (past, len): (usize, usize),
        rows: usize,
        row_bytes: usize,
        set_bytes: usize,
    ) -> Result<Self, GpuError> {
        let page = (rows * row_bytes).next_multiple_of(ALIGN);
        let count = copies(rows * row_bytes, set_bytes);
        let pages = Memory::zeroed(gpu, count * page)?;
        fill(gpu, Fill::Uniform { mean: 0.0, std: 0.5 }, 5, 0, pages.address(), (count * page) as u64)?;
        let addresses: Vec<u64> = (0..count).map(|i| pages.address() + (i * page) as u64).collect();
        let addresses = Memory::of(gpu, &addresses)?;
        let cache = |i: usize| Cache {
            pages: addresses.address() + 8 * i as u64,
            first_rows: rows as u32,
            page_rows: 256,
        };
        let caches = Memory::of(gpu, &(0..count).map(cache).collect::<Vec<_>>())?;
        let span = |i: usize| Span { start: 0, len: len as u32, past: past as u32, sequence: i as u32 };
        let spans = Memory::of(gpu, &(0..count).map(span).collect::<Vec<_>>())?;
        Ok(Self { _pages: pages, _addresses: addresses, caches, spans, count })
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn caches(&self) -> u64 {
        self.caches.address()
    }

    /// The span of sequence `i`, in turn.
    pub(super) fn span(&self, i: usize) -> u64 {
        self.spans.address() + (size_of::<Span>() * (i % self.count)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_shared_evenly_and_sorted() {
        let (order, offsets) = even_routing(8, 2, 4);
        assert_eq!(offsets, [0, 4, 8, 12, 16]);
        assert_eq!(order[..4], [0, 4, 8, 12]);
        let (order, offsets) = even_routing(1, 2, 4);
        assert_eq!((order, offsets), (vec![0, 1], vec![0, 1, 2, 2, 2]));
    }

    #[test]
    fn a_set_has_as_many_copies_as_fill_it() {
        assert_eq!((copies(100, 1000), copies(2000, 1000), copies(1, 1 << 30)), (10, 1, MOST_COPIES));
        assert_eq!(weight_bytes(Format::Mxfp4, 64), (32, 2));
        assert_eq!(weight_bytes(Format::Q8, 64), (64, 4));
    }
}
