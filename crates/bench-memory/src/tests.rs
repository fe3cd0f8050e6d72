//! Made readings in, exact figures out.

use crate::*;
use bench_core::client::Scrape;
use bench_core::memory::{DeviceHeap, GpuTrace, Heap, MemoryTrace, ProcessMemory};
use bench_core::plan::{Cell, Plan};
use bench_core::power::{DeviceTrace, PowerDevice, PowerReading, PowerSample, PowerScope, PowerTrace};
use bench_core::sample::{Estimate, Stat};
use bench_core::shape::{ExpertShape, ModelFacts, ModelShape, Part, WeightShape};
use bench_core::spec::RunSpec;
use bench_core::unit::Nanos;
use std::fmt::Write as _;

/// Keys and values of two bytes in `layers` layers, of which every second one has `window`.
fn shape(layers: u32, kv_heads: u32, head_dim: u32, window: Option<u32>) -> ModelShape {
    ModelShape {
        hidden_size: 64,
        vocab_size: 1_000,
        num_attention_heads: 8,
        num_key_value_heads: kv_heads,
        head_dim,
        windows: (0..layers).map(|layer| window.filter(|_| layer % 2 == 0)).collect(),
        kv_value_bytes: 2,
        kv_head_bytes: None,
        weights: WeightShape {
            embedding: Part { parameters: 10, bytes: 40 },
            attention: Part { parameters: 5, bytes: 10 },
            ..WeightShape::default()
        },
        experts: Some(ExpertShape { num_experts: 32, experts_per_token: 4, layers }),
        max_context_tokens: 131_072,
    }
}

fn gpt_oss_20b() -> ModelShape {
    shape(24, 8, 64, Some(128))
}

fn facts(shape: ModelShape) -> ModelFacts {
    ModelFacts {
        architecture: "a".to_owned(),
        num_hidden_layers: shape.windows.len() as u32,
        parameters: 15,
        active_parameters: 5,
        weights_bytes: 1_234,
        kv_bytes_per_token: kv_full_bytes(&shape, 1),
        activation_dtype: "bf16".to_owned(),
        expert_dtype: "native".to_owned(),
        expert_mode: None,
        dense_dtype: None,
        matmul_precision: None,
        kv_dtype: None,
        pass_rows: None,
        kernels: "avx2".to_owned(),
        shape,
    }
}

#[test]
fn a_cache_with_scales_takes_what_its_heads_take() {
    let bf16 = gpt_oss_20b();
    let q8 = ModelShape { kv_value_bytes: 1, kv_head_bytes: Some(68), ..bf16.clone() };
    // 34 bytes for 32 values of two.
    for tokens in [1, 128, 4096] {
        assert_eq!(kv_theory_bytes(&q8, tokens) * 128, kv_theory_bytes(&bf16, tokens) * 68);
        assert_eq!(kv_full_bytes(&q8, tokens), tokens * 24 * 2 * 8 * 68);
    }
}

fn plan(workload: &str) -> Plan {
    let text =
        format!("[run]\nrepeats = 4\nrounds = 2\n[workload]\n{workload}\n[[models]]\nid = \"org/m\"\n");
    RunSpec::from_toml("t", &text).unwrap().resolve().unwrap()
}

fn heap(live_bytes: u64, peak_bytes: u64) -> Heap {
    Heap { live_bytes, peak_bytes }
}

/// A batch that begins at 1,000 bytes, needs 700 beside its cache at most in the prefill and 50 in the decode.
fn trace(repeat: u32, cache: u64) -> MemoryTrace {
    MemoryTrace {
        repeat,
        before: Some(heap(1_000, 1_000)),
        first_token: Some(heap(1_000 + cache / 2, 1_000 + cache + 700)),
        held: Some(heap(1_000 + cache, 1_000 + cache + 50)),
        released: Some(heap(1_000, 1_000 + cache)),
        ..MemoryTrace::default()
    }
}

fn pages(anon: u64, peak: u64, peak_since_start: bool) -> ProcessMemory {
    ProcessMemory {
        rss_anon_bytes: anon,
        rss_file_bytes: 30,
        rss_shmem_bytes: 1,
        rss_peak_bytes: peak,
        peak_since_start,
    }
}

/// One line per figure: mean or value, with what is missing.
fn told(estimates: &[Estimate]) -> String {
    let mut out = String::new();
    for e in estimates.iter().filter(|e| matches!(e.stat, Stat::Mean | Stat::Value)) {
        let scope = e.scope.as_deref().map(|scope| format!("[{scope}]")).unwrap_or_default();
        let value = e.value.map_or("-".to_owned(), |v| v.to_string());
        let _ = write!(out, "{}{scope} {value} n {}", e.metric.def().key, e.n);
        if e.missing > 0 {
            let _ = write!(out, " missing {} ({})", e.missing, e.missing_reason);
        }
        out.push('\n');
    }
    out
}

fn of(estimates: &[Estimate], key: &str, stat: Stat) -> Option<f64> {
    estimates.iter().find(|e| e.metric.def().key == key && e.stat == stat).unwrap().value
}

#[test]
fn theory_is_that_of_known_models() {
    let gpt = gpt_oss_20b();
    assert_eq!(kv_full_bytes(&gpt, 1), 49_152);
    assert_eq!(kv_full_bytes(&gpt, 2_048 + 64), 99 << 20);
    // 12 layers keep 2,112 tokens and 12 keep 128: 52.5 MiB.
    assert_eq!(kv_theory_bytes(&gpt, 2_048 + 64), 105 << 19);
    // Windows that are not full cost nothing.
    assert_eq!(kv_theory_bytes(&gpt, 128), kv_full_bytes(&gpt, 128));
    assert_eq!(kv_theory_bytes(&gpt, 129), kv_full_bytes(&gpt, 129) - 12 * 2_048);
    let qwen = shape(64, 8, 128, None);
    assert_eq!((kv_theory_bytes(&qwen, 1), kv_full_bytes(&qwen, 1)), (262_144, 262_144));
    let yi = shape(60, 8, 128, None);
    assert_eq!((kv_theory_bytes(&yi, 1), kv_theory_bytes(&yi, 4_096)), (245_760, 245_760 * 4_096));
    assert_eq!(weights_bytes(&gpt), 50);
}

#[test]
fn the_last_sampled_token_is_never_fed() {
    for (prompt, output, fed) in [(128, 32, 159), (128, 1, 128), (1, 1, 1), (128, 0, 128), (0, 0, 0)] {
        assert_eq!(tokens_fed(prompt, output), fed, "{prompt} {output}");
    }
    assert_eq!(tokens_fed(u32::MAX, u32::MAX), 2 * u64::from(u32::MAX) - 1);
}

#[test]
fn a_batch_is_told_exactly() {
    let plan = plan("prompt_tokens = [150]\noutput_tokens = [10]\nbatch = [3]");
    let facts = facts(gpt_oss_20b());
    let mut analysis = Analysis::new(&plan, &plan.cells[0], Some(&facts));
    analysis.trial();
    analysis.memory(&trace(0, 300));
    analysis.memory(&trace(1, 500));
    analysis.trial();
    analysis.memory(&trace(2, 400));
    analysis.memory(&trace(3, 400));
    let cell = analysis.finish();
    // 159 tokens, 3 sequences, 24 layers of 2,048 bytes a token; 12 of them keep 128 tokens.
    let (theory, full) = (3 * 12 * (159 + 128) * 2_048, 3 * 159 * 49_152);
    assert_eq!(
        told(&cell.estimates),
        format!(
            "weights_bytes 1234 n 1\nkv_theory_bytes {theory} n 1\nkv_full_bytes {full} n 1\n\
             kv_retained_bytes 400 n 4\nactivation_peak_bytes 700 n 4\nprefill_peak_bytes 2100 n 4\n\
             decode_peak_bytes 1450 n 4\npeak_bytes[allocator] 2100 n 4\n\
             peak_bytes[process] - n 0 missing 2 (shared_process: 2)\n\
             rss_anon_bytes - n 0 missing 4 (process_not_readable: 4)\n\
             rss_file_bytes - n 0 missing 4 (process_not_readable: 4)\n"
        )
    );
    let figure = |stat| of(&cell.estimates, "kv_retained_bytes", stat);
    assert_eq!((figure(Stat::Min), figure(Stat::Max)), (Some(300.0), Some(500.0)));
    assert_eq!((figure(Stat::Quantile(0.5)), figure(Stat::Quantile(0.95))), (Some(400.0), None));
    assert!((figure(Stat::StdDev).unwrap() - (20_000.0_f64 / 3.0).sqrt()).abs() < 1e-9);
    let mean = cell.estimates.iter().find(|e| e.metric.def().key == "kv_retained_bytes").unwrap();
    // t(3) 3.182446 * 81.65 / 2.
    let interval = mean.interval.unwrap();
    assert!((interval.high.unwrap() - 400.0 - 129.922).abs() < 0.01, "{interval:?}");
    // Nothing differs: the interval is the figure.
    let peak = cell.estimates.iter().find(|e| e.metric.def().key == "activation_peak_bytes").unwrap();
    assert_eq!(peak.interval.map(|i| (i.low, i.high)), Some((Some(700.0), Some(700.0))));
}

/// A batch on a GPU of 10,000 bytes: 5,000 of weights, an arena of 800 that is kept, `cache` bytes of cache.
fn on_gpu(repeat: u32, cache: u64, trial_peak: u64) -> MemoryTrace {
    let moment = |kv: u64, peak: u64| DeviceHeap {
        weights: heap(5_000, 5_000),
        kv_cache: heap(kv, cache),
        activations: heap(800, 800),
        workspace: heap(60, 60),
        total: heap(5_860 + kv, peak),
    };
    let device = GpuTrace {
        device_bytes: 10_000,
        before: moment(0, 7_777),
        first_token: Some(moment(cache, 5_860 + cache + 30)),
        held: Some(moment(cache, 5_860 + cache)),
        released: Some(moment(0, 5_860 + cache)),
        trial_peak_bytes: Some(trial_peak),
        loading_peak_bytes: Some(7_777),
        ..GpuTrace::default()
    };
    MemoryTrace { device: Some(Box::new(device)), ..trace(repeat, 90) }
}

#[test]
fn a_model_on_a_gpu_is_not_sought_in_the_heap() {
    let plan = plan("prompt_tokens = [150]\noutput_tokens = [10]");
    let mut analysis = Analysis::new(&plan, &plan.cells[0], None);
    analysis.trial();
    analysis.memory(&on_gpu(0, 300, 6_190));
    analysis.memory(&on_gpu(1, 500, 6_390));
    let cell = analysis.finish();
    let told = told(&cell.estimates);
    let (device, rest) = told.split_at(told.find("rss_anon").unwrap());
    assert_eq!(
        device,
        "kv_retained_bytes 400 n 2\nactivation_peak_bytes 800 n 2\nprefill_peak_bytes 6290 n 2\n\
         decode_peak_bytes 6260 n 2\npeak_bytes[allocator] 1790 n 2\npeak_bytes[gpu_activations] 800 n 2\n\
         peak_bytes[gpu_allocator] 6290 n 2\npeak_bytes[gpu_kv_cache] 400 n 2\n\
         peak_bytes[gpu_loading] 7777 n 1\npeak_bytes[gpu_trial] 6390 n 1\n\
         peak_bytes[gpu_weights] 5000 n 2\npeak_bytes[gpu_workspace] 60 n 2\n\
         peak_bytes[process] - n 0 missing 1 (shared_process: 1)\n"
    );
    assert!(!rest.contains("kv_") && !rest.contains("peak"), "{rest}");
    let study = cell.study.unwrap();
    assert_eq!(
        (study.before_bytes, study.held_bytes, study.peak_bytes, study.device_bytes),
        (5_860.0, 6_260.0, 6_290.0, Some(10_000.0))
    );
}

#[test]
fn a_batch_that_failed_on_a_gpu_has_no_peaks_but_its_prefills() {
    let plan = plan("");
    let mut analysis = Analysis::new(&plan, &plan.cells[0], None);
    let mut failed = on_gpu(0, 300, 6_190);
    let device = failed.device.as_deref_mut().unwrap();
    (device.held, device.loading_peak_bytes) = (None, None);
    analysis.memory(&failed);
    let told = told(&analysis.finish().estimates);
    for line in [
        "kv_retained_bytes - n 0 missing 1 (moment_not_reached: 1)",
        "prefill_peak_bytes 6190 n 1",
        "peak_bytes[gpu_allocator] - n 0 missing 1 (moment_not_reached: 1)",
        "peak_bytes[gpu_loading] - n 0 missing 1 (shared_process: 1)",
    ] {
        assert!(told.lines().any(|l| l == line), "{line}\n{told}");
    }
}

#[test]
fn the_larger_of_both_peaks_counts() {
    let plan = plan("");
    let mut analysis = Analysis::new(&plan, &plan.cells[0], None);
    let mut decode = trace(0, 400);
    decode.held = Some(heap(1_400, 9_000));
    analysis.memory(&decode);
    let estimates = analysis.finish().estimates;
    let mean = |key| of(&estimates, key, Stat::Mean);
    assert_eq!((mean("prefill_peak_bytes"), mean("decode_peak_bytes")), (Some(2_100.0), Some(9_000.0)));
    assert_eq!((mean("peak_bytes"), mean("activation_peak_bytes")), (Some(9_000.0), Some(7_600.0)));
}

#[test]
fn what_was_not_read_is_missing_with_its_reason() {
    let plan = plan("");
    let facts = facts(gpt_oss_20b());
    let heap_of = |traces: &[MemoryTrace]| {
        let mut analysis = Analysis::new(&plan, &plan.cells[0], Some(&facts));
        for trace in traces {
            analysis.memory(trace);
        }
        let told = told(&analysis.finish().estimates);
        let lines =
            told.lines().filter(|l| !l.contains("process") && !l.contains("kv_t") && !l.contains("kv_f"));
        lines.skip(1).collect::<Vec<_>>().join("\n")
    };
    // A batch that failed in its decode, one without a reading at the first token, one beside which memory was freed.
    let failed = MemoryTrace { held: None, ..trace(0, 400) };
    let unsplit = MemoryTrace { first_token: None, held: Some(heap(1_400, 2_100)), ..trace(1, 400) };
    let freed = MemoryTrace { held: Some(heap(900, 1_700)), ..trace(2, 0) };
    assert_eq!(
        heap_of(&[failed, unsplit, freed]),
        "kv_retained_bytes 400 n 1 missing 2 (less_than_before: 1; moment_not_reached: 1)\n\
         activation_peak_bytes 700 n 1 missing 2 (less_than_before: 1; moment_not_reached: 1)\n\
         prefill_peak_bytes 1900 n 2 missing 1 (moment_not_reached: 1)\n\
         decode_peak_bytes 1700 n 1 missing 2 (moment_not_reached: 2)\n\
         peak_bytes[allocator] 1900 n 2 missing 1 (moment_not_reached: 1)"
    );
    // Nobody counts.
    let uncounted = heap_of(&[MemoryTrace::default()]);
    assert_eq!(uncounted.lines().count(), 5);
    for line in uncounted.lines() {
        assert!(line.ends_with(" - n 0 missing 1 (heap_not_counted: 1)"), "{line}");
    }
}

#[test]
fn without_a_trace_only_what_is_known_stands() {
    let plan = plan("");
    assert_eq!(Analysis::new(&plan, &plan.cells[0], None).finish().estimates, []);
    let facts = facts(gpt_oss_20b());
    let mut analysis = Analysis::new(&plan, &plan.cells[0], Some(&facts));
    analysis.trial();
    let told = told(&analysis.finish().estimates);
    assert_eq!(told.lines().count(), 3, "{told}");
    // A script has neither model nor cache, whatever this program allocates: only its pages are known.
    let mut analysis = Analysis::new(&plan, &plan.cells[0], None);
    let script = MemoryTrace {
        before: Some(heap(5, 5)),
        released: Some(heap(5, 6)),
        process_after: Some(pages(7, 9, false)),
        ..MemoryTrace::default()
    };
    analysis.memory(&script);
    let told = self::told(&analysis.finish().estimates);
    assert_eq!(
        told,
        "peak_bytes[process] - n 0 missing 1 (shared_process: 1)\nrss_anon_bytes 7 n 1\nrss_file_bytes 30 n 1\n"
    );
}

/// The `process` line after trials of (pages before, pages after) of each batch.
fn process_peak(trials: &[&[(Option<ProcessMemory>, Option<ProcessMemory>)]]) -> String {
    let plan = plan("");
    let mut analysis = Analysis::new(&plan, &plan.cells[0], None);
    for batches in trials {
        analysis.trial();
        for &(process_before, process_after) in *batches {
            let own = MemoryTrace { own_process: true, ..MemoryTrace::default() };
            analysis.memory(&MemoryTrace { process_before, process_after, ..own });
        }
    }
    let told = told(&analysis.finish().estimates);
    told.lines().find_map(|l| l.strip_prefix("peak_bytes[process] ")).unwrap().to_owned()
}

#[test]
fn the_peak_of_a_process_is_one_figure_of_its_trial() {
    let of = |peak| Some(pages(7, peak, false));
    assert_eq!(process_peak(&[&[(of(90), of(100)), (of(100), of(100))], &[(of(90), of(120))]]), "110 n 2");
    // The last batch could not be read: the one before says the most that is known.
    assert_eq!(process_peak(&[&[(of(90), of(100)), (of(100), None)]]), "100 n 1");
    assert_eq!(process_peak(&[&[(None, None)]]), "- n 0 missing 1 (process_not_readable: 1)");
    let since_start = |peak| Some(pages(7, peak, true));
    // It may be that of loading; one that grew while the batches ran is theirs.
    let same = [(since_start(500), since_start(500))];
    let grown = [(since_start(500), since_start(500)), (since_start(500), since_start(600))];
    assert_eq!(process_peak(&[&same, &grown]), "600 n 1 missing 1 (peak_not_reset: 1)");
}

fn gpu(index: u32, readings: &[(Option<u64>, Option<u64>)]) -> DeviceTrace {
    let sample = |(memory_used_bytes, process_memory_bytes): &(Option<u64>, Option<u64>)| PowerSample {
        memory_used_bytes: *memory_used_bytes,
        process_memory_bytes: *process_memory_bytes,
        ..PowerSample::default()
    };
    DeviceTrace {
        device: PowerDevice {
            scope: PowerScope::GpuBoard,
            index,
            name: "g".to_owned(),
            id: "GPU-0".to_owned(),
            source: "nvml".to_owned(),
            reading: PowerReading::Instant,
            counter_range_j: None,
            power_limit_w: None,
            driver: None,
        },
        samples: readings.iter().map(sample).collect(),
    }
}

fn device_peaks(trials: Vec<Vec<DeviceTrace>>) -> String {
    let plan = plan("");
    let mut analysis = Analysis::new(&plan, &plan.cells[0], None);
    for devices in trials {
        analysis.trial();
        analysis.power(&PowerTrace { devices, ..PowerTrace::default() });
    }
    told(&analysis.finish().estimates).replace("peak_bytes", "")
}

#[test]
fn the_largest_reading_of_a_device_is_its_peak() {
    let one = |readings: &[_]| vec![gpu(0, readings)];
    let (low, high) = ((Some(50), Some(10)), (Some(90), Some(40)));
    assert_eq!(
        device_peaks(vec![one(&[low, high, (None, None), low]), one(&[low]), one(&[(None, None)])]),
        "[gpu_device] 70 n 2 missing 1 (not_read: 1)\n[gpu_process] 25 n 2 missing 1 (not_read: 1)\n"
    );
    // A process that uses one GPU of two; a GPU that tells nothing leaves the sum unknown.
    assert_eq!(
        device_peaks(vec![vec![gpu(0, &[high]), gpu(1, &[(Some(5), None)])]]),
        "[gpu_device] 95 n 1\n[gpu_device.0] 90 n 1\n[gpu_device.1] 5 n 1\n[gpu_process] 40 n 1\n\
         [gpu_process.0] 40 n 1\n[gpu_process.1] - n 0 missing 1 (not_read: 1)\n"
    );
    let silent = device_peaks(vec![vec![gpu(0, &[high]), gpu(1, &[])]]);
    assert!(silent.starts_with("[gpu_device] - n 0 missing 1 (not_read: 1)\n"), "{silent}");
    // A processor has no memory of this kind.
    let mut package = gpu(0, &[high]);
    package.device.scope = PowerScope::CpuPackage;
    assert_eq!(device_peaks(vec![vec![package]]), "");
}

fn logical(facts: Option<&ModelFacts>, readings: &[&[(&str, f64)]]) -> String {
    let plan = plan("");
    let mut analysis = Analysis::new(&plan, &plan.cells[0], facts);
    for reading in readings {
        let values = reading.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        analysis.scrape(&Scrape { at: Nanos(0), values });
    }
    let told = told(&analysis.finish().estimates);
    told.lines().find_map(|l| l.strip_prefix("kv_logical_bytes ")).unwrap_or_default().to_owned()
}

#[test]
fn a_server_holds_its_usage_of_its_capacity() {
    let (usage, tokens, blocks) = ("kv_cache_usage", "kv_capacity_tokens", "kv_block_tokens");
    let yi = facts(shape(60, 8, 128, None));
    let bytes = |tokens: u64| format!("{} n 1", tokens * 245_760);
    let low: &[_] = &[(usage, 0.125), (tokens, 8_000.0)];
    assert_eq!(logical(Some(&yi), &[low, &[(usage, 0.5), (tokens, 8_000.0)], low]), bytes(4_000));
    assert_eq!(logical(Some(&yi), &[&[(usage, 0.5), (blocks, 1_600.0)]]), bytes(800));
    // An idle server holds nothing, and that is known.
    assert_eq!(logical(Some(&yi), &[&[(usage, 0.0), (tokens, 8_000.0)]]), "0 n 1");
    for (facts, reading, why) in [
        (Some(&yi), &[(usage, 0.5)][..], "capacity_unknown"),
        (Some(&yi), &[(usage, 0.5), (tokens, f64::NAN)], "capacity_unknown"),
        (None, &[(usage, 0.5), (tokens, 8_000.0)], "shape_unknown"),
    ] {
        assert_eq!(logical(facts, &[reading]), format!("- n 0 missing 1 ({why}: 1)"));
    }
    assert_eq!(logical(Some(&yi), &[&[(tokens, 8_000.0)], &[(usage, f64::NAN)]]), "");
    // Windows: whole sequences of 131,072 tokens keep 12 layers of those and 12 of 128.
    let gpt = facts(gpt_oss_20b());
    let kept = 1_000.0 * 12.0 * 2_048.0 * (131_072.0 + 128.0) / 131_072.0;
    assert_eq!(logical(Some(&gpt), &[&[(usage, 0.5), (tokens, 2_000.0)]]), format!("{kept} n 1"));
    let shared = "- n 0 missing 1 (blocks_shared_by_windowed_layers: 1)";
    assert_eq!(logical(Some(&gpt), &[&[(usage, 0.5), (blocks, 2_000.0)]]), shared);
}

/// The cells of contexts 128, 512, .. with `retained` bytes of each cell's batches.
fn cells(
    plan: &Plan,
    facts: Option<&ModelFacts>,
    retained: impl Fn(&Cell) -> Option<u64>,
) -> Vec<CellMemory> {
    let of_cell = |cell| {
        let mut analysis = Analysis::new(plan, cell, facts);
        analysis.trial();
        for repeat in 0..2 {
            let mut trace = trace(repeat, retained(cell).unwrap_or(0));
            trace.held = trace.held.filter(|_| retained(cell).is_some());
            analysis.memory(&trace);
        }
        analysis.finish()
    };
    let mut cells: Vec<_> = plan.cells.iter().map(of_cell).collect();
    slopes(&mut cells);
    cells
}

/// Slope, ends of its interval, theory, points.
type Slope = (Option<f64>, Option<(f64, f64)>, Option<f64>, u64);

fn slope(cell: &CellMemory) -> Slope {
    let find = |key| cell.estimates.iter().find(|e| e.metric.def().key == key).unwrap();
    let (line, theory) = (find("kv_per_token_bytes"), find("kv_per_token_theory_bytes"));
    let interval = line.interval.map(|i| (i.low.unwrap(), i.high.unwrap()));
    (line.value, interval, theory.value, line.n)
}

#[test]
fn a_cache_as_in_theory_has_its_slope_whatever_else_is_kept() {
    let plan = plan("prompt_tokens = [128, 512, 2048, 8192]\noutput_tokens = [32]\nbatch = [1, 3]");
    let facts = facts(shape(60, 8, 128, None));
    let retained = |cell: &Cell| {
        let tokens = tokens_fed(cell.prompt_tokens, cell.output_tokens);
        Some(u64::from(cell.batch) * (kv_theory_bytes(&facts.shape, tokens) + 4_097))
    };
    let cells = cells(&plan, Some(&facts), retained);
    assert_eq!(cells.len(), 8);
    for cell in &cells {
        assert_eq!(slope(cell), (Some(245_760.0), Some((245_760.0, 245_760.0)), Some(245_760.0), 4));
    }
}

#[test]
fn a_ring_has_the_slope_of_its_theory_at_the_same_contexts() {
    let plan = plan("prompt_tokens = [64, 512, 2048, 8192]\noutput_tokens = [32]");
    let facts = facts(gpt_oss_20b());
    let theory =
        |cell: &Cell| kv_theory_bytes(&facts.shape, tokens_fed(cell.prompt_tokens, cell.output_tokens));
    let measured = cells(&plan, Some(&facts), |cell| Some(theory(cell) + 77));
    let (line, interval, expected, n) = slope(&measured[0]);
    assert_eq!((line, n), (expected, 4));
    // Above half of the bytes of a token (the layers that keep all), below all of them; and not on a line.
    let line = line.unwrap();
    assert!(line > 24_576.0 && line < 25_500.0, "{line}");
    let (low, high) = interval.unwrap();
    assert!(low < line && line < high, "{low} {high}");
    // Without the shortest context the ring is full everywhere, and the line is one.
    let full = |cell: &Cell| (cell.prompt_tokens > 64).then(|| theory(cell));
    let (line, interval, expected, n) = slope(&cells(&plan, Some(&facts), full)[0]);
    assert_eq!((line, interval, n), (Some(24_576.0), Some((24_576.0, 24_576.0)), 3));
    assert_eq!(expected, Some(24_576.0), "theory at the contexts that were measured");
    // An engine that ignores windows keeps twice as much, and its interval says so.
    let ignoring = |cell: &Cell| Some(kv_full_bytes(&facts.shape, tokens_fed(cell.prompt_tokens, 32)));
    let (line, _, expected, _) = slope(&cells(&plan, Some(&facts), ignoring)[0]);
    assert!(line == Some(49_152.0) && expected.unwrap() < 25_500.0);
}

#[test]
fn few_contexts_have_no_slope() {
    let plan = plan("prompt_tokens = [128, 512]\noutput_tokens = [32, 64]");
    let facts = facts(gpt_oss_20b());
    for cell in cells(&plan, Some(&facts), |cell| Some(u64::from(cell.prompt_tokens))) {
        let told = told(&cell.estimates);
        assert!(told.contains("kv_per_token_bytes - n 2 missing 1 (too_few_contexts: 1)\n"), "{told}");
        assert!(told.contains("kv_per_token_theory_bytes - n 2 missing 1 (too_few_contexts: 1)\n"), "{told}");
    }
    // Nothing could be measured.
    let told = told(&cells(&plan, Some(&facts), |_| None)[0].estimates);
    assert!(told.contains("kv_per_token_bytes - n 0 missing 3 (too_few_contexts: 3)\n"), "{told}");
}

#[test]
fn where_nothing_is_measured_the_slope_is_theory_alone() {
    let facts = facts(shape(60, 8, 128, None));
    let three = plan("prompt_tokens = [128, 512, 2048]");
    let two = plan("prompt_tokens = [128, 512]");
    for (plan, known, expected) in [(&three, true, 1), (&three, false, 0), (&two, true, 0)] {
        let facts = known.then_some(&facts);
        let mut cells: Vec<_> = plan.cells.iter().map(|c| Analysis::new(plan, c, facts).finish()).collect();
        slopes(&mut cells);
        for cell in &cells {
            let told = told(&cell.estimates);
            assert_eq!(told.matches("kv_per_token").count(), expected, "{told}");
            assert_eq!(told.matches("kv_per_token_theory_bytes 245760 n 3").count(), expected, "{told}");
        }
    }
}
