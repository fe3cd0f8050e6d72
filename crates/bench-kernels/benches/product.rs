//! Products with packed weights at gpt-oss-20b shapes, beside what the machine can do at most, on all cores or
//! `RAYON_NUM_THREADS`.
//!
//! `cargo bench -p bench-kernels --bench product -- [stream] [part of a name …]`; `stream`: nothing but few rows

#![allow(clippy::print_stdout, clippy::unwrap_used, unsafe_code)]

use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::time::Instant;

use bench_kernels::matmul::Weights;
use bench_kernels::packed::{PackedFormat, PackedMatrix};
use bench_kernels::product::{Input, product};
use bench_kernels::rows::{IntPrecision, IntRows};
use bench_kernels::{Exec, Variant};

/// Shortest of several runs of each, in turn, in seconds: neighbours only ever add time.
fn best<const N: usize>(repeats: usize, mut runs: [&mut dyn FnMut(); N]) -> [f64; N] {
    let mut best = [f64::INFINITY; N];
    for _ in 0..repeats {
        for (best, run) in best.iter_mut().zip(&mut runs) {
            let start = Instant::now();
            run();
            *best = best.min(start.elapsed().as_secs_f64());
        }
    }
    best
}

/// Reads all bytes, in tasks as the products cut them; `AHEAD` with prefetches.
fn read<const AHEAD: bool>(exec: &Exec, bytes: &[u8]) {
    const TASK_BYTES: usize = 96 << 10;
    exec.run(bytes.len() / TASK_BYTES, |task| {
        let lines = bytes[task * TASK_BYTES..][..TASK_BYTES].as_chunks::<64>().0;
        let mut sums = [0_u64; 32];
        for lines in lines.as_chunks::<4>().0 {
            #[cfg(target_arch = "x86_64")]
            if AHEAD {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                for i in 0..4 {
                    // SAFETY: prefetches may name any address.
                    unsafe {
                        _mm_prefetch::<_MM_HINT_T0>(lines.as_ptr().cast::<i8>().wrapping_add(4096 + 64 * i));
                    };
                }
            }
            let words = lines.as_flattened().as_chunks::<8>().0;
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum = sum.wrapping_add(u64::from_le_bytes(*word));
            }
        }
        black_box(sums);
    });
}

/// Operations of one call of [`spin`].
const SPIN: usize = 10_000 * 16 * 128;

/// A loop of `vpdpbusd` on registers; nothing where the processor has none.
fn spin() {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512f") {
        use std::arch::x86_64::{__m512i, _mm512_dpbusd_epi32, _mm512_set1_epi8, _mm512_setzero_si512};
        #[target_feature(enable = "avx512f,avx512vnni")]
        fn body() {
            let (a, b) = (black_box(_mm512_set1_epi8(1)), black_box(_mm512_set1_epi8(2)));
            let mut sums = [_mm512_setzero_si512(); 16];
            for _ in 0..SPIN / 16 / 128 {
                for sum in &mut sums {
                    *sum = _mm512_dpbusd_epi32(*sum, a, b);
                }
            }
            black_box::<[__m512i; 16]>(sums);
        }
        // SAFETY: the processor has the instructions.
        unsafe { body() };
    }
}

/// One matrix for each expert, of random bytes.
struct Experts {
    format: PackedFormat,
    codes: Vec<u8>,
    scales: Vec<u8>,
    n: usize,
    rows: usize,
    cols: usize,
}

impl Experts {
    fn new(format: PackedFormat, experts: usize, rows: usize, cols: usize) -> Self {
        let (code_bytes, scale_bytes) = format.bytes(rows, cols);
        let codes = (0..experts * code_bytes).map(|i| ((i * 7919) >> 3) as u8).collect();
        let mut scales = vec![120; experts * scale_bytes];
        if format != PackedFormat::Mxfp4 {
            scales.as_chunks_mut::<2>().0.fill([0, 0x1c]);
        }
        Self { format, codes, scales, n: experts, rows, cols }
    }

    /// The first `rows` rows of an expert.
    fn slice(&self, expert: usize, rows: usize) -> Weights<'_> {
        let (code_bytes, scale_bytes) = self.format.bytes(self.rows, self.cols);
        let (codes, scales) = (&self.codes[expert * code_bytes..], &self.scales[expert * scale_bytes..]);
        let (code_bytes, scale_bytes) = self.format.bytes(rows, self.cols);
        let (codes, scales) = (&codes[..code_bytes], &scales[..scale_bytes]);
        Weights::Packed(PackedMatrix::new(self.format, codes, scales, rows, self.cols).unwrap())
    }

    /// Calls `with` with the product of m rows with the first `rows` rows of the expert that it is given.
    fn product(
        &self,
        exec: &Exec,
        rows: usize,
        m: usize,
        precision: IntPrecision,
        with: impl FnOnce(&dyn Fn(usize)),
    ) {
        let x: Vec<f32> = (0..m * self.cols).map(|i| ((i * 31) % 255) as f32 - 127.0).collect();
        let mut ints = IntRows::default();
        ints.quantize(exec, &x, m, self.cols, precision).unwrap();
        let out = RefCell::new(vec![0.0; m * rows]);
        with(&|expert| {
            let w = self.slice(expert, rows);
            product(exec, Input::Int(&ints), m, w, None, &mut out.borrow_mut()).unwrap();
        });
    }
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    for (name, format, experts, rows, cols) in [
        ("gate-up", PackedFormat::Mxfp4, 16, 5760, 2880),
        ("down", PackedFormat::Mxfp4, 32, 2880, 2880),
        ("qkv-q8", PackedFormat::Q8_0, 8, 5120, 2880),
        ("unembed-q8", PackedFormat::Q8_0, 3, 25136, 2880),
        ("qkv-q6", PackedFormat::Q6_0, 10, 5120, 2880),
    ] {
        let mut parts = wanted.iter().filter(|part| *part != "stream").peekable();
        if parts.peek().is_some() && !parts.any(|part| name.contains(part.as_str())) {
            continue;
        }
        let weights = Experts::new(format, experts, rows, cols);
        for exec in [Exec::serial(Variant::active()), Exec::shared()] {
            for precision in [IntPrecision::Int8, IntPrecision::Int16] {
                print!("{name:10} {precision:5?} {} threads:", exec.threads());
                stream(&exec, &weights, precision);
                if !wanted.iter().any(|part| part == "stream") {
                    compute(&exec, &weights, precision);
                }
                println!();
            }
        }
    }
}

/// Few rows with an expert that is not in cache, beside reading the codes of one.
fn stream(exec: &Exec, weights: &Experts, precision: IntPrecision) {
    for m in [1, 2, 8] {
        stream_rows(exec, weights, precision, m);
    }
}

fn stream_rows(exec: &Exec, weights: &Experts, precision: IntPrecision, m: usize) {
    let turn = Cell::new(0);
    let next = || {
        turn.set((turn.get() + 1) % weights.n);
        turn.get()
    };
    let bytes = weights.codes.len() / weights.n;
    let codes = |expert: usize| &weights.codes[expert * bytes..][..bytes];
    weights.product(exec, weights.rows, m, precision, |run| {
        let [product, plain, ahead] = best(
            100,
            [
                &mut || run(next()),
                &mut || {
                    read::<false>(exec, codes(next()));
                },
                &mut || read::<true>(exec, codes(next())),
            ],
        );
        let speed = (bytes + weights.scales.len() / weights.n) as f64 / product / 1e9;
        let limit = bytes as f64 / plain.min(ahead) / 1e9;
        print!(" m={m} {speed:5.1} GB/s of {limit:5.1} ({:.2})", speed / limit);
    });
}

/// More rows, beside products on registers.
fn compute(exec: &Exec, weights: &Experts, precision: IntPrecision) {
    let products = if precision == IntPrecision::Int16 { 2.0 } else { 1.0 };
    let mut top = 0.0_f64;
    for m in [2, 4, 5, 8, 12, 16, 32, 64, 256] {
        // Short runs, of which some are not interrupted.
        let rows = if m < 64 { 1280 } else { 320 };
        weights.product(exec, rows, m, precision, |run| {
            let tasks = exec.threads();
            let [product, spun] = best(200, [&mut || run(0), &mut || exec.run(tasks, |_| spin())]);
            let rate = 2.0 * (rows * weights.cols * m) as f64 / product;
            let peak = (tasks * SPIN) as f64 / spun / products;
            top = top.max(peak);
            print!("  m={m} {:.0} ({:.2})", rate / 1e9, rate / peak);
        });
    }
    print!(" Gop/s of {:.0}", top / 1e9);
}
