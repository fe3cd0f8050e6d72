//! Products of dense and of exact packed weights beside the bounds of the machine, measured in the same process.
//!
//! `cargo bench -p bench-kernels --bench dense [-- NAME]`; `THREADS` sets the number of threads. Best of several
//! repeats: neighbours only ever add time.

#![allow(unsafe_code, clippy::print_stdout, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use bench_kernels::matmul::{Bf16Matrix, Weights, to_bf16};
use bench_kernels::packed::{PackedFormat, PackedMatrix};
use bench_kernels::pool::{Pool, PoolOptions};
use bench_kernels::product::{Input, product};
use bench_kernels::{Exec, Variant};
use half::bf16;
use rustix::time::{ClockId, clock_gettime};

/// Shortest of several runs, in seconds of CPU time divided by the number of threads: what else runs on the machine
/// takes part of the caches and of the bandwidth, but not of the time.
fn best(exec: &Exec, run: &mut dyn FnMut()) -> f64 {
    let cpu = || {
        let now = clock_gettime(ClockId::ProcessCPUTime);
        now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
    };
    let (begin, mut shortest) = (Instant::now(), f64::INFINITY);
    for i in 0.. {
        let start = cpu();
        run();
        shortest = shortest.min((cpu() - start) / exec.threads() as f64);
        if i >= 2 && begin.elapsed().as_secs_f64() > 0.4 {
            break;
        }
    }
    shortest
}

/// What the machine can do at most, with all threads: GB/s, GFLOP/s.
struct Bounds {
    read: f64,
    f32: f64,
    bf16: f64,
}

/// Sums bytes of memory far larger than the caches, as a product with one input reads its weights.
fn read_gb_s(exec: &Exec, memory: &[u64]) -> f64 {
    const TASK: usize = 96 * 1024 / 8;
    let seconds = best(exec, &mut || {
        exec.run(memory.len() / TASK, |i| {
            let words = &memory[i * TASK..][..TASK];
            black_box(sum(words));
        });
    });
    memory.len() as f64 * 8.0 / seconds / 1e9
}

fn sum(words: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if Variant::active() == Variant::Avx512 {
        // SAFETY: the variant was asked for.
        return unsafe { x86::sum(words) };
    }
    words.iter().fold(0, |sum, word| sum.wrapping_add(*word))
}

/// Operations a second of a loop that stays in registers.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
fn peak(exec: &Exec, run: fn(usize) -> f64) -> f64 {
    const STEPS: usize = 200_000;
    let operations = std::sync::Mutex::new(0.0);
    let seconds = best(exec, &mut || {
        *operations.lock().unwrap() = 0.0;
        exec.run(exec.threads() * 4, |_| {
            let done = run(STEPS);
            *operations.lock().unwrap() += done;
        });
    });
    *operations.lock().unwrap() / seconds / 1e9
}

fn bounds(exec: &Exec, memory: &[u64]) -> Bounds {
    let read = read_gb_s(exec, memory);
    #[cfg(target_arch = "x86_64")]
    if Variant::active() == Variant::Avx512 {
        let flops = peak(exec, |n| {
            // SAFETY: the variant was asked for.
            unsafe { x86::fma(n) }
        });
        let pairs = if Variant::active().has_bf16() {
            peak(exec, |n| {
                // SAFETY: as above.
                unsafe { x86::dot_bf16(n) }
            })
        } else {
            f64::NAN
        };
        return Bounds { read, f32: flops, bf16: pairs };
    }
    Bounds { read, f32: f64::NAN, bf16: f64::NAN }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    // The names carry their origin.
    #[allow(clippy::wildcard_imports)]
    use std::arch::x86_64::*;
    use std::hint::black_box;

    #[target_feature(enable = "avx512f")]
    pub(super) fn sum(words: &[u64]) -> u64 {
        let mut sums = [_mm512_setzero_si512(); 4];
        for line in words.as_chunks::<32>().0 {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: 8 words from 8 · i of 32; a hint may point anywhere.
                unsafe {
                    let at = line.as_ptr().add(8 * i);
                    _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(4096));
                    *sum = _mm512_add_epi64(*sum, _mm512_loadu_si512(at.cast()));
                }
            }
        }
        sums.iter().fold(0, |all, sum| all ^ _mm512_reduce_add_epi64(*sum) as u64)
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn fma(steps: usize) -> f64 {
        let factor = black_box(_mm512_set1_ps(0.5));
        let mut sums = [factor; 12];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
        (steps * 12 * 32) as f64
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn dot_bf16(steps: usize) -> f64 {
        // SAFETY: every pattern of 512 bits is valid.
        let factor: __m512bh = unsafe { std::mem::transmute(black_box(_mm512_set1_epi32(0x3e80_3e80))) };
        let mut sums = [black_box(_mm512_set1_ps(0.5)); 12];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
        (steps * 12 * 64) as f64
    }
}

fn main() {
    let threads = std::env::var("THREADS").ok().and_then(|n| n.parse().ok());
    let pool = Pool::new(PoolOptions { threads, pin: false }).unwrap();
    let exec = Exec::new(Variant::active(), Arc::new(pool));
    let filter = std::env::args().nth(1).filter(|a| !a.starts_with("--")).unwrap_or_default();
    let memory: Vec<u64> = (0..(192 << 20) / 8).collect();
    let bounds = bounds(&exec, &memory);
    println!(
        "{}, {} threads: read {:.1} GB/s, f32 {:.0} GFLOP/s, bf16 {:.0} GFLOP/s",
        exec.variant().name(),
        exec.threads(),
        bounds.read,
        bounds.f32,
        bounds.bf16
    );
    let x: Vec<f32> = (0..512 * 4096).map(|i| ((i * 7919) % 1009) as f32 / 504.0 - 1.0).collect();
    let mut half = vec![bf16::ZERO; x.len()];
    to_bf16(&exec, &x, &mut half).unwrap();
    for (name, rows, cols) in [("qkv", 5120, 2880), ("out", 2880, 4096), ("unembed", 20_096, 2880)] {
        if ![format!("{name} bf16 f32"), format!("{name} bf16 bf16")].iter().any(|n| n.contains(&filter)) {
            continue;
        }
        let w: Vec<bf16> = (0..rows * cols).map(|i| half[(i * 31) % half.len()]).collect();
        let weights = Weights::Bf16(Bf16Matrix::new(&w, rows, cols).unwrap());
        if format!("{name} bf16 f32").contains(&filter) {
            let input = |m: usize| Input::F32(&x[..m * cols]);
            report(&exec, &format!("{name} bf16 × f32"), weights, w.len() * 2, input, &bounds, &memory);
        }
        if format!("{name} bf16 bf16").contains(&filter) {
            let input = |m: usize| Input::Bf16(&half[..m * cols]);
            report(&exec, &format!("{name} bf16 × bf16"), weights, w.len() * 2, input, &bounds, &memory);
        }
    }
    for (name, format) in
        [("mxfp4", PackedFormat::Mxfp4), ("q8_0", PackedFormat::Q8_0), ("q6_0", PackedFormat::Q6_0)]
    {
        if !name.contains(&filter) {
            continue;
        }
        let (rows, cols) = (4 * 5760, 2880);
        let (codes, scales) = format.bytes(rows, cols);
        let codes: Vec<u8> = (0..codes).map(|i| (i * 2_654_435_761) as u8).collect();
        let scales: Vec<u8> = (0..scales).map(|i| [120, 0x2c][i % 2]).collect();
        let matrix = PackedMatrix::new(format, &codes, &scales, rows, cols).unwrap();
        let bytes = codes.len() + scales.len();
        let input = |m: usize| Input::F32(&x[..m * cols]);
        report(&exec, &format!("{name} × f32"), Weights::Packed(matrix), bytes, input, &bounds, &memory);
    }
}

fn report<'a>(
    exec: &Exec,
    name: &str,
    weights: Weights<'_>,
    bytes: usize,
    input: impl Fn(usize) -> Input<'a>,
    bounds: &Bounds,
    memory: &[u64],
) {
    let (rows, cols) = (weights.rows(), weights.cols());
    let mut out = vec![0.0; 512 * rows];
    let mut run = |m: usize| {
        let out = &mut out[..m * rows];
        best(exec, &mut || product(exec, black_box(input(m)), m, weights, None, black_box(out)).unwrap())
    };
    // The bandwidth drifts with the neighbours: beside each figure, twice.
    let (mut speed, mut limit) = (0.0_f64, 0.0_f64);
    for _ in 0..2 {
        limit = limit.max(read_gb_s(exec, memory));
        speed = speed.max(bytes as f64 / run(1) / 1e9);
    }
    print!("{name:18} m=1 {speed:5.1} GB/s ({:3.0} %)", 100.0 * speed / limit);
    let peak = if matches!(input(1), Input::Bf16(_)) { bounds.bf16 } else { bounds.f32 };
    for m in [4, 16, 64, 256, 512] {
        if m > 64 && rows > 10_000 {
            continue;
        }
        let rate = 2.0 * (m * rows * cols) as f64 / run(m) / 1e9;
        print!("  m={m} {rate:5.0} ({:2.0} %)", 100.0 * rate / peak);
    }
    println!(" GFLOP/s");
}
