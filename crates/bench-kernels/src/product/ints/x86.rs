//! [`Ints`] in x86 intrinsics.

// The names carry their origin; a list of sixty would say nothing more.
#[allow(clippy::wildcard_imports)]
use std::arch::x86_64::*;

use super::{FP4_CODES, Ints};

/// AVX-512 F, BW, VL, DQ and VNNI; with `VBMI` also that.
#[derive(Clone, Copy)]
pub(in crate::product) struct Vnni<const VBMI: bool>;

impl<const VBMI: bool> Ints for Vnni<VBMI> {
    type Bytes = __m512i;
    type Sums = __m512i;
    type Floats = __m512;
    type Quad = __m512i;
    const LARGE: bool = true;

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> __m512i {
        // SAFETY: 64 readable bytes; the load is unaligned.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_bytes(bytes: __m512i, to: *mut u8) {
        // SAFETY: 64 writable bytes; the store is unaligned.
        unsafe { _mm512_storeu_si512(to.cast(), bytes) }
    }

    #[inline(always)]
    unsafe fn fp4<const HIGH: usize>(bytes: __m512i) -> __m512i {
        // SAFETY: AVX-512 is enabled in the caller, here and below; the table has 16 bytes.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(FP4_CODES.as_ptr().cast()));
            let nibbles = if HIGH == 1 { _mm512_srli_epi16::<4>(bytes) } else { bytes };
            if VBMI {
                // It reads six bits, of which the table, four times the same, ignores two.
                return _mm512_permutexvar_epi8(nibbles, table);
            }
            _mm512_shuffle_epi8(table, _mm512_and_si512(nibbles, _mm512_set1_epi8(15)))
        }
    }

    #[inline(always)]
    unsafe fn six<const HIGH: usize, const PAIR: usize>(low: __m512i, high: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe {
            let nibbles = if HIGH == 1 { _mm512_srli_epi16::<4>(low) } else { low };
            let high = match PAIR {
                0 => _mm512_slli_epi16::<4>(high),
                1 => _mm512_slli_epi16::<2>(high),
                2 => high,
                _ => _mm512_srli_epi16::<2>(high),
            };
            let high = _mm512_and_si512(high, _mm512_set1_epi8(0x30));
            // (nibbles & 15) | high
            _mm512_ternarylogic_epi32::<0xf8>(high, nibbles, _mm512_set1_epi8(15))
        }
    }

    #[inline(always)]
    unsafe fn quad(from: *const u32) -> __m512i {
        // SAFETY: a readable word.
        unsafe { _mm512_set1_epi32(from.read() as i32) }
    }

    #[inline(always)]
    unsafe fn splat_shifted<const SHIFT: u32>(value: *const u32) -> __m512i {
        // SAFETY: a readable word.
        unsafe { _mm512_slli_epi32::<SHIFT>(_mm512_set1_epi32(value.read() as i32)) }
    }

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn dot<const SMALL: bool>(sums: __m512i, bytes: __m512i, quad: __m512i) -> __m512i {
        // SAFETY: as above, with VNNI.
        unsafe { _mm512_dpbusd_epi32(sums, bytes, quad) }
    }

    #[inline(always)]
    unsafe fn combine(hi: __m512i, lo: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_add_epi32(_mm512_slli_epi32::<8>(hi), lo) }
    }

    #[inline(always)]
    unsafe fn floats(from: *const f32) -> __m512 {
        // SAFETY: 16 readable elements; the load is unaligned.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store_floats(floats: __m512, to: *mut f32) {
        // SAFETY: 16 writable elements; the store is unaligned.
        unsafe { _mm512_storeu_ps(to, floats) }
    }

    #[inline(always)]
    unsafe fn splat(value: *const u32) -> __m512 {
        // SAFETY: a readable word.
        unsafe { _mm512_castsi512_ps(_mm512_set1_epi32(value.read() as i32)) }
    }

    #[inline(always)]
    unsafe fn convert(sums: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(sums) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, addend: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, addend) }
    }

    #[inline(always)]
    unsafe fn e8m0(from: *const u8) -> __m512 {
        // SAFETY: 16 readable bytes.
        unsafe {
            let e = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, _mm512_set1_epi32(1)));
            // The two smallest are subnormal.
            let small = _mm512_cmplt_epu32_mask(e, _mm512_set1_epi32(2));
            let bits = _mm512_mask_sllv_epi32(normal, small, _mm512_set1_epi32(0x0020_0000), e);
            _mm512_castsi512_ps(bits)
        }
    }

    #[inline(always)]
    unsafe fn halves(from: *const u8) -> __m512 {
        // SAFETY: 32 readable bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch reads nothing that the program sees and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

/// AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(in crate::product) struct Avx2;

impl Ints for Avx2 {
    type Bytes = [__m256i; 2];
    type Sums = [__m256i; 2];
    type Floats = [__m256; 2];
    type Quad = __m256i;
    const LARGE: bool = false;

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> [__m256i; 2] {
        // SAFETY: 64 readable bytes; the loads are unaligned.
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn store_bytes(bytes: [__m256i; 2], to: *mut u8) {
        // SAFETY: 64 writable bytes; the stores are unaligned.
        unsafe {
            _mm256_storeu_si256(to.cast(), bytes[0]);
            _mm256_storeu_si256(to.add(32).cast(), bytes[1]);
        }
    }

    #[inline(always)]
    unsafe fn fp4<const HIGH: usize>([a, b]: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: AVX2 is enabled in the caller, here and below; the table has 16 bytes.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(FP4_CODES.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, nibbles::<HIGH>(a)), _mm256_shuffle_epi8(table, nibbles::<HIGH>(b))]
        }
    }

    #[inline(always)]
    unsafe fn six<const HIGH: usize, const PAIR: usize>(
        low: [__m256i; 2],
        high: [__m256i; 2],
    ) -> [__m256i; 2] {
        // SAFETY: as above.
        unsafe {
            [
                _mm256_or_si256(nibbles::<HIGH>(low[0]), high_bits::<PAIR>(high[0])),
                _mm256_or_si256(nibbles::<HIGH>(low[1]), high_bits::<PAIR>(high[1])),
            ]
        }
    }

    #[inline(always)]
    unsafe fn quad(from: *const u32) -> __m256i {
        // SAFETY: a readable word.
        unsafe { _mm256_set1_epi32(from.read() as i32) }
    }

    #[inline(always)]
    unsafe fn splat_shifted<const SHIFT: u32>(value: *const u32) -> [__m256i; 2] {
        // SAFETY: a readable word.
        unsafe { [_mm256_set1_epi32((value.read() as i32) << SHIFT); 2] }
    }

    #[inline(always)]
    unsafe fn zero() -> [__m256i; 2] {
        // SAFETY: as above.
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    unsafe fn dot<const SMALL: bool>(sums: [__m256i; 2], bytes: [__m256i; 2], x: __m256i) -> [__m256i; 2] {
        // SAFETY: as above.
        unsafe {
            [
                _mm256_add_epi32(sums[0], dot_of_eight::<SMALL>(bytes[0], x)),
                _mm256_add_epi32(sums[1], dot_of_eight::<SMALL>(bytes[1], x)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn combine(hi: [__m256i; 2], lo: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: as above.
        unsafe {
            [
                _mm256_add_epi32(_mm256_slli_epi32::<8>(hi[0]), lo[0]),
                _mm256_add_epi32(_mm256_slli_epi32::<8>(hi[1]), lo[1]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn floats(from: *const f32) -> [__m256; 2] {
        // SAFETY: 16 readable elements; the loads are unaligned.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn store_floats(floats: [__m256; 2], to: *mut f32) {
        // SAFETY: 16 writable elements; the stores are unaligned.
        unsafe {
            _mm256_storeu_ps(to, floats[0]);
            _mm256_storeu_ps(to.add(8), floats[1]);
        }
    }

    #[inline(always)]
    unsafe fn splat(value: *const u32) -> [__m256; 2] {
        // SAFETY: a readable word.
        unsafe { [_mm256_castsi256_ps(_mm256_set1_epi32(value.read() as i32)); 2] }
    }

    #[inline(always)]
    unsafe fn convert(sums: [__m256i; 2]) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe { [_mm256_cvtepi32_ps(sums[0]), _mm256_cvtepi32_ps(sums[1])] }
    }

    #[inline(always)]
    unsafe fn add(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn mul(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn mul_add(a: [__m256; 2], b: [__m256; 2], addend: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: as above, with FMA.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], addend[0]), _mm256_fmadd_ps(a[1], b[1], addend[1])] }
    }

    #[inline(always)]
    unsafe fn e8m0(from: *const u8) -> [__m256; 2] {
        // SAFETY: 16 readable bytes.
        unsafe { [e8m0_of_eight(from), e8m0_of_eight(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn halves(from: *const u8) -> [__m256; 2] {
        // SAFETY: 32 readable bytes; F16C is enabled in the caller.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast())),
            ]
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch reads nothing that the program sees and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

#[inline(always)]
unsafe fn nibbles<const HIGH: usize>(bytes: __m256i) -> __m256i {
    // SAFETY: AVX2 is enabled in the caller, here and below.
    unsafe {
        let bytes = if HIGH == 1 { _mm256_srli_epi16::<4>(bytes) } else { bytes };
        _mm256_and_si256(bytes, _mm256_set1_epi8(15))
    }
}

#[inline(always)]
unsafe fn high_bits<const PAIR: usize>(bytes: __m256i) -> __m256i {
    // SAFETY: as above.
    unsafe {
        let bytes = match PAIR {
            0 => _mm256_slli_epi16::<4>(bytes),
            1 => _mm256_slli_epi16::<2>(bytes),
            2 => bytes,
            _ => _mm256_srli_epi16::<2>(bytes),
        };
        _mm256_and_si256(bytes, _mm256_set1_epi8(0x30))
    }
}

/// Products of unsigned bytes w and signed bytes x, summed four by four.
#[inline(always)]
unsafe fn dot_of_eight<const SMALL: bool>(w: __m256i, x: __m256i) -> __m256i {
    // SAFETY: as above.
    unsafe {
        if SMALL {
            // Two products of at most 63 · 128 fit 16 bits.
            _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1))
        } else {
            let (even, odd) = (_mm256_and_si256(w, _mm256_set1_epi16(255)), _mm256_srli_epi16::<8>(w));
            let x_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
            let x_odd = _mm256_srai_epi16::<8>(x);
            _mm256_add_epi32(_mm256_madd_epi16(even, x_even), _mm256_madd_epi16(odd, x_odd))
        }
    }
}

#[inline(always)]
unsafe fn e8m0_of_eight(from: *const u8) -> __m256 {
    // SAFETY: 8 readable bytes.
    unsafe {
        let e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
        let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
        let subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
        let small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
        _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, small))
    }
}
