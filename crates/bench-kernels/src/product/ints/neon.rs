//! [`Ints`] in NEON intrinsics, with or without the instruction for dot products of bytes.

// The names carry their origin; a list of forty would say nothing more.
#[allow(clippy::wildcard_imports)]
use std::arch::aarch64::*;

use super::{FP4_CODES, Ints};
use crate::lanes::{F32x4x2, Lanes};

/// `DOT` has `sdot` (`FEAT_DotProd`), else products are widened to 16 bits and summed in pairs.
#[derive(Clone, Copy)]
pub(in crate::product) struct Neon<const DOT: bool>;

/// The same expression for all registers.
macro_rules! four {
    ($i:ident => $of:expr) => {
        [
            {
                let $i = 0;
                $of
            },
            {
                let $i = 1;
                $of
            },
            {
                let $i = 2;
                $of
            },
            {
                let $i = 3;
                $of
            },
        ]
    };
}

impl<const DOT: bool> Ints for Neon<DOT> {
    type Bytes = [uint8x16_t; 4];
    type Sums = [int32x4_t; 4];
    type Floats = [float32x4_t; 4];
    type Quad = int8x16_t;
    const LARGE: bool = false;

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> [uint8x16_t; 4] {
        // SAFETY: 64 readable bytes; NEON is enabled in the caller, here and below.
        unsafe { four!(i => vld1q_u8(from.add(16 * i))) }
    }

    #[inline(always)]
    unsafe fn store_bytes(bytes: [uint8x16_t; 4], to: *mut u8) {
        for (i, bytes) in bytes.into_iter().enumerate() {
            // SAFETY: 64 writable bytes.
            unsafe { vst1q_u8(to.add(16 * i), bytes) }
        }
    }

    #[inline(always)]
    unsafe fn fp4<const HIGH: usize>(bytes: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        // SAFETY: the table has 16 bytes.
        unsafe {
            let table = vld1q_u8(FP4_CODES.as_ptr());
            four!(i => vqtbl1q_u8(table, nibbles::<HIGH>(bytes[i])))
        }
    }

    #[inline(always)]
    unsafe fn six<const HIGH: usize, const PAIR: usize>(
        low: [uint8x16_t; 4],
        high: [uint8x16_t; 4],
    ) -> [uint8x16_t; 4] {
        // SAFETY: as above.
        unsafe { four!(i => vorrq_u8(nibbles::<HIGH>(low[i]), high_bits::<PAIR>(high[i]))) }
    }

    #[inline(always)]
    unsafe fn quad(from: *const u32) -> int8x16_t {
        // SAFETY: a readable word.
        unsafe { vreinterpretq_s8_u32(vdupq_n_u32(from.read())) }
    }

    #[inline(always)]
    unsafe fn splat_shifted<const SHIFT: u32>(value: *const u32) -> [int32x4_t; 4] {
        // SAFETY: a readable word.
        unsafe { [vdupq_n_s32((value.read() as i32) << SHIFT); 4] }
    }

    /// Nothing to take back: `dot` counts these bytes from −128.
    #[inline(always)]
    unsafe fn start_eight(_: *const u32) -> [int32x4_t; 4] {
        // SAFETY: as above.
        unsafe { Self::zero() }
    }

    #[inline(always)]
    unsafe fn zero() -> [int32x4_t; 4] {
        // SAFETY: as above.
        unsafe { [vdupq_n_s32(0); 4] }
    }

    #[inline(always)]
    unsafe fn dot<const SMALL: bool>(
        sums: [int32x4_t; 4],
        bytes: [uint8x16_t; 4],
        x: int8x16_t,
    ) -> [int32x4_t; 4] {
        // SAFETY: as above, with FEAT_DotProd if `DOT`.
        unsafe {
            four!(i => {
                let bytes = if SMALL { bytes[i] } else { veorq_u8(bytes[i], vdupq_n_u8(128)) };
                let w = vreinterpretq_s8_u8(bytes);
                if DOT { dot_of_four(sums[i], w, x) } else { widened::<SMALL>(sums[i], w, x) }
            })
        }
    }

    #[inline(always)]
    unsafe fn combine(hi: [int32x4_t; 4], lo: [int32x4_t; 4]) -> [int32x4_t; 4] {
        // SAFETY: as above.
        unsafe { four!(i => vaddq_s32(vshlq_n_s32::<8>(hi[i]), lo[i])) }
    }

    #[inline(always)]
    unsafe fn floats(from: *const f32) -> [float32x4_t; 4] {
        // SAFETY: 16 readable elements.
        unsafe { four!(i => vld1q_f32(from.add(4 * i))) }
    }

    #[inline(always)]
    unsafe fn store_floats(floats: [float32x4_t; 4], to: *mut f32) {
        for (i, floats) in floats.into_iter().enumerate() {
            // SAFETY: 16 writable elements.
            unsafe { vst1q_f32(to.add(4 * i), floats) }
        }
    }

    #[inline(always)]
    unsafe fn splat(value: *const u32) -> [float32x4_t; 4] {
        // SAFETY: a readable word.
        unsafe { [vdupq_n_f32(f32::from_bits(value.read())); 4] }
    }

    #[inline(always)]
    unsafe fn convert(sums: [int32x4_t; 4]) -> [float32x4_t; 4] {
        // SAFETY: as above.
        unsafe { four!(i => vcvtq_f32_s32(sums[i])) }
    }

    #[inline(always)]
    unsafe fn add(a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        // SAFETY: as above.
        unsafe { four!(i => vaddq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn mul(a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        // SAFETY: as above.
        unsafe { four!(i => vmulq_f32(a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn mul_add(
        a: [float32x4_t; 4],
        b: [float32x4_t; 4],
        addend: [float32x4_t; 4],
    ) -> [float32x4_t; 4] {
        // SAFETY: as above.
        unsafe { four!(i => vfmaq_f32(addend[i], a[i], b[i])) }
    }

    #[inline(always)]
    unsafe fn e8m0(from: *const u8) -> [float32x4_t; 4] {
        // SAFETY: 16 readable bytes.
        unsafe { joined(F32x4x2::load_half_scales(from), F32x4x2::load_half_scales(from.add(8))) }
    }

    #[inline(always)]
    unsafe fn halves(from: *const u8) -> [float32x4_t; 4] {
        // SAFETY: 32 readable bytes.
        unsafe { joined(F32x4x2::load_f16(from), F32x4x2::load_f16(from.add(16))) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        crate::lanes::prefetch(at);
    }
}

#[inline(always)]
fn joined(F32x4x2([a, b]): F32x4x2, F32x4x2([c, d]): F32x4x2) -> [float32x4_t; 4] {
    [a, b, c, d]
}

#[inline(always)]
unsafe fn nibbles<const HIGH: usize>(bytes: uint8x16_t) -> uint8x16_t {
    // SAFETY: NEON is enabled in the caller, here and below.
    unsafe { if HIGH == 1 { vshrq_n_u8::<4>(bytes) } else { vandq_u8(bytes, vdupq_n_u8(15)) } }
}

#[inline(always)]
unsafe fn high_bits<const PAIR: usize>(bytes: uint8x16_t) -> uint8x16_t {
    // SAFETY: as above.
    unsafe {
        let bytes = match PAIR {
            0 => vshlq_n_u8::<4>(bytes),
            1 => vshlq_n_u8::<2>(bytes),
            2 => bytes,
            _ => vshrq_n_u8::<2>(bytes),
        };
        vandq_u8(bytes, vdupq_n_u8(0x30))
    }
}

/// Products of signed bytes, summed four by four. The intrinsic is not stable yet.
#[inline(always)]
unsafe fn dot_of_four(mut sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the caller enables the instruction, which has registers and nothing else.
    unsafe {
        std::arch::asm!(
            "sdot {sums:v}.4s, {w:v}.16b, {x:v}.16b",
            sums = inout(vreg) sums,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// As `dot_of_four`; `SMALL` promises w in 0..64.
#[inline(always)]
unsafe fn widened<const SMALL: bool>(sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: as above. A product fits 16 bits, since it is at most 2^14.
    unsafe {
        let low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
        let high = vmull_high_s8(w, x);
        if SMALL {
            // Two products of at most 63 · 128 fit too.
            vpadalq_s16(sums, vpaddq_s16(low, high))
        } else {
            vaddq_s32(sums, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Variant;

    /// Sums of four products each, `bytes` counted from `zero`.
    fn expected(bytes: [u8; 64], quad: [i8; 4], zero: i32) -> [i32; 16] {
        std::array::from_fn(|lane| {
            (0..4).map(|i| (i32::from(bytes[4 * lane + i]) - zero) * i32::from(quad[i])).sum()
        })
    }

    #[inline(always)]
    unsafe fn found<const DOT: bool, const SMALL: bool>(bytes: [u8; 64], quad: [i8; 4]) -> [i32; 16] {
        let word = u32::from_le_bytes(quad.map(i8::cast_unsigned));
        let mut out = [0; 16];
        // SAFETY: 64 bytes and a word; the caller has asked for the instructions.
        unsafe {
            let start = Neon::<DOT>::start_eight(&raw const word);
            let bytes = Neon::<DOT>::bytes(bytes.as_ptr());
            let sums = Neon::<DOT>::dot::<SMALL>(start, bytes, Neon::<DOT>::quad(&raw const word));
            for (to, sums) in out.chunks_exact_mut(4).zip(sums) {
                vst1q_s32(to.as_mut_ptr(), sums);
            }
        }
        out
    }

    #[target_feature(enable = "neon,dotprod")]
    fn by_sdot(bytes: [u8; 64], quad: [i8; 4]) -> [[i32; 16]; 2] {
        // SAFETY: the instruction is enabled.
        unsafe { [found::<true, false>(bytes, quad), found::<true, true>(bytes.map(|b| b & 63), quad)] }
    }

    /// Both ways, at the ends of all ranges.
    #[test]
    fn dots_are_exact() {
        let has_sdot = Variant::Neon.has_dot_product();
        let ends = [-128, -127, -1, 0, 1, 127];
        for quad in (0..6_usize.pow(4)).map(|n| [0, 1, 2, 3].map(|i| ends[n / 6_usize.pow(i) % 6])) {
            for first in [0_u8, 1, 63, 127, 128, 255] {
                let bytes: [u8; 64] =
                    std::array::from_fn(|i| if i < 16 { first } else { first.wrapping_add(37 * i as u8) });
                let small = bytes.map(|b| b & 63);
                let all = [expected(bytes, quad, 128), expected(small, quad, 0)];
                // SAFETY: NEON is there; `sdot` has been asked for.
                unsafe {
                    assert_eq!([found::<false, false>(bytes, quad), found::<false, true>(small, quad)], all);
                    if has_sdot {
                        assert_eq!(by_sdot(bytes, quad), all);
                    }
                }
            }
        }
    }
}
