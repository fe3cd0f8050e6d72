//! Shared libraries found at run time: a list of names tried in turn, and functions by name.
//!
//! Nothing is unloaded: both libraries keep threads and exit handlers of their own.

use std::ffi::OsString;
use std::mem::ManuallyDrop;
use std::path::Path;

/// A loaded library.
#[derive(Debug)]
pub(super) struct Shared {
    library: ManuallyDrop<libloading::Library>,
    /// As it was found.
    pub(super) name: String,
}

/// Names that were tried, and why the first of them failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NotFound {
    pub(super) tried: String,
    pub(super) reason: String,
}

/// The first of `names` that loads. A library that `variable` names is the only one that is tried.
pub(super) fn find(variable: &str, names: &[&str]) -> Result<Shared, NotFound> {
    match std::env::var_os(variable).filter(|path| !path.is_empty()) {
        Some(path) => first(&[path]),
        None => first(&names.iter().map(OsString::from).collect::<Vec<_>>()),
    }
}

/// The library at `path`.
pub(super) fn open(path: &Path) -> Result<Shared, NotFound> {
    first(&[path.as_os_str().to_owned()])
}

fn first(names: &[OsString]) -> Result<Shared, NotFound> {
    let mut reason = None;
    for name in names {
        // SAFETY: the libraries are NVIDIA's driver and compiler, or what the user put in their place; their
        // initialisers need nothing from us.
        match unsafe { libloading::Library::new(name) } {
            Ok(library) => {
                let name = name.to_string_lossy().into_owned();
                return Ok(Shared { library: ManuallyDrop::new(library), name });
            }
            Err(error) => drop(reason.get_or_insert_with(|| told(&error))),
        }
    }
    let tried: Vec<_> = names.iter().map(|name| name.to_string_lossy()).collect();
    Err(NotFound { tried: tried.join(", "), reason: reason.unwrap_or_else(|| "no name to try".to_owned()) })
}

/// The loader's own words, which the error keeps as its source.
fn told(error: &libloading::Error) -> String {
    let source = std::error::Error::source(error);
    source.map_or_else(|| error.to_string(), ToString::to_string)
}

impl Shared {
    /// The function `symbol`.
    ///
    /// # Safety
    /// `F` must be a function pointer of the signature that the library gives this name.
    pub(super) unsafe fn function<F: Copy>(&self, symbol: &'static str) -> Option<F> {
        // SAFETY: the caller names the signature; the library is never unloaded.
        let found = unsafe { self.library.get::<F>(symbol.as_bytes()) };
        found.ok().map(|function| *function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_told_with_its_names() {
        let missing = find("OSSBENCH_NO_SUCH_VARIABLE", &["libno-such-a.so", "libno-such-b.so"]).unwrap_err();
        assert_eq!(missing.tried, "libno-such-a.so, libno-such-b.so");
        assert!(missing.reason.contains("libno-such-a.so"), "{missing:?}");
    }
}
