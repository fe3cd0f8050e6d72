//! Parallel loops whose tasks write disjoint, strided parts of one output.

use std::marker::PhantomData;
use std::ops::Range;

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
