//! The first trial with power as it is shown: the samples as they were read, what requests did beside them.

use super::{device, ns, of_devices, plan, request, trace};
use crate::analysis::Analysis;
use bench_core::detail::{MAX_POINTS, Phase, PhaseKind, PowerTimeline};
use bench_core::power::{DeviceTrace, PowerReading, PowerSample, PowerTrace};
use bench_core::trace::RequestTrace;

fn watts(at: f64, power_w: Option<f64>) -> PowerSample {
    PowerSample { at: ns(at), power_w, ..PowerSample::default() }
}

fn joules(at: f64, energy_j: Option<f64>) -> PowerSample {
    PowerSample { at: ns(at), energy_j, ..PowerSample::default() }
}

/// What is shown of trials of batches, each requests and power.
fn shown(
    trials: &[(Vec<RequestTrace>, Option<PowerTrace>)],
    idle: Option<&PowerTrace>,
) -> Vec<PowerTimeline> {
    let plan = plan(8, 1);
    let mut analysis = Analysis::new(&plan, &plan.cells[0], idle);
    for (requests, power) in trials {
        analysis.trial();
        for request in requests {
            analysis.request(request).unwrap();
        }
        if let Some(power) = power {
            analysis.power(power);
        }
    }
    analysis.finish(&[]).unwrap().power
}

fn phase(kind: PhaseKind, from_s: f64, to_s: f64) -> Phase {
    Phase { kind, from_s, to_s }
}

#[test]
fn samples_and_phases_of_the_first_trial_with_power() {
    let samples =
        [(10.0, Some(100.0)), (11.0, None), (12.0, Some(0.0)), (13.0, Some(90.0)), (14.0, Some(80.0))];
    let power = trace(samples.iter().map(|&(at, w)| watts(at, w)).collect());
    let idle = trace((0..40).map(|i| watts(f64::from(i) * 0.25, Some(50.0 + f64::from(i % 2)))).collect());
    let trials = [
        // The answers of a trial without power are not shown beside another's.
        (vec![request(0, 0, (1.0, 2.0, 3.0), 4)], None),
        // Stored in the order in which they ended; the second has a single token.
        (vec![request(2, 0, (12.0, 12.5, 13.5), 4), request(1, 0, (10.25, 11.5, 11.5), 0)], Some(power)),
        (vec![request(3, 0, (20.0, 21.0, 22.0), 4)], Some(trace(vec![watts(20.0, Some(1.0))]))),
    ];
    let [shown] = shown(&trials, Some(&idle)).try_into().unwrap();
    assert_eq!((shown.scope.as_str(), shown.device.as_str(), shown.left_out), ("gpu_board.0", "stub", 0));
    // A board that answers is never without power: 0 W is no reading, and neither is one that failed.
    let expected = [(0.0, Some(100.0)), (1.0, None), (2.0, None), (3.0, Some(90.0)), (4.0, Some(80.0))];
    assert_eq!(shown.samples, expected);
    let expected = [
        phase(PhaseKind::Prefill, 0.25, 1.5),
        phase(PhaseKind::Prefill, 2.0, 2.5),
        phase(PhaseKind::Decode, 2.5, 3.5),
    ];
    assert_eq!(shown.phases, expected);
    assert!((shown.idle_w.unwrap() - 50.5).abs() < 0.02, "{:?}", shown.idle_w);
}

#[test]
fn a_counter_gives_the_mean_power_between_its_readings() {
    let mut device = device(0);
    device.reading = PowerReading::FromCounter;
    // 10 W, then 30 W over two seconds since one reading failed; a reset; 20 W.
    let readings = [
        (5.0, Some(100.0)),
        (6.0, Some(110.0)),
        (7.0, None),
        (8.0, Some(170.0)),
        (9.0, Some(3.0)),
        (10.0, Some(23.0)),
    ];
    let samples = readings.iter().map(|&(at, e)| joules(at, e)).collect();
    let power = of_devices(vec![DeviceTrace { device, samples }]);
    let [shown] = shown(&[(Vec::new(), Some(power))], None).try_into().unwrap();
    let expected = [
        (0.0, Some(10.0)),
        (1.0, Some(10.0)),
        (1.0, Some(30.0)),
        (2.0, None),
        (3.0, Some(30.0)),
        (3.0, None),
        (4.0, None),
        (4.0, Some(20.0)),
        (5.0, Some(20.0)),
    ];
    assert_eq!(shown.samples, expected);
    assert_eq!((shown.idle_w, shown.phases.len()), (None, 0));
}

#[test]
fn devices_share_their_time_and_no_trace_is_too_long() {
    let long: Vec<PowerSample> =
        (0..5_000).map(|i| watts(f64::from(i) + 2.0, Some(f64::from(i % 7) + 1.0))).collect();
    let late = vec![watts(1.0, None), watts(3.0, Some(5.0))];
    let of = |index, samples| DeviceTrace { device: device(index), samples };
    let nothing = of(2, Vec::new());
    let power = of_devices(vec![of(0, long), of(1, late), nothing]);
    let requests =
        (0..4_000).map(|i| request(i, 0, (f64::from(i), f64::from(i) + 0.25, f64::from(i) + 0.5), 3));
    let [first, second] = shown(&[(requests.collect(), Some(power))], None).try_into().unwrap();
    assert_eq!((first.samples[0], first.samples.len(), first.left_out), ((1.0, Some(1.0)), MAX_POINTS, 904));
    assert_eq!((second.scope.as_str(), second.samples), ("gpu_board.1", vec![(0.0, None), (2.0, Some(5.0))]));
    assert_eq!(first.phases.len(), MAX_POINTS);
    assert_eq!(first.phases[4095], phase(PhaseKind::Decode, 2046.25, 2046.5));
    assert_eq!(shown(&[(Vec::new(), None)], None), []);
}
