//! Recorded traces: which rows a trial gets, and what is said of bad ones.

use super::*;
use bench_core::power::{PowerReading, PowerScope};
use bench_core::target::StopFlag;
use proptest::prelude::*;
use tempfile::TempDir;

fn written(text: &str) -> (TempDir, EnergyPlan) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.csv");
    std::fs::write(&path, text).unwrap();
    let source = PowerSource::File(path.to_str().unwrap().to_owned());
    (folder, plan(source))
}

/// The probe and what was said about the rows when it was opened.
fn open(text: &str) -> (Box<dyn PowerProbe>, Vec<String>, TempDir) {
    let (folder, plan) = written(text);
    let opened = open_below(&plan, no_tree()).unwrap();
    (opened.probe.unwrap(), opened.notes[1..].to_vec(), folder)
}

fn refused(text: &str) -> String {
    let (_folder, plan) = written(text);
    refusal(open_below(&plan, no_tree()))
}

#[test]
fn a_trial_gets_its_rows_and_a_neighbour_on_each_side() {
    let (mut probe, notes, _folder) =
        open("t_s,power_w\n0.0,10\n0.1,11\n0.2,12\n0.3,13\n0.4,14\n0.5,15\n0.6,16\n");
    assert_eq!(notes, [""; 0]);
    let read = trace(probe.as_mut(), 150, 400);
    let rows = powers(&read.devices[0].samples);
    let expected = [(100.0, 11.0), (200.0, 12.0), (300.0, 13.0), (400.0, 14.0), (500.0, 15.0)];
    assert_eq!(rows, expected.map(|(at, watts)| (at, Some(watts))));
    assert_eq!((read.begin.as_ms(), read.end.as_ms()), (150.0, 400.0));
    let device = &read.devices[0].device;
    assert_eq!(
        (device.scope, device.index, device.reading),
        (PowerScope::GpuBoard, 0, PowerReading::Instant)
    );
    assert_eq!((device.source.as_str(), device.name.as_str()), ("file", "trace.csv"));
}

#[test]
fn every_column_has_its_place() {
    let (mut probe, notes, _folder) = open(
        "\u{feff}# a comment\nT_S , power_w, scope, device, energy_j, temp_c, util_gpu_pct, util_mem_pct, \
         sm_clock_mhz, mem_clock_mhz, memory_used_bytes, throttle, room\n\
         0.5,90,cpu_package,1,7,41,50,20,1500,2600,1024,4,x\n\
         0.5,80,,,[N/A],,N/A\n",
    );
    assert_eq!(notes, ["power trace trace.csv: columns without a meaning here: room"]);
    let read = trace(probe.as_mut(), 0, 1000);
    let full = PowerSample {
        at: Nanos::from_millis(500),
        power_w: Some(90.0),
        energy_j: Some(7.0),
        util_gpu_pct: Some(50.0),
        util_mem_pct: Some(20.0),
        memory_used_bytes: Some(1024),
        temp_c: Some(41.0),
        sm_clock_mhz: Some(1500.0),
        mem_clock_mhz: Some(2600.0),
        throttle: Some(4),
        ..PowerSample::default()
    };
    assert_eq!((read.devices[0].device.scope, read.devices[0].device.index), (PowerScope::CpuPackage, 1));
    assert_eq!(read.devices[0].samples, [full]);
    let bare = PowerSample { at: Nanos::from_millis(500), power_w: Some(80.0), ..PowerSample::default() };
    assert_eq!(read.devices[1].samples, [bare]);
}

#[test]
fn wall_clock_rows_lie_on_the_run_clock_and_may_still_be_written() {
    // The clock's zero is at 1,000 s.
    let text = "unix_s,power_w\n999.9,1\n1000.1,2\n1000.2,3\n";
    let (mut probe, _, folder) = open(text);
    let clock = Arc::new(ScriptedClock::default());
    at_ms(&clock, 150);
    probe.begin(&watch(&clock));
    at_ms(&clock, 350);
    std::fs::write(folder.path().join("trace.csv"), format!("{text}1000.300000001,4\n1000.4,5\n")).unwrap();
    let read = probe.end();
    let rows = powers(&read.devices[0].samples);
    let expected = [(100.0, 2.0), (200.0, 3.0), (300.000_001, 4.0), (400.0, 5.0)];
    assert_eq!(rows, expected.map(|(at, watts)| (at, Some(watts))));
    // What lies before the clock's zero has no instant on it.
    assert_eq!(powers(&trace(probe.as_mut(), 0, 50).devices[0].samples), [(100.0, Some(2.0))]);
    std::fs::remove_file(folder.path().join("trace.csv")).unwrap();
    let read = trace(probe.as_mut(), 0, 100);
    assert!(read.notes[0].contains("as it was before"), "{:?}", read.notes);
    assert_eq!(read.devices[0].samples.len(), 2);
}

#[test]
fn a_counter_alone_is_a_trace_too() {
    let (mut probe, _, _folder) = open("t_s,energy_j\n0,100\n0.5,150\n");
    let read = trace(probe.as_mut(), 0, 500);
    assert_eq!(read.devices[0].device.reading, PowerReading::FromCounter);
    let told: Vec<_> = read.devices[0].samples.iter().map(|s| (s.power_w, s.energy_j)).collect();
    assert_eq!(told, [(None, Some(100.0)), (None, Some(150.0))]);
}

#[test]
fn bad_rows_are_counted_and_the_rest_is_kept_in_order() {
    let (mut probe, notes, _folder) = open(
        "t_s,power_w,scope\n0.0,10,\n0.1,ten,\nsoon,12,\n0.3,13,toaster\n0.2,14,\n0.1,15,\n\
         0.15,16,\n0.4,99999,\n0.4,17\n0.5,-3,\n",
    );
    let of = "power trace trace.csv: ";
    let expected = [
        "2 rows without an instant or a device left out, first on line 4: \
         time \"soon\" is no number of seconds",
        "3 rows with values that are missing now, first on line 3: power_w \"ten\" is no such number",
        "1 row back in time, first on line 8",
        "2 rows with an instant that was there before, first on line 7",
    ];
    assert_eq!(notes, expected.map(|note| format!("{of}{note}")));
    let read = trace(probe.as_mut(), 0, 1000);
    assert_eq!(read.notes, notes);
    let rows = powers(&read.devices[0].samples);
    let in_order = [
        (0.0, Some(10.0)),
        (100.0, None),
        (200.0, Some(14.0)),
        (100.0, Some(15.0)),
        (150.0, Some(16.0)),
        (400.0, None),
        (400.0, Some(17.0)),
        (500.0, None),
    ];
    assert_eq!(rows, in_order);
}

#[test]
fn a_trial_beyond_the_trace_is_said() {
    let (mut probe, _, _folder) = open("t_s,power_w\n0,1\n1,2\n");
    let read = trace(probe.as_mut(), 2000, 3500);
    assert_eq!(powers(&read.devices[0].samples), [(1000.0, Some(2.0))]);
    let said =
        "gpu_board.0 (trace.csv): no row of the power trace lies within 2.000 to 3.500 s of the run's clock";
    assert_eq!(read.notes, [said]);
}

#[test]
fn the_idle_machine_is_in_the_trace_too() {
    let (mut probe, _, _folder) = open("t_s,power_w\n0,30\n0.5,31\n1.0,32\n1.5,33\n");
    let clock = Arc::new(ScriptedClock::default());
    let idle = probe.idle(&watch(&clock), Duration::from_secs(1), &StopFlag::new());
    assert_eq!(powers(&idle.devices[0].samples).len(), 4);
    assert_eq!((idle.begin.as_ms(), idle.end.as_ms()), (0.0, 1000.0));
    let stop = StopFlag::new();
    stop.stop();
    let idle = probe.idle(&watch(&clock), Duration::from_secs(1), &stop);
    assert_eq!(idle.end.as_ms(), 0.0);
}

#[test]
fn what_is_no_trace_is_refused_with_what_is_expected() {
    let expected = "expected a header with t_s (seconds on the run's clock) or unix_s";
    for (text, reason) in [
        ("", "the file is empty"),
        ("time,watts\n0,1\n", "its first line \"time, watts\" is no such header"),
        ("t_s,temp_c\n0,1\n", "its first line \"t_s, temp_c\" is no such header"),
        ("t_s,power_w\n", "no row can be read"),
        ("t_s,power_w\nx,1\n", "no row can be read"),
        ("\0\u{1}\u{2}", "is no such header"),
    ] {
        let said = refused(text);
        assert!(said.contains(reason) && said.contains(expected), "{text:?}: {said}");
    }
    let both = refused("t_s,unix_s,power_w\n0,1,2\n");
    assert!(both.ends_with("it has both t_s and unix_s, which may disagree; keep one"), "{both}");
    let missing = refusal(open_below(&plan(PowerSource::File("no/such.csv".to_owned())), no_tree()));
    assert!(missing.starts_with("power trace \"no/such.csv\": No such file"), "{missing}");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(
        rows in "([0-9.e+-]{0,9}|t_s|unix_s|power_w|nan|[,\n\"#]|\\PC){0,60}",
        from in 0_u64..3000,
    ) {
        let (_folder, plan) = written(&format!("t_s,power_w,energy_j,device\n{rows}"));
        if let Ok(opened) = open_below(&plan, no_tree()) {
            let read = trace(opened.probe.unwrap().as_mut(), from, 2 * from);
            let mut samples = read.devices.iter().flat_map(|d| &d.samples);
            prop_assert!(samples.all(|s| s.power_w.is_none_or(|w| w >= 0.0)));
        }
    }
}
