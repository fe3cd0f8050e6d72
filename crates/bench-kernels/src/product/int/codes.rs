//! Where a tile takes weight codes from: packed, as they are stored, or unpacked to bytes in cache.

use std::marker::PhantomData;

use crate::packed::{PANEL, PackedMatrix};
use crate::product::ints::{FP4_SHIFT, Ints};

/// A format of packed weights.
///
/// # Safety
/// Methods need the instructions of `I`; pointers those bytes that they name.
pub(super) trait Codes: Copy {
    const BLOCK_BYTES: usize;
    const SCALE_BYTES: usize;
    /// Codes are bytes already.
    const IS_BYTES: bool;
    /// Vectors 2J and 2J + 1 of a block.
    unsafe fn pair<I: Ints, const J: usize>(block: *const u8) -> [I::Bytes; 2];
    unsafe fn scales<I: Ints>(from: *const u8) -> I::Floats;
    /// What takes back the offset of the codes: minus the sum of a row's codes, times the offset.
    unsafe fn start<I: Ints>(minus_sum: *const u32) -> I::Sums;
    unsafe fn dot<I: Ints>(sums: I::Sums, w: I::Bytes, x: I::Quad) -> I::Sums;
}

#[derive(Clone, Copy)]
pub(super) struct Fp4;

impl Codes for Fp4 {
    const BLOCK_BYTES: usize = 4 * 64;
    const SCALE_BYTES: usize = 1;
    const IS_BYTES: bool = false;

    #[inline(always)]
    unsafe fn pair<I: Ints, const J: usize>(block: *const u8) -> [I::Bytes; 2] {
        // SAFETY: the caller gives a block, here and below.
        unsafe {
            let bytes = I::bytes(block.add(64 * J));
            [I::fp4::<0>(bytes), I::fp4::<1>(bytes)]
        }
    }

    #[inline(always)]
    unsafe fn scales<I: Ints>(from: *const u8) -> I::Floats {
        // SAFETY: 16 bytes.
        unsafe { I::e8m0(from) }
    }

    #[inline(always)]
    unsafe fn start<I: Ints>(minus_sum: *const u32) -> I::Sums {
        // SAFETY: a word.
        unsafe { I::splat_shifted::<FP4_SHIFT>(minus_sum) }
    }

    #[inline(always)]
    unsafe fn dot<I: Ints>(sums: I::Sums, w: I::Bytes, x: I::Quad) -> I::Sums {
        // SAFETY: codes are below 29.
        unsafe { I::dot::<true>(sums, w, x) }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q8;

impl Codes for Q8 {
    const BLOCK_BYTES: usize = 8 * 64;
    const SCALE_BYTES: usize = 2;
    const IS_BYTES: bool = true;

    #[inline(always)]
    unsafe fn pair<I: Ints, const J: usize>(block: *const u8) -> [I::Bytes; 2] {
        // SAFETY: a block.
        unsafe { [I::bytes(block.add(128 * J)), I::bytes(block.add(128 * J + 64))] }
    }

    #[inline(always)]
    unsafe fn scales<I: Ints>(from: *const u8) -> I::Floats {
        // SAFETY: 32 bytes.
        unsafe { I::halves(from) }
    }

    #[inline(always)]
    unsafe fn start<I: Ints>(minus_sum: *const u32) -> I::Sums {
        // SAFETY: a word.
        unsafe { I::start_eight(minus_sum) }
    }

    #[inline(always)]
    unsafe fn dot<I: Ints>(sums: I::Sums, w: I::Bytes, x: I::Quad) -> I::Sums {
        // SAFETY: nothing is promised.
        unsafe { I::dot::<false>(sums, w, x) }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q6;

impl Codes for Q6 {
    const BLOCK_BYTES: usize = 6 * 64;
    const SCALE_BYTES: usize = 2;
    const IS_BYTES: bool = false;

    #[inline(always)]
    unsafe fn pair<I: Ints, const J: usize>(block: *const u8) -> [I::Bytes; 2] {
        // SAFETY: a block; high bits of vectors 2J and 2J + 1 are in high vector J / 2.
        unsafe {
            let low = I::bytes(block.add(64 * J));
            let high = I::bytes(block.add(64 * (4 + J / 2)));
            if J.is_multiple_of(2) {
                [I::six::<0, 0>(low, high), I::six::<1, 1>(low, high)]
            } else {
                [I::six::<0, 2>(low, high), I::six::<1, 3>(low, high)]
            }
        }
    }

    #[inline(always)]
    unsafe fn scales<I: Ints>(from: *const u8) -> I::Floats {
        // SAFETY: 32 bytes.
        unsafe { I::halves(from) }
    }

    #[inline(always)]
    unsafe fn start<I: Ints>(minus_sum: *const u32) -> I::Sums {
        // SAFETY: a word.
        unsafe { I::splat_shifted::<5>(minus_sum) }
    }

    #[inline(always)]
    unsafe fn dot<I: Ints>(sums: I::Sums, w: I::Bytes, x: I::Quad) -> I::Sums {
        // SAFETY: codes are below 64.
        unsafe { I::dot::<true>(sums, w, x) }
    }
}

/// Panels one after the other.
///
/// # Safety
/// Panels and blocks must exist; the instructions of `I` be enabled.
pub(super) trait Source: Copy {
    type Format: Codes;
    unsafe fn pair<I: Ints, const J: usize>(&self, panel: usize, block: usize) -> [I::Bytes; 2];
    unsafe fn scales<I: Ints>(&self, panel: usize, block: usize) -> I::Floats;
    /// Tells the cache what `pair::<_, J>` will read some blocks from here.
    unsafe fn prefetch<I: Ints, const J: usize>(&self, panel: usize, block: usize);
    /// What will be read from memory after the `P` panels from `panel` on: where its codes begin, and how many lines
    /// it has for each block of a panel. `None` behind the last panel of the matrix.
    fn next<const P: usize>(&self, panel: usize) -> Option<(*const u8, usize)>;
}

/// As in memory.
#[derive(Clone, Copy)]
pub(super) struct Stored<C> {
    codes: *const u8,
    scales: *const u8,
    blocks: usize,
    /// Up to the end of the matrix.
    panels: usize,
    format: PhantomData<C>,
}

impl<C: Codes> Stored<C> {
    /// Panels from `panel` on.
    ///
    /// # Safety
    /// The panel is inside the matrix, which has `blocks` blocks of columns and format `C`.
    #[inline(always)]
    pub(super) unsafe fn new(w: &PackedMatrix<'_>, panel: usize, blocks: usize) -> Self {
        // SAFETY: the caller's.
        unsafe {
            let codes = w.codes().as_ptr().add(panel * blocks * C::BLOCK_BYTES);
            let scales = w.scales().as_ptr().add(panel * blocks * 16 * C::SCALE_BYTES);
            let panels = w.rows() / PANEL - panel;
            Self { codes, scales, blocks, panels, format: PhantomData }
        }
    }

    /// Codes of up to `n` panels from `panel` on: where they begin, and their lines for each block.
    #[inline(always)]
    fn lines(&self, panel: usize, n: usize) -> Option<(*const u8, usize)> {
        let n = n.min(self.panels.saturating_sub(panel));
        let codes = self.codes.wrapping_add(panel * self.blocks * C::BLOCK_BYTES);
        (n > 0).then_some((codes, n * C::BLOCK_BYTES / 64))
    }

    #[inline(always)]
    unsafe fn block(&self, panel: usize, block: usize) -> *const u8 {
        // SAFETY: the block exists.
        unsafe { self.codes.add((panel * self.blocks + block) * C::BLOCK_BYTES) }
    }
}

/// Bytes of codes from a read to its prefetch.
const AHEAD_BYTES: usize = 4096;

impl<C: Codes> Source for Stored<C> {
    type Format = C;

    #[inline(always)]
    unsafe fn pair<I: Ints, const J: usize>(&self, panel: usize, block: usize) -> [I::Bytes; 2] {
        // SAFETY: the caller's.
        unsafe { C::pair::<I, J>(self.block(panel, block)) }
    }

    #[inline(always)]
    unsafe fn scales<I: Ints>(&self, panel: usize, block: usize) -> I::Floats {
        // SAFETY: the caller's.
        unsafe { C::scales::<I>(self.scales.add((panel * self.blocks + block) * 16 * C::SCALE_BYTES)) }
    }

    #[inline(always)]
    unsafe fn prefetch<I: Ints, const J: usize>(&self, panel: usize, block: usize) {
        if C::IS_BYTES {
            // Nothing is unpacked: the processor's own prefetcher is ahead, and has the fewer requests to make.
            return;
        }
        let at = panel * self.blocks + block;
        let codes = self.codes.wrapping_add(at * C::BLOCK_BYTES + AHEAD_BYTES);
        let scales = self.scales.wrapping_add(at * 16 * C::SCALE_BYTES + AHEAD_BYTES / 8);
        // SAFETY: prefetches may name any address.
        unsafe {
            for line in (J..C::BLOCK_BYTES / 64).step_by(4) {
                I::prefetch(codes.wrapping_add(64 * line));
            }
            if J == 3 {
                I::prefetch(scales);
            }
        }
    }

    #[inline(always)]
    fn next<const P: usize>(&self, panel: usize) -> Option<(*const u8, usize)> {
        self.lines(panel + P, P)
    }
}

/// Bytes `[panel, block, 8, 64]`, then f32 scales `[panel, block, 16]`.
#[derive(Clone, Copy)]
pub(super) struct Unpacked<C> {
    codes: *const u8,
    scales: *const f32,
    from: Stored<C>,
    panels: usize,
}

impl<C: Codes> Unpacked<C> {
    /// Unpacks the first `panels` of `from`.
    ///
    /// # Safety
    /// `to` has room for 9 · 64 bytes for each block, from a cache line on.
    // Codes take whole cache lines, so that scales begin on one.
    #[allow(clippy::cast_ptr_alignment)]
    #[inline(always)]
    pub(super) unsafe fn fill<I: Ints>(from: &Stored<C>, panels: usize, blocks: usize, to: *mut u8) -> Self {
        // SAFETY: the caller gives the room.
        unsafe {
            let scales = to.add(panels * blocks * 512).cast::<f32>();
            for at in 0..panels * blocks {
                let to = to.add(at * 512);
                store_pair::<I>(from.pair::<I, 0>(0, at), to);
                store_pair::<I>(from.pair::<I, 1>(0, at), to.add(128));
                store_pair::<I>(from.pair::<I, 2>(0, at), to.add(256));
                store_pair::<I>(from.pair::<I, 3>(0, at), to.add(384));
                I::store_floats(from.scales::<I>(0, at), scales.add(at * 16));
            }
            Self { codes: to, scales, from: *from, panels }
        }
    }
}

#[inline(always)]
unsafe fn store_pair<I: Ints>([a, b]: [I::Bytes; 2], to: *mut u8) {
    // SAFETY: the caller gives 128 writable bytes.
    unsafe {
        I::store_bytes(a, to);
        I::store_bytes(b, to.add(64));
    }
}

impl<C: Codes> Source for Unpacked<C> {
    type Format = C;

    #[inline(always)]
    unsafe fn pair<I: Ints, const J: usize>(&self, panel: usize, block: usize) -> [I::Bytes; 2] {
        // SAFETY: the caller's.
        unsafe { Q8::pair::<I, J>(self.codes.add((panel * self.from.blocks + block) * 512)) }
    }

    #[inline(always)]
    unsafe fn scales<I: Ints>(&self, panel: usize, block: usize) -> I::Floats {
        // SAFETY: the caller's.
        unsafe { I::floats(self.scales.add((panel * self.from.blocks + block) * 16)) }
    }

    #[inline(always)]
    unsafe fn prefetch<I: Ints, const J: usize>(&self, _: usize, _: usize) {}

    /// The same panels of the next task.
    #[inline(always)]
    fn next<const P: usize>(&self, panel: usize) -> Option<(*const u8, usize)> {
        self.from.lines(self.panels + panel, P)
    }
}
