//! RAPL: folder trees as the kernel shows them.

use super::*;
use bench_core::power::{PowerReading, PowerScope};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

struct Tree(TempDir);

impl Tree {
    /// `(folder, name, energy in microjoules)`
    fn new(domains: &[(&str, &str, &str)]) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for (folder, name, energy_uj) in domains {
            let path = tree.0.path().join(folder);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("name"), format!("{name}\n")).unwrap();
            fs::write(path.join("max_energy_range_uj"), "262143328850\n").unwrap();
            tree.set(folder, energy_uj);
        }
        tree
    }

    fn counter(&self, folder: &str) -> PathBuf {
        self.0.path().join(folder).join("energy_uj")
    }

    fn set(&self, folder: &str, energy_uj: &str) {
        fs::write(self.counter(folder), format!("{energy_uj}\n")).unwrap();
    }

    fn open(&self) -> Result<Opened, crate::Error> {
        open_below(&plan(PowerSource::Rapl), self.0.path())
    }
}

fn server() -> Tree {
    Tree::new(&[
        ("intel-rapl:0", "package-0", "1000000"),
        ("intel-rapl:0:0", "core", "1"),
        ("intel-rapl:0:1", "dram", "2000000"),
        ("intel-rapl:1", "package-1", "3000000"),
        // Within its package only, as some systems show it.
        ("intel-rapl:1/intel-rapl:1:0", "dram", "4000000"),
        ("intel-rapl:2", "psys", "5000000"),
        // The same energy by another way in.
        ("intel-rapl-mmio:0", "package-0", "1000000"),
        ("dtpm", "dtpm", "0"),
    ])
}

#[test]
fn packages_and_their_memory_are_found_once() {
    let devices = server().open().unwrap().probe.unwrap().devices();
    let found: Vec<_> = devices.iter().map(|d| (d.scope, d.index, d.name.as_str(), d.id.as_str())).collect();
    let expected = [
        (PowerScope::CpuPackage, 0, "package-0", "intel-rapl:0"),
        (PowerScope::Dram, 0, "package-0 dram", "intel-rapl:0:1"),
        (PowerScope::CpuPackage, 1, "package-1", "intel-rapl:1"),
        (PowerScope::Dram, 1, "package-1 dram", "intel-rapl:1:0"),
        (PowerScope::System, 0, "psys", "intel-rapl:2"),
    ];
    assert_eq!(found, expected);
    assert!(devices.iter().all(|d| d.reading == PowerReading::FromCounter && d.source == "rapl"));
    assert_eq!(devices[0].counter_range_j, Some(262_143.328_85));
}

/// The last reading of package 0, whose counter goes from `before` to `after`.
fn reading(before: &str, after: &str) -> (PowerSample, PowerTrace) {
    let tree = server();
    tree.set("intel-rapl:0", before);
    let mut probe = tree.open().unwrap().probe.unwrap();
    let clock = Arc::new(ScriptedClock::default());
    probe.begin(&watch(&clock));
    tree.set("intel-rapl:0", after);
    at_ms(&clock, 100);
    let trace = probe.end();
    (trace.devices[0].samples[1].clone(), trace)
}

#[test]
fn the_counter_is_told_as_it_is_and_no_power() {
    let (last, trace) = reading("262143000000", "49671150");
    let at = Nanos::from_millis(100);
    assert_eq!(last, PowerSample { at, energy_j: Some(49.671_15), ..PowerSample::default() });
    assert_eq!(trace.devices[0].samples[0].energy_j, Some(262_143.0));
    assert_eq!(trace.notes, [""; 0]);
}

#[test]
fn a_counter_that_says_nonsense_is_missing() {
    let (last, trace) = reading("1000000", "oops");
    assert_eq!((last.energy_j, last.power_w), (None, None));
    assert_eq!(last.error.as_deref(), Some("energy counter: \"oops\" is no whole number"));
    let note = "cpu_package.0 (package-0): 1 of 2 readings lack values, the first 0.1 s after the beginning: \
                energy counter: \"oops\" is no whole number";
    assert_eq!(trace.notes, [note]);
    assert_eq!(reading("1000000", "18446744073709551615").0.energy_j, None);
}

#[test]
fn what_cannot_be_read_is_said_with_what_to_do() {
    let tree = server();
    // Root reads everything: a folder in place of the file fails for every user.
    for folder in ["intel-rapl:0", "intel-rapl:0:1"] {
        fs::remove_file(tree.counter(folder)).unwrap();
        fs::create_dir(tree.counter(folder)).unwrap();
    }
    let opened = tree.open().unwrap();
    assert_eq!(opened.notes.len(), 3, "{:?}", opened.notes);
    assert!(opened.notes[1].starts_with("package-0 is left out: "), "{:?}", opened.notes);
    let devices = opened.probe.unwrap().devices();
    // The numbers are those of the machine, whoever is left out.
    assert_eq!((devices[0].name.as_str(), devices[0].index), ("package-1", 1));
}

#[test]
fn denied_files_name_the_remedy() {
    use std::os::unix::fs::PermissionsExt;
    let tree = Tree::new(&[("intel-rapl:0", "package-0", "1")]);
    let counter = tree.counter("intel-rapl:0");
    fs::set_permissions(&counter, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read(&counter).is_ok() {
        // Root is denied nothing; the message is tested for other users.
        return;
    }
    let said = refusal(tree.open());
    assert!(said.contains("Permission denied") && said.contains("run as root"), "{said}");
}

#[test]
fn no_tree_and_an_empty_one_are_refused() {
    let said = refusal(open_below(&plan(PowerSource::Rapl), no_tree()));
    assert!(said.ends_with("the kernel offers no powercap here"), "{said}");
    let said = refusal(Tree::new(&[("intel-rapl:0", "uncore", "1")]).open());
    assert!(said.ends_with("load the module intel_rapl_msr"), "{said}");
}
