//! f32 and bf16 products with every format of weights, grouped, against plain loops in f64, on random shapes.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bench_kernels::matmul::{Bf16Matrix, F32Matrix, Mxfp4Matrix, Weights, to_bf16};
use bench_kernels::packed::{PackedFormat, PackedMatrix};
use bench_kernels::pool::{Pool, PoolOptions};
use bench_kernels::product::{Group, Input, RowMap, grouped_product};
use bench_kernels::{Exec, Variant, mxfp4};
use half::bf16;
use proptest::prelude::*;

fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 16
    }
}

fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut next = random(seed);
    (0..n).map(|_| (next() % (1 << 24)) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Groups of these sizes over scattered rows of x; weights of group g are `weights(g)`, decoded `decoded[g]`.
struct Case<'a> {
    sizes: &'a [usize],
    weights: &'a (dyn Fn(usize) -> Weights<'a> + Sync),
    decoded: &'a [Vec<f32>],
    biases: &'a [Vec<f32>],
}

/// Runs on every variant, with one thread and with three, and compares.
fn check(case: &Case<'_>, x: &[f32], narrow: Option<&[bf16]>) {
    let first = (case.weights)(0);
    let (rows, cols) = (first.rows(), first.cols());
    let inputs = x.len() / cols;
    let slots: Vec<u32> = (0..case.sizes.iter().sum()).map(|s: usize| (s * 7 % inputs) as u32).collect();
    let start = |g: usize| case.sizes[..g].iter().sum::<usize>();
    let group = |g: usize| Group {
        w: (case.weights)(g),
        bias: g.is_multiple_of(2).then_some(case.biases[g].as_slice()),
        rows: RowMap::These(&slots[start(g)..start(g + 1)]),
        first: start(g),
    };
    for variant in Variant::available() {
        let run = |threads| {
            let pool = Pool::new(PoolOptions { threads: Some(threads), pin: false }).unwrap();
            let exec = Exec::new(variant, Arc::new(pool));
            let mut out = vec![f32::NAN; slots.len() * rows];
            let input = narrow.map_or(Input::F32(x), Input::Bf16);
            grouped_product(&exec, input, case.sizes.len(), group, &mut out).unwrap();
            out
        };
        let out = run(1);
        assert_eq!(out, run(3), "{variant:?}");
        for g in 0..case.sizes.len() {
            for slot in start(g)..start(g + 1) {
                let x = &x[slots[slot] as usize * cols..][..cols];
                for j in 0..rows {
                    let terms = x.iter().zip(&case.decoded[g][j * cols..]);
                    let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), (x, w)| {
                        let term = f64::from(*x) * f64::from(*w);
                        (sum + term, size + term.abs())
                    });
                    let bias = group(g).bias.map_or(0.0, |b| f64::from(b[j]));
                    let found = f64::from(out[slot * rows + j]);
                    let error = (found - sum - bias).abs();
                    assert!(
                        error <= 1e-6 * (size + 1.0),
                        "{variant:?} {g} {slot} {j}: {found} for {}",
                        sum + bias
                    );
                }
            }
        }
        // A row's result does not depend on the other rows of its group.
        let alone: Vec<f32> = (0..slots.len())
            .flat_map(|slot| {
                let g = (0..case.sizes.len()).find(|&g| slot < start(g + 1)).unwrap();
                let mut out = vec![f32::NAN; rows];
                let one = |_| Group { rows: RowMap::These(&slots[slot..=slot]), first: 0, ..group(g) };
                let input = narrow.map_or(Input::F32(x), Input::Bf16);
                grouped_product(&Exec::serial(variant), input, 1, one, &mut out).unwrap();
                out
            })
            .collect();
        assert_eq!(alone, out, "{variant:?}");
    }
}

fn packed(format: PackedFormat, seed: u64, rows: usize, cols: usize) -> (Vec<u8>, Vec<u8>) {
    let (codes, scales) = format.bytes(rows, cols);
    let mut next = random(seed);
    let mut codes: Vec<u8> = (0..codes).map(|_| next() as u8).collect();
    if format == PackedFormat::Q8_0 {
        for code in &mut codes {
            *code = (*code).max(1);
        }
    }
    let scales = match format {
        PackedFormat::Mxfp4 => (0..scales).map(|_| 120 + (next() % 12) as u8).collect(),
        _ => (0..scales / 2)
            .flat_map(|_| half::f16::from_f32((next() % 999) as f32 * 1e-4).to_le_bytes())
            .collect(),
    };
    (codes, scales)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn packed_products_equal_the_oracle(
        sizes in prop::collection::vec(0_usize..30, 1..4), panels in 1_usize..8, blocks in 1_usize..6,
        format in 0_usize..3, seed in 0_u64..1000,
    ) {
        let format = [PackedFormat::Mxfp4, PackedFormat::Q8_0, PackedFormat::Q6_0][format];
        let (rows, cols) = (16 * panels, 32 * blocks);
        let stored: Vec<_> = (0..sizes.len()).map(|g| packed(format, seed + g as u64, rows, cols)).collect();
        let weights = |g: usize| PackedMatrix::new(format, &stored[g].0, &stored[g].1, rows, cols).unwrap();
        let decoded: Vec<Vec<f32>> = (0..sizes.len())
            .map(|g| {
                let mut out = vec![0.0; rows * cols];
                out.chunks_exact_mut(cols).enumerate().for_each(|(r, out)| weights(g).decode_row(r, out));
                out
            })
            .collect();
        let biases: Vec<_> = (0..sizes.len()).map(|g| values(seed + 50 + g as u64, rows)).collect();
        let x = values(seed + 9, 11 * cols);
        let weights = |g: usize| Weights::Packed(weights(g));
        check(&Case { sizes: &sizes, weights: &weights, decoded: &decoded, biases: &biases }, &x, None);
    }

    #[test]
    fn grouped_products_of_rows_equal_the_oracle(
        sizes in prop::collection::vec(0_usize..30, 1..4), rows in 1_usize..40, cols in 1_usize..1100,
        seed in 0_u64..1000,
    ) {
        let w: Vec<_> = (0..sizes.len()).map(|g| values(seed + g as u64, rows * cols)).collect();
        let biases: Vec<_> = (0..sizes.len()).map(|g| values(seed + 50 + g as u64, rows)).collect();
        let x = values(seed + 9, 11 * cols);
        let weights = |g: usize| Weights::F32(F32Matrix::new(&w[g], rows, cols).unwrap());
        check(&Case { sizes: &sizes, weights: &weights, decoded: &w, biases: &biases }, &x, None);

        let half = |v: &Vec<f32>| -> Vec<bf16> { v.iter().map(|&v| bf16::from_f32(v)).collect() };
        let narrow: Vec<_> = w.iter().map(half).collect();
        let w: Vec<Vec<f32>> = narrow.iter().map(|w| w.iter().map(|w| w.to_f32()).collect()).collect();
        let weights = |g: usize| Weights::Bf16(Bf16Matrix::new(&narrow[g], rows, cols).unwrap());
        let case = Case { sizes: &sizes, weights: &weights, decoded: &w, biases: &biases };
        check(&case, &x, None);
        let mut narrow_x = vec![bf16::ZERO; x.len()];
        for variant in Variant::available() {
            to_bf16(&Exec::serial(variant), &x, &mut narrow_x).unwrap();
            assert_eq!(narrow_x, half(&x));
        }
        let x: Vec<f32> = narrow_x.iter().map(|x| x.to_f32()).collect();
        check(&case, &x, Some(&narrow_x));
    }

    #[test]
    fn grouped_products_of_mxfp4_rows_equal_the_oracle(
        sizes in prop::collection::vec(0_usize..20, 1..4), rows in 1_usize..40, blocks in 1_usize..8,
        seed in 0_u64..1000,
    ) {
        let cols = mxfp4::BLOCK * blocks;
        let mut next = random(seed);
        let stored: Vec<(Vec<u8>, Vec<u8>)> = sizes
            .iter()
            .map(|_| ((0..rows * cols / 2).map(|_| next() as u8).collect(), vec![125; rows * blocks]))
            .collect();
        let decoded: Vec<Vec<f32>> = stored
            .iter()
            .map(|(codes, scales)| {
                let mut out = vec![0.0; rows * cols];
                mxfp4::dequantize(codes, scales, &mut out).unwrap();
                out
            })
            .collect();
        let biases: Vec<_> = (0..sizes.len()).map(|g| values(seed + 50 + g as u64, rows)).collect();
        let x = values(seed + 9, 11 * cols);
        let weights =
            |g: usize| Weights::Mxfp4(Mxfp4Matrix::new(&stored[g].0, &stored[g].1, rows, cols).unwrap());
        check(&Case { sizes: &sizes, weights: &weights, decoded: &decoded, biases: &biases }, &x, None);
    }
}
