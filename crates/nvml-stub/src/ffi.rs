//! The C symbols, with the signatures of `nvml.h`; each checks its pointers and writes what the replay says.
//!
//! A handle is the device's index plus one and is never followed as a pointer.

use crate::replay;
use crate::script::{Device, code};
use std::ffi::{c_char, c_int, c_longlong, c_uint, c_ulonglong, c_void};

type Handle = *mut c_void;

/// `NVML_FI_DEV_POWER_INSTANT` of `nvml.h`.
const POWER_INSTANT: c_uint = 186;
const TYPE_UNSIGNED_INT: c_uint = 1;
/// `NVML_CLOCK_SM` and `NVML_CLOCK_MEM`.
const CLOCK_SM: c_uint = 1;
const CLOCK_MEM: c_uint = 2;

#[repr(C)]
struct FieldValue {
    field_id: c_uint,
    scope_id: c_uint,
    timestamp_us: c_longlong,
    latency_us: c_longlong,
    value_type: c_uint,
    code: c_uint,
    /// A union of 8 bytes; an unsigned int is its lower half.
    value: u64,
}

#[repr(C)]
struct Memory {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[repr(C)]
struct MemoryV2 {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[repr(C)]
struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

#[repr(C)]
struct ProcessInfo {
    pid: c_uint,
    used_bytes: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

fn index(handle: Handle) -> usize {
    (handle as usize).wrapping_sub(1)
}

/// Writes the value to `out`, or returns the code.
fn give<T>(out: *mut T, value: Result<T, u32>) -> c_uint {
    if out.is_null() {
        return code::INVALID_ARGUMENT;
    }
    match value {
        Ok(value) => {
            // SAFETY: the caller passes a pointer to a T that it owns, as nvml.h demands; it was checked for
            // null.
            unsafe { out.write(value) };
            code::SUCCESS
        }
        Err(code) => code,
    }
}

fn ask<T>(
    handle: Handle,
    symbol: &str,
    out: *mut T,
    value: impl FnOnce(&Device, f64) -> Option<T>,
) -> c_uint {
    give(out, replay::device(index(handle), symbol, value))
}

/// Writes `text` with its final zero, if it fits into `length`.
fn give_text(out: *mut c_char, length: c_uint, text: Result<String, u32>) -> c_uint {
    let text = match text {
        Ok(text) if out.is_null() || text.contains('\0') => return code::INVALID_ARGUMENT,
        Ok(text) if text.len() >= length as usize => return code::INSUFFICIENT_SIZE,
        Ok(text) => text,
        Err(code) => return code,
    };
    // SAFETY: the caller owns `length` bytes at `out`, which is not null, and text and zero are no longer
    // than that.
    unsafe {
        out.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
        out.add(text.len()).write(0);
    }
    code::SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> c_uint {
    replay::init()
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> c_uint {
    replay::shutdown()
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetDriverVersion(out: *mut c_char, length: c_uint) -> c_uint {
    give_text(out, length, replay::library(|script| Ok(script.driver.clone())))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCount_v2(out: *mut c_uint) -> c_uint {
    give(out, replay::library(|script| Ok(script.devices.len() as c_uint)))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetHandleByIndex_v2(device: c_uint, out: *mut Handle) -> c_uint {
    let handle = (device as usize + 1) as Handle;
    if let Err(code) = replay::begin_reading(device as usize) {
        return code;
    }
    ask(handle, "nvmlDeviceGetHandleByIndex_v2", out, |_, _| Some(handle))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetName(device: Handle, out: *mut c_char, length: c_uint) -> c_uint {
    give_text(out, length, replay::device(index(device), "nvmlDeviceGetName", |d, _| Some(d.name.clone())))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetUUID(device: Handle, out: *mut c_char, length: c_uint) -> c_uint {
    give_text(out, length, replay::device(index(device), "nvmlDeviceGetUUID", |d, _| Some(d.uuid.clone())))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPowerUsage(device: Handle, out: *mut c_uint) -> c_uint {
    ask(device, "nvmlDeviceGetPowerUsage", out, |d, x| {
        Some((d.power_w.as_ref()?.at(x) * 1e3).round() as c_uint)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTotalEnergyConsumption(device: Handle, out: *mut c_ulonglong) -> c_uint {
    ask(device, "nvmlDeviceGetTotalEnergyConsumption", out, |d, x| {
        Some((d.energy_j(x)? * 1e3).round() as c_ulonglong)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetFieldValues(device: Handle, count: c_int, values: *mut FieldValue) -> c_uint {
    let symbol = "nvmlDeviceGetFieldValues";
    if values.is_null() || count < 1 {
        return code::INVALID_ARGUMENT;
    }
    // SAFETY: the caller owns `count` field values at `values`, which is not null, and nobody else sees them.
    let values = unsafe { std::slice::from_raw_parts_mut(values, count as usize) };
    for value in values {
        let field_id = value.field_id;
        let read = replay::device(index(device), symbol, |d, x| {
            let instant = d.instant.as_ref().filter(|_| field_id == POWER_INSTANT);
            Some(instant.map(|i| {
                let stamp =
                    i.at_unix_us.as_ref().map_or_else(|| replay::unix_us() - i.age_s * 1e6, |w| w.at(x));
                (stamp as c_longlong, u64::from((i.power_w.at(x) * 1e3).round() as u32))
            }))
        });
        match read {
            Err(code) => return code,
            Ok(None) => value.code = code::NOT_SUPPORTED,
            Ok(Some((stamp, milliwatts))) => {
                value.timestamp_us = stamp;
                value.latency_us = 0;
                value.value_type = TYPE_UNSIGNED_INT;
                value.value = milliwatts;
                value.code = code::SUCCESS;
            }
        }
    }
    code::SUCCESS
}

fn memory(device: &Device, x: f64) -> Option<(u64, u64)> {
    let used = device.memory_used_bytes.as_ref()?.at(x) as u64;
    Some((used, device.memory_total_bytes.saturating_sub(used)))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryInfo(device: Handle, out: *mut Memory) -> c_uint {
    ask(device, "nvmlDeviceGetMemoryInfo", out, |d, x| {
        let (used, free) = memory(d, x)?;
        Some(Memory { total: d.memory_total_bytes, free, used })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: Handle, out: *mut MemoryV2) -> c_uint {
    /// `NVML_STRUCT_VERSION(Memory, 2)`.
    const VERSION: c_uint = size_of::<MemoryV2>() as c_uint | (2 << 24);
    ask(device, "nvmlDeviceGetMemoryInfo_v2", out, |d, x| {
        let (used, free) = memory(d, x)?;
        Some(MemoryV2 { version: VERSION, total: d.memory_total_bytes, reserved: 0, free, used })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetUtilizationRates(device: Handle, out: *mut Utilization) -> c_uint {
    ask(device, "nvmlDeviceGetUtilizationRates", out, |d, x| {
        let memory = d.util_mem_pct.as_ref().map_or(0.0, |wave| wave.at(x)) as c_uint;
        Some(Utilization { gpu: d.util_gpu_pct.as_ref()?.at(x) as c_uint, memory })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetClockInfo(device: Handle, kind: c_uint, out: *mut c_uint) -> c_uint {
    ask(device, "nvmlDeviceGetClockInfo", out, |d, x| {
        let wave = match kind {
            CLOCK_SM => d.sm_clock_mhz.as_ref(),
            CLOCK_MEM => d.mem_clock_mhz.as_ref(),
            _ => None,
        };
        Some(wave?.at(x) as c_uint)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTemperature(device: Handle, _sensor: c_uint, out: *mut c_uint) -> c_uint {
    ask(device, "nvmlDeviceGetTemperature", out, |d, x| Some(d.temp_c.as_ref()?.at(x) as c_uint))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetEnforcedPowerLimit(device: Handle, out: *mut c_uint) -> c_uint {
    ask(device, "nvmlDeviceGetEnforcedPowerLimit", out, |d, _| Some((d.limit_w? * 1e3) as c_uint))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(device: Handle, out: *mut c_ulonglong) -> c_uint {
    let symbol = "nvmlDeviceGetCurrentClocksThrottleReasons";
    ask(device, symbol, out, |d, x| Some(d.throttle.as_ref()?.at(x) as c_ulonglong))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: Handle,
    count: *mut c_uint,
    out: *mut ProcessInfo,
) -> c_uint {
    let symbol = "nvmlDeviceGetComputeRunningProcesses_v3";
    let processes = match replay::device(index(device), symbol, |d, _| Some(d.processes.clone())) {
        Ok(processes) => processes,
        Err(code) => return code,
    };
    if count.is_null() {
        return code::INVALID_ARGUMENT;
    }
    // SAFETY: the caller owns the count, which is not null, and has set it to the room at `out`.
    let room = unsafe { count.replace(processes.len() as c_uint) } as usize;
    if processes.is_empty() {
        return code::SUCCESS;
    }
    if out.is_null() || room < processes.len() {
        return code::INSUFFICIENT_SIZE;
    }
    for (i, process) in processes.iter().enumerate() {
        // Outside MIG the instances are all ones, as in nvml.h.
        let (gpu_instance, compute_instance) = (u32::MAX, u32::MAX);
        let info =
            ProcessInfo { pid: process.pid, used_bytes: process.bytes, gpu_instance, compute_instance };
        // SAFETY: there is room for all of them, as was just checked, and the caller owns it.
        unsafe { out.add(i).write(info) };
    }
    code::SUCCESS
}
