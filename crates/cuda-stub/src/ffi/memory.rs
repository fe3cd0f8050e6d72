//! Memory and copies.

use std::ffi::{c_uchar, c_uint, c_void};

use super::{Handle, give};
use crate::driver::{Needs, Op, call};
use crate::memory::Place;
use crate::script::code;

fn alloc(symbol: &str, needs: Needs, out: *mut u64, bytes: usize) -> u32 {
    call(symbol, needs, |driver, device| {
        let limit = driver.device(device)?.free_bytes();
        give(out, driver.memory.alloc(bytes, Place::Device(device), limit)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAlloc_v2(out: *mut u64, bytes: usize) -> u32 {
    alloc("cuMemAlloc_v2", Needs::NoCapture, out, bytes)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> u32 {
    call("cuMemFree_v2", Needs::NoCapture, |driver, _| driver.memory.free(address, false))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocAsync(out: *mut u64, bytes: usize, stream: Handle) -> u32 {
    // Captured allocations would belong to the graph, which nobody asks for.
    let _ = stream;
    alloc("cuMemAllocAsync", Needs::NoCapture, out, bytes)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(address: u64, _stream: Handle) -> u32 {
    call("cuMemFreeAsync", Needs::NoCapture, |driver, _| driver.memory.free(address, false))
}

fn alloc_host(symbol: &str, out: *mut *mut c_void, bytes: usize) -> u32 {
    call(symbol, Needs::NoCapture, |driver, _| {
        give(out, driver.memory.alloc(bytes, Place::Host, u64::MAX)? as *mut c_void)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocHost_v2(out: *mut *mut c_void, bytes: usize) -> u32 {
    alloc_host("cuMemAllocHost_v2", out, bytes)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostAlloc(out: *mut *mut c_void, bytes: usize, _flags: c_uint) -> u32 {
    alloc_host("cuMemHostAlloc", out, bytes)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostGetDevicePointer_v2(out: *mut u64, host: *mut c_void, _flags: c_uint) -> u32 {
    call("cuMemHostGetDevicePointer_v2", Needs::Context, |driver, _| {
        driver.memory.check(host as u64, 1)?;
        give(out, host as u64)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(host: *mut c_void) -> u32 {
    call("cuMemFreeHost", Needs::NoCapture, |driver, _| driver.memory.free(host as u64, true))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32 {
    call("cuMemGetInfo_v2", Needs::Context, |driver, device| {
        let gpu = driver.device(device)?;
        let (left, all) = (gpu.free_bytes(), gpu.memory_bytes);
        give(free, left.saturating_sub(driver.memory.live(device)) as usize)?;
        give(total, all as usize)
    })
}

/// A copy in `stream`, or at once where there is none; `sides` says which of both must be memory of this
/// library.
fn copy(symbol: &str, to: u64, from: u64, bytes: usize, sides: [bool; 2], stream: Option<Handle>) -> u32 {
    let needs = if stream.is_some() { Needs::Context } else { Needs::NoCapture };
    call(symbol, needs, |driver, _| {
        if bytes == 0 {
            return Ok(());
        }
        for (side, of_device) in [to, from].into_iter().zip(sides) {
            if of_device {
                driver.memory.check(side, bytes)?;
            } else if side == 0 {
                return Err(code::INVALID_VALUE);
            }
        }
        driver.submit(stream.map_or(0, |stream| stream as usize), Op::Copy { to, from, bytes, device: sides })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> u32 {
    copy("cuMemcpyHtoD_v2", to, from as u64, bytes, [true, false], None)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: Handle) -> u32 {
    copy("cuMemcpyHtoDAsync_v2", to, from as u64, bytes, [true, false], Some(stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> u32 {
    copy("cuMemcpyDtoH_v2", to as u64, from, bytes, [false, true], None)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: Handle) -> u32 {
    copy("cuMemcpyDtoHAsync_v2", to as u64, from, bytes, [false, true], Some(stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> u32 {
    copy("cuMemcpyDtoD_v2", to, from, bytes, [true, true], None)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) -> u32 {
    copy("cuMemcpyDtoDAsync_v2", to, from, bytes, [true, true], Some(stream))
}

fn fill(symbol: &str, at: u64, pattern: &[u8], count: usize, stream: Option<Handle>) -> u32 {
    let needs = if stream.is_some() { Needs::Context } else { Needs::NoCapture };
    call(symbol, needs, |driver, _| {
        if count == 0 {
            return Ok(());
        }
        let bytes = pattern.len().checked_mul(count).ok_or(code::INVALID_VALUE)?;
        driver.memory.check(at, bytes)?;
        let op = Op::Fill { at, pattern: pattern.to_owned(), count };
        driver.submit(stream.map_or(0, |stream| stream as usize), op)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8_v2(at: u64, byte: c_uchar, count: usize) -> u32 {
    fill("cuMemsetD8_v2", at, &[byte], count, None)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(at: u64, byte: c_uchar, count: usize, stream: Handle) -> u32 {
    fill("cuMemsetD8Async", at, &[byte], count, Some(stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32_v2(at: u64, word: c_uint, count: usize) -> u32 {
    fill("cuMemsetD32_v2", at, &word.to_ne_bytes(), count, None)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32Async(at: u64, word: c_uint, count: usize, stream: Handle) -> u32 {
    fill("cuMemsetD32Async", at, &word.to_ne_bytes(), count, Some(stream))
}
