//! Whole forward passes of a generated model beside the machine's read bandwidth: prompts, decode steps at a depth,
//! and batches, as medians of repeats.
//!
//! `cargo bench -p bench-engine --bench engine -- MODEL [key=value …]`, for example
//! `gpt-oss-20b dense=q8_0 precision=int8 pp=64,512 tg=0,32768 batch=1,8 repeats=5 threads=2`. The start of a
//! checkpoint whose quantized weights are kept: `FOLDER dense=q8_0 packed-cache=DIR pp= tg=`, twice.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::Instant;

use bench_engine::sampling::{Sampler, SamplingParams};
use bench_engine::session::{OpenOptions, open_model};
use bench_engine::{
    ActivationDtype, DenseDtype, ExpertMode, Hooks, KvDtype, LoadOptions, MatmulPrecision, Model,
    PackedCache, Sequence, Workspace, system,
};
use bench_kernels::pool::{Pool, PoolOptions};
use bench_kernels::{Exec, Variant, bandwidth};

const STEPS: usize = 28;
const WARM_STEPS: usize = 4;

struct Args {
    model: String,
    load: LoadOptions,
    threads: usize,
    prompts: Vec<usize>,
    depths: Vec<usize>,
    batches: Vec<usize>,
    chunk: usize,
    repeats: usize,
}

fn args() -> Args {
    let mut args = Args {
        model: "dummy:gpt-oss-nano".to_owned(),
        load: LoadOptions { kv_dtype: Some(KvDtype::Bf16), ..LoadOptions::default() },
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        prompts: vec![64, 512],
        depths: vec![128],
        batches: vec![1],
        chunk: 512,
        repeats: 5,
    };
    let mut pin = false;
    for arg in std::env::args().skip(1).filter(|a| a != "--bench") {
        let Some((key, value)) = arg.split_once('=') else {
            args.model = if arg.contains('/') { arg } else { format!("dummy:{arg}") };
            continue;
        };
        let list = || value.split(',').filter(|v| !v.is_empty()).map(|v| v.parse().unwrap()).collect();
        match (key, value) {
            ("pp", _) => args.prompts = list(),
            ("tg", _) => args.depths = list(),
            ("batch", _) => args.batches = list(),
            ("repeats", n) => args.repeats = n.parse().unwrap(),
            ("chunk", n) => args.chunk = n.parse().unwrap(),
            ("threads", n) => args.threads = n.parse().unwrap(),
            ("pin", n) => pin = n.parse().unwrap(),
            ("packed-cache", folder) => args.load.packed_cache = Some(PackedCache::at(folder.as_ref())),
            ("layers", n) => args.load.num_layers = Some(n.parse().unwrap()),
            ("dense", "native") => args.load.dense_dtype = DenseDtype::Native,
            ("dense", "q8_0") => args.load.dense_dtype = DenseDtype::Q8_0,
            ("dense", "q6_0") => args.load.dense_dtype = DenseDtype::Q6_0,
            ("experts", "dense-all") => args.load.expert_mode = ExpertMode::DenseAll,
            ("precision", "f32") => args.load.matmul_precision = MatmulPrecision::F32,
            ("precision", "int16") => args.load.matmul_precision = MatmulPrecision::Int16,
            ("precision", "int8") => args.load.matmul_precision = MatmulPrecision::Int8,
            ("activations", "bf16") => args.load.activation_dtype = ActivationDtype::Bf16,
            ("kv", "f32") => args.load.kv_dtype = Some(KvDtype::F32),
            ("kv", "bf16") => args.load.kv_dtype = Some(KvDtype::Bf16),
            ("kv", "q8_0") => args.load.kv_dtype = Some(KvDtype::Q8_0),
            _ => panic!("{arg}: not known"),
        }
    }
    let pool = Pool::new(PoolOptions { threads: Some(args.threads), pin }).unwrap();
    args.load.exec = Exec::new(Variant::active(), pool.into());
    args
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn seconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

/// GB/s that all threads read.
fn read_gb_s(threads: usize) -> f64 {
    bandwidth::measure(threads, 256 << 20, 5).unwrap().read_median_bytes_s() / 1e9
}

fn resident_gb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |key: &str| -> Option<f64> {
        status.lines().find(|l| l.starts_with(key))?.split_whitespace().nth(1)?.parse().ok()
    };
    kib("VmHWM:").unwrap_or_default() * 1024.0 / 1e9
}

/// Ids without a pattern, so that tokens choose their experts as those of a text do.
fn ids(n: usize, vocab: usize) -> Vec<u32> {
    (0..n as u64).map(|i| ((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as u32 % vocab as u32).collect()
}

fn main() {
    let args = args();
    system::check_kernel_variant().unwrap();
    println!("read bandwidth, {} threads: {:.1} GB/s", args.threads, read_gb_s(args.threads));
    let longest = args.prompts.iter().chain(&args.depths).max();
    let most = longest.map_or(1, |n| n + WARM_STEPS + STEPS * args.repeats + 1);
    let options = OpenOptions {
        load: args.load.clone(),
        seed: 1,
        context_tokens: most,
        batch: 1,
        prefill_chunk: args.chunk,
        chat: None,
    };
    let start = Instant::now();
    let model = open_model(&args.model, &options, &mut |_| ()).unwrap();
    let took = start.elapsed().as_secs_f64();
    let bytes = model.weights_bytes() as f64 / 1e9;
    println!(
        "{}: {bytes:.2} GB of weights in {took:.1} s, peak resident {:.2} GB",
        args.model,
        resident_gb()
    );
    model.load_notes().lines().for_each(|note| println!("{note}"));
    for &n in &args.prompts {
        prompt(&model, &args, n);
    }
    decode(&model, &args);
    println!("peak resident {:.2} GB", resident_gb());
}

fn prompt(model: &Model, args: &Args, n: usize) {
    let ids = ids(n, model.config().vocab_size);
    let mut workspace = model.workspace();
    let mut run = || {
        let mut sequence = model.sequence();
        sequence.reserve(n);
        seconds(|| {
            let sequences = &mut [&mut sequence];
            model.prefill_in(&mut workspace, sequences, &[&ids], args.chunk, &mut Hooks::none()).unwrap();
        })
    };
    run();
    let times: Vec<f64> = (0..args.repeats).map(|_| run()).collect();
    let time = median(times);
    println!("pp{n}: {:.1} tok/s, first token after {time:.2} s", n as f64 / time);
}

/// Sequences that decode from a depth on.
struct Decoding<'a> {
    model: &'a Model,
    depth: usize,
    sequences: Vec<Sequence>,
    workspace: Workspace,
    next: Vec<u32>,
}

impl<'a> Decoding<'a> {
    fn start(model: &'a Model, depth: usize, batch: usize, steps: usize) -> Self {
        let mut sequences: Vec<Sequence> = (0..batch).map(|_| model.sequence()).collect();
        for (i, sequence) in sequences.iter_mut().enumerate() {
            sequence.reserve(depth + steps);
            sequence.assume(depth, i as u64).unwrap();
        }
        let next = ids(batch, model.config().vocab_size);
        let mut started = Self { model, depth, sequences, workspace: model.workspace(), next };
        started.steps(WARM_STEPS);
        started
    }

    fn steps(&mut self, steps: usize) {
        let mut running: Vec<&mut Sequence> = self.sequences.iter_mut().collect();
        let mut greedy = Sampler::new(SamplingParams::default()).unwrap();
        let mut hooks = Hooks::none();
        for _ in 0..steps {
            let mut logits =
                self.model.decode_step_in(&mut self.workspace, &mut running, &self.next, &mut hooks).unwrap();
            for (row, next) in self.next.iter_mut().enumerate() {
                *next = logits.sample(row, &mut greedy, &[]).unwrap();
            }
        }
    }

    /// Tokens a second.
    fn rate(&mut self) -> f64 {
        (STEPS * self.sequences.len()) as f64 / seconds(|| self.steps(STEPS))
    }
}

/// All depths and batches in turn, round by round, so that the first and the others have the same minutes.
fn decode(model: &Model, args: &Args) {
    let steps = STEPS * args.repeats + WARM_STEPS;
    let mut all: Vec<Decoding> = Vec::new();
    for &depth in &args.depths {
        for &batch in &args.batches {
            all.push(Decoding::start(model, depth, batch, steps));
        }
    }
    let mut rates = vec![Vec::new(); all.len()];
    let mut roofs = vec![Vec::new(); all.len()];
    for _ in 0..args.repeats {
        let mut before = read_gb_s(args.threads);
        for (i, decoding) in all.iter_mut().enumerate() {
            rates[i].push(decoding.rate());
            let after = read_gb_s(args.threads);
            roofs[i].push(f64::midpoint(before, after));
            before = after;
        }
    }
    for (i, Decoding { depth, sequences, .. }) in all.iter().enumerate() {
        let ratios = rates[i].iter().zip(&rates[0]).map(|(rate, first)| rate / first).collect();
        println!(
            "tg{STEPS} @ {depth}, batch {}: {:.2} tok/s, read bandwidth beside it {:.1} GB/s; of the first: {:.3}",
            sequences.len(),
            median(rates[i].clone()),
            median(roofs[i].clone()),
            median(ratios),
        );
    }
}
