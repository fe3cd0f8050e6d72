//! Modules, functions and launches.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::{Handle, give, give_if_wanted};
use crate::driver::{Driver, Function, Needs, Op, call};
use crate::emulate::Kernel;
use crate::script::code;

/// Dynamic shared memory that needs no permission.
const SHARED_BY_DEFAULT: u32 = 48 * 1024;

fn load(symbol: &str, out: *mut Handle, image: *const c_void) -> u32 {
    call(symbol, Needs::Context, |driver, _| {
        if image.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let module = driver.handle();
        driver.modules.insert(module);
        give(out, module as Handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadData(out: *mut Handle, image: *const c_void) -> u32 {
    load("cuModuleLoadData", out, image)
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadDataEx(
    out: *mut Handle,
    image: *const c_void,
    _count: c_uint,
    _options: *mut c_uint,
    _values: *mut *mut c_void,
) -> u32 {
    load("cuModuleLoadDataEx", out, image)
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: Handle) -> u32 {
    call("cuModuleUnload", Needs::Context, |driver, _| {
        driver.modules.remove(&(module as usize)).then_some(()).ok_or(code::INVALID_HANDLE)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetFunction(out: *mut Handle, module: Handle, name: *const c_char) -> u32 {
    call("cuModuleGetFunction", Needs::Context, |driver, _| {
        driver.modules.contains(&(module as usize)).then_some(()).ok_or(code::INVALID_HANDLE)?;
        if name.is_null() {
            return Err(code::INVALID_VALUE);
        }
        // SAFETY: the caller passes a string that ends; it was checked for null.
        let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| code::NOT_FOUND)?;
        let kernel = Kernel::find(name).ok_or(code::NOT_FOUND)?;
        let function = driver.handle();
        give(out, function as Handle)?;
        let max_shared = SHARED_BY_DEFAULT;
        driver.functions.insert(function, Function { name: name.into(), kernel, max_shared });
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: Handle, attribute: c_uint, value: c_int) -> u32 {
    call("cuFuncSetAttribute", Needs::Context, |driver, device| {
        let limit = driver.device(device)?.max_shared_bytes;
        let function = driver.functions.get_mut(&(function as usize)).ok_or(code::INVALID_HANDLE)?;
        match attribute {
            8 => {
                let wanted = u32::try_from(value).ok().filter(|wanted| *wanted <= limit);
                function.max_shared = wanted.ok_or(code::INVALID_VALUE)?;
                Ok(())
            }
            // How much of the first cache becomes shared memory.
            9 => Ok(()),
            _ => Err(code::INVALID_VALUE),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncGetAttribute(out: *mut c_int, attribute: c_uint, function: Handle) -> u32 {
    call("cuFuncGetAttribute", Needs::Context, |driver, device| {
        let capability = driver.device(device)?.compute_capability;
        let function = driver.functions.get(&(function as usize)).ok_or(code::INVALID_HANDLE)?;
        let value = match attribute {
            0 => function.kernel.max_threads,
            // Static shared, constant and local memory, which the emulator does not know; the cache's mode.
            1 | 2 | 3 | 7 => 0,
            4 => 64,
            5 | 6 => 10 * capability[0] + capability[1],
            8 => function.max_shared,
            _ => return Err(code::INVALID_VALUE),
        };
        give(out, value as c_int)
    })
}

/// Place and size of a function's one argument.
#[unsafe(no_mangle)]
extern "C" fn cuFuncGetParamInfo(
    function: Handle,
    index: usize,
    offset: *mut usize,
    size: *mut usize,
) -> u32 {
    call("cuFuncGetParamInfo", Needs::Context, |driver, _| {
        let function = driver.functions.get(&(function as usize)).ok_or(code::INVALID_HANDLE)?;
        if index > 0 {
            return Err(code::INVALID_VALUE);
        }
        give_if_wanted(size, function.kernel.args_bytes);
        give(offset, 0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    out: *mut c_int,
    function: Handle,
    threads: c_int,
    shared: usize,
) -> u32 {
    call("cuOccupancyMaxActiveBlocksPerMultiprocessor", Needs::Context, |driver, device| {
        let all_shared = driver.device(device)?.max_shared_bytes as usize + 1024;
        let function = driver.functions.get(&(function as usize)).ok_or(code::INVALID_HANDLE)?;
        let threads = usize::try_from(threads).ok().filter(|t| *t > 0).ok_or(code::INVALID_VALUE)?;
        let fits = threads <= function.kernel.max_threads as usize;
        let blocks = (2048 / threads).min(32).min(all_shared / (shared + 1024));
        give(out, if fits { blocks as c_int } else { 0 })
    })
}

struct Launch {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: usize,
}

fn launch(
    driver: &mut Driver,
    device: usize,
    function: Handle,
    how: &Launch,
    params: *mut *mut c_void,
) -> Result<(), u32> {
    let function = driver.functions.get(&(function as usize)).ok_or(code::INVALID_HANDLE)?.clone();
    let threads = how.block.iter().try_fold(1_u32, |n, b| n.checked_mul(*b)).unwrap_or(u32::MAX);
    let fits = how.grid.iter().chain(&how.block).all(|n| *n > 0)
        && i32::try_from(how.grid[0]).is_ok()
        && how.grid[1].max(how.grid[2]) <= 65_535
        && how.block[2] <= 64
        && threads <= 1024
        && how.shared <= function.max_shared
        && how.shared <= driver.device(device)?.max_shared_bytes;
    if !fits || params.is_null() {
        return Err(code::INVALID_VALUE);
    }
    if threads > function.kernel.max_threads {
        return Err(code::LAUNCH_OUT_OF_RESOURCES);
    }
    // SAFETY: a kernel takes one argument, so there is one pointer, to as many bytes as it says.
    let args = unsafe {
        let first = params.read();
        if first.is_null() {
            return Err(code::INVALID_VALUE);
        }
        std::slice::from_raw_parts(first.cast::<u8>(), function.kernel.args_bytes).to_vec()
    };
    let (grid, block, shared) = (how.grid, how.block, how.shared as usize);
    let op = Op::Launch { name: function.name, kernel: function.kernel, grid, block, shared, args };
    driver.submit(how.stream, op)
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: Handle,
    params: *mut *mut c_void,
    _extra: *mut *mut c_void,
) -> u32 {
    let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
    let how = Launch { grid, block, shared, stream: stream as usize };
    call("cuLaunchKernel", Needs::Context, |driver, device| launch(driver, device, function, &how, params))
}

/// `CUlaunchConfig`.
#[repr(C)]
struct Config {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: Handle,
    attributes: *const Attribute,
    count: c_uint,
}

/// `CUlaunchAttribute`: a number and a union of 64 bytes.
#[repr(C, align(8))]
struct Attribute {
    id: c_uint,
    pad: [u8; 4],
    value: [u8; 64],
}

/// Attributes of launches that mean nothing where launches run one after another: none, priority, and the two
/// of programmatic dependent launch.
const HARMLESS: [c_uint; 4] = [0, 6, 7, 8];

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernelEx(
    config: *const Config,
    function: Handle,
    params: *mut *mut c_void,
    _extra: *mut *mut c_void,
) -> u32 {
    call("cuLaunchKernelEx", Needs::Context, |driver, device| {
        // SAFETY: the caller passes null, or a config that stays while the call runs.
        let config = unsafe { config.as_ref() }.ok_or(code::INVALID_VALUE)?;
        for i in 0..config.count as usize {
            if config.attributes.is_null() {
                return Err(code::INVALID_VALUE);
            }
            // SAFETY: the caller says that there are `count` attributes.
            let attribute = unsafe { &*config.attributes.add(i) };
            if !HARMLESS.contains(&attribute.id) {
                return Err(code::NOT_SUPPORTED);
            }
        }
        let stream = config.stream as usize;
        let how = Launch { grid: config.grid, block: config.block, shared: config.shared, stream };
        launch(driver, device, function, &how, params)
    })
}
