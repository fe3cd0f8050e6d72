//! Joules against closed forms: constant, ramp and square power, sampled beside the edges of windows.

use super::*;

/// Where the sampling starts within its period, and where the counter's updates lie in theirs.
fn phases() -> impl Iterator<Item = (f64, f64)> {
    (0..20).flat_map(|i| (0..5).map(move |k| (f64::from(i) * 0.005, 0.0017 + f64::from(k) * 0.02)))
}

/// Largest relative errors over all phases: counter, integral, prefill, decode.
fn worst(draw: Draw, times: (f64, f64, f64), step: f64, counter: Option<(f64, f64)>) -> [f64; 4] {
    let (sent, first, last) = times;
    let mut worst = [0.0_f64; 4];
    for (phase, counter_phase) in phases() {
        let counter = counter.map(|(every, _)| (every, counter_phase));
        let samples = draw.sampled((1.0 + phase, step, last + 1.0 + phase), counter);
        let estimates = of_batches(&[request(0, 0, times, 99)], &trace(samples), None);
        let errors = [
            if counter.is_some() {
                relative(value(&estimates, Metric::EnergyCounter), draw.between(sent, last))
            } else {
                0.0
            },
            relative(value(&estimates, Metric::EnergyTrapz), draw.between(sent, last)),
            relative(value(&estimates, Metric::EnergyPrefill), draw.between(sent, first)),
            relative(value(&estimates, Metric::EnergyDecode), draw.between(first, last)),
        ];
        for (worst, error) in worst.iter_mut().zip(errors) {
            *worst = worst.max(error);
        }
        // Whatever gross is, its parts are all of it.
        let gross = value(&estimates, Metric::AvgPower).unwrap() * (last - sent);
        let parts = value(&estimates, Metric::EnergyPrefill).unwrap()
            + value(&estimates, Metric::EnergyDecode).unwrap();
        assert!((parts / gross - 1.0).abs() < 1e-9, "{draw:?}: {parts} of {gross}");
    }
    worst
}

const TIMES: (f64, f64, f64) = (2.037, 12.411, 62.389);
const COUNTER: Option<(f64, f64)> = Some((0.1, 0.0));

fn check(draw: Draw, step: f64, counter: Option<(f64, f64)>, limits: [f64; 4]) {
    let worst = worst(draw, TIMES, step, counter);
    let within = worst.iter().zip(limits).all(|(worst, limit)| *worst <= limit);
    assert!(within, "{draw:?} every {step} s, counter {counter:?}: errors {worst:?}, limits {limits:?}");
}

#[test]
fn constant_power_is_exact() {
    check(Draw::Constant(300.0), 0.1, None, [1e-9; 4]);
    check(Draw::Constant(300.0), 0.1, COUNTER, [1e-9; 4]);
}

#[test]
fn a_ramp_is_exact_by_integral_and_nearly_so_by_counter() {
    let ramp = Draw::Ramp { start: 80.0, per_second: 6.0 };
    check(ramp, 0.1, None, [1e-9; 4]);
    // The counter's update is taken to lie half a reading away from where it was: half a reading of the ramp.
    check(ramp, 0.1, COUNTER, [0.002, 1e-9, 0.003, 0.002]);
}

#[test]
fn a_square_wave_is_within_half_a_percent_and_its_split_within_one() {
    for period in [2.0, 5.0, 8.6, 11.8] {
        let square = Draw::Square { low: 90.0, high: 410.0, period };
        check(square, 0.1, None, [0.0, 0.005, 0.01, 0.01]);
        check(square, 0.1, COUNTER, [0.005, 0.005, 0.01, 0.01]);
    }
    // Edges that drift through the sampling: each loses up to half a sample, of which the prefill has six.
    for period in [3.7123, 7.3391] {
        let square = Draw::Square { low: 90.0, high: 410.0, period };
        check(square, 0.1, None, [0.0, 0.005, 0.02, 0.01]);
        check(square, 0.1, COUNTER, [0.005, 0.005, 0.01, 0.01]);
    }
}

/// Each edge is known to half a sample. If half the period is a number of samples and a half, the halves lost
/// at edges up and down add up over all periods: no estimator can see that in the samples. The counter can.
#[test]
fn a_square_wave_in_step_with_the_sampling_needs_the_counter() {
    for period in [3.7, 5.3, 7.3] {
        let square = Draw::Square { low: 90.0, high: 410.0, period };
        let stated = 320.0 * 0.05 / (250.0 * period / 2.0) + 0.002;
        check(square, 0.1, None, [0.0, stated, 2.0 * stated, stated + 0.002]);
        check(square, 0.1, COUNTER, [0.005, stated, 0.01, 0.01]);
    }
}

#[test]
fn counter_steps_are_placed_where_readings_do_not_divide_them() {
    for step in [0.007, 0.02, 0.03, 0.1] {
        check(Draw::Constant(250.0), step, COUNTER, [0.001, 1e-9, 0.001, 0.001]);
        check(
            Draw::Square { low: 90.0, high: 410.0, period: 5.17 },
            step,
            COUNTER,
            [0.005, 0.005, 0.01, 0.01],
        );
    }
}

#[test]
fn a_window_of_ten_updates_is_off_by_less_than_one_reading() {
    let (times, step) = ((2.0371, 2.2, 3.0471), 0.03);
    let worst = worst(Draw::Constant(250.0), times, step, COUNTER);
    assert!(worst[0] <= step / (times.2 - times.0), "the stated bound: {worst:?}");
    assert!(worst[0] <= 0.005, "what the regular grid makes of it: {worst:?}");
}

/// Readings and updates at the same rate, in a race that now the one wins and now the other: a reading shows
/// no update or two of them.
#[test]
fn readings_that_race_with_the_counter() {
    let draw = Draw::Constant(250.0);
    let mut state = 1_u32;
    let samples: Vec<_> = (0..700)
        .map(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let late = f64::from(state >> 16) / 65_536.0 * 0.004 - 0.002;
            draw.sampled((f64::from(i) * 0.1 + 0.01 + late, 1.0, 0.0), Some((0.1, 0.01))).remove(0)
        })
        .collect();
    for to in [62.389, 12.4, 3.3] {
        let estimates = of_batches(&[request(0, 0, (2.037, 2.2, to), 99)], &trace(samples.clone()), None);
        let error = relative(value(&estimates, Metric::EnergyCounter), draw.between(2.037, to));
        assert!(error < 0.1 / (to - 2.037), "no more than one reading, to {to} s: {error}");
        let error = relative(value(&estimates, Metric::EnergyTrapz), draw.between(2.037, to));
        assert!(error < 1e-9, "to {to} s: {error}");
    }
}

/// The device takes a value each half second, some time before it is read, and says when.
#[test]
fn stamps_of_the_device_count_and_not_when_they_were_read() {
    let draw = Draw::Ramp { start: 80.0, per_second: 6.0 };
    let mut samples = draw.sampled((1.03, 0.1, 70.0), None);
    for sample in &mut samples {
        let taken = ((sample.at.as_secs() - 0.17) * 2.0).floor() / 2.0;
        (sample.taken, sample.power_w) = (Some(ns(taken)), Some(draw.watts(taken)));
    }
    let estimates = of_batches(&[request(0, 0, TIMES, 99)], &trace(samples), None);
    assert!(relative(value(&estimates, Metric::EnergyTrapz), draw.between(TIMES.0, TIMES.2)) < 1e-9);
    assert!(relative(value(&estimates, Metric::PowerSampleRate), 2.0) < 1e-9);
    assert_eq!(reason(&estimates, Metric::PowerSampleRate), (0, "rate_low: 1".to_owned()));
}

#[test]
fn a_counter_that_wraps_goes_on() {
    let draw = Draw::Constant(200.0);
    let mut samples = draw.sampled((0.0, 0.1, 30.0), Some((0.1, 0.03)));
    for sample in &mut samples {
        sample.energy_j = sample.energy_j.map(|j| (j + 900.0) % 2621.44);
    }
    let mut power = trace(samples);
    power.devices[0].device.counter_range_j = Some(2621.44);
    let estimates = of_batches(&[request(0, 0, (1.03, 4.0, 27.77), 99)], &power, None);
    assert!(relative(value(&estimates, Metric::EnergyCounter), draw.between(1.03, 27.77)) < 1e-9);
    assert_eq!(reason(&estimates, Metric::EnergyCounter), (0, String::new()));
}

#[test]
fn a_source_that_only_counts_has_joules_and_a_split_but_no_second_opinion() {
    let draw = Draw::Ramp { start: 30.0, per_second: 1.5 };
    // Updated each millisecond, read at 10 Hz, a counter that wraps once.
    let mut samples = draw.sampled((0.05, 0.1, 30.05), Some((0.001, 0.0)));
    for sample in &mut samples {
        sample.power_w = None;
        sample.energy_j = sample.energy_j.map(|j| (j + 500.0) % 1000.0);
    }
    let mut power = trace(samples);
    power.devices[0].device.scope = PowerScope::CpuPackage;
    power.devices[0].device.reading = PowerReading::FromCounter;
    power.devices[0].device.counter_range_j = Some(1000.0);
    let estimates = of_batches(&[request(0, 0, (1.03, 9.0, 27.77), 99)], &power, None);
    let mean = |metric| row(&estimates, metric, "cpu_package", Stat::Mean).and_then(|e| e.value);
    assert!(relative(mean(Metric::EnergyCounter), draw.between(1.03, 27.77)) < 5e-4);
    assert!(relative(mean(Metric::EnergyPrefill), draw.between(1.03, 9.0)) < 1e-3);
    assert!(relative(mean(Metric::EnergyDecode), draw.between(9.0, 27.77)) < 1e-3);
    assert!(relative(mean(Metric::PeakPower), draw.watts(27.77)) < 0.01);
    assert_eq!((mean(Metric::EnergyTrapz), mean(Metric::EnergyDifference)), (None, None));
    let hz = row(&estimates, Metric::PowerSampleRate, "cpu_package", Stat::Value).unwrap();
    assert!(relative(hz.value, 10.0) < 1e-9 && hz.missing_reason.is_empty(), "{hz:?}");
}
