//! [`Lanes`] in NEON intrinsics, which every 64-bit ARM processor has.
//!
//! Eight lanes in two registers: NEON's 32 registers of 128 bits then hold the tiles that are cut for AVX2's 16 of 256.

// The names carry their origin; a list of forty would say nothing more.
#[allow(clippy::wildcard_imports)]
use std::arch::aarch64::*;

use half::bf16;

use super::Lanes;
use crate::mxfp4::DOUBLED_CODES;

/// Eight lanes.
#[derive(Clone, Copy)]
pub(crate) struct F32x4x2(pub(crate) [float32x4_t; 2]);

/// The same expression for both registers.
macro_rules! both {
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
        ]
    };
}
pub(crate) use both;

impl Lanes for F32x4x2 {
    const N: usize = 8;
    type Words = [uint32x4_t; 2];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: NEON is enabled in the caller, here and below.
        Self(unsafe { [vdupq_n_f32(value); 2] })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: 8 readable elements.
        Self(unsafe { both!(i => vld1q_f32(from.add(4 * i))) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: 8 readable elements of 2 bytes.
        unsafe {
            let halves = vld1q_u16(from.cast());
            let words = [vshll_n_u16::<16>(vget_low_u16(halves)), vshll_high_n_u16::<16>(halves)];
            Self(both!(i => vreinterpretq_f32_u32(words[i])))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: 8 writable elements.
        unsafe {
            vst1q_f32(to, self.0[0]);
            vst1q_f32(to.add(4), self.0[1]);
        }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { both!(i => vmulq_f32(self.0[i], other.0[i])) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { both!(i => vaddq_f32(self.0[i], other.0[i])) })
    }

    #[inline(always)]
    unsafe fn mul_add(self, other: Self, addend: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { both!(i => vfmaq_f32(addend.0[i], self.0[i], other.0[i])) })
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: as above.
        unsafe { vaddv_f32(fold(self)) }
    }

    #[inline(always)]
    unsafe fn sum_4([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        let mut out = [0.0; 4];
        // SAFETY: as above; the store has room for four.
        unsafe {
            let (ab, cd) = (vcombine_f32(fold(a), fold(b)), vcombine_f32(fold(c), fold(d)));
            vst1q_f32(out.as_mut_ptr(), vpaddq_f32(ab, cd));
        }
        out
    }

    #[inline(always)]
    unsafe fn load_words(from: *const u8) -> [uint32x4_t; 2] {
        // SAFETY: 32 readable bytes.
        unsafe { both!(i => vreinterpretq_u32_u8(vld1q_u8(from.add(16 * i)))) }
    }

    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> [uint32x4_t; 2] {
        // SAFETY: 8 readable bytes.
        unsafe {
            let halves = vmovl_u8(vld1_u8(from));
            [vmovl_u16(vget_low_u16(halves)), vmovl_high_u16(halves)]
        }
    }

    #[inline(always)]
    unsafe fn shift_right(words: [uint32x4_t; 2], bits: u32) -> [uint32x4_t; 2] {
        // SAFETY: as above; shifts to the left by less than none go to the right.
        unsafe { both!(i => vshlq_u32(words[i], vdupq_n_s32(-(bits as i32)))) }
    }

    #[inline(always)]
    unsafe fn shift_left(words: [uint32x4_t; 2], bits: u32) -> [uint32x4_t; 2] {
        // SAFETY: as above.
        unsafe { both!(i => vshlq_u32(words[i], vdupq_n_s32(bits as i32))) }
    }

    #[inline(always)]
    unsafe fn and(words: [uint32x4_t; 2], mask: u32) -> [uint32x4_t; 2] {
        // SAFETY: as above.
        unsafe { both!(i => vandq_u32(words[i], vdupq_n_u32(mask))) }
    }

    #[inline(always)]
    unsafe fn or(words: [uint32x4_t; 2], other: [uint32x4_t; 2]) -> [uint32x4_t; 2] {
        // SAFETY: as above.
        unsafe { both!(i => vorrq_u32(words[i], other[i])) }
    }

    #[inline(always)]
    unsafe fn from_words(words: [uint32x4_t; 2]) -> Self {
        // SAFETY: as above.
        Self(unsafe { both!(i => vcvtq_f32_u32(words[i])) })
    }

    /// The code −0 gives 0.
    #[inline(always)]
    unsafe fn fp4_doubled(words: [uint32x4_t; 2]) -> Self {
        // SAFETY: as above; the table has 16 bytes.
        unsafe {
            let table = vld1q_s8(DOUBLED_CODES.as_ptr());
            // The code moves to the highest byte, where a number of 8 bits is 2^24 times itself. The others find
            // entry 0, which is 0.
            Self(both!(i => {
                let code = vandq_u32(vshlq_n_u32::<24>(words[i]), vdupq_n_u32(15 << 24));
                let number = vqtbl1q_s8(table, vreinterpretq_u8_u32(code));
                vcvtq_n_f32_s32::<24>(vreinterpretq_s32_s8(number))
            }))
        }
    }

    #[inline(always)]
    unsafe fn load_half_scales(from: *const u8) -> Self {
        // SAFETY: 8 readable bytes.
        unsafe {
            let scales = Self::load_bytes(from);
            Self(both!(i => {
                let normal = vshlq_n_u32::<23>(vsubq_u32(scales[i], vdupq_n_u32(1)));
                // The two smallest are subnormal.
                let small = vshlq_u32(vdupq_n_u32(0x0020_0000), vreinterpretq_s32_u32(scales[i]));
                vreinterpretq_f32_u32(vbslq_u32(vcltq_u32(scales[i], vdupq_n_u32(2)), small, normal))
            }))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: 16 readable bytes.
        unsafe {
            let halves = vreinterpretq_f16_u8(vld1q_u8(from));
            Self([vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)])
        }
    }
}

/// Lanes 0, 4, 2 and 6, and lanes 1, 5, 3 and 7, each added.
#[inline(always)]
unsafe fn fold(lanes: F32x4x2) -> float32x2_t {
    // SAFETY: NEON is enabled in the caller.
    unsafe {
        let four = vaddq_f32(lanes.0[0], lanes.0[1]);
        vadd_f32(vget_low_f32(four), vget_high_f32(four))
    }
}
