//! Memory that a thread keeps between kernels, so that no kernel allocates after the first calls.
//!
//! A buffer is taken out while it is used: a kernel that runs inside another gets one of its own.

use std::alloc::{GlobalAlloc, Layout, System, handle_alloc_error};
use std::cell::Cell;

/// One cache line.
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Cache lines that a thread keeps. Like its stack they belong to the thread, not to what it computes: which thread
/// needs them first is chance, and so they are taken from the system past [`crate::heap`]'s count.
#[derive(Debug)]
pub(crate) struct Lines {
    data: *mut Line,
    len: usize,
}

impl Lines {
    pub(crate) const fn new() -> Self {
        Self { data: std::ptr::null_mut(), len: 0 }
    }

    /// Room for `bytes`, on a cache-line boundary; what is there is left over from before, zeros at first.
    pub(crate) fn get(&mut self, bytes: usize) -> *mut f32 {
        let lines = bytes.div_ceil(size_of::<Line>());
        if self.len < lines {
            *self = Self::zeroed(lines);
        }
        self.data.cast()
    }

    // The layout asks for the alignment of a line.
    #[allow(clippy::cast_ptr_alignment)]
    fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout has a size, since `len` is above that of some buffer.
        let data = unsafe { System.alloc_zeroed(layout) }.cast::<Line>();
        if data.is_null() {
            handle_alloc_error(layout);
        }
        Self { data, len }
    }

    fn layout(len: usize) -> Layout {
        Layout::array::<Line>(len).unwrap_or_else(|_| handle_alloc_error(Layout::new::<Line>()))
    }
}

impl Default for Lines {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: allocated by `zeroed` with this layout.
            unsafe { System.dealloc(self.data.cast(), Self::layout(self.len)) };
        }
    }
}

/// What a buffer is for; each thread keeps one of each.
#[derive(Clone, Copy)]
pub(crate) enum Use {
    /// Inputs in another form, made by the caller of a product.
    Inputs,
    /// Decoded weights and running sums of one task.
    Task,
}

thread_local! {
    static KEPT: [Cell<Lines>; 2] = const { [Cell::new(Lines::new()), Cell::new(Lines::new())] };
}

/// Calls `run` with `len` elements on a cache-line boundary, whose content is left over from before.
pub(crate) fn with_f32<T>(purpose: Use, len: usize, run: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut lines = KEPT.with(|kept| kept[purpose as usize].take());
    let data = if len == 0 { std::ptr::dangling_mut() } else { lines.get(4 * len) };
    // SAFETY: there is room for `len` elements, all initialized.
    let buffer = unsafe { std::slice::from_raw_parts_mut(data, len) };
    let result = run(buffer);
    KEPT.with(|kept| kept[purpose as usize].set(lines));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_kept_and_a_nested_use_gets_another() {
        let first = with_f32(Use::Task, 33, |outer| {
            outer.fill(1.0);
            with_f32(Use::Task, 16, |inner| inner.fill(2.0));
            assert!(outer.len() == 33 && outer.iter().all(|v| *v == 1.0));
            assert!(outer.as_ptr().addr().is_multiple_of(64));
            outer.as_ptr().addr()
        });
        assert_eq!(with_f32(Use::Task, 20, |again| again.as_ptr().addr()), first);
    }
}
