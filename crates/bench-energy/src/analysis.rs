//! Energy of one cell: power traces and the instants of requests in, estimates with scope and reasons out.
//!
//! Requests and power are taken in trial by trial; of a request only its instants are kept. Everything comes
//! from what was recorded: nothing here reads a device. A cell without any power trace has no estimates.

mod code;
mod counter;
mod curve;
mod device;
mod figures;
mod timeline;
mod window;

#[cfg(test)]
mod tests;

pub use code::Code;

use bench_core::Error;
use bench_core::detail::PowerTimeline;
use bench_core::load::Load;
use bench_core::metric::Metric;
use bench_core::plan::{Cell, Plan, derive_seed};
use bench_core::power::{DeviceTrace, PowerScope, PowerTrace};
use bench_core::sample::Estimate;
use bench_core::trace::{RequestTrace, SteadyWindow, Timeline};
use code::{Reasons, Value};
use device::{Device, Measured, Reading, Tells};
use figures::Figures;
use std::collections::{BTreeMap, BTreeSet};
use timeline::Timelines;
use window::{Repeats, Window};

/// Share of the readings per second that were asked for, below which the rate is noted as low.
const LOW_RATE: f64 = 0.9;

/// A device, by its scope and its number there.
type Key = (PowerScope, u32);

/// Takes in the trials of one cell.
pub struct Analysis<'a> {
    plan: &'a Plan,
    cell: &'a Cell,
    idle: BTreeMap<Key, Device>,
    trials: Vec<Trial>,
    timelines: Timelines,
}

/// What a cell comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Analyzed {
    pub estimates: Vec<Estimate>,
    /// Of each device in the first trial that has power.
    pub power: Vec<PowerTimeline>,
}

#[derive(Default)]
struct Trial {
    repeats: Repeats,
    devices: BTreeMap<Key, Device>,
    requested_hz: Option<f64>,
}

/// Devices whose figures stand in one set of rows.
struct Group<'g> {
    scope: String,
    keys: &'g [Key],
}

impl<'a> Analysis<'a> {
    /// `idle` is what the devices did before the first trial; without it there is no net energy.
    pub fn new(plan: &'a Plan, cell: &'a Cell, idle: Option<&PowerTrace>) -> Self {
        let idle = idle.map(devices).unwrap_or_default();
        Self { plan, cell, idle, trials: Vec::new(), timelines: Timelines::default() }
    }

    /// Begins the next trial.
    pub fn trial(&mut self) {
        self.trials.push(Trial::default());
        self.timelines.trial();
    }

    /// Takes in a measured request of the present trial.
    ///
    /// # Errors
    /// Events out of order.
    pub fn request(&mut self, request: &RequestTrace) -> Result<(), Error> {
        let Some(trial) = self.trials.last_mut() else { return Ok(()) };
        // Of an answer that is not streamed nobody knows when its prefill ended.
        let streamed = self.plan.server.as_ref().is_none_or(|s| s.stream);
        let (shown, batch) = (streamed && self.timelines.wants_requests(), self.cell.load == Load::Batch);
        // With a server the steady windows say all that the joules need.
        if shown || batch {
            let timeline = Timeline::read(&self.cell.id, request)?;
            if shown {
                self.timelines.request(&timeline);
            }
            if batch {
                window::add(&mut trial.repeats, request, &timeline);
            }
        }
        Ok(())
    }

    /// Takes in what the devices did during the present trial.
    pub fn power(&mut self, power: &PowerTrace) {
        let idle = &self.idle;
        self.timelines.power(power, |trace| {
            let idle_w = idle.get(&key(trace)).and_then(|idle| idle.mean_power().ok());
            (Device::new(trace, power.begin, power.end), idle_w)
        });
        if let Some(trial) = self.trials.last_mut() {
            trial.devices = devices(power);
            trial.requested_hz = Some(power.requested_hz);
        }
    }

    /// All estimates, and what pictures show. `steady` are the steady windows of the cell's trials where requests are in flight
    /// together; batches have windows of their own.
    ///
    /// # Errors
    /// None that a figure could cause: those that are not finite are missing.
    pub fn finish(mut self, steady: &[SteadyWindow]) -> Result<Analyzed, Error> {
        let power = std::mem::take(&mut self.timelines).finish();
        Ok(Analyzed { estimates: self.estimates(steady)?, power })
    }

    fn estimates(&self, steady: &[SteadyWindow]) -> Result<Vec<Estimate>, Error> {
        let keys: BTreeSet<Key> = self.trials.iter().flat_map(|t| t.devices.keys().copied()).collect();
        let mut estimates = Vec::new();
        for scope in PowerScope::ALL {
            let members: Vec<Key> = keys.iter().copied().filter(|key| key.0 == scope).collect();
            if members.is_empty() {
                continue;
            }
            let windows = self.windows(&members, steady);
            let mut groups = vec![Group { scope: scope.key().to_owned(), keys: &members }];
            if members.len() > 1 {
                let one = |key: &'_ Key| format!("{}.{}", scope.key(), key.1);
                groups.extend(members.chunks(1).map(|keys| Group { scope: one(&keys[0]), keys }));
            }
            for group in groups {
                estimates.extend(self.of_windows(&group, &windows)?);
                estimates.extend(self.of_cell(&group));
            }
        }
        estimates.sort_by_key(|e| e.metric);
        Ok(estimates)
    }

    /// The same windows for all devices of a scope.
    fn windows(&self, keys: &[Key], steady: &[SteadyWindow]) -> Vec<Window> {
        if self.cell.load != Load::Batch {
            return window::of_steady(steady);
        }
        let period = self.of(keys).filter_map(Device::longest_period).reduce(f64::max);
        window::of_batches(&self.trials.iter().map(|t| &t.repeats).collect::<Vec<_>>(), period)
    }

    /// The devices in every trial that has them.
    fn of<'k>(&'k self, keys: &'k [Key]) -> impl Iterator<Item = &'k Device> {
        self.trials.iter().flat_map(move |t| keys.iter().filter_map(move |key| t.devices.get(key)))
    }

    fn of_windows(&self, group: &Group, windows: &[Window]) -> Result<Vec<Estimate>, Error> {
        let tells: Vec<Tells> = group
            .keys
            .iter()
            .map(|key| {
                self.of(std::slice::from_ref(key)).map(Device::tells).fold(Tells::default(), Tells::or)
            })
            .collect();
        let shown = tells.iter().copied().fold(Tells::default(), Tells::or).readings;
        let mut figures = Figures::default();
        for window in windows {
            let at = |key| self.trials.get(window.trial).and_then(|trial| trial.devices.get(key));
            let each: Vec<Measured> = group
                .keys
                .iter()
                .zip(&tells)
                .map(|(key, tells)| match at(key) {
                    Some(device) => device.measure(window, *tells, self.idle_w(*key)),
                    None => Measured::missing(window.fault.unwrap_or(Code::NoSamples), *tells),
                })
                .collect();
            let devices: Vec<&Device> = group.keys.iter().filter_map(at).collect();
            let peak = device::peak(&devices, window.from, window.to).ok_or(Code::NoSamples);
            if let Some(all) = figures::together(&each) {
                figures.add_window(window, &all, peak, shown);
            }
        }
        let seed = |metric: &str| {
            derive_seed(self.plan.seed, &format!("bootstrap.{}.{}.{metric}", self.cell.id, group.scope))
        };
        figures.estimates(&group.scope, seed)
    }

    /// Mean power of a device while the machine was idle.
    fn idle_w(&self, key: Key) -> Value {
        let idle = self.idle.get(&key).ok_or(Code::NoIdle)?;
        idle.mean_power().map_err(|_| Code::NoIdle)
    }

    /// What is one value of the cell.
    fn of_cell(&self, group: &Group) -> Vec<Estimate> {
        let keys = group.keys;
        let trials =
            self.trials.iter().filter(|t| keys.iter().any(|key| t.devices.contains_key(key))).count();
        let mut estimates = Vec::new();
        let mut add = |metric, value: Value, n: usize, note: Option<Code>| {
            let mut reasons = Reasons::default();
            value.err().into_iter().chain(note).for_each(|code| reasons.add(code));
            estimates.push(Estimate {
                scope: Some(group.scope.clone()),
                missing_reason: reasons.text(),
                ..Estimate::of_cell(metric, value.ok(), n as u64)
            });
        };
        if keys.iter().any(|key| self.idle.contains_key(key)) {
            add(Metric::IdlePower, keys.iter().map(|key| self.idle_w(*key)).sum(), 1, None);
        }
        let idle = |reading| {
            let of = |key| self.idle.get(key)?.mean_of_trial(reading);
            mean(keys.iter().filter_map(of))
        };
        for (metric, reading) in [(Metric::IdleTemp, Reading::Temp), (Metric::IdleSmClock, Reading::SmClock)]
        {
            if let Some(value) = idle(reading) {
                add(metric, Ok(value), 1, None);
            }
        }
        let rate = self.sample_rate(keys);
        let asked = self.trials.iter().filter_map(|t| t.requested_hz).reduce(f64::max);
        let low = rate.zip(asked).is_some_and(|(rate, asked)| rate < LOW_RATE * asked);
        add(Metric::PowerSampleRate, rate.ok_or(Code::NoSamples), trials, low.then_some(Code::RateLow));
        if let Some(celsius) = mean(self.of(keys).filter_map(|d| d.first(Reading::Temp))) {
            add(Metric::StartTemp, Ok(celsius), trials, None);
        }
        let limit = |key| self.of(std::slice::from_ref(key)).find_map(|d| d.about.power_limit_w);
        if let Some(watts) = keys.iter().map(limit).sum::<Option<f64>>() {
            add(Metric::PowerLimit, Ok(watts), 1, None);
        }
        estimates
    }

    /// New power values per second over all trials, mean over devices.
    fn sample_rate(&self, keys: &[Key]) -> Option<f64> {
        let of = |key| {
            let rates = self.of(std::slice::from_ref(key)).filter_map(Device::rate);
            let (values, seconds) = rates.fold((0.0, 0.0), |sum, rate| (sum.0 + rate.0, sum.1 + rate.1));
            (seconds > 0.0).then(|| values / seconds)
        };
        mean(keys.iter().filter_map(of))
    }
}

fn key(trace: &DeviceTrace) -> Key {
    (trace.device.scope, trace.device.index)
}

fn devices(power: &PowerTrace) -> BTreeMap<Key, Device> {
    power.devices.iter().map(|d| (key(d), Device::new(d, power.begin, power.end))).collect()
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0.0), |(sum, n), value| (sum + value, n + 1.0));
    (n > 0.0).then(|| sum / n)
}
