//! Which windows there are, what they are divided by, and how devices and scopes stand beside each other.

use super::*;

#[test]
fn figures_of_one_batch() {
    let draw = Draw::Ramp { start: 100.0, per_second: 10.0 };
    let mut samples = draw.sampled((0.0, 0.1, 20.0), None);
    for (i, sample) in samples.iter_mut().enumerate() {
        sample.util_gpu_pct = Some(if i < 100 { 40.0 } else { 80.0 });
        sample.util_mem_pct = Some(10.0);
        sample.temp_c = Some(50.0 + i as f64);
        sample.sm_clock_mhz = Some(1980.0);
        // Idle, application clocks and the boost group are no throttling; the power cap is.
        sample.throttle = Some(if i < 75 { 0x1 | 0x2 | 0x10 } else { 0x4 });
    }
    let mut power = trace(samples);
    power.devices[0].device.power_limit_w = Some(700.0);
    let idle = trace(Draw::Constant(60.0).sampled((0.0, 0.1, 5.0), None));
    // Two requests of one batch: the second has its first token later, and the last token of all.
    let requests = [request(0, 0, (5.0, 5.5, 14.0), 19), request(0, 1, (5.0, 6.0, 15.0), 29)];
    let estimates = of_batches(&requests, &power, Some(&idle));
    let expect = [
        (Metric::EnergyTrapz, 2000.0),
        (Metric::EnergyPrefill, 155.0),
        (Metric::EnergyDecode, 1845.0),
        (Metric::EnergyNet, 2000.0 - 600.0),
        (Metric::JoulesPerToken, 1845.0 / 48.0),
        (Metric::WhPer1kTokens, 1845.0 / 48.0 * 1000.0 / 3600.0),
        (Metric::TokensPerJoule, 48.0 / 1845.0),
        (Metric::JoulesPerTokenE2e, 2000.0 / 50.0),
        (Metric::WhPer1kTokensE2e, 40.0 * 1000.0 / 3600.0),
        (Metric::TokensPerJouleE2e, 0.025),
        (Metric::AvgPower, 200.0),
        (Metric::PeakPower, 250.0),
        (Metric::UtilGpu, (50.0 * 40.0 + 51.0 * 80.0) / 101.0),
        (Metric::UtilMem, 10.0),
        (Metric::Temp, 150.0),
        (Metric::SmClock, 1980.0),
        (Metric::Throttle, 76.0 / 101.0),
        (Metric::IdlePower, 60.0),
        (Metric::StartTemp, 50.0),
        (Metric::PowerSampleRate, 10.0),
        (Metric::PowerLimit, 700.0),
    ];
    for (metric, exact) in expect {
        let found = value(&estimates, metric);
        assert!(relative(found, exact) < 1e-9, "{metric:?}: {found:?}, not {exact}");
    }
    for absent in [Metric::EnergyCounter, Metric::EnergyDifference, Metric::MemClock, Metric::IdleTemp] {
        assert!(estimates.iter().all(|e| e.metric != absent), "{absent:?} was never told");
    }
    let metrics: Vec<_> = estimates.iter().map(|e| e.metric).collect();
    assert!(metrics.is_sorted());
}

/// A recorded trace has a row before and one after the trial, however far away.
#[test]
fn rows_beyond_the_trial_are_neighbours_only() {
    let with_neighbours = |mut power: PowerTrace| {
        let rows = &mut power.devices[0].samples;
        let row = |at, watts, celsius| PowerSample {
            at: ns(at),
            power_w: Some(watts),
            temp_c: Some(celsius),
            ..PowerSample::default()
        };
        for sample in rows.iter_mut() {
            sample.temp_c = Some(55.0);
        }
        rows.insert(0, row(1.0, 900.0, 99.0));
        rows.push(row(500.0, 900.0, 99.0));
        power
    };
    let sampled = |watts| trace(Draw::Constant(watts).sampled((100.0, 0.1, 120.0), None));
    let (power, idle) = (with_neighbours(sampled(300.0)), with_neighbours(sampled(60.0)));
    let estimates = of_batches(&[request(0, 0, (105.0, 106.0, 115.0), 9)], &power, Some(&idle));
    for (metric, exact) in [
        (Metric::EnergyNet, 2400.0),
        (Metric::IdlePower, 60.0),
        (Metric::IdleTemp, 55.0),
        (Metric::StartTemp, 55.0),
        (Metric::PowerSampleRate, 10.0),
    ] {
        assert!(relative(value(&estimates, metric), exact) < 1e-9, "{metric:?}");
    }
}

#[test]
fn repeats_are_samples_with_an_interval_if_each_is_long_enough() {
    let draw = Draw::Ramp { start: 100.0, per_second: 1.0 };
    let power = trace(draw.sampled((0.0, 0.1, 70.0), None));
    let requests: Vec<_> = (0..20)
        .map(|i| (i, f64::from(i) * 3.0 + 1.0))
        .map(|(i, t)| request(i, 0, (t, t + 0.5, t + 2.0), 9))
        .collect();
    let estimates = of_batches(&requests, &power, None);
    let mean = row(&estimates, Metric::EnergyTrapz, "gpu_board", Stat::Mean).unwrap();
    assert_eq!((mean.n, mean.missing), (20, 0));
    assert!(relative(mean.value, 2.0 * (100.0 + 1.0 + 1.0 + 28.5)) < 1e-9);
    let interval = mean.interval.unwrap();
    assert!(interval.low.unwrap() < mean.value.unwrap() && mean.value.unwrap() < interval.high.unwrap());
    let p95 = row(&estimates, Metric::EnergyTrapz, "gpu_board", Stat::Quantile(0.95)).unwrap();
    assert!(p95.value.is_some() && p95.bounded == Some(false));
    assert_eq!(row(&estimates, Metric::EnergyTrapz, "gpu_board", Stat::Quantile(0.99)).unwrap().value, None);
}

#[test]
fn short_repeats_are_summed_over_their_trial() {
    let draw = Draw::Square { low: 100.0, high: 300.0, period: 4.0 };
    let power = trace(draw.sampled((0.0, 0.1, 20.0), None));
    // 0.9 s each: nine sampling periods. One per second, pauses of 0.1 s between.
    let requests: Vec<_> = (0..8)
        .map(|i| (i, f64::from(i) + 2.0))
        .map(|(i, t)| request(i, 0, (t, t + 0.4, t + 0.9), 4))
        .collect();
    let estimates = of_batches(&requests, &power, None);
    let mean = row(&estimates, Metric::EnergyTrapz, "gpu_board", Stat::Mean).unwrap();
    assert_eq!((mean.n, mean.missing_reason.as_str()), (1, ""));
    let exact = draw.between(2.0, 9.9);
    // Two edges up and one down: half a sample of 200 W remains.
    assert!(relative(mean.value, exact) < 10.5 / exact);
    let split = |from: f64, to: f64| {
        (0..8).map(|i| draw.between(f64::from(i) + 2.0 + from, f64::from(i) + 2.0 + to)).sum()
    };
    assert!(relative(value(&estimates, Metric::EnergyPrefill), split(0.0, 0.4)) < 0.02);
    assert!(relative(value(&estimates, Metric::EnergyDecode), split(0.4, 0.9)) < 0.02);
    assert!(relative(value(&estimates, Metric::JoulesPerTokenE2e), exact / 40.0) < 10.5 / exact);
    assert!(relative(value(&estimates, Metric::JoulesPerToken), split(0.4, 0.9) / 32.0) < 0.02);
}

/// One longer repeat of many does not make windows of the others.
#[test]
fn the_shortest_repeat_decides_for_all() {
    let power = trace(Draw::Constant(100.0).sampled((0.0, 0.1, 20.0), None));
    let requests = [request(0, 0, (2.0, 3.0, 7.0), 4), request(1, 0, (8.0, 8.1, 8.4), 4)];
    let estimates = of_batches(&requests, &power, None);
    let mean = row(&estimates, Metric::EnergyTrapz, "gpu_board", Stat::Mean).unwrap();
    assert_eq!(mean.n, 1);
    assert!(relative(mean.value, 640.0) < 1e-9);
    assert!(relative(value(&estimates, Metric::EnergyDecode), 430.0) < 1e-9, "the pause belongs to neither");
}

#[test]
fn devices_add_up_within_their_scope_alone() {
    let mut devices: Vec<DeviceTrace> = [(0, 100.0, 50.0), (1, 250.0, 70.0)]
        .into_iter()
        .map(|(index, watts, celsius)| {
            let begin = 0.03 * f64::from(index);
            let mut samples = Draw::Constant(watts).sampled((begin, 0.1, 20.0 + begin), Some((0.1, 0.05)));
            for sample in &mut samples {
                sample.temp_c = Some(celsius);
            }
            DeviceTrace { device: device(index), samples }
        })
        .collect();
    let mut package = DeviceTrace {
        device: device(0),
        samples: Draw::Constant(30.0).sampled((0.0, 0.1, 20.0), Some((0.1, 0.0))),
    };
    package.device.scope = PowerScope::CpuPackage;
    package.device.reading = PowerReading::FromCounter;
    for sample in &mut package.samples {
        sample.power_w = None;
    }
    devices.push(package);
    let idle = of_devices(devices.clone());
    let requests = [request(0, 0, (5.0, 6.0, 15.0), 9)];
    let estimates = of_batches(&requests, &of_devices(devices.clone()), Some(&idle));
    let of = |estimates: &[Estimate], scope: &str, metric| {
        row(estimates, metric, scope, Stat::Mean).and_then(|e| e.value)
    };
    for (scope, watts) in
        [("gpu_board", 350.0), ("gpu_board.0", 100.0), ("gpu_board.1", 250.0), ("cpu_package", 30.0)]
    {
        assert!(relative(of(&estimates, scope, Metric::EnergyCounter), 10.0 * watts) < 1e-9, "{scope}");
        assert!(relative(of(&estimates, scope, Metric::PeakPower), watts) < 1e-9, "{scope}");
        assert!(of(&estimates, scope, Metric::EnergyNet).unwrap().abs() < 1e-6, "{scope}");
        let idle = row(&estimates, Metric::IdlePower, scope, Stat::Value).unwrap();
        assert!(relative(idle.value, watts) < 1e-9, "{scope}");
    }
    assert_eq!(of(&estimates, "gpu_board", Metric::Temp), Some(60.0));
    assert!(estimates.iter().all(|e| e.scope.as_deref() != Some("cpu_package.0")));
    // Lost on one board: the sum is not that of the other.
    for sample in &mut devices[1].samples[100..] {
        (sample.power_w, sample.energy_j) = (None, None);
    }
    let estimates = of_batches(&requests, &of_devices(devices), None);
    let lost = |scope: &str| {
        row(&estimates, Metric::EnergyTrapz, scope, Stat::Mean)
            .map(|e| (e.value.is_some(), e.missing_reason.clone()))
    };
    assert_eq!(lost("gpu_board"), Some((false, "source_lost: 1".to_owned())));
    assert_eq!(lost("gpu_board.0"), Some((true, String::new())));
}

#[test]
fn where_requests_overlap_the_steady_window_counts() {
    let mut plan = plan(8, 1);
    plan.cells[0].load = Load::Closed { concurrency: 4 };
    let draw = Draw::Ramp { start: 100.0, per_second: 5.0 };
    let mut analysis = Analysis::new(&plan, &plan.cells[0], None);
    for begin in [0.0, 50.0] {
        analysis.trial();
        analysis.request(&request(0, 0, (begin + 1.0, begin + 2.0, begin + 30.0), 99)).unwrap();
        analysis.power(&trace(draw.sampled((begin, 0.1, begin + 40.0), None)));
    }
    // A third trial was steady, but nobody read its power.
    analysis.trial();
    let window =
        |trial, from, to, output_tokens| SteadyWindow { trial, from: ns(from), to: ns(to), output_tokens };
    let steady = [window(0, 2.0, 12.0, 400.0), window(1, 52.0, 72.0, 800.5), window(2, 92.0, 93.0, 10.0)];
    let estimates = analysis.finish(&steady).unwrap().estimates;
    let at = |metric, stat| row(&estimates, metric, "gpu_board", stat).and_then(|e| e.value);
    let exact = [draw.between(2.0, 12.0), draw.between(52.0, 72.0)];
    assert!(relative(at(Metric::EnergyTrapz, Stat::Min), exact[0]) < 1e-9);
    assert!(relative(at(Metric::EnergyTrapz, Stat::Max), exact[1]) < 1e-9);
    for metric in [Metric::JoulesPerToken, Metric::JoulesPerTokenE2e] {
        assert!(relative(at(metric, Stat::Min), exact[0] / 400.0) < 1e-9);
        assert!(relative(at(metric, Stat::Max), exact[1] / 800.5) < 1e-9);
    }
    assert_eq!(reason(&estimates, Metric::EnergyTrapz), (1, "no_samples: 1".to_owned()));
    assert_eq!(reason(&estimates, Metric::EnergyPrefill), (3, "overlap: 2; no_samples: 1".to_owned()));
}

#[test]
fn without_any_power_there_is_nothing() {
    let plan = plan(1, 1);
    let idle = trace(Draw::Constant(60.0).sampled((0.0, 0.1, 5.0), None));
    let mut analysis = Analysis::new(&plan, &plan.cells[0], Some(&idle));
    analysis.trial();
    analysis.request(&request(0, 0, (1.0, 2.0, 4.0), 9)).unwrap();
    assert_eq!(analysis.finish(&[]).unwrap().estimates, []);
    let estimates = of_batches(&[request(0, 0, (1.0, 2.0, 4.0), 9)], &of_devices(Vec::new()), Some(&idle));
    assert_eq!(estimates, []);
}
