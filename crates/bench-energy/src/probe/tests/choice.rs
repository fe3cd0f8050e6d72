//! Which sources are opened, and what the user is told.

use super::*;
use nvml_stub::{Device, Script, TimeAxis, Wave};
use std::fs;

fn tree() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let package = root.path().join("intel-rapl:0");
    fs::create_dir(&package).unwrap();
    fs::write(package.join("name"), "package-0").unwrap();
    fs::write(package.join("energy_uj"), "5").unwrap();
    root
}

#[test]
fn a_machine_without_any_source_says_so_once() {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("libnvidia-ml.so").to_str().unwrap().to_owned();
    let plan = EnergyPlan { nvml_library: Some(library), ..plan(PowerSource::Auto) };
    let opened = open_below(&plan, no_tree()).unwrap();
    assert!(opened.probe.is_none());
    assert_eq!(opened.notes.len(), 1);
    let note = &opened.notes[0];
    assert!(
        note.starts_with("no power source on this machine; the energy columns stay empty (no GPU power: "),
        "{note}"
    );
    assert!(note.contains("; no CPU power: no-such-powercap-tree: "), "{note}");
}

#[test]
fn none_opens_nothing_and_says_nothing() {
    let opened = open_below(&plan(PowerSource::None), no_tree()).unwrap();
    assert!(opened.probe.is_none() && opened.notes.is_empty());
}

#[test]
fn auto_watches_gpu_and_cpu_at_once() {
    let (folder, root) = (tempfile::tempdir().unwrap(), tree());
    let gpu = Device { name: "G".to_owned(), power_w: Some(Wave::Constant(40.0)), ..Device::default() };
    let script = Script { axis: TimeAxis::Readings, devices: vec![gpu], ..Script::default() };
    let library = nvml_stub::install(folder.path(), &script).unwrap().to_str().unwrap().to_owned();
    let auto = EnergyPlan { nvml_library: Some(library), ..plan(PowerSource::Auto) };
    let opened = open_below(&auto, root.path()).unwrap();
    assert_eq!(opened.notes, ["power of gpu_board.0 (G) by nvml, cpu_package.0 (package-0) by rapl"]);
    let read = trace(opened.probe.unwrap().as_mut(), 0, 100);
    let of: Vec<_> = read.devices.iter().map(|d| (d.device.scope.key(), d.samples.len())).collect();
    assert_eq!(of, [("gpu_board", 2), ("cpu_package", 2)]);
    assert_eq!(
        (read.devices[0].samples[1].power_w, read.devices[1].samples[1].energy_j),
        (Some(40.0), Some(5e-6))
    );
}

#[test]
fn one_of_two_is_enough() {
    let root = tree();
    let missing = root.path().join("missing.so").to_str().unwrap().to_owned();
    let auto = EnergyPlan { nvml_library: Some(missing), ..plan(PowerSource::Auto) };
    let opened = open_below(&auto, root.path()).unwrap();
    assert_eq!(opened.probe.unwrap().devices().len(), 1);
    // A library that was named and is not there is said; that there is none at the usual place is not.
    assert_eq!(opened.notes.len(), 2, "{:?}", opened.notes);
    assert!(opened.notes[1].starts_with("no GPU power: "), "{:?}", opened.notes);
}
