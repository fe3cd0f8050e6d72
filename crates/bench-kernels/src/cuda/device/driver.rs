//! The functions of the CUDA driver that are used, looked up by name in `libcuda.so.1`.
//!
//! Types come from cudarc's bindings; its own loader is not used, since it panics where the library or a
//! function is missing, and since codes that are newer than the bindings have no place in its enum of
//! results.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::sync::Arc;

use cudarc::driver::sys;

use super::library::{self, Shared};
use crate::cuda::device_error::{CudaVersion, DeviceError, OLDEST_DRIVER};

/// What a function of the driver answers; 0 is success.
pub(super) type Code = u32;

/// Codes that are told apart; the rest goes by its name.
pub(super) mod code {
    use super::Code;

    pub(in super::super) const OUT_OF_MEMORY: Code = 2;
    pub(in super::super) const DEVICE_UNAVAILABLE: Code = 46;
    pub(in super::super) const NO_DEVICE: Code = 100;
    pub(in super::super) const NOT_FOUND: Code = 500;
    pub(in super::super) const NOT_READY: Code = 600;
}

const VARIABLE: &str = "OSSBENCH_LIBCUDA";
/// The driver installs the first; the second is the link of a development package.
const NAMES: &[&str] = &["libcuda.so.1", "libcuda.so"];

macro_rules! functions {
    ($($field:ident = $name:literal($($argument:ty),*);)*) => {
        /// The driver's functions.
        #[derive(Debug)]
        pub(super) struct Driver {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) -> Code,)*
        }

        impl Driver {
            fn of(library: &Shared) -> Result<Self, DeviceError> {
                let lacks = |symbol: &str| DeviceError::NoFunction {
                    library: library.name.clone(),
                    symbol: symbol.to_owned(),
                };
                Ok(Self {
                    $(
                        // SAFETY: the signature is the one in NVIDIA's header, as cudarc's bindings have it.
                        $field: unsafe { library.function($name) }.ok_or_else(|| lacks($name))?,
                    )*
                })
            }
        }
    };
}

functions! {
    init = "cuInit"(c_uint);
    driver_version = "cuDriverGetVersion"(*mut c_int);
    error_name = "cuGetErrorName"(Code, *mut *const c_char);
    error_string = "cuGetErrorString"(Code, *mut *const c_char);
    device_count = "cuDeviceGetCount"(*mut c_int);
    device = "cuDeviceGet"(*mut sys::CUdevice, c_int);
    device_name = "cuDeviceGetName"(*mut c_char, c_int, sys::CUdevice);
    device_uuid = "cuDeviceGetUuid_v2"(*mut sys::CUuuid, sys::CUdevice);
    device_pci = "cuDeviceGetPCIBusId"(*mut c_char, c_int, sys::CUdevice);
    device_bytes = "cuDeviceTotalMem_v2"(*mut usize, sys::CUdevice);
    device_attribute = "cuDeviceGetAttribute"(*mut c_int, sys::CUdevice_attribute, sys::CUdevice);
    context_retain = "cuDevicePrimaryCtxRetain"(*mut sys::CUcontext, sys::CUdevice);
    context_release = "cuDevicePrimaryCtxRelease_v2"(sys::CUdevice);
    context_set = "cuCtxSetCurrent"(sys::CUcontext);
    memory_info = "cuMemGetInfo_v2"(*mut usize, *mut usize);
    memory_alloc = "cuMemAlloc_v2"(*mut sys::CUdeviceptr, usize);
    memory_free = "cuMemFree_v2"(sys::CUdeviceptr);
    host_alloc = "cuMemHostAlloc"(*mut *mut c_void, usize, c_uint);
    host_free = "cuMemFreeHost"(*mut c_void);
    copy_to_device = "cuMemcpyHtoDAsync_v2"(sys::CUdeviceptr, *const c_void, usize, sys::CUstream);
    copy_to_host = "cuMemcpyDtoHAsync_v2"(*mut c_void, sys::CUdeviceptr, usize, sys::CUstream);
    copy_on_device = "cuMemcpyDtoDAsync_v2"(sys::CUdeviceptr, sys::CUdeviceptr, usize, sys::CUstream);
    set_bytes = "cuMemsetD8Async"(sys::CUdeviceptr, u8, usize, sys::CUstream);
    stream_create = "cuStreamCreate"(*mut sys::CUstream, c_uint);
    stream_destroy = "cuStreamDestroy_v2"(sys::CUstream);
    stream_synchronize = "cuStreamSynchronize"(sys::CUstream);
    event_create = "cuEventCreate"(*mut sys::CUevent, c_uint);
    event_record = "cuEventRecord"(sys::CUevent, sys::CUstream);
    event_query = "cuEventQuery"(sys::CUevent);
    event_synchronize = "cuEventSynchronize"(sys::CUevent);
    event_elapsed = "cuEventElapsedTime"(*mut f32, sys::CUevent, sys::CUevent);
    event_destroy = "cuEventDestroy_v2"(sys::CUevent);
    module_load = "cuModuleLoadDataEx"(
        *mut sys::CUmodule, *const c_void, c_uint, *mut sys::CUjit_option, *mut *mut c_void
    );
    module_unload = "cuModuleUnload"(sys::CUmodule);
    module_function = "cuModuleGetFunction"(*mut sys::CUfunction, sys::CUmodule, *const c_char);
    function_attribute = "cuFuncGetAttribute"(*mut c_int, sys::CUfunction_attribute, sys::CUfunction);
    function_set = "cuFuncSetAttribute"(sys::CUfunction, sys::CUfunction_attribute, c_int);
    function_argument = "cuFuncGetParamInfo"(sys::CUfunction, usize, *mut usize, *mut usize);
    launch = "cuLaunchKernelEx"(
        *const sys::CUlaunchConfig, sys::CUfunction, *mut *mut c_void, *mut *mut c_void
    );
    capture_begin = "cuStreamBeginCapture_v2"(sys::CUstream, sys::CUstreamCaptureMode);
    capture_end = "cuStreamEndCapture"(sys::CUstream, *mut sys::CUgraph);
    graph_nodes = "cuGraphGetNodes"(sys::CUgraph, *mut sys::CUgraphNode, *mut usize);
    graph_instantiate = "cuGraphInstantiateWithFlags"(*mut sys::CUgraphExec, sys::CUgraph, u64);
    graph_upload = "cuGraphUpload"(sys::CUgraphExec, sys::CUstream);
    graph_launch = "cuGraphLaunch"(sys::CUgraphExec, sys::CUstream);
    graph_exec_destroy = "cuGraphExecDestroy"(sys::CUgraphExec);
    graph_destroy = "cuGraphDestroy"(sys::CUgraph);
}

impl Driver {
    /// The machine's driver, or the library at `path`; checked for its version and started.
    pub(super) fn start(path: Option<&Path>) -> Result<Arc<Self>, DeviceError> {
        let found = path.map_or_else(|| library::find(VARIABLE, NAMES), library::open);
        let library = found.map_err(|e| DeviceError::NoDriver { tried: e.tried, reason: e.reason })?;
        let found = version(&library)?;
        if found < OLDEST_DRIVER {
            return Err(DeviceError::DriverTooOld { found });
        }
        let driver = Self::of(&library)?;
        // SAFETY: no arguments but flags, which must be 0.
        match unsafe { (driver.init)(0) } {
            0 => Ok(Arc::new(driver)),
            code => Err(DeviceError::NoDevice { reason: driver.describe(code) }),
        }
    }

    /// The newest CUDA that it supports.
    pub(super) fn version(&self) -> CudaVersion {
        let mut number = 0;
        // SAFETY: a place for the result; allowed before cuInit.
        unsafe { (self.driver_version)(&raw mut number) };
        CudaVersion::from_number(number.max(0).unsigned_abs())
    }

    /// `CUDA_ERROR_ILLEGAL_ADDRESS (an illegal memory access was encountered)`.
    pub(super) fn describe(&self, code: Code) -> String {
        let text = |function: unsafe extern "C" fn(Code, *mut *const c_char) -> Code| {
            let mut text = std::ptr::null();
            // SAFETY: a place for a pointer; what comes is static text, or null for a code that is not known.
            unsafe {
                let known = function(code, &raw mut text) == 0 && !text.is_null();
                known.then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        };
        match (text(self.error_name), text(self.error_string)) {
            (Some(name), Some(string)) => format!("{name} ({string})"),
            (Some(name), None) => name,
            _ => format!("error {code} of the CUDA driver"),
        }
    }
}

/// Asked before all functions are looked up, so that an old driver is told by its version, not by what it
/// lacks.
fn version(library: &Shared) -> Result<CudaVersion, DeviceError> {
    const SYMBOL: &str = "cuDriverGetVersion";
    // SAFETY: the signature is the one in NVIDIA's header.
    let function: Option<unsafe extern "C" fn(*mut c_int) -> Code> = unsafe { library.function(SYMBOL) };
    let lacks = || DeviceError::NoFunction { library: library.name.clone(), symbol: SYMBOL.to_owned() };
    let function = function.ok_or_else(lacks)?;
    let mut number = 0;
    // SAFETY: a place for the result; allowed before cuInit.
    match unsafe { function(&raw mut number) } {
        0 => Ok(CudaVersion::from_number(number.max(0).unsigned_abs())),
        code => Err(DeviceError::NoDevice { reason: format!("cuDriverGetVersion: error {code}") }),
    }
}

/// Whether an error leaves the context unusable, and what helps; after CUDA's list of errors.
pub(super) fn lost(code: Code) -> Option<&'static str> {
    const KERNEL: &str =
        "a kernel did it before; run once under compute-sanitizer, which names it, and report it";
    const HARDWARE: &str =
        "look for Xid messages in the kernel's log; the GPU may need a reset, or is broken";
    match code {
        700 | 710 | 714..=719 => Some(KERNEL),
        702 => Some("a kernel ran longer than the driver allows; use a GPU that drives no display"),
        214 | 220 | 226 => Some(HARDWARE),
        101 | 709 | 999 => {
            Some("start the program again; look for Xid messages in the kernel's log if it comes back")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_an_error_that_says_what_to_do() {
        let error = Driver::start(Some(Path::new("no-such-folder/libcuda.so.1"))).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, DeviceError::NoDriver { .. }) && text.contains("OSSBENCH_LIBCUDA"), "{text}");
    }

    #[test]
    fn a_library_that_is_no_driver_is_told_by_what_it_lacks() {
        let error = Driver::start(Some(Path::new("libc.so.6"))).unwrap_err();
        let lacks = |symbol: &str| symbol == "cuDriverGetVersion";
        assert!(matches!(&error, DeviceError::NoFunction { symbol, .. } if lacks(symbol)), "{error}");
    }

    #[test]
    fn errors_of_one_call_do_not_lose_the_device() {
        assert!(lost(700).is_some() && lost(719).is_some() && lost(214).is_some());
        for code in
            [0, 1, code::OUT_OF_MEMORY, code::DEVICE_UNAVAILABLE, code::NOT_FOUND, code::NOT_READY, 701]
        {
            assert!(lost(code).is_none(), "{code}");
        }
    }
}
