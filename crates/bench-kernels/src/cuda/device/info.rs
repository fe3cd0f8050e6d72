//! What a device is: the facts that a result must carry and that launches are planned by.

use crate::cuda::device_error::CudaVersion;

/// Facts about a device that do not change while it is open.
#[derive(Debug, Clone, PartialEq)]
pub struct Info {
    pub ordinal: usize,
    pub name: String,
    /// As `nvidia-smi -L` prints it: `GPU-…`.
    pub uuid: String,
    pub pci_bus_id: String,
    /// Compute capability: major, minor.
    pub capability: (u32, u32),
    /// The newest CUDA that the driver supports.
    pub driver: CudaVersion,
    pub multiprocessors: u32,
    pub total_bytes: u64,
    pub l2_bytes: Option<u64>,
    /// Shared memory that a block may have after opting in.
    pub max_shared_bytes: usize,
    /// Highest clock of the multiprocessors.
    pub clock_mhz: Option<f64>,
    /// Highest clock of the memory.
    pub memory_clock_mhz: Option<f64>,
    pub memory_bus_bits: Option<u32>,
    pub ecc: bool,
}

impl Info {
    /// `NVIDIA H200, sm_90`.
    pub fn title(&self) -> String {
        format!("{}, sm_{}{}", self.name, self.capability.0, self.capability.1)
    }

    /// `cuda:0 (NVIDIA H200)`.
    pub fn label(&self) -> String {
        format!("cuda:{} ({})", self.ordinal, self.name)
    }

    /// Bytes per second that the memory's clock and width allow: two transfers per cycle. What can be reached
    /// is less.
    pub fn memory_bytes_per_s(&self) -> Option<f64> {
        Some(2.0 * self.memory_clock_mhz? * 1e6 * f64::from(self.memory_bus_bits?) / 8.0)
    }
}

pub(super) fn uuid_text(bytes: [u8; 16]) -> String {
    let mut text = "GPU-".to_owned();
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.extend([byte >> 4, byte & 15].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_as_the_tools_write_it() {
        let bytes = std::array::from_fn(|i| i as u8 * 17);
        assert_eq!(uuid_text(bytes), "GPU-00112233-4455-6677-8899-aabbccddeeff");
    }
}
