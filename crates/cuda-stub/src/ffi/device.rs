//! The driver itself, its devices and their contexts.

use std::ffi::{c_char, c_int, c_uint};

use super::{Handle, give, give_if_wanted};
use crate::driver::{Needs, call, current, pop_current, push_current};
use crate::script::{Device, code};

#[unsafe(no_mangle)]
extern "C" fn cuInit(_flags: c_uint) -> u32 {
    call("cuInit", Needs::Nothing, |driver, _| {
        if driver.script.devices.is_empty() {
            return Err(code::NO_DEVICE);
        }
        driver.initialized = true;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDriverGetVersion(out: *mut c_int) -> u32 {
    call("cuDriverGetVersion", Needs::Nothing, |driver, _| give(out, driver.script.driver_version))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetCount(out: *mut c_int) -> u32 {
    call("cuDeviceGetCount", Needs::Init, |driver, _| give(out, driver.script.devices.len() as c_int))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGet(out: *mut c_int, ordinal: c_int) -> u32 {
    call("cuDeviceGet", Needs::Init, |driver, _| {
        driver.device(ordinal as usize)?;
        give(out, ordinal)
    })
}

/// Writes `text` with its final zero, as much of it as fits.
fn give_text(out: *mut c_char, length: c_int, text: &str) -> Result<(), u32> {
    let room = usize::try_from(length).ok().and_then(|length| length.checked_sub(1));
    let Some(room) = room.filter(|_| !out.is_null()) else { return Err(code::INVALID_VALUE) };
    let text = &text.as_bytes()[..text.len().min(room)];
    // SAFETY: the caller owns `length` bytes at `out`; text and zero are no longer than that.
    unsafe {
        out.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
        out.add(text.len()).write(0);
    }
    Ok(())
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetName(out: *mut c_char, length: c_int, device: c_int) -> u32 {
    call("cuDeviceGetName", Needs::Init, |driver, _| {
        give_text(out, length, &driver.device(device as usize)?.name)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetPCIBusId(out: *mut c_char, length: c_int, device: c_int) -> u32 {
    call("cuDeviceGetPCIBusId", Needs::Init, |driver, _| {
        driver.device(device as usize)?;
        give_text(out, length, &format!("0000:{:02X}:00.0", device + 1))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid(out: *mut [u8; 16], device: c_int) -> u32 {
    call("cuDeviceGetUuid", Needs::Init, |driver, _| give(out, driver.device(device as usize)?.uuid))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid_v2(out: *mut [u8; 16], device: c_int) -> u32 {
    call("cuDeviceGetUuid_v2", Needs::Init, |driver, _| give(out, driver.device(device as usize)?.uuid))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceTotalMem_v2(out: *mut usize, device: c_int) -> u32 {
    call("cuDeviceTotalMem_v2", Needs::Init, |driver, _| {
        give(out, driver.device(device as usize)?.memory_bytes as usize)
    })
}

/// The value of an attribute, by the numbers of `cuda.h`; `None` for those that nobody asks for.
#[allow(clippy::match_same_arms)] // one line for each kind
fn attribute(device: &Device, number: usize, attribute: c_uint) -> Option<u32> {
    Some(match attribute {
        // Threads of a block, in all and by x and y.
        1..=3 => 1024,
        4 => 64,
        // Blocks of a grid by x, y, z.
        5 => i32::MAX as u32,
        6 | 7 => 65_535,
        // Shared memory of a block that asks for no more.
        8 => 48 * 1024,
        10 => 32,
        // Clock of multiprocessors and of memory in kHz, width of its bus in bits.
        13 => 1_980_000,
        36 => 2_619_000,
        37 => 5120,
        16 => device.multiprocessors,
        // Integrated; compute mode; cooperative launch over several devices.
        18 | 20 | 96 => 0,
        // Concurrent kernels, ECC, unified addresses, managed memory, cooperative launch, pools of memory.
        31 | 32 | 41 | 83 | 95 | 115 => 1,
        33 => number as u32 + 1,
        34 | 50 => 0,
        // Cache: small, so that arrays beyond it are too.
        38 => 1 << 20,
        39 => 2048,
        40 => 3,
        75 => device.compute_capability[0],
        76 => device.compute_capability[1],
        // Shared memory and registers of a multiprocessor, shared memory of a block that asks for it.
        81 => device.max_shared_bytes + 1024,
        12 | 82 => 65_536,
        97 => device.max_shared_bytes,
        106 => 32,
        111 => 1024,
        _ => return None,
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetAttribute(out: *mut c_int, number: c_uint, device: c_int) -> u32 {
    call("cuDeviceGetAttribute", Needs::Init, |driver, _| {
        let value = attribute(driver.device(device as usize)?, device as usize, number);
        give(out, value.ok_or(code::INVALID_VALUE)? as c_int)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRetain(out: *mut Handle, device: c_int) -> u32 {
    call("cuDevicePrimaryCtxRetain", Needs::Init, |driver, _| {
        driver.device(device as usize)?;
        give(out, (device as usize + 1) as Handle)?;
        *driver.contexts.entry(device as usize).or_default() += 1;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> u32 {
    call("cuDevicePrimaryCtxRelease_v2", Needs::Init, |driver, _| driver.release_context(device as usize))
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxGetState(device: c_int, flags: *mut c_uint, active: *mut c_int) -> u32 {
    call("cuDevicePrimaryCtxGetState", Needs::Init, |driver, _| {
        driver.device(device as usize)?;
        give_if_wanted(flags, 0);
        let held = driver.contexts.get(&(device as usize)).copied().unwrap_or(0);
        give_if_wanted(active, c_int::from(held > 0));
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxSetFlags_v2(device: c_int, _flags: c_uint) -> u32 {
    call("cuDevicePrimaryCtxSetFlags_v2", Needs::Init, |driver, _| driver.device(device as usize).map(|_| ()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: Handle) -> u32 {
    call("cuCtxSetCurrent", Needs::Init, |driver, _| {
        let device = (context as usize).checked_sub(1);
        if device.is_some_and(|device| driver.contexts.get(&device).is_none_or(|held| *held == 0)) {
            return Err(code::INVALID_CONTEXT);
        }
        pop_current();
        push_current(device);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetCurrent(out: *mut Handle) -> u32 {
    call("cuCtxGetCurrent", Needs::Init, |_, _| {
        give(out, current().map_or(std::ptr::null_mut(), |device| (device + 1) as Handle))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxPushCurrent_v2(context: Handle) -> u32 {
    call("cuCtxPushCurrent_v2", Needs::Init, |driver, _| {
        let device = (context as usize).checked_sub(1).ok_or(code::INVALID_CONTEXT)?;
        if driver.contexts.get(&device).is_none_or(|held| *held == 0) {
            return Err(code::INVALID_CONTEXT);
        }
        push_current(Some(device));
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxPopCurrent_v2(out: *mut Handle) -> u32 {
    call("cuCtxPopCurrent_v2", Needs::Init, |_, _| {
        let device = pop_current().ok_or(code::INVALID_CONTEXT)?;
        give_if_wanted(out, (device + 1) as Handle);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetDevice(out: *mut c_int) -> u32 {
    call("cuCtxGetDevice", Needs::Context, |_, device| give(out, device as c_int))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> u32 {
    call("cuCtxSynchronize", Needs::NoCapture, |_, _| Ok(()))
}
