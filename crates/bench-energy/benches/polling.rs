//! Does the poller keep its rate beside a process that computes on every core?
//!
//! `cargo bench -p bench-energy --bench polling -- [SECONDS] [HZ]`: polls the stub library while as many
//! threads as there are cores multiply and add, and prints the achieved rate and the intervals as CSV. It
//! judges nothing.
#![allow(clippy::print_stdout)]

use bench_core::clock::MonotonicClock;
use bench_core::plan::{EnergyPlan, PowerSource};
use bench_core::probe::{PowerProbe, Watch};
use nvml_stub::{Device, Script, Wave};
use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn main() -> Result<(), Box<dyn Error>> {
    let numbers: Vec<f64> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let seconds = numbers.first().copied().unwrap_or(60.0);
    let hz = numbers.get(1).copied().unwrap_or(10.0);
    let cores = std::thread::available_parallelism()?.get();
    let folder = tempfile::tempdir()?;
    let mut probe = open(folder.path(), hz)?;
    let stop = AtomicBool::new(false);
    let at_ms = std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| compute(&stop));
        }
        let at_ms = watch(probe.as_mut(), Duration::from_secs_f64(seconds));
        stop.store(true, Ordering::Relaxed);
        at_ms
    });
    print(cores, hz, &at_ms?);
    Ok(())
}

fn open(folder: &Path, hz: f64) -> Result<Box<dyn PowerProbe>, Box<dyn Error>> {
    let gpu = Device {
        name: "stub".to_owned(),
        uuid: "GPU-0".to_owned(),
        power_w: Some(Wave::Constant(100.0)),
        temp_c: Some(Wave::Constant(40.0)),
        ..Device::default()
    };
    let script = Script { driver: "0".to_owned(), devices: vec![gpu], ..Script::default() };
    let library = nvml_stub::install(folder, &script)?;
    let plan = EnergyPlan {
        source: PowerSource::Nvml,
        poll_hz: hz,
        idle_s: 0.0,
        cooldown_s: 0.0,
        cooldown_above_c: 5.0,
        gpus: None,
        nvml_library: Some(library.to_string_lossy().into_owned()),
    };
    bench_energy::open(&plan)?.probe.ok_or_else(|| "no probe".into())
}

fn compute(stop: &AtomicBool) {
    let mut x = [1.0_f32; 64];
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..10_000 {
            for value in &mut x {
                *value = value.mul_add(0.999_9, 0.000_1);
            }
        }
        black_box(&mut x);
    }
}

/// Instants of the readings in milliseconds, without the one at the end, which keeps no rate.
fn watch(probe: &mut dyn PowerProbe, duration: Duration) -> Result<Vec<f64>, String> {
    let zero_unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as u64);
    probe.begin(&Watch { clock: Arc::new(MonotonicClock::default()), zero_unix_ms, process: None });
    std::thread::sleep(duration);
    let trace = probe.end();
    let device = trace.devices.first().ok_or("no device")?;
    let mut at_ms: Vec<f64> = device.samples.iter().map(|sample| sample.at.as_ms()).collect();
    at_ms.pop();
    if at_ms.len() < 3 { Err(format!("only {} readings", at_ms.len())) } else { Ok(at_ms) }
}

fn print(cores: usize, hz: f64, at_ms: &[f64]) {
    let intervals: Vec<f64> = at_ms.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let n = intervals.len() as f64;
    let span_s = (at_ms[at_ms.len() - 1] - at_ms[0]) / 1e3;
    let mean = span_s * 1e3 / n;
    let variance = intervals.iter().map(|ms| (ms - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let shortest = intervals.iter().copied().fold(f64::INFINITY, f64::min);
    let longest = intervals.iter().copied().fold(0.0, f64::max);
    println!(
        "busy_threads,requested_hz,span_s,readings,achieved_hz,interval_min_ms,interval_max_ms,interval_sd_ms"
    );
    println!(
        "{cores},{hz},{span_s:.3},{},{:.4},{shortest:.3},{longest:.3},{:.4}",
        at_ms.len(),
        n / span_s,
        variance.sqrt()
    );
}
