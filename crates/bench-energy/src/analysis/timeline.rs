//! What pictures show of power: the first trial that has any, with what its requests did meanwhile.
//!
//! The same samples that joules are summed over, and those that failed beside them. No figure is computed here.

use super::device::Device;
use bench_core::detail::{MAX_POINTS, Phase, PhaseKind, PowerTimeline};
use bench_core::power::{DeviceTrace, PowerTrace};
use bench_core::trace::Timeline;
use bench_core::unit::Nanos;

/// Takes in trials until one has power.
#[derive(Debug, Default)]
pub(crate) struct Timelines {
    /// Of the present trial, or of the one that is shown; on the run's clock.
    phases: Vec<Phase>,
    /// On the run's clock: where the time of the devices begins.
    begin: f64,
    devices: Vec<PowerTimeline>,
    /// The trial that is shown is over.
    over: bool,
}

impl Timelines {
    /// Begins the next trial.
    pub(crate) fn trial(&mut self) {
        if self.devices.is_empty() {
            self.phases.clear();
        } else {
            self.over = true;
        }
    }

    /// Whether requests still add anything.
    pub(crate) fn wants_requests(&self) -> bool {
        !self.over && self.phases.len() + 2 <= MAX_POINTS
    }

    /// What one request did; of one that failed, as far as it came.
    pub(crate) fn request(&mut self, timeline: &Timeline) {
        let (Some(first), Some(last)) = (timeline.first_token(), timeline.last_token()) else { return };
        let phase = |kind, from: Nanos, to: Nanos| Phase { kind, from_s: from.as_secs(), to_s: to.as_secs() };
        self.phases.push(phase(PhaseKind::Prefill, timeline.sent, first));
        if last > first {
            self.phases.push(phase(PhaseKind::Decode, first, last));
        }
    }

    /// Takes in what the devices did during the present trial; only the first time counts.
    pub(crate) fn power(
        &mut self,
        power: &PowerTrace,
        device: impl Fn(&DeviceTrace) -> (Device, Option<f64>),
    ) {
        if !self.devices.is_empty() {
            return;
        }
        let traced = power.devices.iter().filter(|d| !d.samples.is_empty());
        let all: Vec<_> = traced.map(|trace| (trace, device(trace))).collect();
        let sampled: Vec<_> = all.iter().map(|(trace, (device, _))| samples(trace, device)).collect();
        let Some(begin) = sampled.iter().filter_map(|s| s.first()).map(|s| s.0).reduce(f64::min) else {
            return;
        };
        self.begin = begin;
        for ((trace, (_, idle_w)), samples) in all.into_iter().zip(sampled) {
            self.devices.push(PowerTimeline {
                scope: format!("{}.{}", trace.device.scope.key(), trace.device.index),
                device: trace.device.name.clone(),
                left_out: samples.len().saturating_sub(MAX_POINTS) as u64,
                samples: samples.into_iter().take(MAX_POINTS).map(|(at, w)| (at - begin, w)).collect(),
                phases: Vec::new(),
                idle_w,
            });
        }
    }

    /// One for each device, in the order in which the trace has them.
    pub(crate) fn finish(mut self) -> Vec<PowerTimeline> {
        for phase in &mut self.phases {
            (phase.from_s, phase.to_s) = (phase.from_s - self.begin, phase.to_s - self.begin);
        }
        self.phases.sort_by(|a, b| a.from_s.total_cmp(&b.from_s));
        for device in &mut self.devices {
            device.phases.clone_from(&self.phases);
        }
        self.devices
    }
}

/// Seconds on the run's clock and watts, ascending: the corners that are integrated, and between them the readings
/// that failed.
fn samples(trace: &DeviceTrace, device: &Device) -> Vec<(f64, Option<f64>)> {
    let corners = device.power.corners();
    let mut samples: Vec<_> = if device.is_from_counter() {
        // Each mean has two corners; of one over a reset of the counter nothing is known.
        let is_reset = |m: &[(f64, f64)]| {
            device.counter.resets().iter().any(|r| m.iter().all(|&(at, _)| r.0 <= at && at <= r.1))
        };
        let means = corners.chunks(2).map(|mean| (mean, is_reset(mean)));
        means.flat_map(|(m, reset)| m.iter().map(move |&(at, w)| (at, Some(w).filter(|_| !reset)))).collect()
    } else {
        corners.iter().map(|&(at, watts)| (at, Some(watts))).collect()
    };
    let failed = trace.samples.iter().filter(|s| !device.is_told(s));
    samples.extend(failed.map(|s| (s.at.as_secs(), None)));
    samples.sort_by(|a, b| a.0.total_cmp(&b.0));
    samples
}
