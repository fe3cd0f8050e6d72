//! Attention at the shapes of gpt-oss-20b and of a dense model: decode beside the read bandwidth, prefill beside the
//! peak of f32, both measured in the same process.
//!
//! `cargo bench -p bench-kernels --bench attention -- [threads | core]`

#![allow(clippy::print_stdout, clippy::unwrap_used, unsafe_code)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use bench_kernels::attention::{
    Attention, AttentionScratch, KvBlock, KvDtype, KvPage, Products, Qkv, Span, attention,
};
use bench_kernels::pool::{Pool, PoolOptions};
use bench_kernels::{Exec, Variant, bandwidth};

/// Heads of a model.
struct Model {
    name: &'static str,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

const MODELS: [Model; 2] = [
    Model { name: "gpt-oss-20b", heads: 64, kv_heads: 8, head_dim: 64 },
    Model { name: "qwen3-14b", heads: 40, kv_heads: 8, head_dim: 128 },
];

/// Caches that one after the other do not fit into the processor's.
const CACHES_BYTES: usize = 512 << 20;

fn best(repeats: usize, mut run: impl FnMut(usize)) -> f64 {
    let time = |i: usize, run: &mut dyn FnMut(usize)| {
        let start = Instant::now();
        run(i);
        start.elapsed().as_secs_f64()
    };
    (0..repeats).map(|i| time(i, &mut run)).fold(f64::INFINITY, f64::min)
}

fn main() {
    if std::env::args().any(|a| a == "core") {
        return core();
    }
    let threads = std::env::args().find_map(|a| a.parse().ok()).unwrap_or(2);
    let pool = Pool::new(PoolOptions { threads: Some(threads), ..PoolOptions::default() }).unwrap();
    let exec = Exec::new(Variant::active(), Arc::new(pool));
    let read = || *bandwidth::measure(threads, 256 << 20, 10).unwrap().read_bytes_s.last().unwrap() / 1e9;
    let (bandwidth, peak) = (read(), peak(&exec));
    println!(
        "{} threads, {}: read {bandwidth:.1} GB/s, f32 peak {peak:.0} GFLOP/s",
        threads,
        exec.variant().name()
    );
    for model in &MODELS {
        for path in PATHS {
            let name = format!("{:12} {:5} {:6}", model.name, path.0.name(), format!("{:?}", path.1));
            for past in [128, 2048, 8192, 32_768] {
                let (seconds, bytes) = run(&exec, model, path, 1, past);
                let rate = bytes as f64 / seconds / 1e9;
                let of_read = rate / bandwidth;
                println!(
                    "{name} decode, {past:6} keys: {:8.3} ms, {rate:5.1} GB/s, {of_read:4.2} of read",
                    seconds * 1e3
                );
            }
            for past in [0, 3584] {
                let (seconds, _) = run(&exec, model, path, 512, past);
                // What a causal mask leaves.
                let pairs = (1..=512).map(|i| past + i).sum::<usize>();
                let rate = 4.0 * (model.heads * model.head_dim * pairs) as f64 / seconds / 1e9;
                println!(
                    "{name} prefill, 512 on {:4} keys: {:6.1} ms, {rate:5.0} GFLOP/s, {:4.2} of f32 peak",
                    past + 512,
                    seconds * 1e3,
                    rate / peak
                );
            }
        }
    }
    println!("read bandwidth at the end: {:.1} GB/s", read());
}

/// Caches and what is multiplied with them.
const PATHS: [(KvDtype, Products); 6] = [
    (KvDtype::Bf16, Products::F32),
    (KvDtype::Bf16, Products::Bits16),
    (KvDtype::Q8_0, Products::F32),
    (KvDtype::Q8_0, Products::Bits16),
    (KvDtype::Q8_0, Products::Bits8),
    (KvDtype::F32, Products::F32),
];

/// One core on one KV head out of its own cache: arithmetic alone, in runs of milliseconds, which neighbours spare
/// more often than long ones.
fn core() {
    let exec = Exec::serial(Variant::active());
    for model in &MODELS {
        let model = Model { name: model.name, heads: model.heads / 8, kv_heads: 1, head_dim: model.head_dim };
        for (path, (queries, past)) in
            PATHS.into_iter().flat_map(|path| [(1, 512), (1, 2048), (64, 2048)].map(|shape| (path, shape)))
        {
            let (mut seconds, mut peak) = (f64::INFINITY, 0.0);
            for _ in 0..4 {
                seconds = run(&exec, &model, path, queries, past).0.min(seconds);
                peak = self::peak(&exec).max(peak);
            }
            let pairs = (1..=queries).map(|i| past + i).sum::<usize>();
            let rate = 4.0 * (model.heads * model.head_dim * pairs) as f64 / seconds / 1e9;
            println!(
                "{:12} {:5} {:6} {queries:2} on {past:4} keys: {:7.3} ms, {rate:5.1} GFLOP/s, {:4.2} of the f32 peak {peak:.0}",
                model.name,
                path.0.name(),
                format!("{:?}", path.1),
                seconds * 1e3,
                rate / peak
            );
        }
    }
}

/// Seconds of one call, and bytes of keys and values that it reads from the cache.
fn run(
    exec: &Exec,
    model: &Model,
    (dtype, products): (KvDtype, Products),
    queries: usize,
    past: usize,
) -> (f64, usize) {
    let Model { heads, kv_heads, head_dim, .. } = *model;
    let width = kv_heads * head_dim;
    let row: Vec<f32> = (0..width).map(|i| ((i * 7919) % 1009) as f32 / 504.0 - 1.0).collect();
    let one = 2 * past * kv_heads * dtype.row_bytes(head_dim);
    let copies = if queries == 1 && kv_heads > 1 { (CACHES_BYTES / one).clamp(1, 2000) } else { 1 };
    let pages: Vec<KvPage> = (0..copies)
        .map(|_| {
            let mut page = KvPage::new(dtype, kv_heads, head_dim, past).unwrap();
            (0..past).for_each(|i| page.write(i, &row, &row));
            page
        })
        .collect();
    let block = |page| vec![KvBlock { page, first_row: 0, first_position: 0, len: past }];
    let caches: Vec<Vec<KvBlock<'_>>> = pages.iter().map(block).collect();
    let q: Vec<f32> =
        (0..queries * heads * head_dim).map(|i| ((i * 104_729) % 127) as f32 / 64.0 - 1.0).collect();
    let k = vec![0.1; queries * width];
    let rows = Qkv { q: &q, k: &k, v: &k };
    let scale = 1.0 / (head_dim as f32).sqrt();
    let args = Attention { heads, kv_heads, head_dim, scale, window: None, sinks: None, products };
    let (mut out, mut scratch) = (vec![0.0; q.len()], AttentionScratch::default());
    let repeats = match (queries, kv_heads) {
        (1, 1) => 2000,
        (1, _) => copies.clamp(24, 200),
        (64, _) => 24,
        _ => 5,
    };
    let seconds = best(repeats, |i| {
        let spans = [Span { sequence: i % copies, start: 0, len: queries, past }];
        attention(exec, &args, &rows, &spans, &caches, &mut out, &mut scratch).unwrap();
        black_box(&mut out);
    });
    (seconds, one)
}

/// Additions and multiplications per second of fused operations on registers, all threads together.
fn peak(exec: &Exec) -> f64 {
    const STEPS: usize = 1 << 16;
    let seconds = best(20, |_| {
        exec.run(exec.threads(), |_| {
            #[cfg(target_arch = "x86_64")]
            if exec.variant() == Variant::Avx512 {
                // SAFETY: the variant is only chosen where its instructions are.
                return unsafe { avx512(STEPS) };
            }
            black_box(portable(STEPS));
        });
    });
    2.0 * (16 * 16 * STEPS * exec.threads()) as f64 / seconds / 1e9
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(steps: usize) {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_set1_ps};
    let (a, b) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
    let mut sums = [_mm512_set1_ps(0.0); 16];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(a, *sum, b);
        }
    }
    black_box(sums);
}

fn portable(steps: usize) -> [f32; 256] {
    let mut sums = [0.0_f32; 256];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = *sum * 0.5 + 0.25;
        }
    }
    sums
}
