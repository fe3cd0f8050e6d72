//! NVIDIA GPUs by NVML, through `nvml-wrapper`.
//!
//! The handle is asked for anew at each reading, so that a device that comes back is read again. A value that
//! a device does not have is missing; one that it has and does not tell is missing with a reason.

use super::source::{Context, Failures, Source};
use crate::Error;
use bench_core::clock::Clock as RunClock;
use bench_core::power::{PowerDevice, PowerReading, PowerSample, PowerScope};
use bench_core::unit::Nanos;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::enums::device::{SampleValue, UsedGpuMemory};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id::NVML_FI_DEV_POWER_INSTANT;
use nvml_wrapper::{Device, Nvml};
use std::ffi::OsStr;

const LIBRARY: &str = "libnvidia-ml.so.1";
/// A stamp further ahead of the reading than this is no stamp of it.
const AHEAD: Nanos = Nanos::from_millis(1_000);
/// A reading of the energy counter is stamped to half of this: 0.1 % of a window of a second at its two ends.
const PROMPT: Nanos = Nanos::from_millis(1);
/// One that took longer is left out: nobody knows when within that time it was made.
const LATE: Nanos = Nanos::from_millis(10);
/// Readings of the counter at one instant, at most: a driver that is always slow is not asked for ever.
const ATTEMPTS: usize = 3;

pub(super) struct NvmlSource {
    nvml: Nvml,
    devices: Vec<PowerDevice>,
    context: Context,
}

/// Why NVML is not used.
pub(super) enum Unusable {
    /// This machine has no such library: nothing to wonder about.
    Absent(Error),
    Broken(Error),
}

impl Unusable {
    pub(super) fn error(self) -> Error {
        match self {
            Self::Absent(error) | Self::Broken(error) => error,
        }
    }
}

/// Loads the library and chooses devices; the notes name those that are there and do not answer.
pub(super) fn open(
    library: Option<&str>,
    gpus: Option<&[u32]>,
) -> Result<(NvmlSource, Vec<String>), Unusable> {
    let path = library.unwrap_or(LIBRARY);
    let wrong = |reason| Error::Nvml { library: path.to_owned(), reason };
    let nvml = Nvml::builder().lib_path(OsStr::new(path)).init().map_err(|error| {
        let absent = library.is_none() && matches!(error, NvmlError::LibloadingError(_));
        let error = wrong(reason_of(&error));
        if absent { Unusable::Absent(error) } else { Unusable::Broken(error) }
    })?;
    let count = nvml.device_count().map_err(|error| Unusable::Broken(wrong(reason_of(&error))))?;
    if count == 0 {
        return Err(Unusable::Absent(wrong("it knows no GPU; check nvidia-smi".to_owned())));
    }
    let driver = nvml.sys_driver_version().ok();
    let (mut devices, mut notes) = (Vec::new(), Vec::new());
    for index in chosen(gpus, count).map_err(Unusable::Broken)? {
        match nvml.device_by_index(index) {
            Ok(device) => devices.push(describe(&device, index, driver.clone())),
            Err(error) if gpus.is_none() => notes.push(format!("GPU {index} is left out: {error}")),
            Err(error) => {
                return Err(Unusable::Broken(wrong(format!("GPU {index}: {error}; check nvidia-smi"))));
            }
        }
    }
    if devices.is_empty() {
        return Err(Unusable::Broken(wrong(format!("{}; check nvidia-smi", notes.join("; ")))));
    }
    Ok((NvmlSource { nvml, devices, context: Context::default() }, notes))
}

fn chosen(gpus: Option<&[u32]>, count: u32) -> Result<Vec<u32>, Error> {
    let Some(gpus) = gpus else { return Ok((0..count).collect()) };
    let mut gpus = gpus.to_vec();
    gpus.sort_unstable();
    gpus.dedup();
    match gpus.iter().find(|gpu| **gpu >= count) {
        Some(&index) => {
            let known = if count == 1 { "GPU 0 only".to_owned() } else { format!("GPUs 0 to {}", count - 1) };
            Err(Error::Gpu { index, known })
        }
        None => Ok(gpus),
    }
}

fn reason_of(error: &NvmlError) -> String {
    let advice = match error {
        NvmlError::LibloadingError(_) => {
            "install the NVIDIA driver, or give the library's path as energy.nvml_library"
        }
        NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound => {
            "this library is not NVML, or of a version that is too old; give another as energy.nvml_library"
        }
        NvmlError::LibRmVersionMismatch => {
            "reload the driver or restart the machine; in a container, use the library of the host's driver"
        }
        NvmlError::DriverNotLoaded => "load the NVIDIA kernel module and check nvidia-smi",
        NvmlError::NoPermission => {
            "this user may not use the NVIDIA driver; check the rights of /dev/nvidiactl"
        }
        _ => "check nvidia-smi, and that driver and library are of one version",
    };
    match error {
        // The wrapper's own words add nothing to what the loader says.
        NvmlError::LibloadingError(error) => format!("{error}; {advice}"),
        error => format!("{error}; {advice}"),
    }
}

fn describe(device: &Device<'_>, index: u32, driver: Option<String>) -> PowerDevice {
    let instant = instant_power(device).is_ok();
    PowerDevice {
        scope: PowerScope::GpuBoard,
        index,
        name: device.name().unwrap_or_else(|_| format!("GPU {index}")),
        id: device.uuid().unwrap_or_else(|_| index.to_string()),
        source: "nvml".to_owned(),
        reading: if instant { PowerReading::Instant } else { PowerReading::Averaged },
        counter_range_j: None,
        power_limit_w: device.enforced_power_limit().ok().map(|mw| f64::from(mw) / 1e3),
        driver,
    }
}

/// Watts, and the device's stamp in microseconds since 1970.
fn instant_power(device: &Device<'_>) -> Result<(f64, i64), NvmlError> {
    let mut fields = device.field_values_for(&[FieldId(NVML_FI_DEV_POWER_INSTANT)])?;
    let field = fields.pop().unwrap_or(Err(NvmlError::NoData))?;
    let milliwatts = match field.value? {
        SampleValue::F64(value) => value,
        SampleValue::U32(value) => f64::from(value),
        SampleValue::U64(value) => value as f64,
        SampleValue::I64(value) => value as f64,
    };
    Ok((milliwatts / 1e3, field.timestamp))
}

/// The value; `None` where the device does not have it, or has failed to tell it.
fn told<T>(what: &'static str, read: Result<T, NvmlError>, failures: &mut Failures) -> Option<T> {
    match read {
        Ok(value) => Some(value),
        Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound) => None,
        Err(error) => {
            failures.add(what, error.to_string());
            None
        }
    }
}

impl NvmlSource {
    fn power(
        &self,
        device: &Device<'_>,
        reading: PowerReading,
        sample: &mut PowerSample,
        failures: &mut Failures,
    ) {
        if reading == PowerReading::Instant {
            // It was there at the beginning: that it is not any more is a failure, whatever the reason.
            match instant_power(device) {
                Ok((watts, stamp_us)) => {
                    sample.power_w = Some(watts);
                    sample.taken = self.on_run_clock(stamp_us, sample.at);
                }
                Err(error) => failures.add("power", error.to_string()),
            }
        } else {
            let watts = device.power_usage().map(|mw| f64::from(mw) / 1e3);
            sample.power_w = told("power", watts, failures);
        }
    }

    /// `None` for a stamp that cannot be one: before the run's clock began, or after the reading.
    fn on_run_clock(&self, stamp_us: i64, at: Nanos) -> Option<Nanos> {
        let since_zero = u64::try_from(stamp_us).ok()?.checked_sub(self.context.zero_unix_us)?;
        Some(Nanos(since_zero.checked_mul(1_000)?)).filter(|taken| *taken <= at + AHEAD)
    }

    fn process_memory(&self, device: &Device<'_>) -> Option<u64> {
        let processes = device.running_compute_processes().ok()?;
        let ours = processes.into_iter().filter(|process| process.pid == self.context.process);
        // One entry for each MIG instance.
        ours.filter_map(|process| match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        })
        .reduce(u64::saturating_add)
    }

    fn fill(&self, device: &Device<'_>, sample: &mut PowerSample, failures: &mut Failures) {
        let temp = device.temperature(TemperatureSensor::Gpu).map(f64::from);
        sample.temp_c = told("temperature", temp, failures);
        if let Some(rates) = told("utilisation", device.utilization_rates(), failures) {
            sample.util_gpu_pct = Some(f64::from(rates.gpu));
            sample.util_mem_pct = Some(f64::from(rates.memory));
        }
        sample.memory_used_bytes = told("memory", device.memory_info(), failures).map(|info| info.used);
        sample.process_memory_bytes = self.process_memory(device);
        let clock = |kind| device.clock_info(kind).map(f64::from);
        sample.sm_clock_mhz = told("SM clock", clock(Clock::SM), failures);
        sample.mem_clock_mhz = told("memory clock", clock(Clock::Memory), failures);
        let throttle = device.current_throttle_reasons();
        sample.throttle = told("throttle reasons", throttle, failures).map(|reasons| reasons.bits());
    }
}

/// The middle of the time that a reading took, that time, and what was read. One that took longer than [`PROMPT`] (this
/// thread waited for a core, or the driver for a lock) is made again, and the promptest counts: joules are the
/// difference of two such readings, so a late stamp is energy that nobody used.
fn bracketed<T>(clock: &dyn RunClock, mut read: impl FnMut() -> T) -> (Nanos, Nanos, T) {
    let mut timed = || {
        let before = clock.now();
        let value = read();
        let took = clock.now().since(before).unwrap_or_default();
        (before + Nanos(took.0 / 2), took, value)
    };
    let mut best = timed();
    for _ in 1..ATTEMPTS {
        if best.1 <= PROMPT {
            break;
        }
        let again = timed();
        if again.1 < best.1 {
            best = again;
        }
    }
    best
}

impl Source for NvmlSource {
    fn devices(&self) -> &[PowerDevice] {
        &self.devices
    }

    fn begin(&mut self, context: Context) {
        self.context = context;
    }

    fn read(&mut self, index: usize, clock: &dyn RunClock) -> PowerSample {
        let described = &self.devices[index];
        let handle = self.nvml.device_by_index(described.index);
        let mut sample = PowerSample { at: clock.now(), ..PowerSample::default() };
        let mut failures = Failures::default();
        match handle {
            Ok(device) => {
                let (at, took, energy) = bracketed(clock, || device.total_energy_consumption());
                sample.at = at;
                let energy = told("energy counter", energy.map(|mj| mj as f64 / 1e3), &mut failures);
                if energy.is_some() && took > LATE {
                    failures.add("energy counter", format!("took more than {} ms to read", LATE.as_ms()));
                } else {
                    sample.energy_j = energy;
                }
                self.power(&device, described.reading, &mut sample, &mut failures);
                self.fill(&device, &mut sample, &mut failures);
            }
            Err(error) => failures.add("device", error.to_string()),
        }
        sample.error = failures.line();
        sample
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bench_core::clock::ScriptedClock;

    /// Readings that take so many milliseconds each, from instant 0.
    fn read(durations_ms: &[u64]) -> (f64, f64, usize) {
        let clock = ScriptedClock::default();
        let mut calls = 0;
        let (at, took, value) = bracketed(&clock, || {
            clock.advance_to(clock.now() + Nanos::from_millis(durations_ms[calls]));
            calls += 1;
            calls
        });
        (at.as_ms(), took.as_ms(), value)
    }

    #[test]
    fn a_late_reading_is_made_again_and_the_promptest_counts() {
        assert_eq!(read(&[1]), (0.5, 1.0, 1));
        assert_eq!(read(&[30, 1]), (30.5, 1.0, 2));
        assert_eq!(read(&[30, 8, 20]), (34.0, 8.0, 2));
        assert_eq!(read(&[8, 30, 20]), (4.0, 8.0, 1));
    }
}
