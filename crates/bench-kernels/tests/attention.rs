//! Attention on every CPU variant and in every layout of the cache against plain loops in f64.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use bench_kernels::attention::{
    Attention, AttentionScratch, KvBlock, KvDtype, KvPage, Products, Qkv, Span, attention, probabilities,
};
use bench_kernels::pool::{Pool, PoolOptions};
use bench_kernels::{Exec, Variant};
use half::bf16;
use proptest::prelude::*;

use common::values;

/// Heads and their width.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::struct_field_names)]
struct Heads {
    group: usize,
    kv_heads: usize,
    d: usize,
}

#[derive(Debug, Clone, Copy)]
struct Sequence {
    queries: usize,
    past: usize,
    /// The past stands in a ring of its length that begins at this row, or in pages of this many rows.
    cut: usize,
    ring: bool,
}

#[derive(Debug)]
struct Case {
    heads: Heads,
    sequences: Vec<Sequence>,
    dtype: KvDtype,
    window: Option<usize>,
    with_sinks: bool,
    products: Products,
    seed: u64,
}

/// Pages with the past of a sequence, and (page, first row, first position, length) of blocks.
fn fill(case: &Case, s: &Sequence, k: &[f32], v: &[f32]) -> (Vec<KvPage>, Vec<[usize; 4]>) {
    let Heads { kv_heads, d, .. } = case.heads;
    let (width, new) = (kv_heads * d, |rows| KvPage::new(case.dtype, kv_heads, d, rows).unwrap());
    let (mut pages, mut blocks) = (Vec::new(), Vec::new());
    let row = |x: &'_ [f32], p: usize| x[p * width..(p + 1) * width].to_vec();
    if s.ring {
        let (mut page, cut) = (new(s.past), s.cut % s.past.max(1));
        for p in 0..s.past {
            page.write((p + cut) % s.past, &row(k, p), &row(v, p));
        }
        pages.push(page);
        blocks.extend([[0, cut, 0, s.past - cut], [0, 0, s.past - cut, cut]]);
    } else {
        for first in (0..s.past).step_by(s.cut) {
            let rows = s.cut.min(s.past - first);
            let mut page = new(s.cut);
            (0..rows).for_each(|i| page.write(i, &row(k, first + i), &row(v, first + i)));
            blocks.push([pages.len(), 0, first, rows]);
            pages.push(page);
        }
    }
    (pages, blocks)
}

/// Overwrites the past with what the pages hold.
fn read_back(heads: Heads, pages: &[KvPage], blocks: &[[usize; 4]], k: &mut [f32], v: &mut [f32]) {
    for &[page, row, position, len] in blocks {
        for (i, head) in (0..len).flat_map(|i| (0..heads.kv_heads).map(move |h| (i, h))) {
            let at = ((position + i) * heads.kv_heads + head) * heads.d;
            pages[page].read(head, row + i, |e, key, value| (k[at + e], v[at + e]) = (key, value));
        }
    }
}

/// How far results may be from the oracle. Products of 16 bits round probabilities, and a `Q8_0` cache that is
/// unpacked for many queries; all else that they round is given as they would have it.
fn tolerance(case: &Case, variant: Variant) -> f64 {
    let rounds =
        case.products != Products::F32 && variant == Variant::Avx512 && case.heads.d.is_multiple_of(32);
    let many = case.sequences.iter().any(|s| s.queries * case.heads.group > 16);
    match case.dtype {
        _ if !rounds => 4e-6,
        KvDtype::Q8_0 if case.products == Products::Bits8 => 2.5e-2,
        KvDtype::Q8_0 if many => 8e-3,
        _ => 3e-3,
    }
}

fn round(values: &mut [f32]) {
    for v in values {
        *v = bf16::from_f32(*v).to_f32();
    }
}

fn check(case: &Case) {
    let Heads { group, kv_heads, d } = case.heads;
    let (heads, width) = (group * kv_heads, kv_heads * d);
    let sinks = values(case.seed + 3, heads);
    let args = Attention {
        heads,
        kv_heads,
        head_dim: d,
        scale: 1.5 / (d as f32).sqrt(),
        window: case.window,
        sinks: case.with_sinks.then_some(sinks.as_slice()),
        products: case.products,
    };
    // A row before each span belongs to nobody.
    let (mut q, mut new_k, mut new_v, mut spans) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut filled, mut expected) = (Vec::new(), Vec::new());
    for (i, s) in case.sequences.iter().enumerate() {
        let (seed, keys) = (case.seed + 10 * i as u64, s.past + s.queries);
        let mut own = values(seed, (1 + s.queries) * heads * d);
        let mut k: Vec<f32> = values(seed + 1, keys * width).iter().map(|v| v * 3.0).collect();
        let mut v = values(seed + 2, keys * width);
        if case.products != Products::F32 {
            for values in [&mut own, &mut k, &mut v] {
                round(values);
            }
        }
        let (pages, blocks) = fill(case, s, &k, &v);
        read_back(case.heads, &pages, &blocks, &mut k, &mut v);
        expected.push(oracle(&args, &own[heads * d..], &k, &v, s.past));
        spans.push(Span { sequence: i, start: q.len() / (heads * d) + 1, len: s.queries, past: s.past });
        q.extend(own);
        new_k.extend(vec![f32::NAN; width].into_iter().chain(k[s.past * width..].iter().copied()));
        new_v.extend(vec![f32::NAN; width].into_iter().chain(v[s.past * width..].iter().copied()));
        filled.push((pages, blocks));
    }
    let block = |pages: &'_ [KvPage], b: &[usize; 4]| -> [usize; 4] {
        assert!(b[1] + b[3] <= pages[b[0]].rows());
        *b
    };
    let caches: Vec<Vec<KvBlock<'_>>> = filled
        .iter()
        .map(|(pages, blocks)| {
            let blocks = blocks.iter().map(|b| block(pages, b));
            let new = |[page, first_row, first_position, len]: [usize; 4]| KvBlock {
                page: &pages[page],
                first_row,
                first_position,
                len,
            };
            blocks.map(new).collect()
        })
        .collect();
    let rows = Qkv { q: &q, k: &new_k, v: &new_v };
    let mut scratch = AttentionScratch::default();
    for variant in Variant::available() {
        let exec = Exec::serial(variant);
        let mut out = vec![f32::NAN; q.len()];
        attention(&exec, &args, &rows, &spans, &caches, &mut out, &mut scratch).unwrap();
        let close = |found: &[f32], expected: &[f64], tolerance: f64| {
            assert_eq!(found.len(), expected.len());
            for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
                let off = (f64::from(*found) - expected).abs();
                assert!(off <= tolerance, "{variant:?} {case:?}: {found} for {expected} at {at}");
            }
        };
        for (span, (expected, expected_probs)) in spans.iter().zip(&expected) {
            let at = span.start * heads * d;
            close(&out[at..at + span.len * heads * d], expected, tolerance(case, variant));
            assert!(out[at - heads * d..at].iter().all(|v| v.is_nan()), "rows of no span are left alone");
            let mut probs = vec![f32::NAN; expected_probs.len()];
            probabilities(&exec, &args, &rows, span, &caches, &mut probs).unwrap();
            close(&probs, expected_probs, 4e-6);
        }
    }
}

/// Outputs `[queries, heads, d]` and probabilities `[heads, queries, keys (+ 1)]`.
fn oracle(args: &Attention<'_>, q: &[f32], k: &[f32], v: &[f32], past: usize) -> (Vec<f64>, Vec<f64>) {
    let Attention { heads, kv_heads, head_dim: d, scale, window, sinks, .. } = *args;
    let queries = q.len() / (heads * d);
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

/// A dtype, and a width that it allows.
fn layout() -> impl Strategy<Value = (KvDtype, usize)> {
    prop_oneof![
        (Just(KvDtype::F32), 1_usize..140),
        (Just(KvDtype::Bf16), (1_usize..70).prop_map(|half| 2 * half)),
        (Just(KvDtype::Bf16), (1_usize..5).prop_map(|n| 32 * n)),
        (Just(KvDtype::Q8_0), (1_usize..5).prop_map(|n| 32 * n)),
    ]
}

fn products() -> impl Strategy<Value = Products> {
    prop_oneof![Just(Products::F32), Just(Products::Bits16), Just(Products::Bits8)]
}

fn sequence(queries: usize, past: usize) -> impl Strategy<Value = Sequence> {
    (1..=queries, 0..=past, 1_usize..400, any::<bool>()).prop_map(|(queries, past, cut, ring)| Sequence {
        queries,
        past,
        cut,
        ring,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn prompts_equal_the_oracle(
        (dtype, d) in layout(), sequences in prop::collection::vec(sequence(80, 150), 1..3),
        group in 1_usize..10, kv_heads in 1_usize..3, window in prop::option::of(1_usize..90),
        with_sinks: bool, products in products(), seed in 0_u64..1000,
    ) {
        check(&Case { heads: Heads { group, kv_heads, d }, sequences, dtype, window, with_sinks, products, seed });
    }

    #[test]
    fn long_contexts_equal_the_oracle(
        (dtype, d) in layout(), sequences in prop::collection::vec(sequence(3, 1500), 1..4),
        group in 1_usize..10, kv_heads in 1_usize..3, window in prop::option::of(1_usize..1200),
        with_sinks: bool, products in products(), seed in 0_u64..1000,
    ) {
        check(&Case { heads: Heads { group, kv_heads, d }, sequences, dtype, window, with_sinks, products, seed });
    }
}

/// The shapes of gpt-oss and of dense models, past several splits.
#[test]
fn the_shapes_of_models_equal_the_oracle() {
    for (dtype, rounded) in [
        (KvDtype::F32, Products::F32),
        (KvDtype::Bf16, Products::Bits16),
        (KvDtype::Q8_0, Products::Bits16),
        (KvDtype::Q8_0, Products::Bits8),
    ] {
        for (group, d, window) in [(8, 64, None), (8, 64, Some(128)), (5, 128, None), (8, 128, None)] {
            let one = Sequence { queries: 1, past: 1301, cut: 1400, ring: false };
            let ring = Sequence { queries: 1, past: 128, cut: 37, ring: true };
            let prompt = Sequence { queries: 37, past: 70, cut: 256, ring: false };
            let sequences = vec![one, ring, prompt];
            check(&Case {
                heads: Heads { group, kv_heads: 2, d },
                sequences,
                dtype,
                window,
                with_sinks: true,
                products: if d == 64 { rounded } else { Products::F32 },
                seed: 7,
            });
        }
    }
}

/// Results do not depend on how many threads share the work, in splits and without.
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (heads, kv_heads, d, past) = (16, 2, 64, 3000);
    let (k, v) = (values(1, past * kv_heads * d), values(2, past * kv_heads * d));
    for (dtype, products) in [
        (KvDtype::Bf16, Products::F32),
        (KvDtype::Bf16, Products::Bits16),
        (KvDtype::Q8_0, Products::F32),
        (KvDtype::Q8_0, Products::Bits16),
        (KvDtype::Q8_0, Products::Bits8),
    ] {
        let mut page = KvPage::new(dtype, kv_heads, d, past).unwrap();
        for (row, (k, v)) in k.chunks(kv_heads * d).zip(v.chunks(kv_heads * d)).enumerate() {
            page.write(row, k, v);
        }
        let caches = vec![vec![KvBlock { page: &page, first_row: 0, first_position: 0, len: past }]];
        let args =
            Attention { heads, kv_heads, head_dim: d, scale: 0.125, window: None, sinks: None, products };
        for queries in [1, 50] {
            let q = values(3, queries * heads * d);
            let (k, v) = (values(4, queries * kv_heads * d), values(5, queries * kv_heads * d));
            let spans = [Span { sequence: 0, start: 0, len: queries, past }];
            let run = |threads| {
                let options = PoolOptions { threads: Some(threads), ..PoolOptions::default() };
                let exec = Exec::new(Variant::active(), Arc::new(Pool::new(options).unwrap()));
                let (mut out, mut scratch) = (vec![0.0; q.len()], AttentionScratch::default());
                let rows = Qkv { q: &q, k: &k, v: &v };
                // Twice, so that what is kept from a call does not show in the next.
                for _ in 0..2 {
                    out.fill(f32::NAN);
                    attention(&exec, &args, &rows, &spans, &caches, &mut out, &mut scratch).unwrap();
                }
                out
            };
            let one = run(1);
            assert!(one.iter().all(|v| v.is_finite() && *v != 0.0));
            for threads in [2, 3, 7] {
                assert_eq!(run(threads), one);
            }
        }
    }
}
