//! Speed of the kernels beside the machine's copy bandwidth, one thread or `RAYON_NUM_THREADS`.
//!
//! `cargo bench -p bench-kernels --bench speed`

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Instant;

use bench_kernels::attention::{Attention, KvBlock, KvData, attention_with};
use bench_kernels::matmul::{Bf16Matrix, Mxfp4Matrix, Weights, matmul_with};
use bench_kernels::{Variant, mxfp4};
use half::bf16;

/// Shortest of several runs, in seconds: neighbours only ever add time.
fn best(mut run: impl FnMut()) -> f64 {
    let time = |run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..8).map(|_| time(&mut run)).fold(f64::INFINITY, f64::min)
}

fn main() {
    // 16 experts' worth of gpt-oss-20b rows: far larger than the caches.
    let (rows, cols) = (16 * 2880, 2880);
    let source: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919) % 1009) as f32 / 504.0 - 1.0).collect();
    let half: Vec<bf16> = source.iter().map(|&v| bf16::from_f32(v)).collect();
    let (mut codes, mut scales) = (vec![0; rows * cols / 2], vec![0; rows * cols / 32]);
    mxfp4::quantize(&source, &mut codes, &mut scales).unwrap();
    let mut copy = vec![0_u8; half.len() * 2];
    let bytes: &[u8] = bytemuck::cast_slice(&half);
    let copied =
        2.0 * bytes.len() as f64 / best(|| black_box(&mut copy).copy_from_slice(black_box(bytes))) / 1e9;
    println!("copy (read + write): {copied:.1} GB/s, {} threads", rayon::current_num_threads());

    for variant in Variant::available() {
        let weights = Weights::Bf16(Bf16Matrix::new(&half, rows, cols).unwrap());
        report(variant, "bf16", &weights, half.len() * 2, copied);
        let weights = Weights::Mxfp4(Mxfp4Matrix::new(&codes, &scales, rows, cols).unwrap());
        report(variant, "mxfp4", &weights, codes.len() + scales.len(), copied);
        attention_speed(variant);
    }
}

fn report(variant: Variant, name: &str, weights: &Weights<'_>, bytes: usize, copied: f64) {
    let (rows, cols) = (weights.rows(), weights.cols());
    let x = vec![0.5; 128 * cols];
    let mut out = vec![0.0; 128 * rows];
    let one = best(|| matmul_with(variant, &x[..cols], 1, weights, None, &mut out[..rows]).unwrap());
    let speed = bytes as f64 / one / 1e9;
    print!("{:7} {name:5} m=1: {speed:5.1} GB/s ({:3.0} % of copy)", variant.name(), 100.0 * speed / copied);
    for m in [8, 128] {
        let start = Instant::now();
        matmul_with(variant, &x[..m * cols], m, weights, None, &mut out[..m * rows]).unwrap();
        let rate = 2.0 * (m * rows * cols) as f64 / start.elapsed().as_secs_f64() / 1e9;
        print!("  m={m}: {rate:5.1} GFLOP/s");
    }
    println!();
}

fn attention_speed(variant: Variant) {
    let (heads, kv_heads, d, keys) = (64, 8, 64, 2048);
    let kv = vec![bf16::from_f32(0.1); keys * kv_heads * d];
    for queries in [1, 256] {
        let q = vec![0.1; queries * heads * d];
        let mut out = vec![0.0; q.len()];
        let first_query = keys - queries;
        let args =
            Attention { heads, kv_heads, head_dim: d, scale: 0.125, window: None, sinks: None, first_query };
        let data = KvData::Bf16(&kv);
        let block =
            KvBlock { k: data, v: data, first_position: 0, len: keys, head_stride: keys * d, row_stride: d };
        let seconds = best(|| attention_with(variant, &args, &q, &[block], &mut out, None).unwrap());
        let rate = 4.0 * (queries * heads * d * keys) as f64 / seconds / 1e9;
        println!(
            "{:7} attention, {queries} queries on {keys} keys: {:.2} ms, {rate:.1} GFLOP/s",
            variant.name(),
            seconds * 1e3
        );
    }
}
