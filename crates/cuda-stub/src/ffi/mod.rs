//! The C symbols, with the signatures of `cuda.h`; each checks its pointers and asks the state.
//!
//! Handles are numbers and are never followed as pointers. A context's handle is its device's number plus
//! one.

mod device;
mod errors;
mod launch;
mod memory;
mod stream;
mod stub;

use std::ffi::c_void;

use crate::script::code;

type Handle = *mut c_void;

/// Writes `value` to `out`.
fn give<T>(out: *mut T, value: T) -> Result<(), u32> {
    if out.is_null() {
        return Err(code::INVALID_VALUE);
    }
    // SAFETY: the caller passes a pointer to a T that it owns, as cuda.h demands; it was checked for null.
    unsafe { out.write(value) };
    Ok(())
}

/// Writes `value` to `out` if the caller wants it.
fn give_if_wanted<T>(out: *mut T, value: T) {
    if !out.is_null() {
        // SAFETY: as in `give`.
        unsafe { out.write(value) };
    }
}
