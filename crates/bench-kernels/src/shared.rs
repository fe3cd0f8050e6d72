//! Parallel loops whose tasks write disjoint, strided parts of one output.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

/// A mutable slice that several tasks write at once, at different indices.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<'a, T> {
    data: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: only `slice` gives access, and its contract forbids overlap between threads.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { data: slice.as_mut_ptr(), len: slice.len(), lifetime: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No other live slice of this value may overlap `range`.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "range inside the output");
        // SAFETY: inside the slice that `new` borrowed for 'a; the caller excludes overlap.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.end - range.start) }
    }
}

/// Calls `task` on consecutive ranges that cover `0..n`, in parallel when the work is worth a thread's wake-up.
///
/// Ranges start at multiples of `step`, so that what one task computes does not depend on how many threads run.
pub(crate) fn for_ranges(n: usize, step: usize, operations: usize, task: impl Fn(Range<usize>) + Sync) {
    /// Waking a rayon worker costs some microseconds, in which one core does about this many operations.
    const WORTH_A_THREAD: usize = 1 << 16;
    let threads = rayon::current_num_threads();
    let tasks = (operations / WORTH_A_THREAD).min(threads * 4);
    if tasks < 2 || threads < 2 {
        return task(0..n);
    }
    let len = n.div_ceil(tasks).next_multiple_of(step);
    (0..n.div_ceil(len)).into_par_iter().for_each(|i| task(i * len..((i + 1) * len).min(n)));
}
