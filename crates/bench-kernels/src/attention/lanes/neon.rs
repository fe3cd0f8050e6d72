//! [`AttentionLanes`] in NEON intrinsics.

// The names carry their origin; a list of thirty would say nothing more.
#[allow(clippy::wildcard_imports)]
use std::arch::aarch64::*;

use half::bf16;

use super::{AttentionLanes, LN2, LOWEST, MAGIC, POLYNOMIAL};
use crate::lanes::{F32x4x2, Lanes, both};

impl AttentionLanes for F32x4x2 {
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: NEON is enabled in the caller, here and below. The instruction for maxima would keep NaN.
        Self(unsafe { both!(i => vbslq_f32(vcgtq_f32(self.0[i], other.0[i]), self.0[i], other.0[i])) })
    }

    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        // SAFETY: as above.
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(self.0[0], self.0[1])) }
    }

    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: as above.
        Self(unsafe { both!(i => exp_of_four(self.0[i])) })
    }

    #[inline(always)]
    unsafe fn load_pairs(from: *const bf16) -> (Self, Self) {
        // SAFETY: 8 readable pairs.
        unsafe {
            let pairs = Self::load_words(from.cast());
            let first = both!(i => vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs[i])));
            let second = both!(i => vreinterpretq_f32_u32(vandq_u32(pairs[i], vdupq_n_u32(0xffff_0000))));
            (Self(first), Self(second))
        }
    }

    #[inline(always)]
    unsafe fn load_fours(from: *const u8) -> [Self; 4] {
        // SAFETY: 8 readable fours.
        unsafe {
            let fours = Self::load_words(from);
            let byte = vdupq_n_u32(255);
            [
                Self(both!(i => vcvtq_f32_u32(vandq_u32(fours[i], byte)))),
                Self(both!(i => vcvtq_f32_u32(vandq_u32(vshrq_n_u32::<8>(fours[i]), byte)))),
                Self(both!(i => vcvtq_f32_u32(vandq_u32(vshrq_n_u32::<16>(fours[i]), byte)))),
                Self(both!(i => vcvtq_f32_u32(vshrq_n_u32::<24>(fours[i])))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: 8 readable bytes.
        unsafe {
            let halves = vmovl_s8(vld1_s8(from));
            let words = [vmovl_s16(vget_low_s16(halves)), vmovl_high_s16(halves)];
            Self(both!(i => vcvtq_f32_s32(words[i])))
        }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for (i, j) in [(0, 0), (0, 4), (4, 0), (4, 4)] {
            // SAFETY: 8 rows of 8 are readable and writable.
            unsafe {
                transpose_four(
                    from.add(i * from_stride + j),
                    from_stride,
                    to.add(j * to_stride + i),
                    to_stride,
                );
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        crate::lanes::prefetch(from);
    }
}

#[inline(always)]
unsafe fn exp_of_four(value: float32x4_t) -> float32x4_t {
    // SAFETY: NEON is enabled in the caller, here and below.
    unsafe {
        let lowest = vdupq_n_f32(LOWEST);
        // Of a number and none, none remains.
        let x = vmaxq_f32(lowest, value);
        let magic = vdupq_n_f32(MAGIC);
        let shifted = vfmaq_f32(magic, x, vdupq_n_f32(std::f32::consts::LOG2_E));
        let n = vsubq_f32(shifted, magic);
        let r = vfmsq_f32(x, n, vdupq_n_f32(LN2[0]));
        let r = vfmsq_f32(r, n, vdupq_n_f32(LN2[1]));
        let mut p = vdupq_n_f32(POLYNOMIAL[0]);
        for c in &POLYNOMIAL[1..] {
            p = vfmaq_f32(vdupq_n_f32(*c), p, r);
        }
        let y = vfmaq_f32(vaddq_f32(r, vdupq_n_f32(1.0)), p, vmulq_f32(r, r));
        let power = vshlq_n_u32::<23>(vaddq_u32(vreinterpretq_u32_f32(shifted), vdupq_n_u32(127)));
        let whole = vmulq_f32(y, vreinterpretq_f32_u32(power));
        vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(whole), vcltq_f32(value, lowest)))
    }
}

/// Four rows of four.
#[inline(always)]
unsafe fn transpose_four(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: as for `transpose`.
    unsafe {
        let (a, b) = (vld1q_f32(from), vld1q_f32(from.add(from_stride)));
        let (c, d) = (vld1q_f32(from.add(2 * from_stride)), vld1q_f32(from.add(3 * from_stride)));
        // Columns 0 and 2, then 1 and 3, of two rows.
        let ab = [vreinterpretq_f64_f32(vtrn1q_f32(a, b)), vreinterpretq_f64_f32(vtrn2q_f32(a, b))];
        let cd = [vreinterpretq_f64_f32(vtrn1q_f32(c, d)), vreinterpretq_f64_f32(vtrn2q_f32(c, d))];
        for j in 0..2 {
            vst1q_f32(to.add(j * to_stride), vreinterpretq_f32_f64(vtrn1q_f64(ab[j], cd[j])));
            vst1q_f32(to.add((2 + j) * to_stride), vreinterpretq_f32_f64(vtrn2q_f64(ab[j], cd[j])));
        }
    }
}
