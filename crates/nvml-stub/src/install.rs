//! For tests: where cargo has put the library, and a copy of it with a script beside.
//!
//! It builds nothing: a dev-dependency on this crate lets cargo do that.

use crate::script::Script;
use std::io;
use std::path::{Path, PathBuf};

const FILE: &str = "libnvml_stub.so";

/// The built library, in the folder of the running test or above it.
pub fn library() -> io::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let mut folders =
        exe.ancestors().skip(1).take(3).flat_map(|folder| [folder.to_owned(), folder.join("deps")]);
    folders
        .find_map(|folder| Some(folder.join(FILE)).filter(|path| path.is_file()))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no {FILE} near {}", exe.display())))
}

/// Copies the library into `folder` with `script` beside it; the path to load it by.
pub fn install(folder: &Path, script: &Script) -> io::Result<PathBuf> {
    let path = folder.join("libnvidia-ml.so");
    std::fs::copy(library()?, &path)?;
    std::fs::write(folder.join("libnvidia-ml.so.json"), serde_json::to_vec_pretty(script)?)?;
    Ok(path)
}
