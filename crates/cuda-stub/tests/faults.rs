//! The emulator notices a kernel that reads what is not there yet, or writes over what is still read.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

use cuda_stub::emulate::Kernel;

const THREADS: usize = 64;
const WORDS: usize = 4;
const CHUNKS: usize = 5;

/// As in `src/faults.cu`.
const NO_WAIT: u32 = 1;
const WAITS_FOR_TOO_FEW: u32 = 2;
const NO_COMMIT: u32 = 4;
const NO_BARRIER_BEFORE_READING: u32 = 8;
const NO_BARRIER_BEFORE_WRITING: u32 = 16;
const PLAIN: u32 = 32;

/// Whether the kernel with these faults still sums its chunks, with threads in the order of `seed`.
fn is_right(faults: u32, seed: u64) -> bool {
    let row = THREADS * WORDS;
    let values: Vec<f32> = (0..CHUNKS * row).map(|i| (i * 7 % 31) as f32).collect();
    let expected: Vec<f32> = (0..row).map(|i| values.iter().skip(i).step_by(row).sum()).collect();
    // Blocks of 16 bytes, since copies are aligned to so many.
    let aligned: Vec<u128> = values
        .chunks_exact(4)
        .map(|four| four.iter().rev().fold(0, |all, v| all << 32 | u128::from(v.to_bits())))
        .collect();
    let mut out = vec![0.0_f32; row];
    let mut args = Vec::new();
    args.extend((aligned.as_ptr() as u64).to_ne_bytes());
    args.extend((out.as_mut_ptr() as u64).to_ne_bytes());
    args.extend((CHUNKS as u32).to_ne_bytes());
    args.extend(faults.to_ne_bytes());
    let kernel = Kernel::find("fault_ring").unwrap();
    kernel.launch([1, 1, 1], [THREADS as u32, 1, 1], 2 * row * 4, &args, seed).unwrap();
    out == expected
}

#[test]
fn without_a_fault_it_is_right_in_any_order_of_threads() {
    for seed in 0..20 {
        assert!(is_right(0, seed) && is_right(PLAIN, seed), "order {seed}");
    }
}

#[test]
fn copies_that_are_not_waited_for_show_in_any_order_of_threads() {
    for fault in [NO_WAIT, WAITS_FOR_TOO_FEW, NO_COMMIT] {
        for seed in 0..20 {
            assert!(!is_right(fault, seed), "fault {fault}, order {seed}");
        }
    }
}

#[test]
fn barriers_that_are_missing_show_in_any_order_of_threads() {
    for fault in [NO_BARRIER_BEFORE_READING, NO_BARRIER_BEFORE_WRITING] {
        for seed in 0..20 {
            assert!(!is_right(fault, seed), "fault {fault}, order {seed}");
            assert!(!is_right(PLAIN | fault, seed), "plain writes, fault {fault}, order {seed}");
        }
    }
}
