//! Activation, rotation, logits: every variant against plain loops, on random sizes.

#![allow(clippy::unwrap_used)]

mod common;

use bench_kernels::activation::{clamped_swiglu, swiglu};
use bench_kernels::pool::Pool;
use bench_kernels::rope::rotate_halves;
use bench_kernels::route::{add_into, combine};
use bench_kernels::vectors::{argmax, non_finite_count, round_bf16};
use bench_kernels::{Exec, Variant};
use half::bf16;
use proptest::prelude::*;

/// Values in −scale..scale.
fn values(seed: u64, n: usize, scale: f32) -> Vec<f32> {
    common::values(seed, n).into_iter().map(|v| v * scale).collect()
}

fn near(found: &[f32], expected: impl Iterator<Item = f64>, tolerance: f64) {
    let mut n = 0;
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (f64::from(*found) - expected).abs() <= tolerance * (1.0 + expected.abs()),
            "{found} for {expected}"
        );
        n += 1;
    }
    assert_eq!(n, found.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn activations_equal_the_oracle(n in 1_usize..9000, seed in 0_u64..1000) {
        let (x, up) = (values(seed, 2 * n, 100.0), values(seed + 1, n, 3.0));
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let mut results = Vec::new();
        for variant in Variant::available() {
            let exec = Exec::new(variant, Pool::shared());
            let mut out = vec![f32::NAN; n];
            clamped_swiglu(&exec, &x, 1.702, 7.0, &mut out, false).unwrap();
            near(&out, x.chunks(2).map(|p| {
                let (gate, up) = (f64::from(p[0].min(7.0)), f64::from(p[1].clamp(-7.0, 7.0)));
                (up + 1.0) * gate * sigmoid(f64::from(1.702_f32) * gate)
            }), 2e-6);
            let mut gated = vec![f32::NAN; n];
            swiglu(&exec, &x[..n], &up, &mut gated, false).unwrap();
            near(&gated, x.iter().zip(&up).map(|(g, u)| {
                f64::from(*g) * sigmoid(f64::from(*g)) * f64::from(*u)
            }).take(n), 2e-6);
            results.push((out, gated));
        }
        assert!(results.windows(2).all(|w| w[0] == w[1]), "variants differ");
    }

    #[test]
    fn activations_round_where_bf16_arithmetic_does(n in 1_usize..500, seed in 0_u64..1000) {
        let r = |v: f32| bf16::from_f32(v).to_f32();
        let sigmoid = |x: f32| (1.0 / (1.0 + (-f64::from(x)).exp())) as f32;
        let x: Vec<f32> = values(seed, 2 * n, 9.0).into_iter().map(r).collect();
        let mut out = vec![f32::NAN; n];
        clamped_swiglu(&Exec::shared(), &x, 1.702, 7.0, &mut out, true).unwrap();
        let wrong = x.chunks(2).zip(&out).filter(|(p, out)| {
            let (gate, up) = (p[0].min(7.0), p[1].clamp(-7.0, 7.0));
            let expected = r(r(up + 1.0) * r(gate * r(sigmoid(r(gate * 1.702)))));
            **out != expected
        }).count();
        // The last bit of a sigmoid decides a tie once in tens of thousands.
        assert!(wrong <= 1, "{wrong} of {n}");
    }

    #[test]
    fn halves_turn_by_their_angle(
        tokens in 1_usize..40, heads in 1_usize..9, half in 1_usize..40, bf16_rounding: bool, seed in 0_u64..1000,
    ) {
        let r = |v: f32| if bf16_rounding { bf16::from_f32(v).to_f32() } else { v };
        let x = values(seed, tokens * heads * 2 * half, 2.0);
        let angles = values(seed + 1, tokens * half, 3.0);
        let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        let mut expected = x.clone();
        for (i, pair) in expected.chunks_mut(2 * half).enumerate() {
            for j in 0..half {
                let (a, b, at) = (pair[j], pair[j + half], i / heads * half + j);
                pair[j] = r(r(a * cos[at]) - r(b * sin[at]));
                pair[j + half] = r(r(b * cos[at]) + r(a * sin[at]));
            }
        }
        for variant in Variant::available() {
            let mut out = x.clone();
            let exec = Exec::new(variant, Pool::shared());
            rotate_halves(&exec, &mut out, &cos, &sin, heads, 2 * half, bf16_rounding).unwrap();
            assert_eq!(out, expected, "{variant:?}");
        }
    }

    #[test]
    fn vectors_equal_plain_loops(tokens in 1_usize..30, k in 1_usize..5, hidden in 1_usize..700, seed in 0_u64..1000) {
        let slots: Vec<u32> = (0..tokens * k).rev().map(|s| s as u32).collect();
        let (rows, weights) = (values(seed, tokens * k * hidden, 2.0), values(seed + 1, tokens * k, 1.0));
        let mut rounded = rows.clone();
        round_bf16(&Exec::shared(), &mut rounded);
        assert!(rows.iter().zip(&rounded).all(|(x, r)| bf16::from_f32(*x).to_f32() == *r));
        for (variant, round) in Variant::available().flat_map(|v| [(v, false), (v, true)]) {
            let exec = Exec::new(variant, Pool::shared());
            let mut out = vec![f32::NAN; tokens * hidden];
            combine(&exec, &rows, &slots, &weights, &mut out, round).unwrap();
            let mut expected = vec![0.0; out.len()];
            for slot in 0..tokens * k {
                let row = &rows[(tokens * k - 1 - slot) * hidden..][..hidden];
                for (out, v) in expected[slot / k * hidden..].iter_mut().zip(row) {
                    let v = weights[slot] * v;
                    *out += if round { bf16::from_f32(v).to_f32() } else { v };
                }
            }
            assert_eq!(out, expected, "{variant:?}");
            let sum: Vec<f32> = out.iter().zip(&rows).map(|(a, b)| a + b).collect();
            add_into(&exec, &mut out, &rows[..tokens * hidden]).unwrap();
            assert_eq!(out, sum);
        }
    }
}

#[test]
fn what_is_not_a_number_stays_so_and_is_counted() {
    for variant in Variant::available() {
        let exec = Exec::serial(variant);
        let mut out = [0.0; 3];
        let x = [f32::NAN, 1.0, 1.0, f32::NAN, f32::NEG_INFINITY, f32::INFINITY];
        clamped_swiglu(&exec, &x, 1.702, 7.0, &mut out, true).unwrap();
        assert!(out[0].is_nan() && out[1].is_nan());
        let mut logits: Vec<f32> = (0..5000).map(|i| ((i * 37) % 4001) as f32).collect();
        let largest = logits.iter().position(|v| *v == 4000.0).unwrap();
        assert_eq!((argmax(variant, &logits), non_finite_count(variant, &logits)), (Some(largest), 0));
        (logits[3], logits[4999], logits[70]) = (f32::NAN, f32::NAN, f32::NEG_INFINITY);
        assert_eq!((argmax(variant, &logits), non_finite_count(variant, &logits)), (Some(largest), 3));
        assert_eq!((argmax(variant, &[f32::NAN]), argmax(variant, &[])), (None, None));
    }
}
