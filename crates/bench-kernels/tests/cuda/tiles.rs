//! Products of many rows: every kernel, in several orders of threads.

use bench_kernels::cuda::tiles::{self, HOPPER_KERNELS, Products};
use bench_kernels::cuda::{Gpu, GpuError};

use crate::emulator::Emulator;

fn every_kernel_multiplies(seed: u64) {
    let rows = tiles::check(&Emulator::new(seed), seed, 2).unwrap();
    assert_eq!(rows.len(), 36);
    for row in rows {
        assert!(row.passed(), "{row:?}");
    }
}

#[test]
fn every_kernel_multiplies_as_plain_arithmetic_does() {
    every_kernel_multiplies(0);
}

#[test]
fn every_kernel_multiplies_in_another_order_of_threads() {
    every_kernel_multiplies(1);
}

#[test]
fn every_kernel_multiplies_in_a_third_order_of_threads() {
    every_kernel_multiplies(7);
}

/// Those of products of warpgroups, with skewed and empty experts, odd sizes, all options.
fn every_kernel_of_hopper_multiplies(seed: u64) {
    let rows = tiles::check(&Emulator::hopper(seed), seed + 40, 3).unwrap();
    let own = rows.iter().filter(|row| HOPPER_KERNELS.contains(&row.kernel.as_str()));
    assert_eq!((rows.len(), own.count()), (63, 9));
    for row in rows {
        assert!(row.passed(), "{row:?}");
    }
}

#[test]
fn hopper_multiplies_as_plain_arithmetic_does() {
    every_kernel_of_hopper_multiplies(0);
}

#[test]
fn hopper_multiplies_in_another_order_of_threads() {
    every_kernel_of_hopper_multiplies(3);
}

#[test]
fn hopper_multiplies_in_a_third_order_of_threads() {
    every_kernel_of_hopper_multiplies(11);
}

#[test]
fn hopper_is_taken_where_it_is_right() {
    let decide = |gpu: &dyn Gpu, forced| tiles::decide(gpu, forced).unwrap();
    let choice = decide(&Emulator::hopper(1), None);
    assert_eq!((choice.products, choice.note), (Products::Wgmma, None));
    assert_eq!(decide(&Emulator::hopper(1), Some(Products::Mma)).products, Products::Mma);
    let choice = decide(&Emulator::new(1), None);
    assert_eq!((choice.products, choice.note), (Products::Mma, None));
    let error = tiles::decide(&Emulator::new(1), Some(Products::Wgmma)).unwrap_err().to_string();
    assert!(error.contains("compute capability 8.0, expected 9.0"), "{error}");
}

#[test]
fn wrong_products_are_not_taken_but_by_force() {
    cuda_stub::emulate::wrong_products(true);
    let gpu = Emulator::hopper(0);
    let (chosen, forced) = (tiles::decide(&gpu, None), tiles::decide(&gpu, Some(Products::Wgmma)));
    cuda_stub::emulate::wrong_products(false);
    let (chosen, forced) = (chosen.unwrap(), forced.unwrap());
    assert_eq!((chosen.products, forced.products), (Products::Mma, Products::Wgmma));
    let note = chosen.note.unwrap();
    assert!(note.contains("wrong on this device: tiles_") && note.contains("by mma"), "{note}");
    assert!(forced.note.unwrap().contains("OSSBENCH_CUDA_PRODUCTS"));
}

/// A device whose images lack the kernels of Hopper.
struct WithoutKernels(Emulator);

impl Gpu for WithoutKernels {
    fn alloc(&self, bytes: usize) -> Result<u64, GpuError> {
        self.0.alloc(bytes)
    }
    fn free(&self, address: u64) {
        self.0.free(address);
    }
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), GpuError> {
        self.0.write(address, bytes)
    }
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), GpuError> {
        self.0.read(address, bytes)
    }
    fn launch(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        block: u32,
        shared: usize,
        args: &[u8],
    ) -> Result<(), GpuError> {
        if HOPPER_KERNELS.contains(&kernel) {
            return Err(GpuError::Launch { kernel, problem: "is in no module".to_owned() });
        }
        self.0.launch(kernel, grid, block, shared, args)
    }
    fn multiprocessors(&self) -> u32 {
        self.0.multiprocessors()
    }
    fn max_shared_bytes(&self) -> usize {
        self.0.max_shared_bytes()
    }
    fn capability(&self) -> (u32, u32) {
        self.0.capability()
    }
}

#[test]
fn images_without_the_kernels_of_hopper_do_without() {
    let gpu = WithoutKernels(Emulator::hopper(0));
    let choice = tiles::decide(&gpu, None).unwrap();
    assert_eq!(choice.products, Products::Mma);
    assert!(choice.note.unwrap().contains("is in no module"));
    assert!(tiles::decide(&gpu, Some(Products::Wgmma)).is_err());
}
