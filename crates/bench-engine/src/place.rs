//! Where a model runs: on the host's processor, or on a GPU.

use crate::error::{Error, Result};

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
                Ok(Some(DeviceMemory { free_bytes, total_bytes }))
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
