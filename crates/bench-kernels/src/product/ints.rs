//! Sixteen lanes of whole numbers, one for each row of a panel: the operations that integer products are written in.
//!
//! All implementations give the same integers. Methods must be inlined into a function that enables their
//! instructions.

use half::f16;

use crate::mxfp4::{DOUBLED_CODES, half_scale};

/// What is added to doubled MXFP4 values so that they are not negative: a power of two, for the shift that
/// takes it back.
pub(super) const FP4_SHIFT: u32 = 4;

const FP4_CODES: [u8; 16] = {
    let mut table = [0; 16];
    let mut code = 0;
    while code < 16 {
        table[code] = (DOUBLED_CODES[code] + (1 << FP4_SHIFT)) as u8;
        code += 1;
    }
    table
};

/// # Safety
/// All methods need the instructions of the implementation. Pointers are readable (writable for `store_…`) for
/// 64 bytes or 16 lanes, `quad` for 4 bytes, `e8m0` for 16, `halves` for 32; none need be aligned.
pub(super) trait Ints: Copy {
    /// 64 bytes, four for each lane.
    type Bytes: Copy;
    /// 16 i32.
    type Sums: Copy;
    /// 16 f32.
    type Floats: Copy;
    /// Four signed bytes that go to all lanes.
    type Quad: Copy;
    /// Whether registers hold tiles of 2 panels × 6 rows.
    const LARGE: bool;

    unsafe fn bytes(from: *const u8) -> Self::Bytes;
    unsafe fn store_bytes(bytes: Self::Bytes, to: *mut u8);
    /// MXFP4 codes in the low (0) or high (1) nibbles to doubled values + 16.
    unsafe fn fp4<const HIGH: usize>(bytes: Self::Bytes) -> Self::Bytes;
    /// The low (0) or high (1) nibbles, and above them bits `2 · PAIR..` of `high`.
    unsafe fn six<const HIGH: usize, const PAIR: usize>(low: Self::Bytes, high: Self::Bytes) -> Self::Bytes;
    unsafe fn quad(from: *const u32) -> Self::Quad;
    /// `value · 2^SHIFT` in all lanes.
    unsafe fn splat_shifted<const SHIFT: u32>(value: *const u32) -> Self::Sums;
    unsafe fn zero() -> Self::Sums;
    /// Where sums of bytes that stand for code + 128 start: what takes these back, from minus the sum of the other
    /// side. Those of `dot::<false>` begin here.
    #[inline(always)]
    unsafe fn start_eight(minus_sum: *const u32) -> Self::Sums {
        // SAFETY: the caller's.
        unsafe { Self::splat_shifted::<7>(minus_sum) }
    }
    /// Adds the products of unsigned bytes and the signed quad; `SMALL` promises bytes below 64.
    unsafe fn dot<const SMALL: bool>(sums: Self::Sums, bytes: Self::Bytes, quad: Self::Quad) -> Self::Sums;
    /// `256 · hi + lo`.
    unsafe fn combine(hi: Self::Sums, lo: Self::Sums) -> Self::Sums;

    unsafe fn floats(from: *const f32) -> Self::Floats;
    unsafe fn store_floats(floats: Self::Floats, to: *mut f32);
    unsafe fn splat(value: *const u32) -> Self::Floats;
    unsafe fn convert(sums: Self::Sums) -> Self::Floats;
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn mul_add(a: Self::Floats, b: Self::Floats, addend: Self::Floats) -> Self::Floats;
    /// `2^(e − 128)` of 16 bytes.
    unsafe fn e8m0(from: *const u8) -> Self::Floats;
    /// 16 f16.
    unsafe fn halves(from: *const u8) -> Self::Floats;
    unsafe fn prefetch(at: *const u8);
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Plain;

impl Ints for Plain {
    type Bytes = [u8; 64];
    type Sums = [i32; 16];
    type Floats = [f32; 16];
    type Quad = [i8; 4];
    const LARGE: bool = false;

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> [u8; 64] {
        // SAFETY: the caller gives 64 readable bytes.
        unsafe { from.cast::<[u8; 64]>().read() }
    }

    #[inline(always)]
    unsafe fn store_bytes(bytes: [u8; 64], to: *mut u8) {
        // SAFETY: the caller gives 64 writable bytes.
        unsafe { to.cast::<[u8; 64]>().write(bytes) }
    }

    #[inline(always)]
    unsafe fn fp4<const HIGH: usize>(bytes: [u8; 64]) -> [u8; 64] {
        bytes.map(|b| FP4_CODES[usize::from(b >> (4 * HIGH) & 15)])
    }

    #[inline(always)]
    unsafe fn six<const HIGH: usize, const PAIR: usize>(low: [u8; 64], high: [u8; 64]) -> [u8; 64] {
        std::array::from_fn(|i| (low[i] >> (4 * HIGH) & 15) | (high[i] >> (2 * PAIR) & 3) << 4)
    }

    #[inline(always)]
    unsafe fn quad(from: *const u32) -> [i8; 4] {
        // SAFETY: the caller gives a readable word.
        unsafe { from.read() }.to_le_bytes().map(|b| b as i8)
    }

    #[inline(always)]
    unsafe fn splat_shifted<const SHIFT: u32>(value: *const u32) -> [i32; 16] {
        // SAFETY: the caller gives a readable word.
        [unsafe { value.read() as i32 } << SHIFT; 16]
    }

    #[inline(always)]
    unsafe fn zero() -> [i32; 16] {
        [0; 16]
    }

    #[inline(always)]
    unsafe fn dot<const SMALL: bool>(mut sums: [i32; 16], bytes: [u8; 64], quad: [i8; 4]) -> [i32; 16] {
        for (sum, bytes) in sums.iter_mut().zip(bytes.as_chunks::<4>().0) {
            for (w, x) in bytes.iter().zip(quad) {
                *sum += i32::from(*w) * i32::from(x);
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn combine(hi: [i32; 16], lo: [i32; 16]) -> [i32; 16] {
        std::array::from_fn(|i| (hi[i] << 8) + lo[i])
    }

    #[inline(always)]
    unsafe fn floats(from: *const f32) -> [f32; 16] {
        // SAFETY: the caller gives 16 readable elements.
        unsafe { from.cast::<[f32; 16]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_floats(floats: [f32; 16], to: *mut f32) {
        // SAFETY: the caller gives 16 writable elements.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(floats) }
    }

    #[inline(always)]
    unsafe fn splat(value: *const u32) -> [f32; 16] {
        // SAFETY: the caller gives a readable word.
        [f32::from_bits(unsafe { value.read() }); 16]
    }

    #[inline(always)]
    unsafe fn convert(sums: [i32; 16]) -> [f32; 16] {
        sums.map(|sum| sum as f32)
    }

    #[inline(always)]
    unsafe fn add(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn mul(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn mul_add(a: [f32; 16], b: [f32; 16], addend: [f32; 16]) -> [f32; 16] {
        // Not fused: without the instruction, a fused operation is a slow library call.
        std::array::from_fn(|i| a[i] * b[i] + addend[i])
    }

    #[inline(always)]
    unsafe fn e8m0(from: *const u8) -> [f32; 16] {
        // SAFETY: the caller gives 16 readable bytes.
        unsafe { from.cast::<[u8; 16]>().read() }.map(half_scale)
    }

    #[inline(always)]
    unsafe fn halves(from: *const u8) -> [f32; 16] {
        // SAFETY: the caller gives 32 readable bytes.
        let halves = unsafe { from.cast::<[[u8; 2]; 16]>().read() };
        halves.map(|half| f16::from_le_bytes(half).to_f32())
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}

#[cfg(target_arch = "aarch64")]
pub(super) use neon::Neon;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Vnni};

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;
