//! Power whose joules are known in closed form, sampled in virtual time; what the analysis makes of it.

use super::{Analysis, Code};
use bench_core::event::{Channel, Event, EventKind, FailureKind, FinishReason};
use bench_core::load::Load;
use bench_core::metric::Metric;
use bench_core::plan::Plan;
use bench_core::power::{DeviceTrace, PowerDevice, PowerReading, PowerSample, PowerScope, PowerTrace};
use bench_core::sample::{Estimate, Stat};
use bench_core::spec::RunSpec;
use bench_core::trace::{RequestTrace, SteadyWindow};
use bench_core::unit::Nanos;

mod codes;
mod exact;
mod shape;
mod timeline;

fn plan(repeats: u32, batch: u32) -> Plan {
    let text = format!(
        "[run]\nrepeats = {repeats}\nrounds = 1\n[workload]\nprompt_tokens = [16]\noutput_tokens = [4]\n\
         batch = [{batch}]\n[[models]]\nid = \"org/m\"\n"
    );
    RunSpec::from_toml("t", &text).unwrap().resolve().unwrap()
}

fn ns(seconds: f64) -> Nanos {
    Nanos((seconds * 1e9).round() as u64)
}

/// Watts over time with the joules from 0 in closed form.
#[derive(Debug, Clone, Copy)]
enum Draw {
    Constant(f64),
    Ramp {
        start: f64,
        per_second: f64,
    },
    /// `high` for the first half of each period, else `low`.
    Square {
        low: f64,
        high: f64,
        period: f64,
    },
}

impl Draw {
    fn watts(self, t: f64) -> f64 {
        match self {
            Self::Constant(watts) => watts,
            Self::Ramp { start, per_second } => start + per_second * t,
            Self::Square { low, high, period } => {
                if (t / period).fract() < 0.5 {
                    high
                } else {
                    low
                }
            }
        }
    }

    fn joules(self, t: f64) -> f64 {
        match self {
            Self::Constant(watts) => watts * t,
            Self::Ramp { start, per_second } => start * t + per_second * t * t / 2.0,
            Self::Square { low, high, period } => {
                let (whole, rest) = ((t / period).floor(), (t / period).fract() * period);
                let half = period / 2.0;
                whole * half * (low + high) + rest.min(half) * high + (rest - half).max(0.0) * low
            }
        }
    }

    fn between(self, from: f64, to: f64) -> f64 {
        self.joules(to) - self.joules(from)
    }

    /// Samples at `begin`, then every `step` up to `end`, power and a counter that is updated every
    /// `counter_step`, at `counter_phase` past its multiples.
    fn sampled(self, (begin, step, end): (f64, f64, f64), counter: Option<(f64, f64)>) -> Vec<PowerSample> {
        let count = ((end - begin) / step).round() as u32;
        let at = |i: u32| begin + f64::from(i) * step;
        let sample = |t: f64| PowerSample {
            at: ns(t),
            power_w: Some(self.watts(t)),
            energy_j: counter.map(|(every, phase)| {
                self.joules((((t - phase) / every + 1e-9).floor() * every + phase).max(0.0))
            }),
            ..PowerSample::default()
        };
        (0..=count).map(|i| sample(at(i))).collect()
    }
}

fn device(index: u32) -> PowerDevice {
    PowerDevice {
        scope: PowerScope::GpuBoard,
        index,
        name: "stub".to_owned(),
        id: format!("GPU-{index}"),
        source: "file".to_owned(),
        reading: PowerReading::Instant,
        counter_range_j: None,
        power_limit_w: None,
        driver: None,
    }
}

fn trace(samples: Vec<PowerSample>) -> PowerTrace {
    of_devices(vec![DeviceTrace { device: device(0), samples }])
}

fn of_devices(devices: Vec<DeviceTrace>) -> PowerTrace {
    let instants = || devices.iter().flat_map(|d| &d.samples).map(|s| s.at);
    let (begin, end) = (instants().min().unwrap_or_default(), instants().max().unwrap_or_default());
    PowerTrace { requested_hz: 10.0, begin, end, devices, ..PowerTrace::default() }
}

/// A request with its first token at `times.1` and `tokens` more, the last of them at `times.2`.
fn request(repeat: u32, slot: u32, times: (f64, f64, f64), more: u32) -> RequestTrace {
    let (sent, first, last) = times;
    let event = |at, kind| Event { at: ns(at), kind };
    let tokens = |count| EventKind::Tokens { count, channel: Channel::Final };
    RequestTrace {
        repeat,
        slot,
        prompt_hash: String::new(),
        asked: None,
        server: None,
        kv_allocated_bytes: None,
        events: vec![
            event(sent, EventKind::Intended),
            event(sent, EventKind::Sent),
            event(first, tokens(1)),
            event(last, tokens(more)),
            event(last, EventKind::Done { finish: FinishReason::Length }),
        ],
    }
}

/// One trial of batches.
fn of_batches(requests: &[RequestTrace], power: &PowerTrace, idle: Option<&PowerTrace>) -> Vec<Estimate> {
    let plan = plan(requests.len() as u32, 1);
    let mut analysis = Analysis::new(&plan, &plan.cells[0], idle);
    analysis.trial();
    for request in requests {
        analysis.request(request).unwrap();
    }
    analysis.power(power);
    analysis.finish(&[]).unwrap().estimates
}

fn row<'e>(estimates: &'e [Estimate], metric: Metric, scope: &str, stat: Stat) -> Option<&'e Estimate> {
    let mut rows = estimates.iter().filter(|e| e.metric == metric && e.stat == stat);
    rows.find(|e| e.scope.as_deref() == Some(scope))
}

/// Mean over the windows of the one GPU, or the value of the cell.
fn value(estimates: &[Estimate], metric: Metric) -> Option<f64> {
    let of = |stat| row(estimates, metric, "gpu_board", stat);
    of(Stat::Mean).or_else(|| of(Stat::Value)).and_then(|e| e.value)
}

fn reason(estimates: &[Estimate], metric: Metric) -> (u64, String) {
    let of = |stat| row(estimates, metric, "gpu_board", stat);
    let row = of(Stat::Mean).or_else(|| of(Stat::Value)).unwrap_or_else(|| panic!("no row of {metric:?}"));
    (row.missing, row.missing_reason.clone())
}

fn relative(found: Option<f64>, exact: f64) -> f64 {
    (found.unwrap_or_else(|| panic!("missing, but it is {exact}")) / exact - 1.0).abs()
}
