//! What kernels and their checks need of a GPU: memory, copies, launches.

use bytemuck::{NoUninit, Pod};

use super::device_error::DeviceError;
use super::tiles::Products;

/// Why something on a GPU failed.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    #[error("kernel {kernel}: {problem}")]
    Launch { kernel: &'static str, problem: String },
    #[error("device memory: {0}")]
    Memory(String),
    #[error("{what}: {problem}")]
    Shape { what: &'static str, problem: String },
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// A device with one queue of work. Addresses are of device memory; copies wait for the work before them.
pub trait Gpu {
    /// `bytes` of zeros, aligned to 256.
    ///
    /// # Errors
    /// Not so much memory; so for the others: a device that fails.
    fn alloc(&self, bytes: usize) -> Result<u64, GpuError>;
    /// Gives back what `alloc` gave.
    fn free(&self, address: u64);
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), GpuError>;
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), GpuError>;
    /// Puts a kernel into the queue: `grid` blocks of `block` threads with `shared` bytes of dynamic shared memory, and
    /// its one argument.
    fn launch(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        block: u32,
        shared: usize,
        args: &[u8],
    ) -> Result<(), GpuError>;
    /// Multiprocessors, by which persistent kernels choose their grid.
    fn multiprocessors(&self) -> u32;
    /// Dynamic shared memory that a block may have at most.
    fn max_shared_bytes(&self) -> usize;
    /// Compute capability: major, minor.
    fn capability(&self) -> (u32, u32) {
        super::OLDEST_CAPABILITY
    }
    /// By which instructions products of many rows are made.
    fn products(&self) -> Products {
        Products::Mma
    }
}

/// Device memory of a check, given back at its end.
pub struct Memory<'g> {
    gpu: &'g dyn Gpu,
    address: u64,
    bytes: usize,
}

impl<'g> Memory<'g> {
    /// Zeros.
    pub fn zeroed(gpu: &'g dyn Gpu, bytes: usize) -> Result<Self, GpuError> {
        Ok(Self { gpu, address: gpu.alloc(bytes)?, bytes })
    }

    /// A copy of `values`.
    pub fn of<T: NoUninit>(gpu: &'g dyn Gpu, values: &[T]) -> Result<Self, GpuError> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let memory = Self::zeroed(gpu, bytes.len())?;
        gpu.write(memory.address, bytes)?;
        Ok(memory)
    }

    pub fn address(&self) -> u64 {
        self.address
    }

    /// What it holds, after all work before.
    pub fn values<T: Pod>(&self) -> Result<Vec<T>, GpuError> {
        let mut values = vec![T::zeroed(); self.bytes / size_of::<T>()];
        self.gpu.read(self.address, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        self.gpu.free(self.address);
    }
}
