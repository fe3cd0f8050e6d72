//! Vectors of f32 lanes: the few operations that the kernels are written in.
//!
//! `Portable` is plain Rust, the others are x86 intrinsics. All methods must be inlined into a function that
//! enables the instructions they use, which `dispatch!` does.

use half::bf16;

/// Twice the E2M1 values, so that they are integers; the sign is bit 3 of the code.
const FP4_DOUBLED: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, -0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// `N` lanes of f32.
///
/// # Safety
/// All methods need the instructions of the implementation; those with pointers read or write `N` elements there.
pub(crate) trait Lanes: Copy {
    const N: usize;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_bf16(from: *const bf16) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn mul(self, other: Self) -> Self;
    /// `self · other + addend`.
    unsafe fn mul_add(self, other: Self, addend: Self) -> Self;
    /// Sum over the lanes, in one fixed order.
    unsafe fn sum(self) -> f32;
    /// Twice the FP4 values of `N` bytes: those of the low nibbles, those of the high nibbles.
    unsafe fn load_fp4_doubled(from: *const u8) -> (Self, Self);
}

#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 8]);

impl Lanes for Portable {
    const N: usize = 8;

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
    unsafe fn load_fp4_doubled(from: *const u8) -> (Self, Self) {
        // SAFETY: the caller gives 8 readable bytes.
        let bytes = unsafe { from.cast::<[u8; 8]>().read() };
        let low = bytes.map(|b| FP4_DOUBLED[usize::from(b & 15)]);
        let high = bytes.map(|b| FP4_DOUBLED[usize::from(b >> 4)]);
        (Self(low), Self(high))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{F32x8, F32x16};

#[cfg(target_arch = "x86_64")]
mod x86 {
    // The names carry their origin; a list of forty would say nothing more.
    #[allow(clippy::wildcard_imports)]
    use std::arch::x86_64::*;

    use half::bf16;

    use super::{FP4_DOUBLED, Lanes};

    /// AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub(crate) struct F32x8(__m256);

    impl Lanes for F32x8 {
        const N: usize = 8;

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
        unsafe fn load_fp4_doubled(from: *const u8) -> (Self, Self) {
            // SAFETY: 8 readable bytes, 8 readable table entries; AVX2 is enabled in the caller.
            unsafe {
                let magnitudes = _mm256_loadu_ps(FP4_DOUBLED.as_ptr());
                let sign = _mm256_set1_epi32(i32::MIN);
                let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
                let decode = |codes: __m256i| {
                    // The permutation reads the three low bits of a code; the fourth moves to the sign.
                    let magnitude = _mm256_permutevar8x32_ps(magnitudes, codes);
                    let signs = _mm256_and_si256(_mm256_slli_epi32::<28>(codes), sign);
                    Self(_mm256_or_ps(magnitude, _mm256_castsi256_ps(signs)))
                };
                (decode(bytes), decode(_mm256_srli_epi32::<4>(bytes)))
            }
        }
    }

    /// AVX-512 F, BW, VL and DQ.
    #[derive(Clone, Copy)]
    pub(crate) struct F32x16(__m512);

    impl Lanes for F32x16 {
        const N: usize = 16;

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
        unsafe fn mul_add(self, other: Self, addend: Self) -> Self {
            // SAFETY: AVX-512 is enabled in the caller.
            Self(unsafe { _mm512_fmadd_ps(self.0, other.0, addend.0) })
        }

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: AVX-512 is enabled in the caller.
            unsafe { _mm512_reduce_add_ps(self.0) }
        }

        #[inline(always)]
        unsafe fn load_fp4_doubled(from: *const u8) -> (Self, Self) {
            // SAFETY: 16 readable bytes, 16 readable table entries; AVX-512 is enabled in the caller.
            unsafe {
                let table = _mm512_loadu_ps(FP4_DOUBLED.as_ptr());
                let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
                // The permutation reads the four low bits of each index, so that the low code needs no mask.
                let low = _mm512_permutexvar_ps(bytes, table);
                (Self(low), Self(_mm512_permutexvar_ps(_mm512_srli_epi32::<4>(bytes), table)))
            }
        }
    }
}
