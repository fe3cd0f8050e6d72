//! Probes as a run uses them: the stub library through the real FFI, powercap trees, recorded traces, virtual
//! time.

mod choice;
mod gpu;
mod recorded;
mod sampling;
mod tree;

use super::{Opened, open_below, pace};
use bench_core::clock::{Clock, ScriptedClock};
use bench_core::plan::{EnergyPlan, PowerSource};
use bench_core::power::{PowerSample, PowerTrace};
use bench_core::probe::{PowerProbe, Watch};
use bench_core::unit::Nanos;
use pace::Timer;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// So slow that no test is reached by a second reading of the polling thread.
const NEVER_HZ: f64 = 0.0001;

fn plan(source: PowerSource) -> EnergyPlan {
    EnergyPlan {
        source,
        poll_hz: NEVER_HZ,
        idle_s: 0.0,
        cooldown_s: 0.0,
        cooldown_above_c: 5.0,
        gpus: None,
        nvml_library: None,
    }
}

fn watch(clock: &Arc<ScriptedClock>) -> Watch {
    Watch { clock: Arc::clone(clock) as Arc<dyn Clock>, zero_unix_ms: 1_000_000, process: Some(4242) }
}

fn at_ms(clock: &Arc<ScriptedClock>, ms: u64) {
    clock.advance_to(Nanos::from_millis(ms));
}

/// What went wrong, as a user reads it.
fn refusal(opened: Result<Opened, crate::Error>) -> String {
    opened.map(|o| o.notes).unwrap_err().to_string()
}

/// A trace from `begin_ms` to `end_ms` of the run's clock.
fn trace(probe: &mut dyn PowerProbe, begin_ms: u64, end_ms: u64) -> PowerTrace {
    let clock = Arc::new(ScriptedClock::default());
    at_ms(&clock, begin_ms);
    probe.begin(&watch(&clock));
    at_ms(&clock, end_ms);
    probe.end()
}

fn powers(samples: &[PowerSample]) -> Vec<(f64, Option<f64>)> {
    samples.iter().map(|sample| (sample.at.as_ms(), sample.power_w)).collect()
}

/// An empty folder in place of the kernel's powercap tree.
fn no_tree() -> &'static Path {
    Path::new("no-such-powercap-tree")
}

/// Virtual time that is also the run's clock. Sleeping passes it, `budget` times; then a sleeper waits to be
/// stopped.
struct Virtual {
    clock: Arc<ScriptedClock>,
    budget: Mutex<u64>,
    late: Nanos,
    spent: Condvar,
}

impl Virtual {
    fn new(budget: u64, late_ms: u64) -> Arc<Self> {
        let late = Nanos::from_millis(late_ms);
        Arc::new(Self { clock: Arc::default(), budget: Mutex::new(budget), late, spent: Condvar::new() })
    }

    fn wait_until_spent(&self) {
        let budget = self.budget.lock().unwrap();
        drop(self.spent.wait_while(budget, |left| *left > 0).unwrap());
    }
}

impl Timer for Virtual {
    fn now(&self) -> Nanos {
        self.clock.now()
    }

    fn sleep_until(&self, deadline: Nanos, stop: &AtomicBool) {
        let mut budget = self.budget.lock().unwrap();
        if *budget == 0 {
            drop(budget);
            while !stop.load(Ordering::Acquire) {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            return;
        }
        self.clock.advance_to(deadline + self.late);
        *budget -= 1;
        if *budget == 0 {
            self.spent.notify_all();
        }
    }
}
