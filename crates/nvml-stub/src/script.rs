//! What a script says: devices, and their values as functions of one axis, time or the number of readings.
//!
//! Values are what the device would tell, in watts and joules; nothing here checks that they are sensible,
//! since nonsense is a thing to be replayed.

use serde::{Deserialize, Serialize};

/// Codes of `nvmlReturn_t`, by the names of `nvml.h`.
pub mod code {
    pub const SUCCESS: u32 = 0;
    pub const UNINITIALIZED: u32 = 1;
    pub const INVALID_ARGUMENT: u32 = 2;
    pub const NOT_SUPPORTED: u32 = 3;
    pub const NO_PERMISSION: u32 = 4;
    pub const INSUFFICIENT_SIZE: u32 = 7;
    pub const DRIVER_NOT_LOADED: u32 = 9;
    pub const FUNCTION_NOT_FOUND: u32 = 13;
    pub const GPU_IS_LOST: u32 = 15;
    pub const LIB_RM_VERSION_MISMATCH: u32 = 18;
    pub const UNKNOWN: u32 = 999;
}

/// Everything that an instance of the library replays.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Script {
    /// What `nvmlInit_v2` returns.
    pub init: u32,
    pub driver: String,
    pub axis: TimeAxis,
    pub devices: Vec<Device>,
}

/// What the x of every function counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeAxis {
    /// Seconds since `nvmlInit_v2`.
    #[default]
    Seconds,
    /// How often the handle of this device was asked for before: 0 while a probe opens it, then 1, 2, 3 for
    /// one that asks once for each reading. Needs no real time.
    Readings,
}

/// One GPU. A value that is `None` is answered with `NOT_SUPPORTED`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Device {
    pub name: String,
    pub uuid: String,
    /// Watts, as `nvmlDeviceGetPowerUsage` tells them.
    pub power_w: Option<Wave>,
    /// The field value for power at an instant; newer devices have it.
    pub instant: Option<Instant>,
    pub energy: Option<Energy>,
    pub temp_c: Option<Wave>,
    pub util_gpu_pct: Option<Wave>,
    pub util_mem_pct: Option<Wave>,
    pub memory_used_bytes: Option<Wave>,
    pub memory_total_bytes: u64,
    pub processes: Vec<Process>,
    pub sm_clock_mhz: Option<Wave>,
    pub mem_clock_mhz: Option<Wave>,
    pub throttle: Option<Wave>,
    pub limit_w: Option<f64>,
    pub failures: Vec<Failure>,
}

/// A process on the device.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    pub bytes: u64,
}

/// Power as a field value with a time stamp of the device's own.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Instant {
    pub power_w: Wave,
    /// How old the value is when it is read.
    pub age_s: f64,
    /// The stamp itself in microseconds since 1970, instead of an age.
    pub at_unix_us: Option<Wave>,
}

/// An energy counter.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Energy {
    /// The integral of `power_w` since x = 0, brought up to date every `period`, beginning anew at 0 at
    /// `resets`.
    Integral {
        period: f64,
        #[serde(default)]
        start_j: f64,
        #[serde(default)]
        resets: Vec<f64>,
    },
    /// Joules as they are.
    Joules(Wave),
}

/// The function `symbol`, or every function of the device where it is empty, returns `code` while x is in
/// `from..until`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Failure {
    pub symbol: String,
    pub from: f64,
    pub until: Option<f64>,
    pub code: u32,
}

/// A value as a function of x.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Wave {
    Constant(f64),
    /// `(x, value)`: each value holds from its x on; before the first it is 0.
    Steps {
        steps: Vec<(f64, f64)>,
    },
    /// `(x, value)`: straight lines between; before the first and after the last constant.
    Ramp {
        ramp: Vec<(f64, f64)>,
    },
}

impl Default for Wave {
    fn default() -> Self {
        Self::Constant(0.0)
    }
}

impl Wave {
    pub fn at(&self, x: f64) -> f64 {
        match self {
            Self::Constant(value) => *value,
            Self::Steps { steps } => steps.iter().rev().find(|s| s.0 <= x).map_or(0.0, |s| s.1),
            Self::Ramp { ramp } => {
                let after = ramp.partition_point(|p| p.0 <= x);
                match (after.checked_sub(1).and_then(|i| ramp.get(i)), ramp.get(after)) {
                    (Some(a), Some(b)) => a.1 + (b.1 - a.1) * (x - a.0) / (b.0 - a.0),
                    (Some(only), None) | (None, Some(only)) => only.1,
                    (None, None) => 0.0,
                }
            }
        }
    }

    /// The exact integral from `from` to `to`.
    pub fn integral(&self, from: f64, to: f64) -> f64 {
        let knots: &[(f64, f64)] = match self {
            Self::Constant(value) => return value * (to - from),
            Self::Steps { steps } => steps,
            Self::Ramp { ramp } => ramp,
        };
        let inner = knots.iter().map(|k| k.0).filter(|x| *x > from && *x < to);
        let mut sum = 0.0;
        let mut left = from;
        for right in inner.chain([to]) {
            // Between two knots the function is a constant or a straight line: the value in the middle is its
            // mean.
            sum += self.at(f64::midpoint(left, right)) * (right - left);
            left = right;
        }
        sum
    }
}
