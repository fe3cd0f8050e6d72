//! Every kernel of the suite is launched with arguments that it takes, at small sizes.

use std::time::Instant;

use bench_kernels::cuda::GpuError;
use bench_kernels::cuda::suite::{self, CHECKS, Clock, GpuShapes, Options, Roofs};
use bench_kernels::suite::{Experts, Shapes};

use crate::emulator::Emulator;

/// The host's clock: what the emulator takes says nothing of a GPU.
struct HostClock;

impl Clock for HostClock {
    fn time(
        &self,
        work: &mut dyn FnMut() -> Result<(), GpuError>,
        go_on: &mut dyn FnMut(f64) -> bool,
    ) -> Result<(), GpuError> {
        loop {
            let begin = Instant::now();
            work()?;
            if !go_on(begin.elapsed().as_secs_f64()) {
                return Ok(());
            }
        }
    }
}

fn shapes(experts: Option<Experts>) -> GpuShapes {
    let window = experts.map(|_| 16);
    let layers =
        Shapes { hidden: 64, intermediate: 32, heads: 4, kv_heads: 2, head_dim: 32, window, experts };
    GpuShapes { layers, vocab: 70 }
}

fn options(filter: Option<&str>) -> Options {
    Options {
        seconds_per_kernel: 0.0,
        set_bytes: 1 << 13,
        peak_rounds: 2,
        prompt_tokens: 66,
        keys: [9, 40, 300],
        wgmma: false,
        filter: filter.map(str::to_owned),
    }
}

#[test]
fn every_kernel_of_a_model_is_measured() {
    let gpu = Emulator::new(0);
    let roofs = Roofs::measure(&gpu, &HostClock, &options(None)).unwrap();
    assert!(roofs.memory.copy_median_bytes_s() > 0.0 && roofs.matrix_median_ops_s() > 0.0);
    for experts in [Some(Experts { count: 8, per_token: 4 }), None] {
        let (shapes, options) = (shapes(experts), options(None));
        let mut seen = Vec::new();
        let lines =
            suite::run(&gpu, &HostClock, &shapes, &options, |line| seen.push(line.0.clone())).unwrap();
        assert_eq!(seen, suite::names(&shapes, &options));
        let mut unique = seen.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), seen.len());
        for (name, line) in &lines {
            let time = line.as_ref().unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(time.seconds.len() >= 3 && time.launches > 0, "{name}");
            assert!(time.bytes > 0 && time.operations > 0 && time.of_limit(&roofs).0 > 0.0, "{name}");
        }
        let has = |part: &str| seen.iter().any(|name| name.starts_with(part));
        assert_eq!([has("experts_up/mxfp4"), has("mlp_up")], [experts.is_some(), experts.is_none()]);
        assert!(has("qkv/q8_0/tokens=1") && has("attention/prefill/tokens=66") && has("argmax"));
        assert!(
            has("sample/temperature/vocab=70/rows=1") && has("sample/top_k=50,top_p=0.9/vocab=70/rows=64")
        );
    }
}

#[test]
fn prompts_are_measured_by_both_products_of_a_hopper() {
    let (gpu, shapes) = (Emulator::hopper(0), shapes(Some(Experts { count: 8, per_token: 4 })));
    let options = Options { wgmma: true, prompt_tokens: 90, ..options(Some("experts_down/mxfp4/tokens=90")) };
    let lines = suite::run(&gpu, &HostClock, &shapes, &options, |_| {}).unwrap();
    let names: Vec<&str> = lines.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["experts_down/mxfp4/tokens=90/mma", "experts_down/mxfp4/tokens=90/wgmma"]);
    assert!(lines.iter().all(|(_, line)| line.is_ok()), "{lines:?}");
    // The router has too few rows, and batches are no prompts.
    let all = suite::names(&shapes, &options);
    let both: Vec<&String> = all.iter().filter(|name| name.ends_with("mma")).collect();
    assert!(both.iter().any(|name| *name == "qkv/q8_0/tokens=90/wgmma"));
    assert!(both.iter().all(|name| name.contains("/tokens=90/") && !name.starts_with("router")), "{both:?}");
}

#[test]
fn a_filter_that_names_nothing_lists_what_there_is() {
    let (gpu, shapes) = (Emulator::new(0), shapes(None));
    let lines =
        suite::run(&gpu, &HostClock, &shapes, &options(Some("argmax/vocab=70/rows=1")), |_| {}).unwrap();
    assert_eq!(lines.len(), 1);
    let error = suite::run(&gpu, &HostClock, &shapes, &options(Some("no such")), |_| {}).unwrap_err();
    assert!(error.to_string().contains("unembed/bf16/tokens=1"), "{error}");
}

#[test]
fn every_group_of_kernels_has_a_check() {
    for (name, check) in CHECKS {
        let rows = check(&Emulator::new(0), 7, 1).unwrap();
        assert!(!rows.is_empty() && rows.iter().all(bench_kernels::cuda::CheckRow::passed), "{name}");
    }
}
