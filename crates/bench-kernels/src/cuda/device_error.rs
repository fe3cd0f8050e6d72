//! Why a CUDA device could not do something, and what helps.
//!
//! Known without the `cuda` feature too, so that callers tell a lost device from too little memory in any
//! build.

use std::fmt;

/// Version of CUDA, as drivers and compilers count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CudaVersion {
    pub major: u32,
    pub minor: u32,
}

impl CudaVersion {
    /// From the driver's number, 12040 for 12.4.
    pub fn from_number(number: u32) -> Self {
        Self { major: number / 1000, minor: number % 1000 / 10 }
    }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The oldest driver that is supported: programmatic launches inside graphs came with it.
pub const OLDEST_DRIVER: CudaVersion = CudaVersion { major: 12, minor: 4 };
/// The oldest GPU that is supported: bf16 tensor cores and asynchronous copies came with it.
pub const OLDEST_CAPABILITY: (u32, u32) = (8, 0);

/// Why a device failed. What a call reports may have been caused by work that was queued before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error(
        "no CUDA driver: cannot load {tried}: {reason}; install NVIDIA's driver, or set OSSBENCH_LIBCUDA \
        to the path \
         of its libcuda.so.1, or run on the CPU"
    )]
    NoDriver { tried: String, reason: String },
    #[error(
        "the CUDA driver library {library} lacks {symbol}, which CUDA {OLDEST_DRIVER} has; install \
        NVIDIA's driver \
         550 or newer"
    )]
    NoFunction { library: String, symbol: String },
    #[error(
        "the driver supports CUDA {found}, expected {OLDEST_DRIVER} or newer; update NVIDIA's driver to \
        550 or newer"
    )]
    DriverTooOld { found: CudaVersion },
    #[error(
        "the CUDA driver finds no device ({reason}); look at nvidia-smi, at CUDA_VISIBLE_DEVICES, and \
        whether the \
         container was given a GPU"
    )]
    NoDevice { reason: String },
    #[error("no device cuda:{ordinal}; there are {}", .devices.join(", "))]
    Ordinal { ordinal: usize, devices: Vec<String> },
    #[error(
        "{device} has compute capability {}.{}, expected {}.{} or newer; choose another device, or run on \
        the CPU",
        .capability.0, .capability.1, OLDEST_CAPABILITY.0, OLDEST_CAPABILITY.1
    )]
    Capability { device: String, capability: (u32, u32) },
    #[error(
        "no kernels for {device} (compute capability {}.{}): this binary holds {embedded}, and none can be \
        compiled \
         here: {nvrtc}; build with `cargo xtask cuda`, or install NVRTC (libnvrtc.so.12), or set \
         OSSBENCH_NVRTC to \
         its path",
        .capability.0, .capability.1
    )]
    NoKernels { device: String, capability: (u32, u32), embedded: String, nvrtc: String },
    #[error("{device} does not take the kernels {image}: {problem}; {help}")]
    Image { device: String, image: String, problem: String, help: &'static str },
    #[error(
        "{device} is in use by another process and its compute mode allows only one; wait for it or end it \
         (nvidia-smi shows it), or set the mode with `nvidia-smi -c DEFAULT`"
    )]
    InUse { device: String },
    #[error("{device}: {}", out_of_memory(.what, *.bytes, *.free, *.total, *.ours))]
    OutOfMemory {
        device: String,
        /// What the memory was for.
        what: &'static str,
        bytes: u64,
        free: u64,
        total: u64,
        /// Held by this process through this interface.
        ours: u64,
    },
    #[error(
        "{device} is lost: {problem}, reported by {call}; nothing on it can be used by this process any \
        more; {help}"
    )]
    Lost { device: String, call: &'static str, problem: String, help: &'static str },
    #[error("{device}: {call}: {problem}")]
    Failed { device: String, call: &'static str, problem: String },
    #[error("{device}: kernel {kernel}: {problem}")]
    Kernel { device: String, kernel: String, problem: String },
    #[error("{what} cannot stand in a graph; do it before the capture or after")]
    InCapture { what: &'static str },
    #[error("{what}: bytes {start}..{end} of a buffer of {bytes}")]
    Outside { what: &'static str, start: usize, end: usize, bytes: usize },
}

impl DeviceError {
    /// Whether nothing more can be done on the device; results on the host are as they were.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

/// Says who holds the memory: what is neither free nor ours belongs to other processes and to the driver.
fn out_of_memory(what: &str, bytes: u64, free: u64, total: u64, ours: u64) -> String {
    let others = total.saturating_sub(free).saturating_sub(ours);
    let advice = if others > total / 10 && bytes <= free + others {
        "end the other processes on it (nvidia-smi shows them), or take another device"
    } else {
        "take a smaller model, batch or context, or a device with more memory"
    };
    format!(
        "not enough memory: {} asked for {what}, {} of {} free; this process holds {}, other processes and \
        the \
         driver {}; {advice}",
        size(bytes),
        size(free),
        size(total),
        size(ours),
        size(others)
    )
}

/// Bytes as people read them, with three digits.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{bytes} B"),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_drivers_write_them() {
        let old = CudaVersion::from_number(12_020);
        assert_eq!(old.to_string(), "12.2");
        assert!(old < OLDEST_DRIVER && CudaVersion::from_number(13_000) > OLDEST_DRIVER);
        let text = DeviceError::DriverTooOld { found: old }.to_string();
        assert!(text.contains("CUDA 12.2, expected 12.4 or newer"), "{text}");
    }

    #[test]
    fn an_ordinal_out_of_range_lists_the_devices() {
        let devices = vec!["cuda:0 (A)".to_owned(), "cuda:1 (B)".to_owned()];
        let text = DeviceError::Ordinal { ordinal: 7, devices }.to_string();
        assert_eq!(text, "no device cuda:7; there are cuda:0 (A), cuda:1 (B)");
    }

    #[test]
    fn too_little_memory_says_who_holds_it_and_what_helps() {
        let text = |bytes, free, ours| {
            let device = "cuda:0 (A)".to_owned();
            DeviceError::OutOfMemory { device, what: "weights", bytes, free, total: 80_000_000_000, ours }
                .to_string()
        };
        let shared = text(40_000_000_000, 30_000_000_000, 10_000_000_000);
        assert_eq!(
            shared,
            "cuda:0 (A): not enough memory: 40.00 GB asked for weights, 30.00 GB of 80.00 GB free; this \
            process holds \
             10.00 GB, other processes and the driver 40.00 GB; end the other processes on it (nvidia-smi \
             shows \
             them), or take another device"
        );
        assert!(text(40_000_000_000, 10_000_000_000, 69_500_000_000).contains("take a smaller model"));
    }

    #[test]
    fn only_a_lost_device_is_lost() {
        let problem = || "CUDA_ERROR_ILLEGAL_ADDRESS".to_owned();
        let device = || "cuda:0 (A)".to_owned();
        let lost = DeviceError::Lost { device: device(), call: "cuMemFree", problem: problem(), help: "x" };
        assert!(lost.is_lost());
        assert!(!DeviceError::Failed { device: device(), call: "cuMemFree", problem: problem() }.is_lost());
    }
}
