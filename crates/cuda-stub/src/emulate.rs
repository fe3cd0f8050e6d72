//! One launch of a kernel, by its name.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

unsafe extern "C" {
    fn emulate_find(name: *const c_char, bytes: *mut usize, threads: *mut u32) -> c_int;
    fn emulate_launch(
        number: c_int,
        grid: *const u32,
        block: *const u32,
        shared: usize,
        args: *const c_void,
        seed: u64,
        error: *mut c_char,
        error_bytes: usize,
    ) -> c_int;
    fn emulate_wrong_products(yes: c_int);
}

/// Whether products of warpgroups, in launches of this thread, come out wrong.
pub fn wrong_products(yes: bool) {
    // SAFETY: it sets a variable of this thread.
    unsafe { emulate_wrong_products(c_int::from(yes)) }
}

/// A kernel of the project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    number: c_int,
    /// Size of its one argument.
    pub args_bytes: usize,
    /// Threads that a block may have at most.
    pub max_threads: u32,
}

impl Kernel {
    /// The kernel `name`, if there is one.
    pub fn find(name: &str) -> Option<Self> {
        let name = CString::new(name).ok()?;
        let (mut args_bytes, mut max_threads) = (0, 0);
        // SAFETY: a string that ends, and two places for results.
        let number = unsafe { emulate_find(name.as_ptr(), &raw mut args_bytes, &raw mut max_threads) };
        (number >= 0).then_some(Self { number, args_bytes, max_threads })
    }

    /// Runs every block. `args` holds addresses of this process. Threads and blocks run in an order that `seed`
    /// chooses; 0 is the order of their numbers.
    ///
    /// # Errors
    /// What the kernel did that a GPU does not allow: a barrier that some threads never reach, an access that is not
    /// aligned, a write behind shared memory.
    pub fn launch(
        self,
        grid: [u32; 3],
        block: [u32; 3],
        shared: usize,
        args: &[u8],
        seed: u64,
    ) -> Result<(), String> {
        if args.len() != self.args_bytes {
            return Err(format!("arguments of {} bytes, expected {}", args.len(), self.args_bytes));
        }
        let mut error = [0_u8; 256];
        // SAFETY: the arguments have the kernel's size; addresses in them are the caller's matter, as on a GPU.
        let code = unsafe {
            emulate_launch(
                self.number,
                grid.as_ptr(),
                block.as_ptr(),
                shared,
                args.as_ptr().cast(),
                seed,
                error.as_mut_ptr().cast(),
                error.len(),
            )
        };
        if code == 0 {
            return Ok(());
        }
        let text = CStr::from_bytes_until_nul(&error).map_or_else(|_| "?".into(), CStr::to_string_lossy);
        Err(text.into_owned())
    }
}
