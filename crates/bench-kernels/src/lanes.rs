//! Vectors of f32 lanes: the few operations that the kernels are written in.
//!
//! `Portable` is plain Rust, the others are intrinsics of x86 and ARM. All methods must be inlined into a function that
//! enables the instructions they use, which `dispatch!` does.

use half::{bf16, f16};

use crate::mxfp4::half_scale;

/// Twice the E2M1 values, so that they are integers; the sign is bit 3 of the code.
const FP4_DOUBLED: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, -0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// `N` lanes of f32.
///
/// # Safety
/// All methods need the instructions of the implementation; those with pointers read or write `N` elements there.
pub(crate) trait Lanes: Copy {
    const N: usize;
    /// As many words of 32 bits.
    type Words: Copy;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_bf16(from: *const bf16) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    /// `self · other + addend`.
    unsafe fn mul_add(self, other: Self, addend: Self) -> Self;
    /// Sum over the lanes, in one fixed order.
    unsafe fn sum(self) -> f32;
    /// The sums of four vectors, each as `sum` gives it.
    unsafe fn sum_4(vectors: [Self; 4]) -> [f32; 4];
    /// `N` little-endian words of 4 bytes each.
    unsafe fn load_words(from: *const u8) -> Self::Words;
    /// `N` bytes, one in each word.
    unsafe fn load_bytes(from: *const u8) -> Self::Words;
    unsafe fn shift_right(words: Self::Words, bits: u32) -> Self::Words;
    unsafe fn shift_left(words: Self::Words, bits: u32) -> Self::Words;
    unsafe fn and(words: Self::Words, mask: u32) -> Self::Words;
    unsafe fn or(words: Self::Words, other: Self::Words) -> Self::Words;
    /// Words below 2^31 as numbers.
    unsafe fn from_words(words: Self::Words) -> Self;
    /// Twice the FP4 values of the low four bits of each word, whatever the others are.
    unsafe fn fp4_doubled(words: Self::Words) -> Self;
    /// `2^(scale − 128)` of `N` bytes, as `half_scale` gives it.
    unsafe fn load_half_scales(from: *const u8) -> Self;
    /// `N` numbers of 16 bits, little-endian.
    unsafe fn load_f16(from: *const u8) -> Self;
}

/// Asks for the cache line at `at`, which may be anywhere.
#[inline(always)]
pub(crate) fn prefetch(at: *const u8) {
    // SAFETY: a hint; addresses outside of memory are ignored, and SSE is part of x86-64.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    // SAFETY: a hint; addresses outside of memory are ignored.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) at, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

/// As [`prefetch`], for what is needed so late that it goes to the second cache.
#[inline(always)]
pub(crate) fn prefetch_later(at: *const u8) {
    // SAFETY: as there.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast());
    }
    // SAFETY: as there.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{}]", in(reg) at, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

#[derive(Clone, Copy)]
pub(crate) struct Portable(pub(crate) [f32; 8]);

impl Lanes for Portable {
    const N: usize = 8;
    type Words = [u32; 8];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller gives 8 readable elements; arrays of f32 have its alignment.
        Self(unsafe { from.cast::<[f32; 8]>().read() })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller gives 8 readable elements.
        Self(unsafe { from.cast::<[bf16; 8]>().read() }.map(|w| f32::from_bits(u32::from(w.to_bits()) << 16)))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller gives 8 writable elements.
        unsafe { to.cast::<[f32; 8]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * other.0[i]))
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }

    #[inline(always)]
    unsafe fn mul_add(self, other: Self, addend: Self) -> Self {
        // Not fused: without the instruction, a fused operation is a slow library call.
        Self(std::array::from_fn(|i| self.0[i] * other.0[i] + addend.0[i]))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    #[inline(always)]
    unsafe fn sum_4(vectors: [Self; 4]) -> [f32; 4] {
        // SAFETY: plain Rust, here and below.
        vectors.map(|v| unsafe { v.sum() })
    }

    #[inline(always)]
    unsafe fn load_words(from: *const u8) -> [u32; 8] {
        // SAFETY: the caller gives 32 readable bytes.
        unsafe { from.cast::<[[u8; 4]; 8]>().read() }.map(u32::from_le_bytes)
    }

    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> [u32; 8] {
        // SAFETY: the caller gives 8 readable bytes.
        unsafe { from.cast::<[u8; 8]>().read() }.map(u32::from)
    }

    #[inline(always)]
    unsafe fn shift_right(words: [u32; 8], bits: u32) -> [u32; 8] {
        words.map(|w| w >> bits)
    }

    #[inline(always)]
    unsafe fn shift_left(words: [u32; 8], bits: u32) -> [u32; 8] {
        words.map(|w| w << bits)
    }

    #[inline(always)]
    unsafe fn and(words: [u32; 8], mask: u32) -> [u32; 8] {
        words.map(|w| w & mask)
    }

    #[inline(always)]
    unsafe fn or(words: [u32; 8], other: [u32; 8]) -> [u32; 8] {
        std::array::from_fn(|i| words[i] | other[i])
    }

    #[inline(always)]
    unsafe fn from_words(words: [u32; 8]) -> Self {
        Self(words.map(|w| w as f32))
    }

    #[inline(always)]
    unsafe fn fp4_doubled(words: [u32; 8]) -> Self {
        Self(words.map(|w| FP4_DOUBLED[(w & 15) as usize]))
    }

    #[inline(always)]
    unsafe fn load_half_scales(from: *const u8) -> Self {
        // SAFETY: the caller gives 8 readable bytes.
        Self(unsafe { from.cast::<[u8; 8]>().read() }.map(half_scale))
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: the caller gives 16 readable bytes.
        Self(unsafe { from.cast::<[[u8; 2]; 8]>().read() }.map(|b| f16::from_le_bytes(b).to_f32()))
    }
}

#[cfg(target_arch = "aarch64")]
pub(crate) use neon::{F32x4x2, both};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{F32x8, F32x16};

#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(target_arch = "x86_64")]
mod x86 {
    // The names carry their origin; a list of forty would say nothing more.
    #[allow(clippy::wildcard_imports)]
    use std::arch::x86_64::*;

    use half::bf16;

    use super::{FP4_DOUBLED, Lanes};

    /// AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub(crate) struct F32x8(pub(crate) __m256);

    impl Lanes for F32x8 {
        const N: usize = 8;
        type Words = __m256i;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: AVX is enabled in the caller, here and below.
            Self(unsafe { _mm256_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: 8 readable elements; the load is unaligned.
            Self(unsafe { _mm256_loadu_ps(from) })
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const bf16) -> Self {
            // SAFETY: 8 readable elements of 2 bytes; the load is unaligned.
            unsafe {
                let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)))
            }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: 8 writable elements; the store is unaligned.
            unsafe { _mm256_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: AVX is enabled in the caller.
            Self(unsafe { _mm256_mul_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: as for `mul`.
            Self(unsafe { _mm256_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn mul_add(self, other: Self, addend: Self) -> Self {
            // SAFETY: FMA is enabled in the caller.
            Self(unsafe { _mm256_fmadd_ps(self.0, other.0, addend.0) })
        }

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: AVX is enabled in the caller.
            unsafe {
                let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            }
        }

        #[inline(always)]
        unsafe fn sum_4(vectors: [Self; 4]) -> [f32; 4] {
            // SAFETY: AVX is enabled in the caller.
            unsafe { sum_quads(std::array::from_fn(|i| fold(vectors[i].0))) }
        }

        #[inline(always)]
        unsafe fn load_words(from: *const u8) -> __m256i {
            // SAFETY: 32 readable bytes; the load is unaligned.
            unsafe { _mm256_loadu_si256(from.cast()) }
        }

        #[inline(always)]
        unsafe fn load_bytes(from: *const u8) -> __m256i {
            // SAFETY: 8 readable bytes; AVX2 is enabled in the caller, here and below.
            unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())) }
        }

        #[inline(always)]
        unsafe fn shift_right(words: __m256i, bits: u32) -> __m256i {
            // SAFETY: as above.
            unsafe { _mm256_srlv_epi32(words, _mm256_set1_epi32(bits as i32)) }
        }

        #[inline(always)]
        unsafe fn shift_left(words: __m256i, bits: u32) -> __m256i {
            // SAFETY: as above.
            unsafe { _mm256_sllv_epi32(words, _mm256_set1_epi32(bits as i32)) }
        }

        #[inline(always)]
        unsafe fn and(words: __m256i, mask: u32) -> __m256i {
            // SAFETY: as above.
            unsafe { _mm256_and_si256(words, _mm256_set1_epi32(mask as i32)) }
        }

        #[inline(always)]
        unsafe fn or(words: __m256i, other: __m256i) -> __m256i {
            // SAFETY: as above.
            unsafe { _mm256_or_si256(words, other) }
        }

        #[inline(always)]
        unsafe fn from_words(words: __m256i) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm256_cvtepi32_ps(words) })
        }

        #[inline(always)]
        unsafe fn fp4_doubled(words: __m256i) -> Self {
            // SAFETY: 8 readable table entries; AVX2 is enabled in the caller.
            unsafe {
                // The permutation reads the three low bits of a code; the fourth moves to the sign.
                let magnitude = _mm256_permutevar8x32_ps(_mm256_loadu_ps(FP4_DOUBLED.as_ptr()), words);
                let signs = _mm256_and_si256(_mm256_slli_epi32::<28>(words), _mm256_set1_epi32(i32::MIN));
                Self(_mm256_or_ps(magnitude, _mm256_castsi256_ps(signs)))
            }
        }

        #[inline(always)]
        unsafe fn load_half_scales(from: *const u8) -> Self {
            // SAFETY: 8 readable bytes; AVX2 is enabled in the caller.
            unsafe {
                let scales = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
                let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(scales, _mm256_set1_epi32(1)));
                // The two smallest are subnormal.
                let small = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), scales);
                let is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), scales);
                Self(_mm256_castsi256_ps(_mm256_blendv_epi8(normal, small, is_small)))
            }
        }

        #[inline(always)]
        unsafe fn load_f16(from: *const u8) -> Self {
            // SAFETY: 16 readable bytes; F16C is enabled in the caller.
            Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) })
        }
    }

    /// The two halves of a vector added.
    #[inline(always)]
    unsafe fn fold(v: __m256) -> __m128 {
        // SAFETY: AVX is enabled in the caller.
        unsafe { _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v)) }
    }

    /// Lanes 0 and 2 and lanes 1 and 3 of each added, then these.
    #[inline(always)]
    unsafe fn sum_quads([a, b, c, d]: [__m128; 4]) -> [f32; 4] {
        let mut out = [0.0; 4];
        // SAFETY: SSE is part of x86-64; the store has room for four.
        unsafe {
            let ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
            let cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
            let sums = _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
            _mm_storeu_ps(out.as_mut_ptr(), sums);
        }
        out
    }

    /// AVX-512 F, BW, VL, DQ and VNNI.
    #[derive(Clone, Copy)]
    pub(crate) struct F32x16(pub(crate) __m512);

    impl Lanes for F32x16 {
        const N: usize = 16;
        type Words = __m512i;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: AVX-512 is enabled in the caller, here and below.
            Self(unsafe { _mm512_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: 16 readable elements; the load is unaligned.
            Self(unsafe { _mm512_loadu_ps(from) })
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const bf16) -> Self {
            // SAFETY: 16 readable elements of 2 bytes; the load is unaligned.
            unsafe {
                let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)))
            }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: 16 writable elements; the store is unaligned.
            unsafe { _mm512_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: AVX-512 is enabled in the caller.
            Self(unsafe { _mm512_mul_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: as for `mul`.
            Self(unsafe { _mm512_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn mul_add(self, other: Self, addend: Self) -> Self {
            // SAFETY: AVX-512 is enabled in the caller.
            Self(unsafe { _mm512_fmadd_ps(self.0, other.0, addend.0) })
        }

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: AVX-512 is enabled in the caller.
            unsafe { F32x8(fold_512(self.0)).sum() }
        }

        #[inline(always)]
        unsafe fn sum_4(vectors: [Self; 4]) -> [f32; 4] {
            // SAFETY: AVX-512 is enabled in the caller.
            unsafe { sum_quads(std::array::from_fn(|i| fold(fold_512(vectors[i].0)))) }
        }

        #[inline(always)]
        unsafe fn load_words(from: *const u8) -> __m512i {
            // SAFETY: 64 readable bytes; the load is unaligned.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }

        #[inline(always)]
        unsafe fn load_bytes(from: *const u8) -> __m512i {
            // SAFETY: 16 readable bytes; AVX-512 is enabled in the caller, here and below.
            unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) }
        }

        #[inline(always)]
        unsafe fn shift_right(words: __m512i, bits: u32) -> __m512i {
            // SAFETY: as above.
            unsafe { _mm512_srlv_epi32(words, _mm512_set1_epi32(bits as i32)) }
        }

        #[inline(always)]
        unsafe fn shift_left(words: __m512i, bits: u32) -> __m512i {
            // SAFETY: as above.
            unsafe { _mm512_sllv_epi32(words, _mm512_set1_epi32(bits as i32)) }
        }

        #[inline(always)]
        unsafe fn and(words: __m512i, mask: u32) -> __m512i {
            // SAFETY: as above.
            unsafe { _mm512_and_si512(words, _mm512_set1_epi32(mask as i32)) }
        }

        #[inline(always)]
        unsafe fn or(words: __m512i, other: __m512i) -> __m512i {
            // SAFETY: as above.
            unsafe { _mm512_or_si512(words, other) }
        }

        #[inline(always)]
        unsafe fn from_words(words: __m512i) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm512_cvtepi32_ps(words) })
        }

        #[inline(always)]
        unsafe fn fp4_doubled(words: __m512i) -> Self {
            // SAFETY: 16 readable table entries; the permutation reads the four low bits of each word.
            Self(unsafe { _mm512_permutexvar_ps(words, _mm512_loadu_ps(FP4_DOUBLED.as_ptr())) })
        }

        #[inline(always)]
        unsafe fn load_half_scales(from: *const u8) -> Self {
            // SAFETY: 16 readable bytes; AVX-512 is enabled in the caller.
            unsafe {
                let scales = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
                let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(scales, _mm512_set1_epi32(1)));
                // The two smallest are subnormal.
                let is_small = _mm512_cmplt_epi32_mask(scales, _mm512_set1_epi32(2));
                let bits = _mm512_mask_sllv_epi32(normal, is_small, _mm512_set1_epi32(0x0020_0000), scales);
                Self(_mm512_castsi512_ps(bits))
            }
        }

        #[inline(always)]
        unsafe fn load_f16(from: *const u8) -> Self {
            // SAFETY: 32 readable bytes; AVX-512 is enabled in the caller.
            Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
        }
    }

    /// The two halves of a vector added.
    #[inline(always)]
    pub(crate) unsafe fn fold_512(v: __m512) -> __m256 {
        // SAFETY: AVX-512 is enabled in the caller.
        unsafe { _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)) }
    }
}
