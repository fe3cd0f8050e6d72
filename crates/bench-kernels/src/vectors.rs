//! Rounding of and searches over plain vectors: activations, logits.

use crate::exec::Exec;
use crate::lanes::Lanes;
use crate::math::round;
use crate::pieces::for_chunks;
use crate::variant::{Variant, dispatch};

/// Rounds each element to the nearest bf16, ties to even.
pub fn round_bf16(exec: &Exec, x: &mut [f32]) {
    for_chunks(exec, x, |_, x| round_all(exec.variant(), x));
}

dispatch! { fn round_all(x: &mut [f32]) = round_all_body }

#[inline(always)]
unsafe fn round_all_body<L: Lanes>(x: &mut [f32]) {
    for x in x {
        *x = round::<true>(*x);
    }
}

/// The index of the largest element, the lowest of equals; NaN is never the largest. `None` if there is no other.
pub fn argmax(variant: Variant, x: &[f32]) -> Option<usize> {
    let mut largest = f32::NEG_INFINITY;
    max_into(variant, x, &mut largest);
    x.iter().position(|v| *v == largest)
}

/// How many elements are infinite or NaN.
pub fn non_finite_count(variant: Variant, x: &[f32]) -> usize {
    let mut count = 0;
    count_into(variant, x, &mut count);
    count
}

dispatch! { fn max_into(x: &[f32], largest: &mut f32) = max_body }
dispatch! { fn count_into(x: &[f32], count: &mut usize) = count_body }

#[inline(always)]
unsafe fn max_body<L: Lanes>(x: &[f32], largest: &mut f32) {
    let mut lanes = [f32::NEG_INFINITY; 64];
    let (whole, rest) = x.as_chunks::<64>();
    for chunk in whole {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = if *v > *lane { *v } else { *lane };
        }
    }
    *largest = lanes.iter().chain(rest).fold(*largest, |m, v| if *v > m { *v } else { m });
}

#[inline(always)]
unsafe fn count_body<L: Lanes>(x: &[f32], count: &mut usize) {
    for chunk in x.chunks(1 << 16) {
        let bad: u32 = chunk.iter().map(|v| u32::from(!v.is_finite())).sum();
        *count += bad as usize;
    }
}
