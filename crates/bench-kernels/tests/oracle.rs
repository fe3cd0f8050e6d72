//! Every CPU variant of the kernels against plain loops in f64, on random shapes.

#![allow(clippy::unwrap_used)]

use bench_kernels::attention::{Attention, KvBlock, KvData, attention_with};
use bench_kernels::matmul::{Bf16Matrix, F32Matrix, Mxfp4Matrix, Weights, matmul_with};
use bench_kernels::{Variant, mxfp4};
use half::bf16;
use proptest::prelude::*;

/// Values in −1..1 from a seed (xorshift), so that a failing case is small to print.
fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

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
        matmul_with(variant, &x, m, weights, bias, &mut out).unwrap();
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

    #[test]
    fn attention_equals_the_oracle(
        queries in 1_usize..80, past in 0_usize..150, group in 1_usize..9, kv_heads in 1_usize..3,
        half_dim in 1_usize..40, window in prop::option::of(1_usize..90), with_sinks: bool, seed in 0_u64..1000,
    ) {
        check_attention(&Shape { queries, past, group, kv_heads, d: 2 * half_dim, window, with_sinks }, seed);
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
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut out = vec![0.0; m * rows];
        pool.install(|| matmul_with(Variant::active(), &x, m, &weights, None, &mut out)).unwrap();
        out
    };
    let one = run(1);
    assert!(one.iter().any(|v| *v != 0.0));
    for threads in [2, 3, 7] {
        assert_eq!(run(threads), one);
    }
}

#[derive(Debug)]
struct Shape {
    queries: usize,
    past: usize,
    group: usize,
    kv_heads: usize,
    d: usize,
    window: Option<usize>,
    with_sinks: bool,
}

fn check_attention(shape: &Shape, seed: u64) {
    let Shape { queries, past, group, kv_heads, d, window, with_sinks } = *shape;
    let (heads, keys) = (group * kv_heads, past + queries);
    let q = values(seed, queries * heads * d);
    let k: Vec<f32> =
        values(seed + 1, keys * kv_heads * d).iter().map(|v| bf16::from_f32(v * 3.0).to_f32()).collect();
    let v: Vec<f32> =
        values(seed + 2, keys * kv_heads * d).iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
    let sinks = values(seed + 3, heads);
    let sinks = with_sinks.then_some(sinks.as_slice());
    let args = Attention { heads, kv_heads, head_dim: d, scale: 0.3, window, sinks, first_query: past };

    let (expected, expected_probs) = attention_oracle(&args, &q, &k, &v, queries);
    // The past in bf16, head by head; the new keys in f32, token by token.
    let by_head = |x: &[f32]| -> Vec<bf16> {
        let at = |h: usize, p: usize| &x[(p * kv_heads + h) * d..][..d];
        (0..kv_heads)
            .flat_map(|h| (0..past).flat_map(move |p| at(h, p).iter().map(|&v| bf16::from_f32(v))))
            .collect()
    };
    let (past_k, past_v) = (by_head(&k), by_head(&v));
    let new = past * kv_heads * d;
    let blocks = [
        KvBlock {
            k: KvData::Bf16(&past_k),
            v: KvData::Bf16(&past_v),
            first_position: 0,
            len: past,
            head_stride: past * d,
            row_stride: d,
        },
        KvBlock {
            k: KvData::F32(&k[new..]),
            v: KvData::F32(&v[new..]),
            first_position: past,
            len: queries,
            head_stride: d,
            row_stride: kv_heads * d,
        },
    ];
    for variant in Variant::available() {
        let mut out = vec![f32::NAN; q.len()];
        let mut probs = vec![f32::NAN; expected_probs.len()];
        attention_with(variant, &args, &q, &blocks, &mut out, Some(&mut probs)).unwrap();
        for (found, expected) in out.iter().zip(&expected).chain(probs.iter().zip(&expected_probs)) {
            assert!(
                (f64::from(*found) - expected).abs() < 3e-6,
                "{variant:?} {shape:?}: {found} for {expected}"
            );
        }
    }
}

fn attention_oracle(
    args: &Attention<'_>,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    queries: usize,
) -> (Vec<f64>, Vec<f64>) {
    let Attention { heads, kv_heads, head_dim: d, scale, window, sinks, first_query: past } = *args;
    let columns = past + queries + usize::from(sinks.is_some());
    let (mut out, mut probs) = (vec![0.0; queries * heads * d], vec![0.0; heads * queries * columns]);
    for (i, h) in (0..queries).flat_map(|i| (0..heads).map(move |h| (i, h))) {
        let position = past + i;
        let row = |x: &'_ [f32], j: usize| -> Vec<f64> {
            x[(j * kv_heads + h / (heads / kv_heads)) * d..][..d].iter().map(|&v| f64::from(v)).collect()
        };
        let q = &q[(i * heads + h) * d..][..d];
        let visible: Vec<usize> =
            (0..=position).filter(|j| window.is_none_or(|w| position - j < w)).collect();
        let score =
            |j: usize| -> f64 { row(k, j).iter().zip(q).map(|(k, q)| k * f64::from(*q)).sum::<f64>() };
        let mut weights: Vec<f64> = visible.iter().map(|&j| (f64::from(scale) * score(j)).exp()).collect();
        let sink = sinks.map_or(0.0, |s| f64::from(s[h]).exp());
        let total = weights.iter().sum::<f64>() + sink;
        for weight in &mut weights {
            *weight /= total;
        }
        let probs = &mut probs[(h * queries + i) * columns..][..columns];
        for (&j, weight) in visible.iter().zip(&weights) {
            probs[j] = *weight;
            for (out, v) in out[(i * heads + h) * d..][..d].iter_mut().zip(row(v, j)) {
                *out += weight * v;
            }
        }
        if sinks.is_some() {
            probs[columns - 1] = sink / total;
        }
    }
    (out, probs)
}
