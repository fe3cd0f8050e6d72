//! The counting allocator in a program that has it: one test, since all threads share the counts.

#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Barrier;

use bench_kernels::heap::{self, CountingAllocator};
use bench_kernels::host::{AlignedBytes, MappedFile};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const MIB: u64 = 1 << 20;

/// What the test harness itself allocates beside us, at most.
const SLACK: u64 = 64 << 10;

/// Live bytes and peak beyond `base`, in whole MiB; panics when they are not near any.
fn above(base: u64) -> (u64, u64) {
    let whole = |bytes: u64| {
        let more = bytes.saturating_sub(base) + SLACK;
        assert!(more % MIB < 2 * SLACK, "{bytes} bytes, {base} at the beginning");
        more / MIB
    };
    (whole(heap::live_bytes()), whole(heap::peak_bytes()))
}

#[test]
fn bytes_are_counted_once_and_the_peak_is_kept() {
    assert!(heap::installed());
    heap::reset_peak();
    let base = heap::live_bytes();
    let filled = black_box(vec![1_u8; 3 << 20]);
    let mut zeroed = black_box(vec![0_u8; 5 << 20]);
    assert!(zeroed.iter().all(|&b| b == 0));
    assert_eq!(above(base), (8, 8));
    drop(filled);
    assert_eq!(above(base), (5, 8));
    zeroed.reserve_exact(2 << 20);
    assert_eq!(above(base), (7, 8));
    zeroed.truncate(1 << 20);
    zeroed.shrink_to_fit();
    assert_eq!(above(base), (1, 8));
    heap::reset_peak();
    assert_eq!(above(base), (1, 1));

    // Pages of our own count, those of a file do not.
    let pool = AlignedBytes::zeroed(16 << 20).unwrap();
    assert_eq!(above(base), (17, 17));
    drop(pool);
    assert_eq!(above(base), (1, 17));
    heap::reset_peak();
    assert!(AlignedBytes::zeroed(usize::MAX / 2).is_err());
    assert!(Vec::<u8>::new().try_reserve_exact(isize::MAX as usize / 2).is_err());
    let path = std::env::current_exe().unwrap();
    let file = MappedFile::open(&path).unwrap();
    assert!(file.len() as u64 > SLACK);
    assert_eq!(above(base), (1, 1));
    drop((file, zeroed));
    assert_eq!(above(base), (0, 1));

    threads_hold_at_once(base);
    threads_come_and_go(base);
}

/// Four threads hold a MiB each at the same time: the peak has all of them.
fn threads_hold_at_once(base: u64) {
    heap::reset_peak();
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mine = black_box(vec![7_u8; MIB as usize]);
                barrier.wait();
                drop(mine);
                barrier.wait();
            });
        }
    });
    assert_eq!(above(base), (0, 4));
}

/// Many small allocations from several threads leave nothing behind.
fn threads_come_and_go(base: u64) {
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            scope.spawn(move || {
                for i in 0..20_000 {
                    black_box(vec![0_u8; 1 + (i * 37 + thread) % 300]);
                }
            });
        }
    });
    assert_eq!(above(base).0, 0);
}
