//! What the reader of the results is told of a trial's readings: failures and instants left out, once each.
//!
//! The samples themselves say everything; a note only counts them.

use super::pace::Pace;
use bench_core::power::{DeviceTrace, PowerDevice, PowerSample};
use bench_core::unit::Nanos;

/// A device whose last readings all failed, at least so many, is gone.
const GONE: usize = 5;
/// Share of instants left out from which on it is said.
const BEHIND: f64 = 0.01;

pub(super) fn name(device: &PowerDevice) -> String {
    format!("{}.{} ({})", device.scope.key(), device.index, device.name)
}

pub(super) fn of_pace(pace: Option<&Pace>, hz: f64) -> Vec<String> {
    let Some(pace) = pace else {
        return vec![
            "the polling thread did not run: there are only the first and the last reading".to_owned(),
        ];
    };
    let (skipped, planned) = (pace.skipped(), pace.planned());
    let behind = skipped as f64 > BEHIND * planned as f64;
    let note = format!(
        "{skipped} of {planned} readings at {hz} Hz were left out because those before took too long; \
         a lower energy.poll_hz is kept"
    );
    behind.then_some(note).into_iter().collect()
}

pub(super) fn of_device(trace: &DeviceTrace, begin: Nanos) -> Option<String> {
    let samples = &trace.samples;
    let lost = |sample: &&PowerSample| {
        sample.error.is_some() && sample.power_w.is_none() && sample.energy_j.is_none()
    };
    let gone = samples.iter().rev().take_while(lost).count();
    let after_s = |sample: &PowerSample| sample.at.since(begin).unwrap_or_default().as_secs();
    let name = name(&trace.device);
    if gone >= GONE {
        let first = &samples[samples.len() - gone];
        let reason = first.error.as_deref().unwrap_or_default();
        return Some(format!(
            "{name} does not answer any more from {:.1} s after the beginning on, \
             {gone} of {} readings: {reason}",
            after_s(first),
            samples.len()
        ));
    }
    let failed = samples.iter().filter(|sample| sample.error.is_some()).count();
    let first = samples.iter().find(|sample| sample.error.is_some())?;
    Some(format!(
        "{name}: {failed} of {} readings lack values, the first {:.1} s after the beginning: {}",
        samples.len(),
        after_s(first),
        first.error.as_deref().unwrap_or_default()
    ))
}
