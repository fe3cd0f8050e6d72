//! Where this program is, for those commands that start it again: known only when it is the program itself.
//!
//! A library that calls `run` is another program, and has no such path.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Called once, by the binary.
pub fn install() {
    // On Linux this name stays with the file that runs, also when a build puts another one in its place.
    let own = Path::new("/proc/self/exe");
    let path =
        if cfg!(target_os = "linux") && own.exists() { Ok(own.to_owned()) } else { std::env::current_exe() };
    if let Ok(path) = path {
        let _ = PROGRAM.set(path);
    }
}

/// The program, if this process is it.
pub(crate) fn path() -> Option<&'static Path> {
    PROGRAM.get().map(PathBuf::as_path)
}
