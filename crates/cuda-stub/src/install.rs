//! For tests: the library in a folder for child processes, or loaded into this process.
//!
//! It builds nothing: a dev-dependency on this crate lets cargo do that.

use std::io;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::script::{Report, Script};

const FILE: &str = "libcuda_stub.so";
/// The variable that names a script's file.
pub const SCRIPT_VARIABLE: &str = "OSSBENCH_CUDA_STUB";

/// The built library, in the folder of the running test or above it.
pub fn library() -> io::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let mut folders =
        exe.ancestors().skip(1).take(3).flat_map(|folder| [folder.to_owned(), folder.join("deps")]);
    folders
        .find_map(|folder| Some(folder.join(FILE)).filter(|path| path.is_file()))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no {FILE} near {}", exe.display())))
}

/// Puts the library into `folder` as `libcuda.so.1` and `libcuda.so`, with `script` beside: for child
/// processes that have the folder in `LD_LIBRARY_PATH`. Returns the path of the first.
pub fn install(folder: &Path, script: &Script) -> io::Result<PathBuf> {
    let path = folder.join("libcuda.so.1");
    std::fs::copy(library()?, &path)?;
    std::os::unix::fs::symlink("libcuda.so.1", folder.join("libcuda.so"))?;
    std::fs::write(folder.join("libcuda.so.1.json"), serde_json::to_vec_pretty(script)?)?;
    Ok(path)
}

/// The library in this process. There is one instance of it, which stays until the process ends.
#[derive(Debug)]
pub struct Loaded {
    library: Library,
}

/// Loads the library into this process, so that whoever opens `libcuda.so.1` afterwards has it, and sets its
/// script. A second call begins anew with another script; what was allocated before is gone then. Nobody may
/// have opened an installed copy in this process: it would have the same name.
///
/// # Errors
/// No library, or one that cannot be loaded.
pub fn preload(script: &Script) -> io::Result<Loaded> {
    // SAFETY: what runs when the library is loaded only makes a list of kernels.
    let library = unsafe { Library::open(Some(library()?), RTLD_NOW | RTLD_GLOBAL) };
    let loaded = Loaded { library: library.map_err(io::Error::other)? };
    loaded.set(script)?;
    Ok(loaded)
}

impl Loaded {
    /// Begins anew with `script`.
    pub fn set(&self, script: &Script) -> io::Result<()> {
        let json = serde_json::to_vec(script)?;
        // SAFETY: the signature is that of ffi::stub.
        let set = unsafe {
            self.library.get::<unsafe extern "C" fn(*const u8, usize) -> u32>("ossbench_cuda_stub_script")
        };
        // SAFETY: the bytes of `json`.
        match unsafe { set.map_err(io::Error::other)?(json.as_ptr(), json.len()) } {
            0 => Ok(()),
            code => Err(io::Error::other(format!("the script was refused with {code}"))),
        }
    }

    /// What the instance has done so far.
    pub fn report(&self) -> io::Result<Report> {
        // SAFETY: the signature is that of ffi::stub.
        let report = unsafe {
            self.library.get::<unsafe extern "C" fn(*mut u8, usize) -> usize>("ossbench_cuda_stub_report")
        };
        let report = report.map_err(io::Error::other)?;
        let mut json = vec![0; 1 << 16];
        // SAFETY: room for so many bytes.
        let len = unsafe { report(json.as_mut_ptr(), json.len()) };
        let json = json.get(..len).ok_or_else(|| io::Error::other("the report is too long"))?;
        Ok(serde_json::from_slice(json)?)
    }

    /// The library itself, to look up functions.
    pub fn library(&self) -> &Library {
        &self.library
    }
}
