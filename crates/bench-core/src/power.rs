//! Power and the state of devices beside a trial, as it was read; joules of windows are computed elsewhere.
//!
//! Stamped with the run's own clock, so that a token and a watt lie on one axis. A reading that failed is there
//! and holds no value: it is never 0 W.

use crate::unit::Nanos;
use serde::{Deserialize, Serialize};

/// What a power reading covers: the `scope` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerScope {
    GpuBoard,
    CpuPackage,
    Dram,
    /// The whole machine, by a meter of its own.
    System,
}

impl PowerScope {
    pub const ALL: [Self; 4] = [Self::GpuBoard, Self::CpuPackage, Self::Dram, Self::System];

    pub fn key(self) -> &'static str {
        match self {
            Self::GpuBoard => "gpu_board",
            Self::CpuPackage => "cpu_package",
            Self::Dram => "dram",
            Self::System => "system",
        }
    }

    pub fn from_key(key: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.key() == key)
    }
}

/// What the power of a sample is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerReading {
    /// At the instant of the reading.
    Instant,
    /// Averaged by the device over a time that it chooses, a second on some GPUs.
    Averaged,
    /// There is none: the mean between two readings of the energy counter stands in its place.
    FromCounter,
}

/// One thing that draws power.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PowerDevice {
    pub scope: PowerScope,
    /// Among the devices of its scope.
    pub index: u32,
    pub name: String,
    /// UUID, or the name of the power domain.
    pub id: String,
    /// `nvml`, `rapl` or `file`.
    pub source: String,
    pub reading: PowerReading,
    /// Range of the energy counter, where it begins anew at 0 after that many joules by design.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counter_range_j: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_limit_w: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
}

/// One reading of one device; `None`: the device does not tell, or this reading failed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PowerSample {
    pub at: Nanos,
    /// The device's own time stamp of the power, on the run's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<Nanos>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_w: Option<f64>,
    /// Energy counter, from an origin of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_j: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub util_gpu_pct: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub util_mem_pct: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_used_bytes: Option<u64>,
    /// Of the process that is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process_memory_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temp_c: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sm_clock_mhz: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_clock_mhz: Option<f64>,
    /// Reasons for lowered clocks, as NVML's bit mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<u64>,
    /// Power or energy was told and is missing here, since no device can mean it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub implausible: bool,
    /// Why values are missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What one device did during a trial; samples in the order in which they were read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceTrace {
    pub device: PowerDevice,
    pub samples: Vec<PowerSample>,
}

/// What all devices did during a trial, or while the machine was idle.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PowerTrace {
    pub requested_hz: f64,
    pub begin: Nanos,
    pub end: Nanos,
    /// Time spent waiting for the devices to cool down before the trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cooled_s: Option<f64>,
    pub devices: Vec<DeviceTrace>,
    /// What the reader of the results should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}
