//! Running jobs takes nothing from the heap: one test, since all threads share the count.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use bench_kernels::heap::{self, CountingAllocator};
use bench_kernels::pool::{Pool, PoolOptions};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn a_thousand_jobs_on_a_warm_pool_allocate_nothing() -> Result<(), bench_kernels::Error> {
    let pool = Pool::new(PoolOptions { threads: Some(3), pin: false })?;
    let sum = AtomicUsize::new(0);
    let jobs = |n: usize| {
        for job in 0..n {
            // Uneven, with gaps: all ways of waiting are taken.
            pool.run(7, &|i| {
                for _ in 0..(job % 50) * i * 20 {
                    std::hint::spin_loop();
                }
                sum.fetch_add(i, Relaxed);
            });
        }
    };
    jobs(100);
    heap::reset_peak();
    let before = heap::peak_bytes();
    jobs(1000);
    // Anything allocated in between, and be it freed at once, would have raised the peak. What started this test may
    // still be freeing what that took, on a slow machine.
    assert_eq!(heap::peak_bytes(), before);
    assert!(heap::live_bytes() <= before);
    assert_eq!(sum.into_inner(), 1100 * 21);

    heap::reset_peak();
    let before = heap::peak_bytes();
    let kept = std::hint::black_box(vec![1_u8; 100]);
    assert_eq!(heap::peak_bytes(), before + 100);
    drop(kept);
    Ok(())
}
