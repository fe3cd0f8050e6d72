//! The loops in NEON instructions.

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, vdupq_n_f32, vdupq_n_s8, vdupq_n_s32, vfmaq_f32,
};
use std::hint::black_box;

use super::{PeakKind, SpinLoop};
use crate::variant::Variant;

/// Independent sums: of 32 registers, two hold the factors.
const SUMS: usize = 24;

pub(super) fn spin_loop(variant: Variant, kind: PeakKind) -> Option<SpinLoop> {
    if variant != Variant::Neon || !variant.is_supported() {
        return None;
    }
    let operations = |lanes: u64| 2 * lanes * SUMS as u64;
    match kind {
        // SAFETY: the processor has been asked.
        PeakKind::F32 => Some(SpinLoop { run: |n| unsafe { f32_128(n) }, operations: operations(4) }),
        PeakKind::Int8 if variant.has_dot_product() => {
            // SAFETY: the processor has been asked.
            Some(SpinLoop { run: |n| unsafe { int8_128(n) }, operations: operations(16) })
        }
        PeakKind::Bf16 | PeakKind::Int8 => None,
    }
}

#[target_feature(enable = "neon")]
fn f32_128(rounds: u64) {
    let (a, b): (float32x4_t, float32x4_t) = (black_box(vdupq_n_f32(0.999)), black_box(vdupq_n_f32(0.001)));
    let mut sums = [vdupq_n_f32(0.0); SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = vfmaq_f32(b, *sum, a);
        }
    }
    black_box(sums);
}

#[target_feature(enable = "neon,dotprod")]
fn int8_128(rounds: u64) {
    let (a, b): (int8x16_t, int8x16_t) = (black_box(vdupq_n_s8(3)), black_box(vdupq_n_s8(-5)));
    let mut sums: [int32x4_t; SUMS] = [vdupq_n_s32(0); SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            // SAFETY: the instruction is enabled, and has registers and nothing else.
            unsafe {
                std::arch::asm!(
                    "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
                    sum = inout(vreg) *sum,
                    a = in(vreg) a,
                    b = in(vreg) b,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
        }
    }
    black_box(sums);
}
