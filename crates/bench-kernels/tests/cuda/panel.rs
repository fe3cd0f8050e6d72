//! The panel kernels: few columns of activations.

use bench_kernels::cuda::panel;

use crate::emulator::Emulator;

fn check(order: u64, seed: u64, cases: usize) {
    let rows = panel::check(&Emulator::new(order), seed, cases).unwrap();
    for row in &rows {
        assert!(row.passed(), "{} {}: {} above {}", row.kernel, row.case, row.difference, row.allowed);
    }
    assert!(rows.iter().any(|row| row.difference > 0.0));
}

#[test]
fn random_shapes_in_order() {
    check(0, 1, 12);
}

#[test]
fn random_shapes_in_another_order_of_threads() {
    check(17, 2, 12);
}

#[test]
fn random_shapes_in_a_third_order() {
    check(90_001, 3, 12);
}
