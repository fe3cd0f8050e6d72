//! Rows, choice of tokens, weights: every check with several orders of threads.

use bench_kernels::cuda::vectors::{self, AddArgs, NormArgs, SelectArgs};
use bytemuck::Zeroable;

use crate::emulator::Emulator;

#[test]
fn kernels_agree_with_plain_arithmetic_in_any_order_of_threads() {
    for seed in [0, 1, 2, 3] {
        let found = vectors::check(&Emulator::new(seed), 100 + seed, 12).unwrap();
        assert_eq!(found.len(), 13 * 12 + 1);
        let wrong: Vec<_> = found.iter().filter(|row| !row.passed()).collect();
        assert!(wrong.is_empty(), "order {seed}: {wrong:#?}");
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let gpu = Emulator::new(0);
    let norm = NormArgs { rows: 1, x_rows: 1, cols: 33, ..NormArgs::zeroed() };
    assert!(vectors::rms_norm(&gpu, &norm).is_err());
    assert!(vectors::rms_norm(&gpu, &NormArgs { cols: 32, rows: 2, ..norm }).is_err());
    let planes = NormArgs { cols: 32, plane_count: 3, planes: 256, plane_stride: 24, ..norm };
    assert!(vectors::rms_norm(&gpu, &planes).is_err());
    assert!(vectors::add(&gpu, &AddArgs { count: 3, ..AddArgs::zeroed() }).is_err());
    let select = SelectArgs { rows: 1, vocab: 10, stride: 9, ..SelectArgs::zeroed() };
    assert!(vectors::argmax(&gpu, &select).is_err());
    let drawn = SelectArgs { stride: 10, best: 256, uniform: 256, ..select };
    assert!(vectors::sample(&gpu, &drawn).is_err());
    assert!(vectors::fill(&gpu, vectors::Fill::Codes, 0, 0, 8, 16).is_err());
    // Nothing to do is no launch.
    vectors::add(&gpu, &AddArgs::zeroed()).unwrap();
}
