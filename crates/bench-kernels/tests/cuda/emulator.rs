//! The emulated kernels as a `Gpu`: device memory is host memory between two guards.

use std::cell::RefCell;
use std::collections::HashMap;

use bench_kernels::cuda::{Gpu, GpuError, Memory};
use cuda_stub::emulate::Kernel;

/// Bytes before and after each allocation, which no kernel may write.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xa5;

/// Runs launches at once. Threads run in the order of `seed`.
pub(crate) struct Emulator {
    seed: u64,
    hopper: bool,
    memory: RefCell<HashMap<u64, Vec<u8>>>,
}

impl Emulator {
    /// Compute capability 8.0.
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, hopper: false, memory: RefCell::default() }
    }

    /// Compute capability 9.0.
    pub(crate) fn hopper(seed: u64) -> Self {
        Self { hopper: true, ..Self::new(seed) }
    }

    fn check_guards(&self) -> Result<(), String> {
        for (address, block) in self.memory.borrow().iter() {
            let start = (*address as usize) - block.as_ptr() as usize;
            let end = block.len() - GUARD;
            let mut outside = block[start - GUARD..start].iter().chain(&block[end..]);
            if outside.any(|b| *b != GUARD_BYTE) {
                return Err(format!("wrote outside of an allocation of {} bytes", end - start));
            }
        }
        Ok(())
    }
}

impl Gpu for Emulator {
    fn alloc(&self, bytes: usize) -> Result<u64, GpuError> {
        let mut block = vec![GUARD_BYTE; bytes + 3 * GUARD];
        let address = (block.as_ptr() as usize + GUARD).next_multiple_of(GUARD);
        let start = address - block.as_ptr() as usize;
        block[start..start + bytes].fill(0);
        block.truncate(bytes + 2 * GUARD + (start - GUARD));
        // Truncating does not move the bytes.
        self.memory.borrow_mut().insert(address as u64, block);
        Ok(address as u64)
    }

    fn free(&self, address: u64) {
        self.memory.borrow_mut().remove(&address);
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), GpuError> {
        self.copy(address, bytes.len(), |inside| inside.copy_from_slice(bytes))
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), GpuError> {
        self.copy(address, bytes.len(), |inside| bytes.copy_from_slice(inside))
    }

    fn launch(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        block: u32,
        shared: usize,
        args: &[u8],
    ) -> Result<(), GpuError> {
        let wrong = |problem: String| GpuError::Launch { kernel, problem };
        let found = Kernel::find(kernel).ok_or_else(|| wrong("there is no such kernel".to_owned()))?;
        found.launch(grid, [block, 1, 1], shared, args, self.seed).map_err(wrong)?;
        self.check_guards().map_err(wrong)
    }

    fn multiprocessors(&self) -> u32 {
        4
    }

    fn max_shared_bytes(&self) -> usize {
        if self.hopper { 227 * 1024 } else { 163 * 1024 }
    }

    fn capability(&self) -> (u32, u32) {
        if self.hopper { (9, 0) } else { (8, 0) }
    }
}

impl Emulator {
    /// Hands the `len` bytes at `address`, which lie in one allocation, to `work`.
    fn copy(&self, address: u64, len: usize, work: impl FnOnce(&mut [u8])) -> Result<(), GpuError> {
        for (start, block) in self.memory.borrow_mut().iter_mut() {
            let base = block.as_ptr() as u64;
            let end = base + block.len() as u64 - GUARD as u64;
            if (*start..=end).contains(&address) && address + len as u64 <= end {
                let at = (address - base) as usize;
                work(&mut block[at..at + len]);
                return Ok(());
            }
        }
        Err(GpuError::Memory(format!("{len} bytes at {address:#x} are not in one allocation")))
    }
}

#[test]
fn guards_notice_a_write_outside() {
    let gpu = Emulator::new(0);
    let memory = Memory::of(&gpu, &[1.0_f32, 2.0]).unwrap();
    assert_eq!(memory.values::<f32>().unwrap(), [1.0, 2.0]);
    assert!(gpu.check_guards().is_ok());
    let mut blocks = gpu.memory.borrow_mut();
    let block = blocks.values_mut().next().unwrap();
    let at = memory.address() as usize - block.as_ptr() as usize + 8;
    block[at] = 0;
    drop(blocks);
    assert!(gpu.check_guards().is_err());
    assert!(gpu.read(memory.address() + 4, &mut [0; 8]).is_err());
}
