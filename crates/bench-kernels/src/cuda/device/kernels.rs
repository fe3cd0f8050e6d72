//! Kernels that are loaded on a device, found by their name in any of its modules.
//!
//! What is known of a kernel is asked of the driver once: the size of its argument, and how much shared
//! memory a block may have, to which it is opted in.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::{Arc, PoisonError, RwLock};

use cudarc::driver::sys::{self, CUfunction_attribute as Attribute, CUjit_option as Option_};

use super::context::{Context, Handle};
use super::driver::code;
use super::images::Image;
use crate::cuda::device_error::DeviceError;

/// Bytes that an argument may have; CUDA allows more, no kernel needs it.
const ARGUMENT_BYTES: usize = 1024;
/// Bytes of the text in which the driver says why it does not take an image.
const LOG_BYTES: usize = 8192;

/// A kernel and what the driver knows of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    function: Handle<sys::CUfunc_st>,
    argument_bytes: usize,
    /// What a block of it may have beside what it declares itself.
    dynamic_shared_bytes: usize,
    pub(super) resources: Resources,
}

/// What a kernel takes of a multiprocessor, as the driver loaded it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Per thread.
    pub registers: u32,
    /// Per thread, in device memory: what did not fit into registers.
    pub local_bytes: u32,
    /// Per block, without what a launch asks for.
    pub shared_bytes: u32,
    pub max_threads: u32,
}

/// A launch: `grid` blocks of `block` threads with `shared` bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) grid: [u32; 3],
    pub(super) block: u32,
    pub(super) shared: usize,
    /// The kernel may start before the one before it ends; it waits itself.
    pub(super) dependent: bool,
}

#[derive(Debug)]
pub(super) struct Kernels {
    context: Arc<Context>,
    modules: Vec<Handle<sys::CUmod_st>>,
    found: RwLock<HashMap<&'static str, Kernel>>,
}

impl Kernels {
    pub(super) fn load(context: &Arc<Context>, images: &[Image]) -> Result<Self, DeviceError> {
        let mut kernels =
            Self { context: Arc::clone(context), modules: Vec::new(), found: RwLock::default() };
        for image in images {
            let module = load(context, image)?;
            kernels.modules.push(module);
        }
        Ok(kernels)
    }

    /// The kernel `name`; asked of the driver the first time.
    pub(super) fn get(&self, name: &'static str) -> Result<Kernel, DeviceError> {
        if let Some(kernel) = self.found.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Ok(*kernel);
        }
        let kernel = self.look_up(name)?;
        self.found.write().unwrap_or_else(PoisonError::into_inner).insert(name, kernel);
        Ok(kernel)
    }

    fn look_up(&self, name: &str) -> Result<Kernel, DeviceError> {
        const CALL: &str = "cuModuleGetFunction";
        let text = CString::new(name).map_err(|_| self.wrong(name, "a zero in its name".into()))?;
        for module in &self.modules {
            let mut function = std::ptr::null_mut();
            let answer = self.context.code(CALL, |d| {
                // SAFETY: a loaded module, a string that ends, a place for the result.
                unsafe { (d.module_function)(&raw mut function, module.0, text.as_ptr()) }
            })?;
            match answer {
                0 => return self.describe(name, Handle(function)),
                code::NOT_FOUND => {}
                other => return Err(self.context.error(CALL, other)),
            }
        }
        Err(self.wrong(name, format!("is in none of the {} modules that are loaded", self.modules.len())))
    }

    fn describe(&self, name: &str, function: Handle<sys::CUfunc_st>) -> Result<Kernel, DeviceError> {
        let (mut offset, mut argument_bytes) = (0, 0);
        self.context.call("cuFuncGetParamInfo", |d| {
            // SAFETY: a kernel of a loaded module, and two places for results.
            unsafe { (d.function_argument)(function.0, 0, &raw mut offset, &raw mut argument_bytes) }
        })?;
        if argument_bytes > ARGUMENT_BYTES {
            let problem =
                format!("its argument has {argument_bytes} bytes, expected at most {ARGUMENT_BYTES}");
            return Err(self.wrong(name, problem));
        }
        let attribute = |which: Attribute| {
            let mut value: c_int = 0;
            self.context.call("cuFuncGetAttribute", |d| {
                // SAFETY: as above.
                unsafe { (d.function_attribute)(&raw mut value, which, function.0) }
            })?;
            Ok(value.max(0).unsigned_abs())
        };
        let resources = Resources {
            registers: attribute(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            local_bytes: attribute(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            shared_bytes: attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            max_threads: attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        };
        let most = self.context.info.max_shared_bytes;
        let dynamic_shared_bytes = most.saturating_sub(resources.shared_bytes as usize);
        self.context.call("cuFuncSetAttribute", |d| {
            let which = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a kernel of a loaded module.
            unsafe { (d.function_set)(function.0, which, dynamic_shared_bytes as c_int) }
        })?;
        Ok(Kernel { function, argument_bytes, dynamic_shared_bytes, resources })
    }

    /// Puts `name` into `stream`.
    pub(super) fn launch(
        &self,
        stream: Handle<sys::CUstream_st>,
        name: &'static str,
        shape: Shape,
        argument: &[u8],
    ) -> Result<(), DeviceError> {
        let kernel = self.get(name)?;
        kernel.fits(shape, argument.len()).map_err(|problem| self.wrong(name, problem))?;
        // Aligned as any structure may need it.
        let mut copy = [0_u128; ARGUMENT_BYTES / size_of::<u128>()];
        bytemuck::bytes_of_mut(&mut copy)[..argument.len()].copy_from_slice(argument);
        let mut arguments: [*mut c_void; 1] = [copy.as_mut_ptr().cast()];
        let mut attributes = [sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { pad: [0; 64] },
        }];
        attributes[0].value.programmaticStreamSerializationAllowed = 1;
        let config = sys::CUlaunchConfig {
            gridDimX: shape.grid[0],
            gridDimY: shape.grid[1],
            gridDimZ: shape.grid[2],
            blockDimX: shape.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shape.shared as u32,
            hStream: stream.0,
            attrs: attributes.as_mut_ptr(),
            numAttrs: u32::from(shape.dependent),
        };
        let answer = self.context.code("cuLaunchKernelEx", |d| {
            let nothing = std::ptr::null_mut();
            // SAFETY: the stream and the kernel are alive; the argument has the size that the kernel names,
            // and is copied by the call. Addresses in it are the caller's matter.
            unsafe { (d.launch)(&raw const config, kernel.function.0, arguments.as_mut_ptr(), nothing) }
        })?;
        if answer == 0 {
            return Ok(());
        }
        let problem = self.context.driver.describe(answer);
        Err(self.wrong(name, format!("{shape:?}: {problem}")))
    }

    fn wrong(&self, kernel: &str, problem: String) -> DeviceError {
        DeviceError::Kernel { device: self.context.info.label(), kernel: kernel.to_owned(), problem }
    }
}

impl Kernel {
    /// What the driver would refuse with one word for all.
    fn fits(&self, shape: Shape, argument_bytes: usize) -> Result<(), String> {
        let Shape { grid, block, shared, .. } = shape;
        if argument_bytes != self.argument_bytes {
            return Err(format!("argument of {argument_bytes} bytes, expected {}", self.argument_bytes));
        }
        if block == 0 || block > self.resources.max_threads {
            return Err(format!("{block} threads in a block, expected 1 to {}", self.resources.max_threads));
        }
        if grid.contains(&0) || grid[1] > 65_535 || grid[2] > 65_535 {
            return Err(format!("a grid of {grid:?} blocks, expected 1 or more, y and z at most 65535"));
        }
        if shared > self.dynamic_shared_bytes {
            let most = self.dynamic_shared_bytes;
            return Err(format!("{shared} bytes of shared memory for a block, expected at most {most}"));
        }
        Ok(())
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        for module in &self.modules {
            // SAFETY: unloaded once; nothing is launched any more, since all that launches holds this.
            self.context.call_in_drop(|d| unsafe { (d.module_unload)(module.0) });
        }
    }
}

fn load(context: &Context, image: &Image) -> Result<Handle<sys::CUmod_st>, DeviceError> {
    let mut log: Vec<c_char> = vec![0; LOG_BYTES];
    let mut options = [Option_::CU_JIT_ERROR_LOG_BUFFER, Option_::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values: [*mut c_void; 2] =
        [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(LOG_BYTES - 1)];
    // PTX is text and has to end.
    let bytes: Vec<u8> = image.bytes.iter().copied().chain([0]).collect();
    let mut module = std::ptr::null_mut();
    let answer = context.code("cuModuleLoadDataEx", |d| {
        // SAFETY: an ELF file or text that ends; a place for text and its size; all alive during the call.
        unsafe {
            (d.module_load)(
                &raw mut module,
                bytes.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        }
    })?;
    if answer == 0 {
        return Ok(Handle(module));
    }
    let written: Vec<u8> = log.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    let log = String::from_utf8_lossy(&written);
    let problem = format!("{}\n{}", context.driver.describe(answer), log.trim());
    Err(DeviceError::Image {
        device: context.info.label(),
        image: image.file.clone(),
        problem: problem.trim_end().to_owned(),
        help: help_with_image(answer),
    })
}

fn help_with_image(answer: u32) -> &'static str {
    match answer {
        // CUDA_ERROR_UNSUPPORTED_PTX_VERSION, CUDA_ERROR_NO_BINARY_FOR_GPU
        222 | 209 => "the compiler was newer than the driver, or did not know the device: update the driver",
        2 => "end what else holds the device's memory (nvidia-smi shows it)",
        _ => "build the kernels again with `cargo xtask cuda`",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_that_cannot_be_are_told_before_the_driver_is_asked() {
        let resources = Resources { registers: 64, local_bytes: 0, shared_bytes: 1024, max_threads: 256 };
        let function = Handle(std::ptr::null_mut());
        let kernel = Kernel { function, argument_bytes: 40, dynamic_shared_bytes: 99 * 1024, resources };
        let shape = Shape { grid: [7, 2, 1], block: 256, shared: 99 * 1024, dependent: true };
        assert_eq!(kernel.fits(shape, 40), Ok(()));
        for (wrong, bytes, expected) in [
            (shape, 48, "argument of 48 bytes, expected 40"),
            (Shape { block: 512, ..shape }, 40, "512 threads in a block, expected 1 to 256"),
            (Shape { grid: [1, 0, 1], ..shape }, 40, "a grid of [1, 0, 1] blocks"),
            (Shape { grid: [1, 65_536, 1], ..shape }, 40, "at most 65535"),
            (Shape { shared: 100 * 1024, ..shape }, 40, "102400 bytes of shared memory"),
        ] {
            let problem = kernel.fits(wrong, bytes).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
    }
}
