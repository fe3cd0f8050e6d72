//! How many operations this machine does per second when nothing waits for memory: the roof over kernels that compute.
//!
//! Loops on registers alone, with more independent sums than an instruction takes cycles. What is measured is what the
//! kernels of an instruction set can use, not what the processor could do with another.

use std::hint::black_box;
use std::time::Instant;

use crate::exec::Exec;
use crate::variant::Variant;

/// What is multiplied and added; an operation is one of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeakKind {
    /// Fused multiply-add of f32, or its two halves where the variant has no fused one.
    F32,
    /// `vdpbf16ps`: products of bf16, sums in f32.
    Bf16,
    /// `vpdpbusd`, on AVX2 `vpmaddubsw` and two more, on NEON `sdot`: products of bytes, sums in i32.
    Int8,
}

impl PeakKind {
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];

    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

/// Operations per second of each repeat, slowest first, of all threads together.
#[derive(Debug, Clone, PartialEq)]
pub struct Peak {
    pub kind: PeakKind,
    pub ops_s: Vec<f64>,
}

impl Peak {
    pub fn median_ops_s(&self) -> f64 {
        crate::bandwidth::median(&self.ops_s)
    }

    pub fn fastest_ops_s(&self) -> f64 {
        self.ops_s.last().copied().unwrap_or_default()
    }
}

/// Measures `kind` on the threads of `exec`, `repeats` times for about `repeat_seconds`. `None` if the variant or the
/// processor has no such instructions.
pub fn measure(exec: &Exec, kind: PeakKind, repeats: usize, repeat_seconds: f64) -> Option<Peak> {
    let spin = spin_loop(exec.variant(), kind)?;
    let once = |rounds: u64| {
        let start = Instant::now();
        exec.pool().broadcast(&|_| (spin.run)(rounds));
        start.elapsed().as_secs_f64()
    };
    // The first call wakes threads and clocks; the second tells how much fits into the time.
    once(100_000);
    let rounds = (1e5 * repeat_seconds / once(100_000).max(1e-9)).max(1.0) as u64;
    let operations = rounds as f64 * spin.operations as f64 * exec.threads() as f64;
    let mut ops_s: Vec<f64> = (0..repeats.max(1)).map(|_| operations / once(rounds).max(1e-9)).collect();
    ops_s.sort_by(f64::total_cmp);
    Some(Peak { kind, ops_s })
}

/// A loop and the operations of one round.
struct SpinLoop {
    run: fn(u64),
    operations: u64,
}

fn spin_loop(variant: Variant, kind: PeakKind) -> Option<SpinLoop> {
    #[cfg(target_arch = "x86_64")]
    if let Some(spin) = x86::spin_loop(variant, kind) {
        return Some(spin);
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(spin) = neon::spin_loop(variant, kind) {
        return Some(spin);
    }
    match (variant, kind) {
        (Variant::Scalar, PeakKind::F32) => Some(SpinLoop { run: portable_f32, operations: 2 * 32 }),
        _ => None,
    }
}

/// Products and sums that compilers put into whatever vectors the build allows.
fn portable_f32(rounds: u64) {
    let (a, b) = (black_box([0.999_f32; 32]), black_box([0.001_f32; 32]));
    let mut sums = [0.0_f32; 32];
    for _ in 0..rounds {
        for ((sum, a), b) in sums.iter_mut().zip(&a).zip(&b) {
            *sum = *sum * a + b;
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(target_arch = "x86_64")]
mod x86 {
    // The names carry their origin.
    #[allow(clippy::wildcard_imports)]
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::{PeakKind, SpinLoop};
    use crate::variant::Variant;

    /// Independent sums: of 32 registers, two hold the factors.
    const WIDE: usize = 24;
    /// Of 16 registers.
    const NARROW: usize = 12;

    pub(super) fn spin_loop(variant: Variant, kind: PeakKind) -> Option<SpinLoop> {
        if !variant.is_supported() {
            return None;
        }
        let wide = |lanes: u64| 2 * lanes * WIDE as u64;
        let narrow = |lanes: u64| 2 * lanes * NARROW as u64;
        match (variant, kind) {
            (Variant::Avx512, PeakKind::F32) => {
                // SAFETY: the processor has been asked.
                Some(SpinLoop { run: |n| unsafe { f32_512(n) }, operations: wide(16) })
            }
            (Variant::Avx512, PeakKind::Bf16) if is_x86_feature_detected!("avx512bf16") => {
                // SAFETY: the processor has been asked.
                Some(SpinLoop { run: |n| unsafe { bf16_512(n) }, operations: wide(32) })
            }
            (Variant::Avx512, PeakKind::Int8) if is_x86_feature_detected!("avx512vnni") => {
                // SAFETY: the processor has been asked.
                Some(SpinLoop { run: |n| unsafe { int8_512(n) }, operations: wide(64) })
            }
            (Variant::Avx2, PeakKind::F32) => {
                // SAFETY: the processor has been asked.
                Some(SpinLoop { run: |n| unsafe { f32_256(n) }, operations: narrow(8) })
            }
            (Variant::Avx2, PeakKind::Int8) => {
                // SAFETY: the processor has been asked.
                Some(SpinLoop { run: |n| unsafe { int8_256(n) }, operations: narrow(32) })
            }
            _ => None,
        }
    }

    #[target_feature(enable = "avx512f")]
    fn f32_512(rounds: u64) {
        let (a, b) = (black_box(_mm512_set1_ps(0.999)), black_box(_mm512_set1_ps(0.001)));
        let mut sums = [_mm512_setzero_ps(); WIDE];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bf16_512(rounds: u64) {
        // 1.0 and 2⁻²⁰ in bf16: sums stay small for as long as anyone measures.
        let one = black_box(_mm512_set1_epi16(0x3f80));
        let small = black_box(_mm512_set1_epi16(0x3580));
        // SAFETY: vectors of 64 bytes, for which every bit pattern is valid.
        let [a, b] = unsafe { std::mem::transmute::<[__m512i; 2], [__m512bh; 2]>([one, small]) };
        let mut sums = [_mm512_setzero_ps(); WIDE];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn int8_512(rounds: u64) {
        let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(-5)));
        let mut sums = [_mm512_setzero_si512(); WIDE];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    fn f32_256(rounds: u64) {
        let (a, b) = (black_box(_mm256_set1_ps(0.999)), black_box(_mm256_set1_ps(0.001)));
        let mut sums = [_mm256_setzero_ps(); NARROW];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2")]
    fn int8_256(rounds: u64) {
        let (b, ones) = (black_box(_mm256_set1_epi8(-5)), black_box(_mm256_set1_epi16(1)));
        let mut sums = [_mm256_set1_epi8(3); NARROW];
        for _ in 0..rounds {
            for sum in &mut sums {
                // The sum is also a factor: products of constants alone would be taken out of the loop.
                let pairs = _mm256_maddubs_epi16(*sum, b);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pool::{Pool, PoolOptions};

    #[test]
    fn each_variant_has_the_peaks_of_its_instructions() {
        let pool = Arc::new(Pool::new(PoolOptions { threads: Some(2), pin: false }).unwrap());
        for variant in Variant::available() {
            let exec = Exec::new(variant, Arc::clone(&pool));
            for kind in PeakKind::ALL {
                let peak = measure(&exec, kind, 3, 1e-4);
                assert_eq!(peak.is_some(), spin_loop(variant, kind).is_some());
                if let Some(peak) = peak {
                    assert!(peak.kind == kind && peak.ops_s.len() == 3 && peak.ops_s.is_sorted());
                    assert!(peak.ops_s[0] > 0.0 && peak.fastest_ops_s().is_finite());
                    assert_eq!(peak.median_ops_s(), peak.ops_s[1]);
                }
            }
            assert!(measure(&exec, PeakKind::F32, 1, 1e-5).is_some(), "{variant:?} has no f32");
        }
        assert!(measure(&Exec::serial(Variant::Scalar), PeakKind::Bf16, 1, 1e-5).is_none());
    }
}
