//! The library through its C symbols, as a program that knows nothing of it calls them.
#![allow(unsafe_code, clippy::unwrap_used)]

use std::ffi::{CStr, c_char, c_void};
use std::path::PathBuf;
use std::ptr::{null, null_mut};

use cuda_stub::{Device, Failure, Script, code, install};
use libloading::os::unix::Library;

/// Calls a function of the driver: `cu!(library, cuInit(0 => u32))`.
macro_rules! cu {
    ($library:expr, $name:ident($($value:expr => $kind:ty),*)) => {{
        // SAFETY: the signature is that of cuda.h, and what pointers point to lives in the test.
        unsafe {
            let function = $library.get::<unsafe extern "C" fn($($kind),*) -> u32>(stringify!($name)).unwrap();
            function($($value),*)
        }
    }};
}

/// Arguments of the kernel `add`: out = x + y.
#[repr(C)]
struct AddArgs {
    x: u64,
    y: u64,
    out: u64,
    count: u64,
    flags: u32,
    reserved: u32,
}

/// `CUlaunchConfig` with room for one attribute.
#[repr(C)]
struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: *mut c_void,
    attributes: *const [u64; 9],
    count: u32,
}

struct Cuda {
    library: Library,
    folder: PathBuf,
    add: *mut c_void,
    stream: *mut c_void,
}

impl Drop for Cuda {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}

impl Cuda {
    /// An instance of its own, with nothing called yet.
    fn load(name: &str, script: &Script) -> Self {
        let folder =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = install(&folder, script).unwrap();
        // SAFETY: loading only makes a list of kernels.
        let library = unsafe { Library::new(path) }.unwrap();
        Self { library, folder, add: null_mut(), stream: null_mut() }
    }

    /// An instance with a context, a stream and the kernel `add`.
    fn open(name: &str, script: &Script) -> Self {
        let mut cuda = Self::load(name, script);
        cuda.begin();
        cuda
    }

    fn begin(&mut self) {
        let (mut context, mut module) = (null_mut(), null_mut());
        let library = &self.library;
        assert_eq!(cu!(library, cuInit(0 => u32)), 0);
        assert_eq!(cu!(library, cuDevicePrimaryCtxRetain(&raw mut context => *mut *mut c_void, 0 => i32)), 0);
        assert_eq!(cu!(library, cuCtxSetCurrent(context => *mut c_void)), 0);
        assert_eq!(cu!(library, cuStreamCreate(&raw mut self.stream => *mut *mut c_void, 1 => u32)), 0);
        let image: *const c_char = c"any image".as_ptr();
        assert_eq!(
            cu!(library, cuModuleLoadData(&raw mut module => *mut *mut c_void, image => *const c_char)),
            0
        );
        let mut find = |name: &CStr| {
            let function = &raw mut self.add;
            cu!(library, cuModuleGetFunction(function => *mut *mut c_void, module => *mut c_void, name.as_ptr() => *const c_char))
        };
        assert_eq!(find(c"no_such_kernel"), code::NOT_FOUND);
        assert_eq!(find(c"add"), 0);
    }

    fn alloc(&self, bytes: usize) -> Result<u64, u32> {
        let mut address = 0;
        match cu!(self.library, cuMemAlloc_v2(&raw mut address => *mut u64, bytes => usize)) {
            0 => Ok(address),
            code => Err(code),
        }
    }

    fn floats(&self, values: &[f32]) -> u64 {
        let address = self.alloc(size_of_val(values)).unwrap();
        let from = values.as_ptr().cast::<c_void>();
        let bytes = size_of_val(values);
        assert_eq!(
            cu!(self.library, cuMemcpyHtoD_v2(address => u64, from => *const c_void, bytes => usize)),
            0
        );
        address
    }

    fn read(&self, address: u64, count: usize) -> Result<Vec<f32>, u32> {
        let mut values = vec![0.0_f32; count];
        let to = values.as_mut_ptr().cast::<c_void>();
        match cu!(self.library, cuMemcpyDtoH_v2(to => *mut c_void, address => u64, 4 * count => usize)) {
            0 => Ok(values),
            code => Err(code),
        }
    }

    /// `x += y` for `count` values, as a launch that may begin before the one before it ends.
    fn launch_add(&self, x: u64, y: u64, count: u64, shared: u32) -> u32 {
        let mut args = AddArgs { x, y, out: x, count, flags: 0, reserved: 0 };
        let mut params = [(&raw mut args).cast::<c_void>()];
        // Programmatic stream serialization: 1.
        let attributes = [6, 1, 0, 0, 0, 0, 0, 0, 0];
        let config = Config {
            grid: [2, 1, 1],
            block: [256, 1, 1],
            shared,
            stream: self.stream,
            attributes: &raw const attributes,
            count: 1,
        };
        let launched = cu!(
            self.library,
            cuLaunchKernelEx(&raw const config => *const Config, self.add => *mut c_void, params.as_mut_ptr() => *mut *mut c_void, null_mut() => *mut *mut c_void)
        );
        // What was launched or captured must not look at these again.
        args = AddArgs { x: 0, y: 0, out: 0, count: u64::MAX, flags: 0, reserved: 0 };
        assert_eq!(args.count, u64::MAX);
        launched
    }

    fn synchronize(&self) -> u32 {
        cu!(self.library, cuStreamSynchronize(self.stream => *mut c_void))
    }

    fn begin_capture(&self, mode: u32) -> u32 {
        cu!(self.library, cuStreamBeginCapture_v2(self.stream => *mut c_void, mode => u32))
    }

    fn end_capture(&self) -> Result<*mut c_void, u32> {
        let mut graph = null_mut();
        let out = &raw mut graph;
        match cu!(self.library, cuStreamEndCapture(self.stream => *mut c_void, out => *mut *mut c_void)) {
            0 => Ok(graph),
            code => Err(code),
        }
    }

    fn error_string(&self, number: u32) -> String {
        let mut text: *const c_char = null();
        assert_eq!(
            cu!(self.library, cuGetErrorString(number => u32, &raw mut text => *mut *const c_char)),
            0
        );
        // SAFETY: the library gives a string that stays.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

fn failing(symbol: &str, after: u64, times: Option<u64>, code: u32) -> Script {
    let failure = Failure { symbol: symbol.to_owned(), after, times, code, sticky: false };
    Script { failures: vec![failure], ..Script::default() }
}

#[test]
fn a_kernel_runs_between_copies() {
    let cuda = Cuda::open("runs", &Script { seed: 3, ..Script::default() });
    let (x, y) = (cuda.floats(&[1.0; 40]), cuda.floats(&[2.5; 40]));
    assert_eq!(cuda.launch_add(x, y, 40, 0), 0);
    assert_eq!(cuda.synchronize(), 0);
    assert_eq!(cuda.read(x, 40).unwrap(), [3.5; 40]);
    assert_eq!(
        cu!(cuda.library, cuMemsetD8Async(x => u64, 0 => u8, 16 => usize, cuda.stream => *mut c_void)),
        0
    );
    assert_eq!(cuda.read(x, 5).unwrap(), [0.0, 0.0, 0.0, 0.0, 3.5]);
    // One byte too many, in each direction; an address that was given back.
    assert_eq!(cuda.read(x + 4, 40), Err(code::INVALID_VALUE));
    assert_eq!(cu!(cuda.library, cuMemFree_v2(x => u64)), 0);
    assert_eq!(cu!(cuda.library, cuMemFree_v2(x => u64)), code::INVALID_VALUE);
    assert_eq!(cuda.read(x, 1), Err(code::INVALID_VALUE));
    // What is not initialized is no number.
    assert!(cuda.read(cuda.alloc(8).unwrap(), 2).unwrap().iter().all(|v| v.is_nan()));
    let (mut offset, mut size) = (1_usize, 0_usize);
    let (at, bytes) = (&raw mut offset, &raw mut size);
    assert_eq!(
        cu!(cuda.library, cuFuncGetParamInfo(cuda.add => *mut c_void, 0 => usize, at => *mut usize, bytes => *mut usize)),
        0
    );
    assert_eq!((offset, size), (0, size_of::<AddArgs>()));
}

#[test]
fn shared_memory_beyond_the_default_needs_permission() {
    let cuda = Cuda::open("shared", &Script::default());
    let (x, y) = (cuda.floats(&[1.0; 4]), cuda.floats(&[1.0; 4]));
    assert_eq!(cuda.launch_add(x, y, 4, 100 << 10), code::INVALID_VALUE);
    let allow =
        |bytes: i32| cu!(cuda.library, cuFuncSetAttribute(cuda.add => *mut c_void, 8 => u32, bytes => i32));
    assert_eq!(allow(228 << 10), code::INVALID_VALUE);
    assert_eq!(allow(100 << 10), 0);
    assert_eq!(cuda.launch_add(x, y, 4, 100 << 10), 0);
    assert_eq!(cuda.read(x, 4).unwrap(), [2.0; 4]);
}

#[test]
fn a_captured_graph_runs_when_it_is_launched() {
    let cuda = Cuda::open("graph", &Script::default());
    let (x, y) = (cuda.floats(&[1.0; 8]), cuda.floats(&[10.0; 8]));
    assert_eq!(cuda.begin_capture(1), 0);
    assert_eq!(cuda.launch_add(x, y, 8, 0), 0);
    assert_eq!(cuda.launch_add(y, y, 8, 0), 0);
    let graph = cuda.end_capture().unwrap();
    assert_eq!(cuda.read(x, 8).unwrap(), [1.0; 8], "captured, not run");
    let (mut exec, mut nodes) = (null_mut(), 0_usize);
    let count = &raw mut nodes;
    assert_eq!(
        cu!(cuda.library, cuGraphGetNodes(graph => *mut c_void, null_mut() => *mut *mut c_void, count => *mut usize)),
        0
    );
    assert_eq!(nodes, 2);
    let out = &raw mut exec;
    assert_eq!(
        cu!(cuda.library, cuGraphInstantiateWithFlags(out => *mut *mut c_void, graph => *mut c_void, 0 => u64)),
        0
    );
    assert_eq!(cu!(cuda.library, cuGraphDestroy(graph => *mut c_void)), 0);
    for expected in [11.0, 31.0] {
        assert_eq!(cu!(cuda.library, cuGraphLaunch(exec => *mut c_void, cuda.stream => *mut c_void)), 0);
        assert_eq!(cuda.read(x, 8).unwrap(), [expected; 8]);
    }
    assert_eq!(cu!(cuda.library, cuGraphExecDestroy(exec => *mut c_void)), 0);
    assert_eq!(
        cu!(cuda.library, cuGraphLaunch(exec => *mut c_void, cuda.stream => *mut c_void)),
        code::INVALID_HANDLE
    );
}

#[test]
fn what_waits_for_the_device_breaks_a_capture() {
    let cuda = Cuda::open("broken", &Script::default());
    for mode in [0, 1] {
        assert_eq!(cuda.begin_capture(mode), 0);
        assert_eq!(cuda.synchronize(), code::STREAM_CAPTURE_UNSUPPORTED);
        assert_eq!(cuda.end_capture(), Err(code::STREAM_CAPTURE_INVALIDATED));
    }
    assert_eq!(cuda.begin_capture(2), 0);
    assert!(cuda.alloc(16).is_ok(), "a relaxed capture allows it");
    assert!(cuda.end_capture().is_ok());
    assert_eq!(cuda.end_capture(), Err(code::INVALID_VALUE));
}

#[test]
fn a_write_outside_is_an_error_of_every_later_call() {
    let cuda = Cuda::open("outside", &Script::default());
    let (x, y) = (cuda.floats(&[1.0; 16]), cuda.floats(&[1.0; 16]));
    assert_eq!(cuda.launch_add(x, y, 20, 0), 0, "a launch succeeds before it fails");
    assert_eq!(cuda.synchronize(), code::ILLEGAL_ADDRESS);
    assert_eq!(cuda.alloc(16), Err(code::ILLEGAL_ADDRESS));
    assert_eq!(cuda.read(x, 1), Err(code::ILLEGAL_ADDRESS));
    let said = cuda.error_string(code::ILLEGAL_ADDRESS);
    assert!(said.contains("kernel add: wrote behind an allocation of 64 bytes"), "{said}");
    // A new context begins anew.
    assert_eq!(cu!(cuda.library, cuDevicePrimaryCtxRelease_v2(0 => i32)), 0);
    assert_eq!(cuda.alloc(16), Err(code::INVALID_CONTEXT));
}

#[test]
fn kernels_fail_as_the_script_says() {
    let cuda = Cuda::open("ecc", &failing("kernel:add", 2, None, code::ECC_UNCORRECTABLE));
    let (x, y) = (cuda.floats(&[0.0; 4]), cuda.floats(&[1.0; 4]));
    for _ in 0..2 {
        assert_eq!((cuda.launch_add(x, y, 4, 0), cuda.synchronize()), (0, 0));
    }
    assert_eq!((cuda.launch_add(x, y, 4, 0), cuda.synchronize()), (0, code::ECC_UNCORRECTABLE));
    assert_eq!(cuda.launch_add(x, y, 4, 0), code::ECC_UNCORRECTABLE);
    assert!(cuda.error_string(code::ECC_UNCORRECTABLE).starts_with("uncorrectable ECC error"));
}

#[test]
fn calls_fail_as_the_script_says() {
    let mut context = null_mut();
    let busy = Cuda::load("busy", &failing("cuDevicePrimaryCtxRetain", 1, Some(1), code::DEVICE_UNAVAILABLE));
    let out = &raw mut context;
    let retain = || cu!(busy.library, cuDevicePrimaryCtxRetain(out => *mut *mut c_void, 0 => i32));
    assert_eq!(retain(), code::NOT_INITIALIZED);
    assert_eq!(cu!(busy.library, cuInit(0 => u32)), 0);
    // The call before initialization counted as one that was let through.
    assert_eq!((retain(), retain()), (code::DEVICE_UNAVAILABLE, 0));

    let full = Cuda::open("full", &failing("cuMemAlloc_v2", 1, Some(1), code::OUT_OF_MEMORY));
    assert!(full.alloc(16).is_ok());
    assert_eq!(full.alloc(16), Err(code::OUT_OF_MEMORY));
    assert!(full.alloc(16).is_ok());

    let none = Cuda::load("none", &Script { devices: vec![], driver_version: 11_080, ..Script::default() });
    let mut version = 0;
    assert_eq!(cu!(none.library, cuDriverGetVersion(&raw mut version => *mut i32)), 0);
    assert_eq!((version, cu!(none.library, cuInit(0 => u32))), (11_080, code::NO_DEVICE));
}

#[test]
fn memory_is_limited_and_a_context_belongs_to_a_thread() {
    let device = Device { memory_bytes: 1000, compute_capability: [8, 0], ..Device::default() };
    let cuda = Cuda::open("limit", &Script { devices: vec![device], ..Script::default() });
    let first = cuda.alloc(600).unwrap();
    assert_eq!(first % 256, 0);
    assert_eq!(cuda.alloc(500), Err(code::OUT_OF_MEMORY));
    let (mut free, mut total) = (0_usize, 0_usize);
    let (at, all) = (&raw mut free, &raw mut total);
    assert_eq!(cu!(cuda.library, cuMemGetInfo_v2(at => *mut usize, all => *mut usize)), 0);
    assert_eq!((free, total), (400, 1000));
    assert_eq!(cu!(cuda.library, cuMemFree_v2(first => u64)), 0);
    assert!(cuda.alloc(1000).is_ok());
    let mut major = 0;
    assert_eq!(cu!(cuda.library, cuDeviceGetAttribute(&raw mut major => *mut i32, 75 => u32, 0 => i32)), 0);
    assert_eq!(major, 8);
    let library = &cuda.library;
    let elsewhere =
        std::thread::scope(|scope| scope.spawn(|| cu!(library, cuCtxSynchronize())).join().unwrap());
    assert_eq!(elsewhere, code::INVALID_CONTEXT);
}
