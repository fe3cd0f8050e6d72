//! Products of many rows: every kernel, in several orders of threads.

use bench_kernels::cuda::tiles;

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
