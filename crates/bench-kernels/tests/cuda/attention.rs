//! Attention's kernels, run on the CPU: random steps in several orders of threads.

use bench_kernels::cuda::attention;

use crate::emulator::Emulator;

#[test]
fn attention_is_what_its_definition_says() {
    let mut kinds = std::collections::BTreeSet::new();
    for seed in 0..5 {
        for row in attention::check(&Emulator::new(seed), seed + 1, 2).unwrap() {
            assert!(row.passed(), "seed {seed}: {row:?}");
            kinds.insert(row.kernel);
        }
    }
    assert!(kinds.len() == 10, "{kinds:?}");
}
