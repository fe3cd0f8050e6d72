//! The sampler in virtual time: every instant of a reading is exact.

use super::*;
use crate::probe::pace::Timer;
use crate::probe::sampler::{Sampler, zero_unix_us};
use crate::probe::source::{Context, Source};
use bench_core::power::{PowerDevice, PowerReading, PowerScope};
use bench_core::probe::Cooling;
use bench_core::target::StopFlag;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// 1 degree colder with every reading, from `from_c` on, and 100 W.
struct Cooling1 {
    device: PowerDevice,
    readings: Arc<AtomicU64>,
    from_c: f64,
}

impl Source for Cooling1 {
    fn devices(&self) -> &[PowerDevice] {
        std::slice::from_ref(&self.device)
    }

    fn begin(&mut self, _: Context) {}

    fn read(&mut self, _: usize, clock: &dyn Clock) -> PowerSample {
        let n = self.readings.fetch_add(1, Ordering::SeqCst);
        let temp_c = Some(self.from_c - n as f64);
        PowerSample { at: clock.now(), power_w: Some(100.0), temp_c, ..PowerSample::default() }
    }
}

fn sampler(timer: &Arc<Virtual>, hz: f64, from_c: f64) -> (Sampler, Arc<AtomicU64>) {
    let device = PowerDevice {
        scope: PowerScope::GpuBoard,
        index: 0,
        name: "t".to_owned(),
        id: "t".to_owned(),
        source: "test".to_owned(),
        reading: PowerReading::Instant,
        counter_range_j: None,
        power_limit_w: None,
        driver: None,
    };
    let readings = Arc::new(AtomicU64::new(0));
    let source = Cooling1 { device, readings: Arc::clone(&readings), from_c };
    (Sampler::with_timer(vec![Box::new(source)], hz, Arc::clone(timer) as Arc<dyn Timer>), readings)
}

fn instants_ms(trace: &PowerTrace) -> Vec<f64> {
    trace.devices[0].samples.iter().map(|sample| sample.at.as_ms()).collect()
}

#[test]
fn a_trial_is_read_at_its_edges_and_at_every_period_between() {
    let timer = Virtual::new(5, 0);
    at_ms(&timer.clock, 7);
    let (mut probe, readings) = sampler(&timer, 10.0, 50.0);
    probe.begin(&watch(&timer.clock));
    timer.wait_until_spent();
    while readings.load(Ordering::SeqCst) < 6 {
        std::thread::yield_now();
    }
    at_ms(&timer.clock, 530);
    let trace = probe.end();
    assert_eq!(instants_ms(&trace), [7.0, 107.0, 207.0, 307.0, 407.0, 507.0, 530.0]);
    assert_eq!((trace.begin.as_ms(), trace.end.as_ms(), trace.requested_hz), (7.0, 530.0, 10.0));
    assert_eq!(trace.notes, [""; 0]);
    // Nothing is left over for the next trial, and an end without a beginning is empty.
    assert!(probe.end().devices.is_empty());
}

#[test]
fn instants_left_out_are_said() {
    let timer = Virtual::new(u64::MAX, 150);
    let (mut probe, _) = sampler(&timer, 10.0, 50.0);
    let trace = probe.idle(&watch(&timer.clock), Duration::from_secs(1), &StopFlag::new());
    assert!(trace.notes[0].contains("readings at 10 Hz were left out"), "{:?}", trace.notes);
}

#[test]
fn idle_is_watched_at_every_period_and_remembered() {
    let timer = Virtual::new(u64::MAX, 0);
    let (mut probe, _) = sampler(&timer, 4.0, 60.0);
    let trace = probe.idle(&watch(&timer.clock), Duration::from_secs(1), &StopFlag::new());
    assert_eq!(instants_ms(&trace), [0.0, 250.0, 500.0, 750.0, 1000.0]);
    // 60 to 56 degrees when idle, 58 in the mean; the next reading says 55.
    let cooling = Cooling { longest: Duration::from_secs(10), above_idle_c: 0.0 };
    assert_eq!(probe.cool(&cooling, &StopFlag::new()), (Duration::ZERO, true));
}

#[test]
fn a_warm_device_is_waited_for_but_not_for_ever() {
    let idle = {
        let timer = Virtual::new(u64::MAX, 0);
        sampler(&timer, 1.0, 40.0).0.idle(&watch(&timer.clock), Duration::ZERO, &StopFlag::new())
    };
    assert_eq!(instants_ms(&idle), [0.0, 0.0]);
    // Idle at 39.5 degrees; 5 above is reached by the reading of 44 degrees, the seventh from 50.
    for (longest_s, expected) in [(10, (3.0, true)), (2, (2.0, false))] {
        let timer = Virtual::new(u64::MAX, 0);
        let (mut probe, readings) = sampler(&timer, 1.0, 50.0);
        probe.remember_idle(&idle);
        let cooling = Cooling { longest: Duration::from_secs(longest_s), above_idle_c: 5.0 };
        let (waited, cool) = probe.cool(&cooling, &StopFlag::new());
        assert_eq!((waited.as_secs_f64(), cool), expected);
        assert_eq!(readings.load(Ordering::SeqCst), if cool { 7 } else { 5 });
    }
}

#[test]
fn a_stop_ends_waiting_at_once() {
    let timer = Virtual::new(u64::MAX, 0);
    let (mut probe, _) = sampler(&timer, 10.0, 90.0);
    let stop = StopFlag::new();
    stop.stop();
    let trace = probe.idle(&watch(&timer.clock), Duration::from_hours(1), &stop);
    assert_eq!(instants_ms(&trace), [0.0, 0.0]);
    probe.remember_idle(&PowerTrace { devices: vec![cold(&trace)], ..PowerTrace::default() });
    let cooling = Cooling { longest: Duration::from_hours(1), above_idle_c: 5.0 };
    assert_eq!(probe.cool(&cooling, &stop), (Duration::ZERO, false));
}

/// The same device at 20 degrees.
fn cold(trace: &PowerTrace) -> bench_core::power::DeviceTrace {
    let mut device = trace.devices[0].clone();
    device.samples.iter_mut().for_each(|sample| sample.temp_c = Some(20.0));
    device
}

#[test]
fn the_zero_of_the_clock_is_known_to_the_microsecond() {
    // Told 1,000,000 ms; the wall clock says 1,000.500300 s while the run's says 499.8 ms.
    assert_eq!(zero_unix_us(1_000_000, 1_000_500_300, Nanos(499_800_000)), 1_000_000_500);
    // A scripted clock has nothing to do with the wall clock.
    assert_eq!(zero_unix_us(1_000_000, 1_700_000_000_000_000, Nanos(0)), 1_000_000_000);
}
