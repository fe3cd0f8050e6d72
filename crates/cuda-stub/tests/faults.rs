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

/// Products of warpgroups, as in `src/faults.cu`.
mod products {
    use cuda_stub::emulate::Kernel;

    const GROUP: usize = 128;
    const SIDE: usize = 64;
    const COLUMNS: usize = 128;
    const CHUNKS: usize = 4;

    const NO_FENCE: u32 = 1;
    const NO_FENCE_LATER: u32 = 2;
    const NO_COMMIT: u32 = 4;
    const NO_WAIT: u32 = 8;
    const REGISTERS_TOO_EARLY: u32 = 16;
    const STAGE_TOO_EARLY: u32 = 32;
    const NO_PROXY_FENCE: u32 = 64;
    const NO_BARRIER: u32 = 128;
    const ONE_WARP_LESS: u32 = 256;
    const OTHER_MATRIX: u32 = 512;
    const NOT_ALIGNED: u32 = 1024;
    const SHARED_ROWS: u32 = 2048;

    /// Whether the product is right; or what the emulator says is wrong with its kernel.
    fn outcome(faults: u32, seed: u64) -> Result<bool, String> {
        let depth = SIDE * CHUNKS;
        // Whole numbers: sums are exact in any order. bf16 is the upper half of f32.
        let number = |row: usize, k: usize, salt: usize| ((row * 7 + k * 3 + salt) % 9) as f32 - 4.0;
        let matrix = |rows: usize, salt: usize| {
            let pairs = (0..rows * depth).map(|i| number(i / depth, i % depth, salt).to_bits() >> 16);
            let halves: Vec<u128> = pairs.map(u128::from).collect();
            // Blocks of 16 bytes, since copies are aligned to so many.
            halves
                .chunks_exact(8)
                .map(|eight| eight.iter().rev().fold(0, |all, v| all << 16 | v))
                .collect::<Vec<u128>>()
        };
        let (a, b) = (matrix(SIDE, 1), matrix(COLUMNS, 5));
        let mut out = vec![0.0_f32; SIDE * COLUMNS];
        let mut args = Vec::new();
        for address in [a.as_ptr() as u64, b.as_ptr() as u64, out.as_mut_ptr() as u64] {
            args.extend(address.to_ne_bytes());
        }
        args.extend((CHUNKS as u32).to_ne_bytes());
        args.extend(faults.to_ne_bytes());
        let shared = 3 * 3 * SIDE * SIDE * 2 + 1024;
        let kernel = Kernel::find("fault_products").unwrap();
        kernel.launch([1, 1, 1], [GROUP as u32, 1, 1], shared, &args, seed)?;
        let right = |m: usize, n: usize| (0..depth).map(|k| number(m, k, 1) * number(n, k, 5)).sum::<f32>();
        Ok((0..SIDE).all(|m| (0..COLUMNS).all(|n| out[m * COLUMNS + n] == right(m, n))))
    }

    #[test]
    fn without_a_fault_they_are_right_in_any_order_of_threads() {
        for seed in 0..6 {
            for way in [0, SHARED_ROWS] {
                assert_eq!(outcome(way, seed), Ok(true), "order {seed}, {way}");
            }
        }
    }

    /// Each fault is told by what it is; one is also seen in the result.
    #[test]
    fn what_is_missing_is_told_in_any_order_of_threads() {
        let told = [
            (NO_FENCE, "without a warpgroup_fence"),
            (NO_FENCE_LATER, "written after the last warpgroup_fence"),
            (NO_COMMIT, "ended while its products are under way"),
            (NO_WAIT, "ended while its products are under way"),
            (REGISTERS_TOO_EARLY, "registers of a product were written while"),
            (STAGE_TOO_EARLY, "shared memory of a product was written while"),
            (NO_PROXY_FENCE, "without an async_proxy_fence"),
            (ONE_WARP_LESS, "not all warps of a warpgroup"),
            (OTHER_MATRIX, "different products"),
        ];
        for (fault, expected) in told {
            for seed in 0..6 {
                let error = outcome(fault, seed).unwrap_err();
                assert!(error.contains(expected), "fault {fault}, order {seed}: {error}");
            }
        }
        for way in [0, SHARED_ROWS] {
            for (fault, seed) in
                [NO_BARRIER, NOT_ALIGNED].into_iter().flat_map(|f| (0..6).map(move |s| (f, s)))
            {
                let found = outcome(way | fault, seed);
                assert_ne!(found, Ok(true), "fault {fault}, order {seed}, {way}");
            }
            let error = outcome(way | STAGE_TOO_EARLY, 1).unwrap_err();
            assert!(error.contains("shared memory of a product"), "{error}");
        }
    }

    #[test]
    fn they_can_be_made_wrong() {
        cuda_stub::emulate::wrong_products(true);
        let found = outcome(0, 0);
        cuda_stub::emulate::wrong_products(false);
        assert_eq!((found, outcome(0, 0)), (Ok(false), Ok(true)));
    }
}
