//! The columns of a recorded power trace.
//!
//! One table says their names and where their values go; the header of a file is matched against it.

use bench_core::power::PowerSample;

/// `false`: the value cannot be one of this column.
type Set = fn(&mut PowerSample, f64) -> bool;

/// Columns with numbers, by the names of `PowerSample`.
const VALUES: [(&str, Set); 10] = [
    ("power_w", |s, v| put(&mut s.power_w, v)),
    ("energy_j", |s, v| put(&mut s.energy_j, v)),
    ("temp_c", |s, v| put(&mut s.temp_c, v)),
    ("util_gpu_pct", |s, v| put(&mut s.util_gpu_pct, v)),
    ("util_mem_pct", |s, v| put(&mut s.util_mem_pct, v)),
    ("sm_clock_mhz", |s, v| put(&mut s.sm_clock_mhz, v)),
    ("mem_clock_mhz", |s, v| put(&mut s.mem_clock_mhz, v)),
    ("memory_used_bytes", |s, v| put_whole(&mut s.memory_used_bytes, v)),
    ("process_memory_bytes", |s, v| put_whole(&mut s.process_memory_bytes, v)),
    ("throttle", |s, v| put_whole(&mut s.throttle, v)),
];

fn put(place: &mut Option<f64>, value: f64) -> bool {
    *place = Some(value);
    true
}

fn put_whole(place: &mut Option<u64>, value: f64) -> bool {
    *place = (value >= 0.0).then_some(value as u64);
    place.is_some()
}

pub(super) const EXPECTED: &str = "expected a header with t_s (seconds on the run's clock) or unix_s \
     (wall clock), with power_w or energy_j, and as they are known scope, device, temp_c, util_gpu_pct, \
     util_mem_pct, sm_clock_mhz, mem_clock_mhz, memory_used_bytes, process_memory_bytes, throttle";

/// Where in a row what stands.
pub(super) struct Columns {
    pub(super) time: usize,
    pub(super) is_unix: bool,
    pub(super) scope: Option<usize>,
    pub(super) device: Option<usize>,
    pub(super) values: Vec<(usize, &'static str, Set)>,
    pub(super) has_power: bool,
    /// Columns that mean nothing here.
    pub(super) unknown: Vec<String>,
}

pub(super) fn columns(header: &[String]) -> Result<Columns, String> {
    let find = |name: &str| header.iter().position(|column| column == name);
    let (time, is_unix) = match (find("t_s"), find("unix_s")) {
        (Some(_), Some(_)) => {
            return Err("it has both t_s and unix_s, which may disagree; keep one".to_owned());
        }
        (Some(time), None) => (time, false),
        (None, Some(time)) => (time, true),
        (None, None) => return Err(missing(header)),
    };
    let values: Vec<(usize, &'static str, Set)> =
        VALUES.into_iter().filter_map(|(name, set)| Some((find(name)?, name, set))).collect();
    let has = |name| values.iter().any(|value| value.1 == name);
    if !has("power_w") && !has("energy_j") {
        return Err(missing(header));
    }
    let (scope, device) = (find("scope"), find("device"));
    let known = |i: usize| i == time || [scope, device].contains(&Some(i)) || values.iter().any(|v| v.0 == i);
    let unknown =
        header.iter().enumerate().filter(|(i, _)| !known(*i)).map(|(_, name)| name.clone()).collect();
    let has_power = has("power_w");
    Ok(Columns { time, is_unix, scope, device, values, has_power, unknown })
}

fn missing(header: &[String]) -> String {
    let found = header.join(", ");
    format!(
        "its first line \"{}\" is no such header; {EXPECTED}",
        found.chars().take(120).collect::<String>()
    )
}
