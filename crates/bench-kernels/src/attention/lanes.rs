//! The vector operations that only attention needs: maxima, exp, and the layouts of the KV cache.
//!
//! Each is written for the lanes of `crate::lanes`; nothing here knows of queries or keys.

use half::bf16;

use crate::lanes::{Lanes, Portable};

/// `exp` yields 0 below this; the smallest normal number is e^−87.3.
const LOWEST: f32 = -87.0;
/// 1.5 · 2^23: adding it rounds to an integer, which then stands in the low bits.
const MAGIC: f32 = 12_582_912.0;
/// ln 2 in two parts, the first exact in few bits.
const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// The degree-5 polynomial of Cephes' `expf` (Moshier, netlib), highest power first.
const POLYNOMIAL: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// # Safety
/// As [`Lanes`]: the instructions must be enabled in the caller, pointers must be good for what is read or written.
pub(super) trait AttentionLanes: Lanes {
    /// The larger of both; `other` where one is not a number.
    unsafe fn max(self, other: Self) -> Self;
    /// The largest lane.
    unsafe fn max_lane(self) -> f32;
    /// e^x for x ≤ 0 within 2 ulp; 0 below −87; what is not a number stays so.
    unsafe fn exp(self) -> Self;
    /// `N` pairs: their first values, their second values.
    unsafe fn load_pairs(from: *const bf16) -> (Self, Self);
    /// `N` fours of bytes: their first, second, third and fourth values.
    unsafe fn load_fours(from: *const u8) -> [Self; 4];
    unsafe fn load_i8(from: *const i8) -> Self;
    /// `to[j · to_stride + i] = from[i · from_stride + j]` for i and j below `N`.
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize);
    /// Asks for a cache line; any address is allowed.
    unsafe fn prefetch(from: *const u8);
}

/// e^x of one number, as the vectors have it.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let clamped = if x < LOWEST { LOWEST } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = clamped - n * LN2[0] - n * LN2[1];
    let mut p = POLYNOMIAL[0];
    for c in &POLYNOMIAL[1..] {
        p = p * r + c;
    }
    let y = p * r * r + r + 1.0;
    // The low bits of `shifted` are n; the shift drops the rest.
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < LOWEST { 0.0 } else { y * power }
}

impl AttentionLanes for Portable {
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| if self.0[i] > other.0[i] { self.0[i] } else { other.0[i] }))
    }

    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, |m, v| if m > v { m } else { v })
    }

    #[inline(always)]
    unsafe fn exp(self) -> Self {
        Self(self.0.map(exp))
    }

    #[inline(always)]
    unsafe fn load_pairs(from: *const bf16) -> (Self, Self) {
        // SAFETY: the caller gives 8 readable pairs.
        let pairs = unsafe { from.cast::<[[bf16; 2]; 8]>().read() };
        let widen = |v: bf16| f32::from_bits(u32::from(v.to_bits()) << 16);
        (Self(pairs.map(|p| widen(p[0]))), Self(pairs.map(|p| widen(p[1]))))
    }

    #[inline(always)]
    unsafe fn load_fours(from: *const u8) -> [Self; 4] {
        // SAFETY: the caller gives 8 readable fours.
        let fours = unsafe { from.cast::<[[u8; 4]; 8]>().read() };
        std::array::from_fn(|e| Self(fours.map(|f| f32::from(f[e]))))
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller gives 8 readable bytes.
        Self(unsafe { from.cast::<[i8; 8]>().read() }.map(f32::from))
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for (i, j) in (0..8).flat_map(|i| (0..8).map(move |j| (i, j))) {
            // SAFETY: the caller gives 8 rows of 8 on both sides.
            unsafe { *to.add(j * to_stride + i) = *from.add(i * from_stride + j) }
        }
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}

#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(target_arch = "x86_64")]
mod x86 {
    // The names carry their origin; a list of forty would say nothing more.
    #[allow(clippy::wildcard_imports)]
    use std::arch::x86_64::*;

    use half::bf16;

    use super::{AttentionLanes, LN2, LOWEST, MAGIC, POLYNOMIAL};
    use crate::lanes::{F32x8, F32x16};

    impl AttentionLanes for F32x8 {
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm256_max_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn max_lane(self) -> f32 {
            // SAFETY: as above.
            unsafe {
                let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
                let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
            }
        }

        #[inline(always)]
        unsafe fn exp(self) -> Self {
            // SAFETY: as above.
            unsafe {
                let lowest = _mm256_set1_ps(LOWEST);
                // The second operand is what remains of a number and none.
                let x = _mm256_max_ps(lowest, self.0);
                let magic = _mm256_set1_ps(MAGIC);
                let shifted = _mm256_fmadd_ps(x, _mm256_set1_ps(std::f32::consts::LOG2_E), magic);
                let n = _mm256_sub_ps(shifted, magic);
                let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2[0]), x);
                let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2[1]), r);
                let mut p = _mm256_set1_ps(POLYNOMIAL[0]);
                for c in &POLYNOMIAL[1..] {
                    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*c));
                }
                let y = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0)));
                let biased = _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127));
                let power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased));
                let below = _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, lowest);
                Self(_mm256_andnot_ps(below, _mm256_mul_ps(y, power)))
            }
        }

        #[inline(always)]
        unsafe fn load_pairs(from: *const bf16) -> (Self, Self) {
            // SAFETY: 8 readable pairs.
            unsafe {
                let pairs = _mm256_loadu_si256(from.cast());
                let second = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
                let first = _mm256_slli_epi32::<16>(pairs);
                (Self(_mm256_castsi256_ps(first)), Self(_mm256_castsi256_ps(second)))
            }
        }

        #[inline(always)]
        unsafe fn load_fours(from: *const u8) -> [Self; 4] {
            // SAFETY: 8 readable fours.
            unsafe {
                let fours = _mm256_loadu_si256(from.cast());
                let byte = |v| Self(_mm256_cvtepi32_ps(_mm256_and_si256(v, _mm256_set1_epi32(255))));
                [
                    byte(fours),
                    byte(_mm256_srli_epi32::<8>(fours)),
                    byte(_mm256_srli_epi32::<16>(fours)),
                    byte(_mm256_srli_epi32::<24>(fours)),
                ]
            }
        }

        #[inline(always)]
        unsafe fn load_i8(from: *const i8) -> Self {
            // SAFETY: 8 readable bytes.
            Self(unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) })
        }

        #[inline(always)]
        unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
            // SAFETY: 8 rows of 8 are readable and writable.
            unsafe {
                let row = |i: usize| _mm256_loadu_ps(from.add(i * from_stride));
                let pairs: [[__m256; 2]; 4] = std::array::from_fn(|i| {
                    let (a, b) = (row(2 * i), row(2 * i + 1));
                    [_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)]
                });
                // fours[g][j]: columns j and 4 + j of rows 4g..4g + 4.
                let fours: [[__m256; 4]; 2] = std::array::from_fn(|g| {
                    std::array::from_fn(|j| {
                        let a = _mm256_castps_pd(pairs[2 * g][j / 2]);
                        let b = _mm256_castps_pd(pairs[2 * g + 1][j / 2]);
                        let both =
                            if j % 2 == 0 { _mm256_unpacklo_pd(a, b) } else { _mm256_unpackhi_pd(a, b) };
                        _mm256_castpd_ps(both)
                    })
                });
                let [low, high] = fours;
                for (j, (a, b)) in low.into_iter().zip(high).enumerate() {
                    _mm256_storeu_ps(to.add(j * to_stride), _mm256_permute2f128_ps::<0x20>(a, b));
                    _mm256_storeu_ps(to.add((4 + j) * to_stride), _mm256_permute2f128_ps::<0x31>(a, b));
                }
            }
        }

        #[inline(always)]
        unsafe fn prefetch(from: *const u8) {
            // SAFETY: a prefetch does not fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
        }
    }

    impl AttentionLanes for F32x16 {
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm512_max_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn max_lane(self) -> f32 {
            // SAFETY: as above.
            unsafe { _mm512_reduce_max_ps(self.0) }
        }

        #[inline(always)]
        unsafe fn exp(self) -> Self {
            // SAFETY: as above.
            unsafe {
                let lowest = _mm512_set1_ps(LOWEST);
                // The second operand is what remains of a number and none.
                let x = _mm512_max_ps(lowest, self.0);
                let n = _mm512_roundscale_ps::<8>(_mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)));
                let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2[0]), x);
                let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2[1]), r);
                let mut p = _mm512_set1_ps(POLYNOMIAL[0]);
                for c in &POLYNOMIAL[1..] {
                    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
                }
                let y = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0)));
                let above = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(self.0, lowest);
                Self(_mm512_maskz_scalef_ps(above, y, n))
            }
        }

        #[inline(always)]
        unsafe fn load_pairs(from: *const bf16) -> (Self, Self) {
            // SAFETY: 16 readable pairs.
            unsafe {
                let pairs = _mm512_loadu_si512(from.cast());
                let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
                let first = _mm512_slli_epi32::<16>(pairs);
                (Self(_mm512_castsi512_ps(first)), Self(_mm512_castsi512_ps(second)))
            }
        }

        #[inline(always)]
        unsafe fn load_fours(from: *const u8) -> [Self; 4] {
            // SAFETY: 16 readable fours.
            unsafe {
                let fours = _mm512_loadu_si512(from.cast());
                let byte = |v| Self(_mm512_cvtepi32_ps(_mm512_and_si512(v, _mm512_set1_epi32(255))));
                [
                    byte(fours),
                    byte(_mm512_srli_epi32::<8>(fours)),
                    byte(_mm512_srli_epi32::<16>(fours)),
                    byte(_mm512_srli_epi32::<24>(fours)),
                ]
            }
        }

        #[inline(always)]
        unsafe fn load_i8(from: *const i8) -> Self {
            // SAFETY: 16 readable bytes.
            Self(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) })
        }

        #[inline(always)]
        unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
            // SAFETY: 16 rows of 16 are readable and writable.
            unsafe {
                let row = |i: usize| _mm512_loadu_ps(from.add(i * from_stride));
                let pairs: [[__m512; 2]; 8] = std::array::from_fn(|i| {
                    let (a, b) = (row(2 * i), row(2 * i + 1));
                    [_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)]
                });
                // fours[g][j]: columns j, 4 + j, 8 + j and 12 + j of rows 4g..4g + 4.
                let fours: [[__m512; 4]; 4] = std::array::from_fn(|g| {
                    std::array::from_fn(|j| {
                        let a = _mm512_castps_pd(pairs[2 * g][j / 2]);
                        let b = _mm512_castps_pd(pairs[2 * g + 1][j / 2]);
                        let both =
                            if j % 2 == 0 { _mm512_unpacklo_pd(a, b) } else { _mm512_unpackhi_pd(a, b) };
                        _mm512_castpd_ps(both)
                    })
                });
                let put = |j: usize, v| _mm512_storeu_ps(to.add(j * to_stride), v);
                let [low, second, third, high] = fours;
                let rows = low.into_iter().zip(second).zip(third).zip(high);
                for (j, (((a, b), c), d)) in rows.enumerate() {
                    let even = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
                    let odd = (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d));
                    put(j, _mm512_shuffle_f32x4::<0x88>(even.0, even.1));
                    put(4 + j, _mm512_shuffle_f32x4::<0x88>(odd.0, odd.1));
                    put(8 + j, _mm512_shuffle_f32x4::<0xdd>(even.0, even.1));
                    put(12 + j, _mm512_shuffle_f32x4::<0xdd>(odd.0, odd.1));
                }
            }
        }

        #[inline(always)]
        unsafe fn prefetch(from: *const u8) {
            // SAFETY: a prefetch does not fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::variant::{Variant, dispatch};

    dispatch! { fn exp_of(values: &mut [f32]) = exp_body }

    #[inline(always)]
    unsafe fn exp_body<L: AttentionLanes>(values: &mut [f32]) {
        for chunk in values.chunks_exact_mut(L::N) {
            // SAFETY: a chunk has N elements; `dispatch!` enables the instructions.
            unsafe { L::load(chunk.as_ptr()).exp().store(chunk.as_mut_ptr()) }
        }
    }

    #[test]
    fn exp_is_within_two_ulp() {
        for variant in Variant::available() {
            let x: Vec<f32> = (0..870_000).map(|i| -(i as f32) * 1e-4).collect();
            let mut found = x.clone();
            exp_of(variant, &mut found);
            for (x, found) in x.iter().zip(found) {
                let expected = f64::from(*x).exp();
                assert!((f64::from(found) - expected).abs() <= expected * 2.4e-7, "{variant:?} {x}");
            }
            let mut ends = [0.0_f32, f32::NEG_INFINITY, -1000.0, f32::NAN].repeat(4);
            exp_of(variant, &mut ends);
            assert_eq!(ends[..3], [1.0, 0.0, 0.0], "{variant:?}");
            assert!(ends[3].is_nan(), "{variant:?}");
        }
    }
}
