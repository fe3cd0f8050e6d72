//! Every CPU variant of the kernels against plain loops in f64, on random shapes.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use bench_kernels::matmul::{Bf16Matrix, F32Matrix, Mxfp4Matrix, Weights};
use bench_kernels::pool::{Pool, PoolOptions};
use bench_kernels::product::{self, Input};
use bench_kernels::{Exec, Variant, mxfp4};
use half::bf16;
use proptest::prelude::*;

use common::values;

/// The product and, beside it, Σ |x · w|, against which rounding errors are measured.
fn product(x: &[f32], m: usize, w: &[f32], rows: usize, bias: Option<&[f32]>) -> Vec<(f64, f64)> {
    let cols = w.len() / rows;
    let mut out = Vec::new();
    for i in 0..m {
        for j in 0..rows {
            let terms = (0..cols).map(|k| f64::from(x[i * cols + k]) * f64::from(w[j * cols + k]));
            let (sum, size) = terms.fold((0.0, 0.0), |(s, a), t: f64| (s + t, a + t.abs()));
            out.push((sum + bias.map_or(0.0, |b| f64::from(b[j])), size + 1.0));
        }
    }
    out
}

fn check_product(weights: &Weights<'_>, w: &[f32], m: usize, bias: Option<&[f32]>, seed: u64) {
    let (rows, cols) = (weights.rows(), weights.cols());
    let x = values(seed + 1, m * cols);
    let expected = product(&x, m, w, rows, bias);
    let mut compared = 0;
    for variant in Variant::available() {
        let mut out = vec![f32::NAN; m * rows];
        let exec = Exec::new(variant, Pool::shared());
        product::product(&exec, Input::F32(&x), m, *weights, bias, &mut out).unwrap();
        for (found, (expected, size)) in out.iter().zip(&expected) {
            assert!(
                (f64::from(*found) - expected).abs() <= 1e-6 * size,
                "{variant:?}: {found} for {expected}"
            );
            compared += 1;
        }
    }
    assert!(compared >= m * rows);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn plain_products_equal_the_oracle(
        m in 1_usize..11, rows in 1_usize..23, cols in 1_usize..150, seed in 0_u64..1000, with_bias: bool,
    ) {
        let bias = values(seed + 2, rows);
        let bias = with_bias.then_some(bias.as_slice());
        let w = values(seed, rows * cols);
        check_product(&Weights::F32(F32Matrix::new(&w, rows, cols).unwrap()), &w, m, bias, seed);
        let half: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
        let w: Vec<f32> = half.iter().map(|w| w.to_f32()).collect();
        check_product(&Weights::Bf16(Bf16Matrix::new(&half, rows, cols).unwrap()), &w, m, bias, seed);
    }

    #[test]
    fn mxfp4_products_equal_the_oracle(
        m in 1_usize..11, rows in 1_usize..23, row_blocks in 1_usize..8, seed in 0_u64..1000,
    ) {
        let cols = row_blocks * mxfp4::BLOCK;
        let source = values(seed, rows * cols);
        let (mut codes, mut scales) = (vec![0; rows * cols / 2], vec![0; rows * row_blocks]);
        mxfp4::quantize(&source, &mut codes, &mut scales).unwrap();
        let mut w = vec![0.0; rows * cols];
        mxfp4::dequantize(&codes, &scales, &mut w).unwrap();
        let matrix = Mxfp4Matrix::new(&codes, &scales, rows, cols).unwrap();
        check_product(&Weights::Mxfp4(matrix), &w, m, None, seed);
    }
}

/// The result does not depend on how many threads share the work.
#[test]
fn products_do_not_depend_on_the_number_of_threads() {
    let (rows, cols, m) = (517, 320, 6);
    let w = values(1, rows * cols);
    let x = values(2, m * cols);
    let weights = Weights::F32(F32Matrix::new(&w, rows, cols).unwrap());
    let run = |threads| {
        let pool = Pool::new(PoolOptions { threads: Some(threads), pin: false }).unwrap();
        let exec = Exec::new(Variant::active(), Arc::new(pool));
        let mut out = vec![0.0; m * rows];
        product::product(&exec, Input::F32(&x), m, weights, None, &mut out).unwrap();
        out
    };
    let one = run(1);
    assert!(one.iter().any(|v| *v != 0.0));
    for threads in [2, 3, 7] {
        assert_eq!(run(threads), one);
    }
}
