//! Each code by a trace that was made for it, and that nothing is a number where it should not be.

use super::*;

/// Thirty seconds at 10 Hz, 100 W and a counter; the request runs from 5.03 s to 25.07 s.
fn flawed(flaw: impl Fn(&mut PowerTrace)) -> Vec<Estimate> {
    let mut power = trace(Draw::Constant(100.0).sampled((0.0, 0.1, 30.0), Some((0.1, 0.05))));
    flaw(&mut power);
    of_batches(&[request(0, 0, (5.03, 9.0, 25.07), 99)], &power, None)
}

fn each(power: &mut PowerTrace, flaw: impl Fn(usize, &mut PowerSample)) {
    power.devices[0].samples.iter_mut().enumerate().for_each(|(i, sample)| flaw(i, sample));
}

/// `metric` is missing with this code alone; the other way to the same joules, if it is whole, is exact.
fn check(metric: Metric, code: Code, whole: Option<Metric>, flaw: impl Fn(&mut PowerTrace)) {
    let estimates = flawed(flaw);
    assert_eq!(value(&estimates, metric), None, "{code:?}");
    assert_eq!(reason(&estimates, metric), (1, format!("{}: 1", code.key())), "{code:?}");
    match whole {
        Some(other) => assert!(relative(value(&estimates, other), 2004.0) < 1e-9, "{code:?}: {other:?}"),
        None => assert_eq!(value(&estimates, Metric::AvgPower), None, "{code:?}"),
    }
}

const TRAPZ: Metric = Metric::EnergyTrapz;
const COUNTER: Metric = Metric::EnergyCounter;

#[test]
fn gaps() {
    let fail = |from: usize, to: usize| {
        move |power: &mut PowerTrace| {
            each(power, |i, s| {
                if (from..to).contains(&i) {
                    (s.power_w, s.error) = (None, Some("gone".to_owned()));
                }
            });
        }
    };
    check(TRAPZ, Code::GapTooLong, Some(COUNTER), fail(100, 105));
    check(TRAPZ, Code::GapTooLong, Some(COUNTER), fail(48, 53));
    check(TRAPZ, Code::SourceLost, Some(COUNTER), fail(200, 1000));
    check(TRAPZ, Code::SourceLost, Some(COUNTER), fail(0, 1000));
    // Four in a row are bridged, and gaps beside the window do not matter.
    for (from, to) in [(100, 104), (10, 40), (260, 300)] {
        let estimates = flawed(fail(from, to));
        assert!(relative(value(&estimates, TRAPZ), 2004.0) < 1e-9, "{from}..{to}");
        assert_eq!(reason(&estimates, TRAPZ), (0, String::new()));
    }
    check(TRAPZ, Code::GapTooLong, None, |power| power.devices[0].samples.truncate(220));
    check(TRAPZ, Code::NoSamples, None, |power| power.devices[0].samples.clear());
}

#[test]
fn clocks_that_go_wrong() {
    check(TRAPZ, Code::TimeBackwards, None, |power| power.devices[0].samples[120].at = ns(11.0));
    // The power's own stamp goes back: the counter is read at other instants and stays.
    check(TRAPZ, Code::TimeBackwards, Some(COUNTER), |power| {
        each(power, |i, s| s.taken = Some(if i == 120 { ns(11.0) } else { s.at }));
    });
    check(TRAPZ, Code::DuplicateTime, None, |power| {
        let copy = PowerSample { power_w: Some(90.0), ..power.devices[0].samples[120].clone() };
        power.devices[0].samples.insert(121, copy);
    });
    // A sample that is there twice as it is says nothing new and does no harm.
    let estimates = flawed(|power| {
        power.devices[0].samples =
            power.devices[0].samples.iter().flat_map(|s| [s.clone(), s.clone()]).collect();
    });
    assert!(relative(value(&estimates, TRAPZ), 2004.0) < 1e-9);
    assert!(relative(value(&estimates, Metric::PowerSampleRate), 10.0) < 1e-9);
}

#[test]
fn power_that_cannot_be() {
    for watts in [-1.0, f64::NAN, f64::INFINITY, 0.0, 1e9] {
        check(TRAPZ, Code::Nonsense, Some(COUNTER), |power| {
            power.devices[0].samples[120].power_w = Some(watts);
        });
    }
    check(TRAPZ, Code::Nonsense, Some(COUNTER), |power| {
        power.devices[0].device.power_limit_w = Some(9.0);
    });
    check(COUNTER, Code::Nonsense, Some(TRAPZ), |power| {
        power.devices[0].samples[120].energy_j = Some(f64::NAN);
    });
    // Of other readings only the reading is left out.
    let estimates =
        flawed(|power| each(power, |i, s| s.temp_c = Some(if i % 2 == 0 { 60.0 } else { 65_535.0 })));
    assert_eq!(value(&estimates, Metric::Temp), Some(60.0));
}

#[test]
fn counters_that_begin_anew() {
    let reset = |range| {
        move |power: &mut PowerTrace| {
            power.devices[0].device.counter_range_j = range;
            each(power, |i, s| s.energy_j = s.energy_j.map(|j| if i >= 150 { j - 1490.0 } else { j }));
        }
    };
    check(COUNTER, Code::CounterReset, Some(TRAPZ), reset(None));
    // A range that would make it a huge growth does not explain a decrease.
    check(COUNTER, Code::CounterReset, Some(TRAPZ), reset(Some(262_143.0)));
    let estimates = flawed(|power| {
        each(power, |i, s| s.energy_j = s.energy_j.map(|j| if i >= 20 { j - 100.0 } else { j }));
    });
    assert!(relative(value(&estimates, COUNTER), 2004.0) < 1e-9, "before the window it does no harm");
}

#[test]
fn sensors_that_stand_still() {
    // The counter says that the device draws twice as much.
    check(TRAPZ, Code::SensorConstant, None, |power| {
        each(power, |i, s| {
            (s.energy_j, s.util_gpu_pct) = (None, Some(if i % 20 < 10 { 0.0 } else { 100.0 }));
        });
    });
    let estimates = flawed(|power| each(power, |_, s| s.energy_j = s.energy_j.map(|j| 2.0 * j)));
    assert_eq!(reason(&estimates, TRAPZ), (1, "sensor_constant: 1".to_owned()));
    assert!(relative(value(&estimates, Metric::AvgPower), 200.0) < 1e-9, "the counter stays");
    assert!(relative(value(&estimates, Metric::EnergyDecode), 3214.0) < 1e-9, "and splits by itself");
    // A live source that never moves, with nothing that confirms it.
    check(TRAPZ, Code::SensorConstant, None, |power| {
        power.devices[0].device.source = "nvml".to_owned();
        each(power, |_, s| s.energy_j = None);
    });
    // With a counter that agrees it is simply constant; a recorded trace may be so by intent.
    let estimates = flawed(|power| power.devices[0].device.source = "nvml".to_owned());
    assert!(relative(value(&estimates, TRAPZ), 2004.0) < 1e-9);
    // A counter that never moves.
    check(COUNTER, Code::SensorConstant, Some(TRAPZ), |power| each(power, |_, s| s.energy_j = Some(7.0)));
}

#[test]
fn windows_that_are_too_short() {
    let power = trace(Draw::Constant(100.0).sampled((0.0, 0.1, 30.0), Some((0.5, 0.05))));
    let one = |to| of_batches(&[request(0, 0, (5.03, 5.1, to), 99)], &power, None);
    let estimates = one(9.9);
    assert_eq!(reason(&estimates, COUNTER), (1, "window_too_short: 1".to_owned()), "9.7 updates");
    assert!(relative(value(&estimates, Metric::AvgPower), 100.0) < 1e-9, "gross is the integral");
    let estimates = one(10.1);
    assert!(relative(value(&estimates, COUNTER), 507.0) < 1e-9);
    let estimates = one(5.98);
    assert_eq!(reason(&estimates, TRAPZ), (1, "window_too_short: 1".to_owned()), "9.5 samples");
    assert_eq!(reason(&estimates, Metric::JoulesPerToken), (1, "window_too_short: 1".to_owned()));
}

#[test]
fn notes_leave_the_value() {
    let estimates = flawed(|power| power.devices[0].device.reading = PowerReading::Averaged);
    assert_eq!(reason(&estimates, TRAPZ), (0, "averaged: 1".to_owned()));
    let estimates = flawed(|power| each(power, |i, s| s.power_w = Some(115.0 + (i % 2) as f64)));
    assert_eq!(reason(&estimates, Metric::EnergyDifference), (0, "counter_disagrees: 1".to_owned()));
    assert!(relative(value(&estimates, Metric::EnergyDifference), 100.0 / 115.5 - 1.0) < 1e-3);
    let estimates = flawed(|power| power.requested_hz = 12.0);
    assert_eq!(reason(&estimates, Metric::PowerSampleRate), (0, "rate_low: 1".to_owned()));
    assert!(relative(value(&estimates, Metric::PowerSampleRate), 10.0) < 1e-9);
}

#[test]
fn what_is_missing_for_reasons_of_the_requests() {
    let power = trace(Draw::Constant(100.0).sampled((0.0, 0.1, 30.0), None));
    let mut failed = request(1, 0, (10.0, 11.0, 14.0), 9);
    let event = EventKind::Failed { failure: FailureKind::Engine, message: String::new() };
    failed.events.last_mut().unwrap().kind = event;
    let estimates = of_batches(&[request(0, 0, (2.0, 3.0, 6.0), 9), failed], &power, None);
    assert!(relative(value(&estimates, TRAPZ), 400.0) < 1e-9);
    assert_eq!(reason(&estimates, TRAPZ), (1, "request_failed: 1".to_owned()));
    assert_eq!(reason(&estimates, Metric::EnergyNet), (2, "no_idle: 1; request_failed: 1".to_owned()));
    let estimates = of_batches(&[request(0, 0, (2.0, 6.0, 6.0), 0)], &power, None);
    assert_eq!(reason(&estimates, Metric::JoulesPerToken), (1, "no_tokens: 1".to_owned()));
    assert!(relative(value(&estimates, Metric::JoulesPerTokenE2e), 400.0) < 1e-9);
}

#[test]
fn keys_are_unique_and_every_code_is_listed() {
    let mut keys: Vec<_> = Code::ALL.iter().map(|code| code.key()).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), Code::ALL.len());
}
