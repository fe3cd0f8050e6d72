//! CPU packages and their memory by RAPL, from the powercap files of the Linux kernel.
//!
//! There is only a counter, and samples hold no power. Cores and uncore lie within their package, and the
//! `mmio` twin of a package counts the same energy, so none of these is read. Source:
//! Documentation/power/powercap/powercap.rst of the kernel.

use super::source::{Context, Failures, Source};
use crate::Error;
use bench_core::clock::Clock;
use bench_core::power::{PowerDevice, PowerReading, PowerSample, PowerScope};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

pub(super) const ROOT: &str = "/sys/class/powercap";
/// Also on AMD: the kernel kept the name.
const PREFIX: &str = "intel-rapl:";

pub(super) struct RaplSource {
    /// In the order of the devices.
    counters: Vec<PathBuf>,
    devices: Vec<PowerDevice>,
}

/// Packages and DRAM domains below `root`; the notes name those that cannot be read.
pub(super) fn open(root: &Path) -> Result<(RaplSource, Vec<String>), Error> {
    let wrong = |reason| Error::Rapl { root: root.to_owned(), reason };
    let found = find(root).map_err(|error| wrong(format!("{error}; the kernel offers no powercap here")))?;
    let mut source = RaplSource { counters: Vec::new(), devices: Vec::new() };
    let (mut notes, mut denied) = (Vec::new(), false);
    let mut counts: BTreeMap<PowerScope, u32> = BTreeMap::new();
    for (number, folder) in &found {
        let Some((scope, name)) = scope_of(number, folder, &found) else { continue };
        let index = counts.entry(scope).or_default();
        let counter = folder.join("energy_uj");
        match read_number(&counter) {
            Ok(_) => {
                source.devices.push(describe(scope, *index, name, folder));
                source.counters.push(counter);
            }
            Err(error) => {
                denied |= error.kind() == io::ErrorKind::PermissionDenied;
                notes.push(format!("{name} is left out: {}: {error}", counter.display()));
            }
        }
        *index += 1;
    }
    if denied {
        let files = root.join("*/energy_uj");
        notes.push(format!("run as root, or let root allow it: chmod a+r {}", files.display()));
    }
    match (source.devices.is_empty(), notes.is_empty()) {
        (false, _) => Ok((source, notes)),
        (true, false) => Err(wrong(notes.join("; "))),
        (true, true) => {
            Err(wrong(format!("no {PREFIX}N of a package or of DRAM; load the module intel_rapl_msr")))
        }
    }
}

/// Domains by their numbers, `0` a package and `0:1` within it, beside each other or one within the other.
fn find(root: &Path) -> io::Result<BTreeMap<Vec<u32>, PathBuf>> {
    let mut found = BTreeMap::new();
    for folder in list(root)? {
        let Some(number) = number_of(&folder) else { continue };
        for inner in list(&folder).unwrap_or_default() {
            if let Some(number) = number_of(&inner) {
                found.entry(number).or_insert(inner);
            }
        }
        found.insert(number, folder);
    }
    Ok(found)
}

fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::read_dir(folder)?.map(|entry| entry.map(|e| e.path())).collect()
}

fn number_of(folder: &Path) -> Option<Vec<u32>> {
    let name = folder.file_name()?.to_str()?.strip_prefix(PREFIX)?;
    name.split(':').map(|part| part.parse().ok()).collect()
}

/// What a domain covers and how it is called; `None`: a part of one that is read, or not known.
fn scope_of(
    number: &[u32],
    folder: &Path,
    found: &BTreeMap<Vec<u32>, PathBuf>,
) -> Option<(PowerScope, String)> {
    let name = name_of(folder)?;
    let scope = match name.as_str() {
        "dram" => PowerScope::Dram,
        "psys" => PowerScope::System,
        package if package.starts_with("package") => PowerScope::CpuPackage,
        _ => return None,
    };
    let package =
        number.split_last().and_then(|(_, outer)| found.get(outer)).and_then(|outer| name_of(outer));
    Some((scope, package.map_or_else(|| name.clone(), |package| format!("{package} {name}"))))
}

fn name_of(folder: &Path) -> Option<String> {
    Some(std::fs::read_to_string(folder.join("name")).ok()?.trim().to_owned())
}

fn describe(scope: PowerScope, index: u32, name: String, folder: &Path) -> PowerDevice {
    let range = read_number(&folder.join("max_energy_range_uj")).ok();
    PowerDevice {
        scope,
        index,
        name,
        id: folder.file_name().map(|id| id.to_string_lossy().into_owned()).unwrap_or_default(),
        source: "rapl".to_owned(),
        reading: PowerReading::FromCounter,
        counter_range_j: range.filter(|uj| *uj > 0).map(|uj| uj as f64 / 1e6),
        power_limit_w: None,
        driver: None,
    }
}

fn read_number(path: &Path) -> io::Result<u64> {
    let text = std::fs::read_to_string(path)?;
    let told = text.trim();
    told.parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("\"{told}\" is no whole number")))
}

impl Source for RaplSource {
    fn devices(&self) -> &[PowerDevice] {
        &self.devices
    }

    fn begin(&mut self, _context: Context) {}

    fn read(&mut self, index: usize, clock: &dyn Clock) -> PowerSample {
        let mut sample = PowerSample { at: clock.now(), ..PowerSample::default() };
        match read_number(&self.counters[index]) {
            Ok(microjoules) => sample.energy_j = Some(microjoules as f64 / 1e6),
            Err(error) => {
                let mut failures = Failures::default();
                failures.add("energy counter", error.to_string());
                sample.error = failures.line();
            }
        }
        sample
    }
}
