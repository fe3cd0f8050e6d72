//! What a script says: the devices there are, and which calls fail; and what an instance tells of its work.
//!
//! Nothing here checks that a script is sensible, since nonsense is a thing to be tried.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Codes of `CUresult`, by the names of `cuda.h`.
pub mod code {
    pub const SUCCESS: u32 = 0;
    pub const INVALID_VALUE: u32 = 1;
    pub const OUT_OF_MEMORY: u32 = 2;
    pub const NOT_INITIALIZED: u32 = 3;
    pub const DEVICE_UNAVAILABLE: u32 = 46;
    pub const NO_DEVICE: u32 = 100;
    pub const INVALID_DEVICE: u32 = 101;
    pub const INVALID_IMAGE: u32 = 200;
    pub const INVALID_CONTEXT: u32 = 201;
    pub const NO_BINARY_FOR_GPU: u32 = 209;
    pub const ECC_UNCORRECTABLE: u32 = 214;
    pub const INVALID_PTX: u32 = 218;
    pub const UNSUPPORTED_PTX_VERSION: u32 = 222;
    pub const INVALID_HANDLE: u32 = 400;
    pub const NOT_FOUND: u32 = 500;
    pub const NOT_READY: u32 = 600;
    pub const ILLEGAL_ADDRESS: u32 = 700;
    pub const LAUNCH_OUT_OF_RESOURCES: u32 = 701;
    pub const LAUNCH_TIMEOUT: u32 = 702;
    pub const MISALIGNED_ADDRESS: u32 = 716;
    pub const LAUNCH_FAILED: u32 = 719;
    pub const NOT_SUPPORTED: u32 = 801;
    pub const SYSTEM_DRIVER_MISMATCH: u32 = 803;
    pub const STREAM_CAPTURE_UNSUPPORTED: u32 = 900;
    pub const STREAM_CAPTURE_INVALIDATED: u32 = 901;
    pub const STREAM_CAPTURE_UNMATCHED: u32 = 903;
    pub const STREAM_CAPTURE_IMPLICIT: u32 = 906;
    pub const CAPTURED_EVENT: u32 = 907;
    pub const UNKNOWN: u32 = 999;
}

/// Everything that an instance of the library is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Script {
    /// What `cuDriverGetVersion` says: 1000 x major + 10 x minor.
    pub driver_version: i32,
    pub devices: Vec<Device>,
    /// Order in which threads and blocks run; 0 is the order of their numbers.
    pub seed: u64,
    pub failures: Vec<Failure>,
    /// Products of warpgroups come out wrong, as if the hardware were not what their code takes it for.
    pub wrong_products: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            driver_version: 12_040,
            devices: vec![Device::default()],
            seed: 0,
            failures: Vec::new(),
            wrong_products: false,
        }
    }
}

/// One GPU.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Device {
    pub name: String,
    pub uuid: [u8; 16],
    /// Major and minor.
    pub compute_capability: [u32; 2],
    /// What `cuMemAlloc` may hand out in all. Host memory is used for what is handed out.
    pub memory_bytes: u64,
    /// How much of it other processes hold.
    pub others_bytes: u64,
    pub multiprocessors: u32,
    /// Dynamic shared memory that a block may have if its kernel asks for it.
    pub max_shared_bytes: u32,
}

impl Device {
    /// What other processes leave.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.memory_bytes.saturating_sub(self.others_bytes)
    }
}

impl Default for Device {
    /// Like an H100, but with the memory of a small host.
    fn default() -> Self {
        Self {
            name: "NVIDIA H100 80GB HBM3 (emulated)".to_owned(),
            uuid: *b"emulated-device0",
            compute_capability: [9, 0],
            memory_bytes: 4 << 30,
            others_bytes: 0,
            multiprocessors: 132,
            max_shared_bytes: 227 * 1024,
        }
    }
}

/// Calls that fail.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Failure {
    /// A function of the driver as the program looks it up, such as `cuMemAlloc_v2`. Or `kernel`, or
    /// `kernel:NAME`: a run of any kernel, of that kernel; the launch itself then succeeds, and every later
    /// call returns the code, as with errors of a real device.
    pub symbol: String,
    /// How many calls succeed before.
    pub after: u64,
    /// How many calls fail; `None`: all that follow.
    pub times: Option<u64>,
    pub code: u32,
    /// Every later call fails too, whatever it is.
    pub sticky: bool,
}

impl Failure {
    /// Whether call number `call`, counted from 1, fails.
    pub(crate) fn hits(&self, call: u64) -> bool {
        call > self.after && self.times.is_none_or(|times| call <= self.after.saturating_add(times))
    }
}

/// What an instance has done since its script was set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How often each function was called.
    pub calls: BTreeMap<String, u64>,
    /// How often each kernel ran, in launches and in graphs.
    pub kernels: BTreeMap<String, u64>,
    /// Device memory handed out and not given back.
    pub live_bytes: u64,
    pub peak_bytes: u64,
    /// What was wrong with the last kernel that failed.
    pub message: String,
}
