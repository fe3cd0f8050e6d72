//! NVIDIA's run-time compiler, found as a library: it makes machine code or PTX of the sources in the binary.
//!
//! It needs neither a GPU nor a driver, so that the automation compiles every kernel with it where there is
//! none.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;

use super::images;
use super::library::{self, Shared};
use crate::cuda::device_error::CudaVersion;

const VARIABLE: &str = "OSSBENCH_NVRTC";
/// By falling age of what drivers since 12.4 can be expected to take; then where the toolkit installs it.
const NAMES: &[&str] = &[
    "libnvrtc.so.12",
    "libnvrtc.so.13",
    "libnvrtc.so",
    "/usr/local/cuda/lib64/libnvrtc.so.12",
    "/usr/local/cuda/lib64/libnvrtc.so",
];

/// Why nothing was compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NvrtcError {
    #[error("no NVRTC: cannot load {tried}: {reason}")]
    NotFound { tried: String, reason: String },
    #[error("the NVRTC library {library} lacks {symbol}")]
    NoFunction { library: String, symbol: &'static str },
    #[error(
        "{library} (CUDA {version}) compiles nothing that runs on compute capability {}.{}",
        .capability.0, .capability.1
    )]
    TooOld { library: String, version: CudaVersion, capability: (u32, u32) },
    #[error("no source {0:?} in this binary")]
    NoSource(String),
    #[error("NVRTC: {call}: {problem}")]
    Failed { call: &'static str, problem: String },
    #[error("{file} does not compile for {architecture}:\n{log}")]
    Compile { file: String, architecture: String, log: String },
}

type Code = c_int;
type Program = *mut c_void;

macro_rules! functions {
    ($($field:ident = $name:literal($($argument:ty),*);)*) => {
        /// NVRTC's functions.
        #[derive(Debug)]
        struct Functions {
            $($field: unsafe extern "C" fn($($argument),*) -> Code,)*
        }

        impl Functions {
            fn of(library: &Shared) -> Result<Self, NvrtcError> {
                let lacks = |symbol| NvrtcError::NoFunction { library: library.name.clone(), symbol };
                Ok(Self {
                    $(
                        // SAFETY: the signature is the one in NVIDIA's header.
                        $field: unsafe { library.function($name) }.ok_or_else(|| lacks($name))?,
                    )*
                })
            }
        }
    };
}

functions! {
    version = "nvrtcVersion"(*mut c_int, *mut c_int);
    capability_count = "nvrtcGetNumSupportedArchs"(*mut c_int);
    capabilities = "nvrtcGetSupportedArchs"(*mut c_int);
    create = "nvrtcCreateProgram"(
        *mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char
    );
    destroy = "nvrtcDestroyProgram"(*mut Program);
    compile = "nvrtcCompileProgram"(Program, c_int, *const *const c_char);
    log_bytes = "nvrtcGetProgramLogSize"(Program, *mut usize);
    log = "nvrtcGetProgramLog"(Program, *mut c_char);
    cubin_bytes = "nvrtcGetCUBINSize"(Program, *mut usize);
    cubin = "nvrtcGetCUBIN"(Program, *mut c_char);
    ptx_bytes = "nvrtcGetPTXSize"(Program, *mut usize);
    ptx = "nvrtcGetPTX"(Program, *mut c_char);
}

/// A loaded compiler.
#[derive(Debug)]
pub struct Nvrtc {
    functions: Functions,
    version: CudaVersion,
    name: String,
}

/// A program, destroyed when dropped.
struct Compilation<'n> {
    nvrtc: &'n Nvrtc,
    program: Program,
}

impl Nvrtc {
    /// The machine's own, or the one that `OSSBENCH_NVRTC` names.
    pub fn find() -> Result<Self, NvrtcError> {
        if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
            return Self::load(Path::new(&path));
        }
        let found = library::find(VARIABLE, NAMES);
        Self::of(found.map_err(|e| NvrtcError::NotFound { tried: e.tried, reason: e.reason })?)
    }

    /// The library at `path`.
    pub fn load(path: &Path) -> Result<Self, NvrtcError> {
        // It looks for its second library by name alone, which is found only once it is loaded.
        let beside = path.parent().and_then(|folder| folder.read_dir().ok());
        for entry in beside.into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("libnvrtc-builtins.so") {
                // A failure is told when it is needed.
                let _ = library::open(&entry.path());
            }
        }
        let found = library::open(path);
        Self::of(found.map_err(|e| NvrtcError::NotFound { tried: e.tried, reason: e.reason })?)
    }

    fn of(library: Shared) -> Result<Self, NvrtcError> {
        let functions = Functions::of(&library)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two places for results.
        check("nvrtcVersion", unsafe { (functions.version)(&raw mut major, &raw mut minor) })?;
        let number = |n: c_int| n.max(0).unsigned_abs();
        let version = CudaVersion { major: number(major), minor: number(minor) };
        Ok(Self { functions, version, name: library.name })
    }

    pub fn version(&self) -> CudaVersion {
        self.version
    }

    /// As it was found.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Compute capabilities that it compiles for, ascending.
    pub fn capabilities(&self) -> Result<Vec<(u32, u32)>, NvrtcError> {
        let mut count = 0;
        // SAFETY: a place for the result.
        check("nvrtcGetNumSupportedArchs", unsafe { (self.functions.capability_count)(&raw mut count) })?;
        let mut numbers: Vec<c_int> = vec![0; count.max(0).unsigned_abs() as usize];
        // SAFETY: as many places as were named.
        check("nvrtcGetSupportedArchs", unsafe { (self.functions.capabilities)(numbers.as_mut_ptr()) })?;
        Ok(numbers.into_iter().map(|n| n.max(0).unsigned_abs()).map(|n| (n / 10, n % 10)).collect())
    }

    /// The kernels of a source of the binary: a cubin for `sm_…`, PTX for `compute_…`.
    pub fn compile(&self, kernels: &str, architecture: &str) -> Result<Vec<u8>, NvrtcError> {
        Ok(self.compile_with_log(kernels, architecture)?.0)
    }

    /// As [`Nvrtc::compile`], and what the compiler said beside.
    pub fn compile_with_log(
        &self,
        kernels: &str,
        architecture: &str,
    ) -> Result<(Vec<u8>, String), NvrtcError> {
        let file = format!("{kernels}.cu");
        let source = images::sources().iter().find(|(name, _)| *name == file);
        let (_, text) = source.ok_or_else(|| NvrtcError::NoSource(file.clone()))?;
        self.compile_text(&file, text, images::sources(), architecture)
    }

    /// As [`Nvrtc::compile_with_log`], of any text; `headers` can be included by their names.
    pub fn compile_text(
        &self,
        file: &str,
        text: &str,
        headers: &[(&str, &str)],
        architecture: &str,
    ) -> Result<(Vec<u8>, String), NvrtcError> {
        let compilation = Compilation::new(self, file, text, headers)?;
        let options = [format!("--gpu-architecture={architecture}"), "--std=c++17".to_owned()];
        if !compilation.compile(&options)? {
            return Err(NvrtcError::Compile {
                file: file.to_owned(),
                architecture: architecture.to_owned(),
                log: compilation.log()?,
            });
        }
        let image = if architecture.starts_with("sm_") { compilation.cubin() } else { compilation.ptx() };
        Ok((image?, compilation.log()?))
    }
}

impl<'n> Compilation<'n> {
    fn new(nvrtc: &'n Nvrtc, file: &str, text: &str, headers: &[(&str, &str)]) -> Result<Self, NvrtcError> {
        let (file, text) = (c_string(file)?, c_string(text)?);
        let headers: Vec<_> =
            headers.iter().filter(|(name, _)| name.strip_suffix(".cuh").is_some()).collect();
        let texts = headers.iter().map(|(_, text)| c_string(text)).collect::<Result<Vec<_>, _>>()?;
        let names = headers.iter().map(|(name, _)| c_string(name)).collect::<Result<Vec<_>, _>>()?;
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (texts_at, names_at) = (pointers(&texts), pointers(&names));
        let mut program = std::ptr::null_mut();
        // SAFETY: strings that end, as many as are told, all alive during the call, which copies them.
        let code = unsafe {
            (nvrtc.functions.create)(
                &raw mut program,
                text.as_ptr(),
                file.as_ptr(),
                headers.len() as c_int,
                texts_at.as_ptr(),
                names_at.as_ptr(),
            )
        };
        check("nvrtcCreateProgram", code)?;
        Ok(Self { nvrtc, program })
    }

    /// Whether it compiles; the log says why not.
    fn compile(&self, options: &[String]) -> Result<bool, NvrtcError> {
        /// `NVRTC_ERROR_COMPILATION`.
        const DOES_NOT_COMPILE: Code = 6;
        let options = options.iter().map(|option| c_string(option)).collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is alive, and so are the options.
        let code = unsafe {
            (self.nvrtc.functions.compile)(self.program, pointers.len() as c_int, pointers.as_ptr())
        };
        if code == DOES_NOT_COMPILE {
            return Ok(false);
        }
        check("nvrtcCompileProgram", code)?;
        Ok(true)
    }

    fn log(&self) -> Result<String, NvrtcError> {
        let functions = &self.nvrtc.functions;
        let bytes = self.bytes("nvrtcGetProgramLog", functions.log_bytes, functions.log)?;
        let text = CStr::from_bytes_until_nul(&bytes).map_or_else(|_| "".into(), CStr::to_string_lossy);
        Ok(text.trim_end().to_owned())
    }

    fn cubin(&self) -> Result<Vec<u8>, NvrtcError> {
        let functions = &self.nvrtc.functions;
        self.bytes("nvrtcGetCUBIN", functions.cubin_bytes, functions.cubin)
    }

    /// With the zero at its end that the driver needs.
    fn ptx(&self) -> Result<Vec<u8>, NvrtcError> {
        let functions = &self.nvrtc.functions;
        self.bytes("nvrtcGetPTX", functions.ptx_bytes, functions.ptx)
    }

    fn bytes(
        &self,
        call: &'static str,
        size: unsafe extern "C" fn(Program, *mut usize) -> Code,
        get: unsafe extern "C" fn(Program, *mut c_char) -> Code,
    ) -> Result<Vec<u8>, NvrtcError> {
        let mut bytes = 0;
        // SAFETY: the program is alive, and a place for the result.
        check(call, unsafe { size(self.program, &raw mut bytes) })?;
        let mut result = vec![0_u8; bytes];
        // SAFETY: as many bytes as it named.
        check(call, unsafe { get(self.program, result.as_mut_ptr().cast()) })?;
        Ok(result)
    }
}

impl Drop for Compilation<'_> {
    fn drop(&mut self) {
        // SAFETY: made by nvrtcCreateProgram and destroyed once.
        unsafe { (self.nvrtc.functions.destroy)(&raw mut self.program) };
    }
}

fn check(call: &'static str, code: Code) -> Result<(), NvrtcError> {
    match code {
        0 => Ok(()),
        5 => {
            Err(NvrtcError::Failed { call, problem: "it does not know an option or the architecture".into() })
        }
        7 => Err(NvrtcError::Failed {
            call,
            problem: "it does not find its library libnvrtc-builtins; put its folder into LD_LIBRARY_PATH"
                .into(),
        }),
        other => Err(NvrtcError::Failed { call, problem: format!("error {other}") }),
    }
}

fn c_string(text: &str) -> Result<CString, NvrtcError> {
    CString::new(text)
        .map_err(|_| NvrtcError::Failed { call: "nvrtcCreateProgram", problem: "a zero in a text".into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_compiler_is_an_error_and_no_panic() {
        let error = Nvrtc::load(Path::new("no-such-folder/libnvrtc.so.12")).unwrap_err();
        assert!(matches!(&error, NvrtcError::NotFound { .. }), "{error}");
        let error = Nvrtc::load(Path::new("libc.so.6")).unwrap_err();
        let expected = NvrtcError::NoFunction { library: "libc.so.6".into(), symbol: "nvrtcVersion" };
        assert_eq!(error, expected);
    }
}
