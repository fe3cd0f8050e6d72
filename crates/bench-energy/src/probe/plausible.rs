//! Which values no device can mean: they become missing, with the reason.
//!
//! The bounds are those of physics and of a machine room, far beyond any real device, so that nothing true is
//! lost.

use super::source::Failures;
use bench_core::power::PowerSample;

/// A rack draws more, a board or a package does not.
const POWER_W: (f64, f64) = (0.0, 10_000.0);
const TEMP_C: (f64, f64) = (-50.0, 150.0);
const PERCENT: (f64, f64) = (0.0, 100.0);
const CLOCK_MHZ: (f64, f64) = (0.0, 20_000.0);
/// 10 kW for thirty years.
const ENERGY_J: (f64, f64) = (0.0, 1e13);
/// A pebibyte.
const MEMORY_BYTES: u64 = 1 << 50;

/// The sample without its nonsense; `error` says what was taken away.
pub(super) fn plausible(mut sample: PowerSample) -> PowerSample {
    let mut failures = Failures::default();
    let told = (sample.power_w.is_some(), sample.energy_j.is_some());
    let mut check = |what, value: &mut Option<f64>, (low, high): (f64, f64), unit| {
        // A number that is not one lies in no range.
        if let Some(v) = value.take_if(|v| !(low..=high).contains(v)) {
            failures.add(what, format!("{v}{unit} is not believable, expected {low} to {high}"));
        }
    };
    check("power", &mut sample.power_w, POWER_W, " W");
    check("energy counter", &mut sample.energy_j, ENERGY_J, " J");
    check("temperature", &mut sample.temp_c, TEMP_C, " degrees");
    check("GPU utilisation", &mut sample.util_gpu_pct, PERCENT, " %");
    check("memory utilisation", &mut sample.util_mem_pct, PERCENT, " %");
    check("SM clock", &mut sample.sm_clock_mhz, CLOCK_MHZ, " MHz");
    check("memory clock", &mut sample.mem_clock_mhz, CLOCK_MHZ, " MHz");
    for (what, value) in
        [("memory", &mut sample.memory_used_bytes), ("process memory", &mut sample.process_memory_bytes)]
    {
        if let Some(v) = value.take_if(|v| *v > MEMORY_BYTES) {
            failures.add(what, format!("{v} bytes are not believable, expected up to {MEMORY_BYTES}"));
        }
    }
    if sample.power_w.is_none() {
        sample.taken = None;
    }
    sample.implausible |= told != (sample.power_w.is_some(), sample.energy_j.is_some());
    let told: Vec<String> = sample.error.take().into_iter().chain(failures.line()).collect();
    sample.error = (!told.is_empty()).then(|| told.join("; "));
    sample
}

#[cfg(test)]
mod tests {
    use super::*;
    use bench_core::unit::Nanos;

    #[test]
    fn what_no_device_means_is_missing_and_said() {
        let cases = [
            (f64::NAN, None),
            (-1.0, None),
            (4e6, None),
            (f64::INFINITY, None),
            (0.0, Some(0.0)),
            (1e4, Some(1e4)),
        ];
        for (power, expected) in cases {
            let read = PowerSample { power_w: Some(power), ..PowerSample::default() };
            let kept = plausible(read);
            assert_eq!(kept.power_w, expected, "{power}");
            assert_eq!((kept.error.is_some(), kept.implausible), (expected.is_none(), expected.is_none()));
        }
        let all_wrong = PowerSample {
            at: Nanos(7),
            taken: Some(Nanos(5)),
            power_w: Some(4e6),
            energy_j: Some(1.8e16),
            temp_c: Some(151.0),
            util_gpu_pct: Some(101.0),
            memory_used_bytes: Some(u64::MAX),
            process_memory_bytes: Some(3),
            error: Some("SM clock: lost".to_owned()),
            ..PowerSample::default()
        };
        let kept = plausible(all_wrong);
        assert_eq!((kept.at, kept.process_memory_bytes), (Nanos(7), Some(3)));
        assert_eq!((kept.taken, kept.energy_j, kept.temp_c, kept.util_gpu_pct), (None, None, None, None));
        let error = kept.error.unwrap();
        assert!(error.starts_with("SM clock: lost; power: 4000000 W is not believable"), "{error}");
        assert!(error.contains("temperature: 151 degrees"), "{error}");
    }
}
