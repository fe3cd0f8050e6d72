//! Polls sources on a thread of its own and keeps what they said, one list of samples for each device.
//!
//! Samples carry the run's clock; when they are taken is decided on the machine's time. No value is
//! interpreted here: what failed is a sample with a reason, and the poller goes on.

use super::notes;
use super::pace::{Pace, SystemTimer, Timer, poll};
use super::plausible::plausible;
use super::source::{Context, Source};
use bench_core::clock::{Clock, ScriptedClock};
use bench_core::power::{DeviceTrace, PowerDevice, PowerScope, PowerTrace};
use bench_core::probe::{Cooling, PowerProbe, Watch};
use bench_core::target::StopFlag;
use bench_core::unit::Nanos;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often a stop flag is looked at.
const GLANCE: Nanos = Nanos::from_millis(50);
/// How often temperatures are read while devices cool down.
const COOLING_LOOK: Nanos = Nanos::from_millis(500);
/// Above ordinary threads, where that is allowed: a poller that computes nothing takes nothing from them.
const NICE: i32 = -10;

/// Sources and what they said since the beginning.
struct Reader {
    sources: Vec<Box<dyn Source>>,
    traces: Vec<DeviceTrace>,
}

impl Reader {
    fn begin(&mut self, context: Context) {
        self.traces.clear();
        for source in &mut self.sources {
            source.begin(context);
            let empty = |device: &PowerDevice| DeviceTrace { device: device.clone(), samples: Vec::new() };
            self.traces.extend(source.devices().iter().map(empty));
        }
    }

    fn read(&mut self, clock: &dyn Clock) {
        let mut traces = self.traces.iter_mut();
        for source in &mut self.sources {
            for (index, trace) in traces.by_ref().take(source.devices().len()).enumerate() {
                trace.samples.push(plausible(source.read(index, clock)));
            }
        }
    }
}

struct Running {
    clock: Arc<dyn Clock>,
    begin: Nanos,
    stop: Arc<AtomicBool>,
    /// `None` where no thread could be started.
    thread: Option<JoinHandle<Pace>>,
}

/// The probe for everything that is polled.
pub(super) struct Sampler {
    reader: Arc<Mutex<Reader>>,
    devices: Vec<PowerDevice>,
    hz: f64,
    timer: Arc<dyn Timer>,
    running: Option<Running>,
    /// Temperatures of the idle machine.
    idle_c: Vec<(PowerScope, u32, f64)>,
}

impl Sampler {
    pub(super) fn new(sources: Vec<Box<dyn Source>>, hz: f64) -> Self {
        Self::with_timer(sources, hz, Arc::new(SystemTimer::default()))
    }

    pub(super) fn with_timer(sources: Vec<Box<dyn Source>>, hz: f64, timer: Arc<dyn Timer>) -> Self {
        let devices = sources.iter().flat_map(|source| source.devices().to_vec()).collect();
        let reader = Arc::new(Mutex::new(Reader { sources, traces: Vec::new() }));
        Self { reader, devices, hz, timer, running: None, idle_c: Vec::new() }
    }

    fn reader(&self) -> MutexGuard<'_, Reader> {
        lock(&self.reader)
    }

    /// Resets the traces and takes the first sample; the instant before it.
    fn first(&self, watch: &Watch) -> Nanos {
        let begin = watch.clock.now();
        let mut reader = self.reader();
        reader.begin(context(watch));
        reader.read(watch.clock.as_ref());
        begin
    }

    fn spawn(&self, watch: &Watch, stop: &Arc<AtomicBool>) -> Option<JoinHandle<Pace>> {
        let (reader, timer) = (Arc::clone(&self.reader), Arc::clone(&self.timer));
        let (clock, stop) = (Arc::clone(&watch.clock), Arc::clone(stop));
        let mut pace = Pace::new(timer.now(), self.hz);
        let polling = move || {
            // Not allowed on most machines, and then the poller is an ordinary thread.
            let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
            poll(timer.as_ref(), &mut pace, &stop, || lock(&reader).read(clock.as_ref()));
            pace
        };
        std::thread::Builder::new().name("power".to_owned()).spawn(polling).ok()
    }

    /// Takes the last sample and hands everything over; `pace`: `None` where nobody polled.
    fn last(&self, clock: &dyn Clock, begin: Nanos, pace: Option<&Pace>) -> PowerTrace {
        let mut reader = self.reader();
        reader.read(clock);
        let devices = std::mem::take(&mut reader.traces);
        let mut notes = notes::of_pace(pace, self.hz);
        notes.extend(devices.iter().filter_map(|trace| notes::of_device(trace, begin)));
        PowerTrace { requested_hz: self.hz, begin, end: clock.now(), cooled_s: None, devices, notes }
    }

    /// Sleeps until `deadline` with glances at `stop`; `false` if that was set.
    fn sleep(&self, deadline: Nanos, stop: &StopFlag) -> bool {
        let never = AtomicBool::new(false);
        while !stop.is_set() {
            let now = self.timer.now();
            if now >= deadline {
                return true;
            }
            self.timer.sleep_until(deadline.min(now + GLANCE), &never);
        }
        false
    }

    /// Whether no device is known to be more than `above_c` warmer than when idle.
    fn is_cool(&self, above_c: f64) -> bool {
        let mut reader = self.reader();
        // Nobody looks at the stamps of these readings.
        let clock = ScriptedClock::default();
        reader.sources.iter_mut().all(|source| {
            (0..source.devices().len()).all(|i| {
                let (scope, index) = (source.devices()[i].scope, source.devices()[i].index);
                let Some(idle) = self.idle_c.iter().find(|known| (known.0, known.1) == (scope, index)) else {
                    return true;
                };
                plausible(source.read(i, &clock)).temp_c.is_none_or(|temp| temp <= idle.2 + above_c)
            })
        })
    }
}

fn lock(reader: &Mutex<Reader>) -> MutexGuard<'_, Reader> {
    reader.lock().unwrap_or_else(PoisonError::into_inner)
}

fn context(watch: &Watch) -> Context {
    let wall_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_micros() as u64);
    Context {
        zero_unix_us: zero_unix_us(watch.zero_unix_ms, wall_us, watch.clock.now()),
        process: watch.process.unwrap_or_else(std::process::id),
    }
}

/// Wall-clock time at the run clock's zero to the microsecond: what both clocks say now, unless the watch,
/// which knows it to the millisecond, was told of another zero.
pub(super) fn zero_unix_us(zero_unix_ms: u64, wall_us: u64, now: Nanos) -> u64 {
    /// Rounding of both clocks to milliseconds, and some time between the two looks at them.
    const ROUNDING_US: u64 = 5_000;
    let told = zero_unix_ms.saturating_mul(1_000);
    match wall_us.checked_sub(now.0 / 1_000) {
        Some(seen) if seen.abs_diff(told) <= ROUNDING_US => seen,
        _ => told,
    }
}

impl PowerProbe for Sampler {
    fn devices(&self) -> Vec<PowerDevice> {
        self.devices.clone()
    }

    fn begin(&mut self, watch: &Watch) {
        drop(self.running.take());
        let stop = Arc::new(AtomicBool::new(false));
        let begin = self.first(watch);
        let thread = self.spawn(watch, &stop);
        self.running = Some(Running { clock: Arc::clone(&watch.clock), begin, stop, thread });
    }

    fn end(&mut self) -> PowerTrace {
        let Some(mut running) = self.running.take() else {
            return PowerTrace { requested_hz: self.hz, ..PowerTrace::default() };
        };
        let pace = running.halt();
        self.last(running.clock.as_ref(), running.begin, pace.as_ref())
    }

    /// On the caller's thread, who waits anyhow.
    fn idle(&mut self, watch: &Watch, duration: Duration, stop: &StopFlag) -> PowerTrace {
        let begin = self.first(watch);
        let start = self.timer.now();
        let end = start + Nanos(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 2));
        let mut pace = Pace::new(start, self.hz);
        loop {
            let next = pace.next(self.timer.now());
            if next >= end || !self.sleep(next, stop) {
                break;
            }
            self.reader().read(watch.clock.as_ref());
        }
        self.sleep(end, stop);
        let trace = self.last(watch.clock.as_ref(), begin, Some(&pace));
        self.remember_idle(&trace);
        trace
    }

    fn remember_idle(&mut self, idle: &PowerTrace) {
        let mean = |trace: &DeviceTrace| {
            let temps: Vec<f64> = trace.samples.iter().filter_map(|sample| sample.temp_c).collect();
            (!temps.is_empty()).then(|| temps.iter().sum::<f64>() / temps.len() as f64)
        };
        self.idle_c = idle
            .devices
            .iter()
            .filter_map(|trace| Some((trace.device.scope, trace.device.index, mean(trace)?)))
            .collect();
    }

    fn cool(&mut self, cooling: &Cooling, stop: &StopFlag) -> (Duration, bool) {
        let start = self.timer.now();
        let longest = Nanos(u64::try_from(cooling.longest.as_nanos()).unwrap_or(u64::MAX / 2));
        loop {
            let cool = self.is_cool(cooling.above_idle_c);
            let now = self.timer.now();
            let waited = now.since(start).unwrap_or_default();
            if cool || waited >= longest || !self.sleep((start + longest).min(now + COOLING_LOOK), stop) {
                return (Duration::from_nanos(waited.0), cool);
            }
        }
    }
}

impl Running {
    /// Ends the thread; what its pace was, `None` if there was none or it died.
    fn halt(&mut self) -> Option<Pace> {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.take()?;
        thread.thread().unpark();
        thread.join().ok()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.halt();
    }
}
