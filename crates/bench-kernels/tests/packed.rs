//! Packed weights, whole-number rows and their products, against plain loops in f64 over the values that codes
//! stand for.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use bench_kernels::matmul::{F32Matrix, Weights};
use bench_kernels::packed::{PackedFormat, PackedMatrix, pack_mxfp4_in_place, pack_mxfp4_into, quantize};
use bench_kernels::pool::{Pool, PoolOptions};
use bench_kernels::product::{Group, Input, RowMap, grouped_product, product};
use bench_kernels::rows::{IntPrecision, IntRows};
use bench_kernels::{Exec, Variant, mxfp4};
use half::{bf16, f16};
use proptest::prelude::*;

use common::values;

const FORMATS: [PackedFormat; 3] = [PackedFormat::Mxfp4, PackedFormat::Q8_0, PackedFormat::Q6_0];
const PRECISIONS: [IntPrecision; 2] = [IntPrecision::Int8, IntPrecision::Int16];

/// A packed matrix with its memory.
struct Packed {
    format: PackedFormat,
    codes: Vec<u8>,
    scales: Vec<u8>,
    rows: usize,
    cols: usize,
}

impl Packed {
    fn random(format: PackedFormat, rows: usize, cols: usize, seed: u64) -> Self {
        let w = values(seed, rows * cols);
        let (code_bytes, scale_bytes) = format.bytes(rows, cols);
        let (mut codes, mut scales) = (vec![0; code_bytes], vec![0; scale_bytes]);
        if format == PackedFormat::Mxfp4 {
            mxfp4::quantize(&w, &mut codes, &mut scales).unwrap();
            pack_mxfp4_in_place(&mut codes, &mut scales, cols).unwrap();
        } else {
            let exec = Exec::serial(Variant::active());
            quantize(&exec, format, &w, rows, cols, &mut codes, &mut scales).unwrap();
        }
        Self { format, codes, scales, rows, cols }
    }

    fn matrix(&self) -> PackedMatrix<'_> {
        PackedMatrix::new(self.format, &self.codes, &self.scales, self.rows, self.cols).unwrap()
    }

    fn weights(&self) -> Weights<'_> {
        Weights::Packed(self.matrix())
    }

    fn decoded(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        for (row, out) in out.chunks_exact_mut(self.cols).enumerate() {
            self.matrix().decode_row(row, out);
        }
        out
    }
}

fn quantized(x: &[f32], cols: usize, precision: IntPrecision, variant: Variant) -> IntRows {
    let mut rows = IntRows::default();
    rows.quantize(&Exec::serial(variant), x, x.len() / cols, cols, precision).unwrap();
    rows
}

fn decoded_rows(rows: &IntRows) -> Vec<f32> {
    let mut out = vec![0.0; rows.rows() * rows.cols()];
    for (row, out) in out.chunks_exact_mut(rows.cols()).enumerate() {
        rows.decode_row(row, out);
    }
    out
}

/// Outputs of one input row, each with Σ |x · w|, against which rounding errors are measured.
fn oracle<'a>(x: &'a [f32], w: &'a [f32], bias: Option<&'a [f32]>) -> impl Iterator<Item = (f64, f64)> + 'a {
    w.chunks_exact(x.len()).enumerate().map(move |(j, w)| {
        let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
        let (sum, size) = terms.fold((0.0, 1e-30), |(s, a), t: f64| (s + t, a + t.abs()));
        let bias = bias.map_or(0.0, |bias| f64::from(bias[j]));
        (sum + bias, size + bias.abs())
    })
}

fn check(found: &[f32], x: &[f32], w: &[f32], bias: Option<&[f32]>, what: &str) {
    for (j, (found, (expected, size))) in found.iter().zip(oracle(x, w, bias)).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        assert!(error <= 1e-5 * size, "{what}, column {j}: {found} for {expected}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn packing_keeps_every_value(panels in 1_usize..4, blocks in 1_usize..6, bytes in any::<[u8; 32]>()) {
        let (rows, cols) = (16 * panels, 32 * blocks);
        let at = |i: usize| bytes[i % 32].wrapping_mul(31).wrapping_add((i * 7) as u8);
        let mut codes: Vec<u8> = (0..rows * cols / 2).map(at).collect();
        // Not beyond what f32 holds, so that equality means something.
        let mut scales: Vec<u8> = (0..rows * blocks).map(|i| at(i + 5).min(252)).collect();
        let mut expected = vec![0.0; rows * cols];
        mxfp4::dequantize(&codes, &scales, &mut expected).unwrap();
        let (mut to_codes, mut to_scales) = (vec![0; codes.len()], vec![0; scales.len()]);
        pack_mxfp4_into(&codes, &scales, cols, &mut to_codes, &mut to_scales).unwrap();
        pack_mxfp4_in_place(&mut codes, &mut scales, cols).unwrap();
        prop_assert_eq!((&to_codes, &to_scales), (&codes, &scales));
        let packed = Packed { format: PackedFormat::Mxfp4, codes, scales, rows, cols };
        prop_assert_eq!(packed.decoded(), expected);
    }

    #[test]
    fn quantized_weights_are_near(panels in 1_usize..4, blocks in 1_usize..5, seed in 0_u64..1000, size in -9..3_i32) {
        let (rows, cols) = (16 * panels, 32 * blocks);
        let w: Vec<f32> = values(seed, rows * cols).iter().map(|w| w * 2.0_f32.powi(size)).collect();
        for (format, steps) in [(PackedFormat::Q8_0, 127.0), (PackedFormat::Q6_0, 31.0)] {
            let (code_bytes, scale_bytes) = format.bytes(rows, cols);
            let mut all = Vec::new();
            for variant in Variant::available() {
                let (mut codes, mut scales) = (vec![0; code_bytes], vec![0; scale_bytes]);
                let exec = Exec::serial(variant);
                quantize(&exec, format, &w, rows, cols, &mut codes, &mut scales).unwrap();
                all.push(Packed { format, codes, scales, rows, cols });
            }
            for pair in all.windows(2) {
                prop_assert_eq!((&pair[0].codes, &pair[0].scales), (&pair[1].codes, &pair[1].scales));
            }
            let decoded = all[0].decoded();
            for (w, found) in w.as_chunks::<32>().0.iter().zip(decoded.as_chunks::<32>().0) {
                let step = w.iter().fold(0.0_f32, |m, w| m.max(w.abs())) / steps;
                let errors = w.iter().zip(found).map(|(w, found)| (w - found).abs());
                let bound = if format == PackedFormat::Q8_0 { 0.6 } else { 3.1 };
                let (mut largest, mut squares) = (0.0_f32, 0.0);
                for error in errors {
                    largest = largest.max(error);
                    squares += error * error;
                }
                prop_assert!(largest <= bound * step, "{format:?}: {largest} of {step}");
                // No worse than rounding with the plain scale: at most half a step each.
                prop_assert!(squares <= 32.0 * 0.25 * 1.01 * step * step, "{format:?}");
            }
        }
    }

    #[test]
    fn quantized_rows_are_near_and_equal_on_all_variants(
        m in 1_usize..5, blocks in 1_usize..5, seed in 0_u64..1000, size in -40..40_i32,
    ) {
        let cols = 32 * blocks;
        let x: Vec<f32> = values(seed, m * cols).iter().map(|x| x * 2.0_f32.powi(size)).collect();
        for (precision, steps) in [(IntPrecision::Int8, 127.0), (IntPrecision::Int16, 32512.0)] {
            let decoded = decoded_rows(&quantized(&x, cols, precision, Variant::Scalar));
            for (x, found) in x.as_chunks::<32>().0.iter().zip(decoded.as_chunks::<32>().0) {
                let step = x.iter().fold(0.0_f32, |m, x| m.max(x.abs())) / steps;
                for (x, found) in x.iter().zip(found) {
                    prop_assert!((x - found).abs() <= 0.51 * step, "{precision:?}: {found} for {x}");
                }
            }
            for variant in Variant::available() {
                prop_assert_eq!(&decoded_rows(&quantized(&x, cols, precision, variant)), &decoded);
            }
        }
    }

    #[test]
    fn products_equal_the_oracle(
        m in 0_usize..41, panels in 1_usize..8, blocks in 1_usize..6, seed in 0_u64..1000, with_bias: bool,
    ) {
        let (rows, cols) = (16 * panels, 32 * blocks);
        let (x, bias) = (values(seed + 1, m * cols), values(seed + 2, rows));
        let bias = with_bias.then_some(bias.as_slice());
        for format in FORMATS {
            let packed = Packed::random(format, rows, cols, seed);
            let w = packed.decoded();
            for precision in PRECISIONS {
                for variant in Variant::available() {
                    let what = format!("{format:?} {precision:?} {variant:?}");
                    let x = quantized(&x, cols, precision, variant);
                    let mut out = vec![f32::NAN; m * rows];
                    let exec = Exec::serial(variant);
                    product(&exec, Input::Int(&x), m, packed.weights(), bias, &mut out).unwrap();
                    for (x, out) in decoded_rows(&x).chunks_exact(cols).zip(out.chunks_exact(rows)) {
                        check(out, x, &w, bias, &what);
                    }
                }
            }
        }
    }

    #[test]
    fn groups_take_scattered_rows(
        sizes in prop::collection::vec(prop_oneof![Just(0_usize), 1_usize..6, 6_usize..30], 1..6), seed in 0_u64..1000,
    ) {
        let (rows, cols, inputs) = (48, 96, 9_usize);
        let x = values(seed, inputs * cols);
        let slots: usize = sizes.iter().sum();
        for format in FORMATS {
            let experts: Vec<Packed> =
                (0..sizes.len()).map(|g| Packed::random(format, rows, cols, seed + g as u64)).collect();
            // Later groups write earlier rows, with one free row before each.
            let firsts: Vec<usize> = (0..sizes.len())
                .map(|g| sizes[g + 1..].iter().sum::<usize>() + sizes.len() - g)
                .collect();
            let taken: Vec<Vec<u32>> =
                sizes.iter().map(|&n| (0..n).map(|i| ((i * 7 + n) % inputs) as u32).collect()).collect();
            let group = |g: usize| Group {
                w: experts[g].weights(), bias: None, rows: RowMap::These(&taken[g]), first: firsts[g],
            };
            for precision in PRECISIONS {
                let ints = quantized(&x, cols, precision, Variant::active());
                let seen = decoded_rows(&ints);
                let mut out = vec![f32::NAN; (slots + sizes.len() + 1) * rows];
                grouped_product(&Exec::shared(), Input::Int(&ints), sizes.len(), group, &mut out).unwrap();
                let written = out.iter().filter(|out| !out.is_nan()).count();
                prop_assert_eq!(written, slots * rows);
                for g in 0..sizes.len() {
                    let w = experts[g].decoded();
                    for (i, &row) in taken[g].iter().enumerate() {
                        let x = &seen[row as usize * cols..][..cols];
                        check(&out[(firsts[g] + i) * rows..][..rows], x, &w, None, "scattered");
                    }
                }
            }
        }
    }
}

fn exec(threads: usize) -> Exec {
    let options = PoolOptions { threads: Some(threads), ..PoolOptions::default() };
    Exec::new(Variant::active(), Arc::new(Pool::new(options).unwrap()))
}

/// Neither the number of threads nor the rows beside it change an output; fused instruction sets agree.
#[test]
fn a_row_has_one_result() {
    let (rows, cols) = (16 * 37, 32 * 11);
    let x = values(7, 41 * cols);
    for format in FORMATS {
        let packed = Packed::random(format, rows, cols, 3);
        for precision in PRECISIONS {
            let run = |exec: &Exec, m: usize| {
                let ints = quantized(&x[..m * cols], cols, precision, exec.variant());
                let mut out = vec![0.0; m * rows];
                product(exec, Input::Int(&ints), m, packed.weights(), None, &mut out).unwrap();
                out
            };
            let expected = run(&exec(1), 41);
            assert!(expected.iter().all(|v| v.is_finite()) && expected.iter().any(|v| *v != 0.0));
            for threads in [2, 3, 7] {
                assert!(run(&exec(threads), 41) == expected, "{format:?} {precision:?}, {threads} threads");
            }
            for m in 1..41 {
                assert!(run(&exec(2), m) == expected[..m * rows], "{format:?} {precision:?}, {m} rows");
            }
            for variant in Variant::available().filter(|v| *v != Variant::Scalar) {
                assert!(run(&Exec::serial(variant), 41) == expected, "{format:?} {precision:?} {variant:?}");
            }
        }
    }
}

/// Codes and scales at their limits: the integer sums do not overflow, MXFP4 has all of its scales.
#[test]
fn extremes_are_exact() {
    let (rows, cols) = (16, 64);
    for variant in Variant::available() {
        for (format, code) in
            [(PackedFormat::Q8_0, 1_u8), (PackedFormat::Q8_0, 255), (PackedFormat::Mxfp4, 0xff)]
        {
            for (precision, sign) in PRECISIONS.into_iter().flat_map(|p| [(p, 1.0), (p, -1.0)]) {
                let (code_bytes, scale_bytes) = format.bytes(rows, cols);
                let scales = match format {
                    PackedFormat::Mxfp4 => {
                        (0..scale_bytes).map(|i| [0, 1, 2, 127, 200, 240][i % 6]).collect()
                    }
                    _ => f16::ONE.to_le_bytes().repeat(scale_bytes / 2),
                };
                let packed = Packed { format, codes: vec![code; code_bytes], scales, rows, cols };
                let x = vec![sign * 1e-3; cols];
                let ints = quantized(&x, cols, precision, variant);
                let mut out = vec![f32::NAN; rows];
                let exec = Exec::serial(variant);
                product(&exec, Input::Int(&ints), 1, packed.weights(), None, &mut out).unwrap();
                check(
                    &out,
                    &decoded_rows(&ints),
                    &packed.decoded(),
                    None,
                    &format!("{variant:?} {format:?}"),
                );
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    let packed = Packed::random(PackedFormat::Q8_0, 32, 64, 1);
    for (bad, variant) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY]
        .into_iter()
        .flat_map(|b| Variant::available().map(move |v| (b, v)))
    {
        for precision in PRECISIONS {
            let mut x = values(2, 3 * 64);
            x[64 + 40] = bad;
            let ints = quantized(&x, 64, precision, variant);
            let mut out = vec![0.0; 3 * 32];
            product(&Exec::serial(variant), Input::Int(&ints), 3, packed.weights(), None, &mut out).unwrap();
            let finite: Vec<bool> =
                out.chunks_exact(32).map(|row| row.iter().all(|v| v.is_finite())).collect();
            assert_eq!(finite, [true, false, true]);
            assert!(out[32..64].iter().all(|v| v.is_nan()));
        }
    }
    // Zeros and values without a finite inverse are zero.
    let ints = quantized(&[1e-40; 64], 64, IntPrecision::Int16, Variant::active());
    assert_eq!(decoded_rows(&ints), [0.0; 64]);
}

#[test]
fn bf16_weights_quantize_as_their_values() {
    let half: Vec<bf16> = values(5, 16 * 32).iter().map(|w| bf16::from_f32(*w)).collect();
    let full: Vec<f32> = half.iter().map(|w| w.to_f32()).collect();
    let (code_bytes, scale_bytes) = PackedFormat::Q6_0.bytes(16, 32);
    let (mut a, mut b) =
        ((vec![0; code_bytes], vec![0; scale_bytes]), (vec![1; code_bytes], vec![1; scale_bytes]));
    quantize(&Exec::shared(), PackedFormat::Q6_0, &half, 16, 32, &mut a.0, &mut a.1).unwrap();
    quantize(&Exec::shared(), PackedFormat::Q6_0, &full, 16, 32, &mut b.0, &mut b.1).unwrap();
    assert_eq!(a, b);
}

#[test]
fn sizes_that_do_not_fit_are_errors() {
    let packed = Packed::random(PackedFormat::Q8_0, 32, 64, 1);
    let x = values(2, 3 * 64);
    let ints = quantized(&x, 64, IntPrecision::Int8, Variant::active());
    let exec = Exec::shared();
    let run = |x: Input<'_>, groups: &[(RowMap<'_>, usize)], out: usize| -> String {
        let group =
            |g: usize| Group { w: packed.weights(), bias: None, rows: groups[g].0, first: groups[g].1 };
        let mut out = vec![0.0; out];
        grouped_product(&exec, x, groups.len(), group, &mut out)
            .map_or_else(|e| e.to_string(), |()| "ok".to_owned())
    };
    let int = Input::Int(&ints);
    let all = RowMap::All;
    assert_eq!(run(int, &[(all(3), 0)], 3 * 32), "ok");
    assert_eq!(run(Input::F32(&x), &[(all(3), 0)], 3 * 32), "ok");
    assert_eq!(run(int, &[], 0), "ok");
    let says = |message: String, part: &str| assert!(message.contains(part), "{message}");
    says(run(int, &[(all(4), 0)], 4 * 32), "input rows that a group takes = 4");
    says(run(int, &[(RowMap::These(&[3]), 0)], 32), "input rows that a group takes = 4");
    says(run(int, &[(all(2), 1)], 2 * 32), "first output row of a group = 1");
    says(run(int, &[(all(2), usize::MAX)], 2 * 32), "first output row of a group");
    says(run(int, &[(all(2), 0), (all(2), 1)], 3 * 32), "output rows of their own");
    says(run(int, &[(all(1), 1), (all(2), 0)], 3 * 32), "output rows of their own");
    says(run(int, &[(all(1), 0)], 33), "product output has 33");
    says(run(Input::F32(&x[1..]), &[(all(1), 0)], 32), "product input has 191");
    says(run(Input::Bf16(&[bf16::ONE; 64]), &[(all(1), 0)], 32), "input of a product");
    let short = quantized(&x[..32], 32, IntPrecision::Int8, Variant::active());
    says(run(Input::Int(&short), &[(all(1), 0)], 32), "columns of the product input has 32");
    let plain = Weights::F32(F32Matrix::new(&x, 3, 64).unwrap());
    let error = product(&exec, int, 1, plain, None, &mut [0.0; 3]).unwrap_err().to_string();
    says(error, "input of a product");
}
