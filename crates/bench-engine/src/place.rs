//! Where a model runs: on the host's processor, or on a GPU.

mod meter;

use crate::error::{Error, Result};
pub use meter::{Counter, DeviceMeter, DeviceUsage};

/// Names that [`Place::open`] takes.
pub const VALID: &str = "cpu, cuda (the first GPU), cuda:1 and so on";

/// A processor with memory of its own.
#[derive(Debug, Clone, Default)]
pub enum Place {
    #[default]
    Host,
    #[cfg(feature = "cuda")]
    Cuda(bench_kernels::cuda::device::Device),
}

/// Bytes of a GPU's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    pub free_bytes: u64,
    pub total_bytes: u64,
    /// Held by this process through this interface.
    pub own_bytes: u64,
}

impl DeviceMemory {
    /// What other processes hold, and the driver: at least some hundred megabytes where a device is open.
    pub fn others_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.free_bytes).saturating_sub(self.own_bytes)
    }
}

/// The number of the GPU that `name` means; `None` for the host.
///
/// # Errors
/// A name that is none.
pub fn ordinal(name: &str) -> Result<Option<usize>> {
    let unknown = || Error::UnknownDevice { name: name.to_owned(), valid: VALID };
    match name.split_once(':') {
        None if name == "cpu" => Ok(None),
        None if name == "cuda" => Ok(Some(0)),
        Some(("cuda", number)) => number.parse().map(Some).map_err(|_| unknown()),
        _ => Err(unknown()),
    }
}

/// Whether [`Place::open`] would find the device `name`, as far as its driver tells without opening it.
///
/// # Errors
/// As [`Place::open`], but for a device that is in use or has no kernels.
pub fn check(name: &str) -> Result<()> {
    match ordinal(name)? {
        None => Ok(()),
        #[cfg(feature = "cuda")]
        Some(ordinal) => {
            bench_kernels::cuda::device::check(ordinal).map(drop).map_err(crate::cuda::gpu_error)
        }
        #[cfg(not(feature = "cuda"))]
        Some(_) => Err(Error::NoCuda { name: name.to_owned() }),
    }
}

/// The GPUs there are, e.g. `cuda:0 (NVIDIA H200)`; none is opened.
///
/// # Errors
/// Why none can be used.
#[cfg(feature = "cuda")]
pub fn gpus() -> Result<Vec<String>> {
    let found = bench_kernels::cuda::device::devices().map_err(crate::cuda::gpu_error)?;
    Ok(found.iter().map(bench_kernels::cuda::device::Info::label).collect())
}

/// None in this build.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub fn gpus() -> Result<Vec<String>> {
    Err(Error::NoCuda { name: "cuda".to_owned() })
}

impl Place {
    /// Opens the device `name`.
    ///
    /// # Errors
    /// A name that is none, a driver or device that is missing or that fails, a build without CUDA.
    pub fn open(name: &str) -> Result<Self> {
        match ordinal(name)? {
            None => Ok(Self::Host),
            #[cfg(feature = "cuda")]
            Some(ordinal) => bench_kernels::cuda::device::Device::open(ordinal)
                .map(Self::Cuda)
                .map_err(crate::cuda::gpu_error),
            #[cfg(not(feature = "cuda"))]
            Some(_) => Err(Error::NoCuda { name: name.to_owned() }),
        }
    }

    /// Whether it is the host.
    pub fn is_host(&self) -> bool {
        matches!(self, Self::Host)
    }

    /// Name of the device and of the kernels that run on it, e.g. `NVIDIA H200, sm_90`; `None` for the host.
    pub fn title(&self) -> Option<String> {
        match self {
            Self::Host => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => Some(device.info().title()),
        }
    }

    /// Name of the device for errors, e.g. `cuda:0 (NVIDIA H200)`; `None` for the host.
    pub fn label(&self) -> Option<String> {
        match self {
            Self::Host => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => Some(device.info().label()),
        }
    }

    /// Multiprocessors of a GPU; `None` for the host.
    pub fn multiprocessors(&self) -> Option<u32> {
        match self {
            Self::Host => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => Some(device.info().multiprocessors),
        }
    }

    /// Decides by which instructions a GPU makes products of many rows, unless that was done; [`Place::note`] then
    /// has what is to be said of it.
    ///
    /// # Errors
    /// `OSSBENCH_CUDA_PRODUCTS` names what the GPU does not have, or what fails there.
    pub fn decide_products(&self) -> Result<()> {
        match self {
            Self::Host => Ok(()),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => device.decide_products().map(drop).map_err(crate::cuda::gpu_error),
        }
    }

    /// What the reader of results should know of a GPU's kernels, once a model is loaded: that products are not made
    /// as fast as they could be, and why.
    pub fn note(&self) -> Option<String> {
        match self {
            Self::Host => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => {
                device.products_note().map(|note| format!("{}: {note}", device.info().label()))
            }
        }
    }

    /// The error after which nothing more can be done on a GPU, if there was one.
    pub fn lost(&self) -> Option<Error> {
        match self {
            Self::Host => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => device.lost().map(crate::cuda::gpu_error),
        }
    }

    /// What a GPU's driver says of its memory; `None` for the host.
    ///
    /// # Errors
    /// A device that fails.
    pub fn memory(&self) -> Result<Option<DeviceMemory>> {
        match self {
            Self::Host => Ok(None),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => {
                let (free_bytes, total_bytes) = device.memory().map_err(crate::cuda::gpu_error)?;
                let own_bytes = device.total_usage().live_bytes;
                Ok(Some(DeviceMemory { free_bytes, total_bytes, own_bytes }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        for (name, expected) in [("cpu", None), ("cuda", Some(0)), ("cuda:0", Some(0)), ("cuda:7", Some(7))] {
            assert_eq!(ordinal(name).unwrap(), expected, "{name}");
        }
        for name in ["gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "", "CUDA"] {
            let error = ordinal(name).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("cuda:1"), "{error}");
        }
        assert!(Place::open("cpu").unwrap().is_host());
    }
}
