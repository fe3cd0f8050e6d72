//! NVML: what the scripted library tells must arrive, and nothing else.

use super::*;
use crate::probe::nvml;
use crate::probe::sampler::Sampler;
use bench_core::power::{PowerReading, PowerScope};
use bench_core::target::StopFlag;
use nvml_stub::{Device, Energy, Failure, Instant, Process, Script, TimeAxis, Wave, code};
use tempfile::TempDir;

/// The library stays loaded as long as the probe that was opened.
struct Stub {
    folder: TempDir,
    script: Script,
}

impl Stub {
    fn new(devices: Vec<Device>) -> Self {
        let script = Script { driver: "570.86.15".to_owned(), axis: TimeAxis::Readings, devices, init: 0 };
        Self { folder: tempfile::tempdir().unwrap(), script }
    }

    fn plan(&self, source: PowerSource) -> EnergyPlan {
        let library = nvml_stub::install(self.folder.path(), &self.script).unwrap();
        EnergyPlan { nvml_library: Some(library.to_str().unwrap().to_owned()), ..plan(source) }
    }

    fn open(&self) -> Result<Opened, crate::Error> {
        open_below(&self.plan(PowerSource::Nvml), no_tree())
    }

    /// `n` + 1 readings, one every 100 ms of virtual time; the first has x = 1.
    fn readings(&self, n: u32) -> PowerTrace {
        let library = nvml_stub::install(self.folder.path(), &self.script).unwrap();
        let (source, notes) = nvml::open(library.to_str(), None).map_err(nvml::Unusable::error).unwrap();
        assert_eq!(notes, [""; 0]);
        let timer = Virtual::new(u64::MAX, 0);
        let clock = Arc::clone(&timer.clock);
        let mut probe = Sampler::with_timer(vec![Box::new(source)], 10.0, timer);
        probe.idle(&watch(&clock), Duration::from_millis(100) * n, &StopFlag::new())
    }
}

fn gpu(name: &str, power_w: f64) -> Device {
    Device {
        name: name.to_owned(),
        uuid: format!("GPU-{name}"),
        power_w: Some(Wave::Constant(power_w)),
        ..Device::default()
    }
}

fn fails(symbol: &str, from: f64, until: Option<f64>, code: u32) -> Failure {
    Failure { symbol: symbol.to_owned(), from, until, code }
}

#[test]
fn every_value_arrives_with_its_unit() {
    let full = Device {
        instant: Some(Instant {
            power_w: Wave::Constant(321.5),
            // The clock's zero is at 1,000 s.
            at_unix_us: Some(Wave::Constant(1_000.25e6)),
            ..Instant::default()
        }),
        energy: Some(Energy::Joules(Wave::Constant(12.345))),
        temp_c: Some(Wave::Constant(54.0)),
        util_gpu_pct: Some(Wave::Constant(93.0)),
        util_mem_pct: Some(Wave::Constant(41.0)),
        memory_used_bytes: Some(Wave::Constant(7e9)),
        memory_total_bytes: 80_000_000_000,
        processes: vec![Process { pid: 1, bytes: 5 }, Process { pid: 4242, bytes: 6_000_000_000 }],
        sm_clock_mhz: Some(Wave::Constant(1755.0)),
        mem_clock_mhz: Some(Wave::Constant(2619.0)),
        // Software power cap and thermal slowdown.
        throttle: Some(Wave::Constant(36.0)),
        limit_w: Some(700.0),
        ..gpu("H", 300.0)
    };
    let opened = Stub::new(vec![full]);
    let mut probe = opened.open().unwrap().probe.unwrap();
    let read = trace(probe.as_mut(), 400, 900);
    let device = &read.devices[0].device;
    assert_eq!((device.name.as_str(), device.id.as_str(), device.source.as_str()), ("H", "GPU-H", "nvml"));
    assert_eq!(
        (device.scope, device.index, device.reading),
        (PowerScope::GpuBoard, 0, PowerReading::Instant)
    );
    assert_eq!((device.power_limit_w, device.driver.as_deref()), (Some(700.0), Some("570.86.15")));
    let expected = PowerSample {
        at: Nanos::from_millis(400),
        taken: Some(Nanos::from_millis(250)),
        power_w: Some(321.5),
        energy_j: Some(12.345),
        util_gpu_pct: Some(93.0),
        util_mem_pct: Some(41.0),
        memory_used_bytes: Some(7_000_000_000),
        process_memory_bytes: Some(6_000_000_000),
        temp_c: Some(54.0),
        sm_clock_mhz: Some(1755.0),
        mem_clock_mhz: Some(2619.0),
        throttle: Some(36),
        implausible: false,
        error: None,
    };
    let later = PowerSample { at: Nanos::from_millis(900), ..expected.clone() };
    assert_eq!(read.devices[0].samples, [expected, later]);
    assert_eq!((read.begin, read.end), (Nanos::from_millis(400), Nanos::from_millis(900)));
    assert_eq!(read.notes, [""; 0]);
}

#[test]
fn a_device_that_tells_little_has_no_values_and_no_error() {
    let stub = Stub::new(vec![gpu("old", 75.0)]);
    let mut probe = stub.open().unwrap().probe.unwrap();
    let read = trace(probe.as_mut(), 0, 10);
    assert_eq!(read.devices[0].device.reading, PowerReading::Averaged);
    let bare = PowerSample { power_w: Some(75.0), ..PowerSample::default() };
    assert_eq!(read.devices[0].samples[0], bare);
}

#[test]
fn a_stamp_that_cannot_be_one_is_left_out() {
    // Before the clock's zero, and two seconds after the reading.
    for stamp_us in [999.0e6, 1_002.5e6, -1.0] {
        let instant = Instant { at_unix_us: Some(Wave::Constant(stamp_us)), ..Instant::default() };
        let stub = Stub::new(vec![Device { instant: Some(instant), ..gpu("H", 1.0) }]);
        let mut probe = stub.open().unwrap().probe.unwrap();
        let read = trace(probe.as_mut(), 500, 600);
        assert_eq!((read.devices[0].samples[0].taken, read.devices[0].samples[0].power_w), (None, Some(0.0)));
    }
}

#[test]
fn gpus_are_chosen_by_index() {
    let mut stub = Stub::new(vec![gpu("a", 10.0), gpu("b", 20.0), gpu("c", 30.0)]);
    let all = stub.open().unwrap();
    let said = "power of gpu_board.0 (a) by nvml, gpu_board.1 (b) by nvml, gpu_board.2 (c) by nvml";
    assert_eq!(all.notes, [said]);
    stub.folder = tempfile::tempdir().unwrap();
    let chosen = EnergyPlan { gpus: Some(vec![2, 0, 2]), ..stub.plan(PowerSource::Nvml) };
    let mut probe = open_below(&chosen, no_tree()).unwrap().probe.unwrap();
    let read = trace(probe.as_mut(), 0, 1);
    let of: Vec<_> = read.devices.iter().map(|d| (d.device.index, d.samples[0].power_w.unwrap())).collect();
    assert_eq!(of, [(0, 10.0), (2, 30.0)]);
    for source in [PowerSource::Nvml, PowerSource::Auto] {
        let wrong = EnergyPlan { gpus: Some(vec![3]), source, ..chosen.clone() };
        let said = "no GPU 3: NVML knows GPUs 0 to 2; choose among them with energy.gpus";
        assert_eq!(refusal(open_below(&wrong, no_tree())), said);
    }
}

#[test]
fn a_counter_moves_in_its_steps_and_can_be_set_back() {
    let energy = Energy::Integral { period: 4.0, start_j: 1000.0, resets: vec![8.0] };
    let stub = Stub::new(vec![Device { energy: Some(energy), ..gpu("V", 50.0) }]);
    let read = stub.readings(12);
    let joules: Vec<f64> = read.devices[0].samples.iter().map(|s| s.energy_j.unwrap()).collect();
    // x = 1 is the first reading; the counter shows what it was at 0, 4, 8 and begins anew at 8.
    assert_eq!(joules[..9], [1000.0, 1000.0, 1000.0, 1200.0, 1200.0, 1200.0, 1200.0, 0.0, 0.0]);
}

#[test]
fn a_gpu_that_disappears_leaves_samples_without_values_and_one_note() {
    let lost = Device { failures: vec![fails("", 4.0, None, code::GPU_IS_LOST)], ..gpu("lost", 90.0) };
    let stub = Stub::new(vec![lost, gpu("stays", 60.0)]);
    let read = stub.readings(20);
    let samples = &read.devices[0].samples;
    assert!(samples.len() >= 12, "{}", samples.len());
    assert_eq!(
        samples[..4].iter().map(|s| s.power_w).collect::<Vec<_>>(),
        [Some(90.0), Some(90.0), Some(90.0), None]
    );
    let reason = "device: device fell off the bus or has otherwise become inacessible";
    assert!(samples[3..].iter().all(|s| s.power_w.is_none() && s.error.as_deref() == Some(reason)));
    assert!(read.devices[1].samples.iter().all(|s| s.power_w == Some(60.0) && s.error.is_none()));
    let note = format!(
        "gpu_board.0 (lost) does not answer any more from 0.3 s after the beginning on, \
         18 of 21 readings: {reason}"
    );
    assert_eq!(read.notes, [note]);
}

#[test]
fn a_gpu_that_comes_back_is_read_again() {
    let failure = fails("nvmlDeviceGetPowerUsage", 2.0, Some(4.0), code::UNKNOWN);
    let stub = Stub::new(vec![Device { failures: vec![failure], ..gpu("shaky", 90.0) }]);
    let read = stub.readings(12);
    let watts: Vec<_> = read.devices[0].samples.iter().take(5).map(|s| s.power_w).collect();
    assert_eq!(watts, [Some(90.0), None, None, Some(90.0), Some(90.0)]);
    let note = "gpu_board.0 (shaky): 2 of 13 readings lack values, the first 0.1 s after the beginning: \
                power: an internal driver error occurred";
    assert_eq!(read.notes, [note]);
}

#[test]
fn an_instant_reading_is_never_replaced_by_an_average() {
    let device = Device {
        instant: Some(Instant { power_w: Wave::Constant(200.0), ..Instant::default() }),
        failures: vec![fails("nvmlDeviceGetFieldValues", 1.0, None, code::NOT_SUPPORTED)],
        ..gpu("H", 100.0)
    };
    let mut probe = Stub::new(vec![device]).open().unwrap().probe.unwrap();
    let read = trace(probe.as_mut(), 0, 10);
    assert_eq!(read.devices[0].samples[0].power_w, None);
    assert!(read.devices[0].samples[0].error.is_some());
}

#[test]
fn nonsense_is_missing() {
    let device = Device {
        energy: Some(Energy::Joules(Wave::Constant(1e30))),
        temp_c: Some(Wave::Constant(4e9)),
        util_gpu_pct: Some(Wave::Constant(4e9)),
        ..gpu("mad", 4e6)
    };
    let mut probe = Stub::new(vec![device]).open().unwrap().probe.unwrap();
    let read = trace(probe.as_mut(), 0, 10);
    let sample = &read.devices[0].samples[0];
    assert_eq!(
        (sample.power_w, sample.energy_j, sample.temp_c, sample.util_gpu_pct),
        (None, None, None, None)
    );
    let error = sample.error.as_deref().unwrap();
    assert!(error.starts_with("power: 4000000 W is not believable, expected 0 to 10000"), "{error}");
    assert!(error.contains("energy counter: 18446744073709550 J"), "{error}");
}

#[test]
fn another_version_is_said_with_what_to_do() {
    let mut stub = Stub::new(vec![gpu("a", 1.0)]);
    stub.script.init = code::LIB_RM_VERSION_MISMATCH;
    let said = refusal(stub.open());
    let reason = "RM detects a driver/library version mismatch; reload the driver or restart the machine";
    assert!(said.contains(reason), "{said}");
    // Unasked for, it is a note and no error.
    let opened = open_below(&stub.plan(PowerSource::Auto), no_tree()).unwrap();
    assert!(opened.probe.is_none() && opened.notes.len() == 1, "{:?}", opened.notes);
    assert!(opened.notes[0].contains(reason), "{:?}", opened.notes);
}

#[test]
fn a_file_that_is_no_library_and_none_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.so");
    std::fs::write(&path, "no library").unwrap();
    for path in [path, folder.path().join("missing.so")] {
        let plan =
            EnergyPlan { nvml_library: Some(path.to_str().unwrap().to_owned()), ..plan(PowerSource::Nvml) };
        let said = refusal(open_below(&plan, no_tree()));
        assert!(said.starts_with("no GPU power: NVML library \""), "{said}");
        assert!(said.ends_with("give the library's path as energy.nvml_library"), "{said}");
    }
    let none = Stub::new(Vec::new());
    assert!(refusal(none.open()).ends_with("it knows no GPU; check nvidia-smi"));
}

#[test]
fn one_gpu_that_is_lost_from_the_beginning_is_left_out() {
    let lost = Device { failures: vec![fails("", 0.0, None, code::GPU_IS_LOST)], ..gpu("lost", 1.0) };
    let stub = Stub::new(vec![lost, gpu("b", 2.0)]);
    let opened = stub.open().unwrap();
    assert_eq!(opened.probe.unwrap().devices().len(), 1);
    assert_eq!(opened.notes.len(), 2);
    assert!(opened.notes[1].starts_with("GPU 0 is left out: device fell off the bus"), "{:?}", opened.notes);
}

#[test]
fn power_follows_steps_and_ramps_and_the_counter_their_integral() {
    let energy = |period| Some(Energy::Integral { period, start_j: 0.0, resets: Vec::new() });
    let ramp = Wave::Ramp { ramp: vec![(1.0, 100.0), (5.0, 300.0)] };
    let steps = Wave::Steps { steps: vec![(0.0, 50.0), (3.0, 250.0)] };
    let ramp = Device { power_w: Some(ramp), energy: energy(1.0), ..gpu("r", 0.0) };
    let steps = Device { power_w: Some(steps), energy: energy(0.0), ..gpu("s", 0.0) };
    let read = Stub::new(vec![ramp, steps]).readings(5);
    let of = |i: usize| read.devices[i].samples.iter().map(|s| (s.power_w.unwrap(), s.energy_j.unwrap()));
    let expected =
        [(100.0, 100.0), (150.0, 225.0), (200.0, 400.0), (250.0, 625.0), (300.0, 900.0), (300.0, 1200.0)];
    assert_eq!(of(0).collect::<Vec<_>>(), expected);
    let expected =
        [(50.0, 50.0), (50.0, 100.0), (250.0, 150.0), (250.0, 400.0), (250.0, 650.0), (250.0, 900.0)];
    assert_eq!(of(1).collect::<Vec<_>>(), expected);
}
