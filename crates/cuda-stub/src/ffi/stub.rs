//! What the real driver does not have: a script from this process, and the report.

use crate::driver::{Driver, lock};
use crate::script::code;

/// Begins anew with the script in `len` bytes of JSON; 0, or `INVALID_VALUE` where it cannot be read.
#[unsafe(no_mangle)]
extern "C" fn ossbench_cuda_stub_script(json: *const u8, len: usize) -> u32 {
    if json.is_null() {
        return code::INVALID_VALUE;
    }
    // SAFETY: the caller owns `len` bytes at `json`.
    let json = unsafe { std::slice::from_raw_parts(json, len) };
    let Ok(script) = serde_json::from_slice(json) else { return code::INVALID_VALUE };
    *lock() = Driver::new(script);
    code::SUCCESS
}

/// Writes the report as JSON if it fits into `room` bytes; returns its length.
#[unsafe(no_mangle)]
extern "C" fn ossbench_cuda_stub_report(out: *mut u8, room: usize) -> usize {
    let report = serde_json::to_vec(&lock().report()).unwrap_or_default();
    if report.len() <= room && !out.is_null() {
        // SAFETY: the caller owns `room` bytes at `out`.
        unsafe { out.copy_from_nonoverlapping(report.as_ptr(), report.len()) };
    }
    report.len()
}
