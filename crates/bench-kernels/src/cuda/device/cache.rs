//! Kernels that were compiled where they run, kept on disk by what they were compiled from, for what, and by
//! which compiler.
//!
//! A file that is not whole is not used. Nothing is removed: what is old is never found again.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::cuda::device_error::CudaVersion;

/// Bytes of the check value at a file's end.
const CHECK: usize = 16;

/// `OSSBENCH_CACHE`, else `ossbench` in the user's cache; in it `kernels`.
pub(super) fn folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let user = || {
        let cache = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute());
        Some(cache.or_else(|| Some(variable("HOME")?.join(".cache")))?.join("ossbench"))
    };
    Some(variable("OSSBENCH_CACHE").or_else(user)?.join("kernels"))
}

/// Name of the folder of one set of kernels.
pub(super) fn key(target: &str, compiler: CudaVersion, sources: &[(&str, &str)]) -> String {
    let mut all = format!("{target}\0{compiler}\0").into_bytes();
    for (file, text) in sources {
        for part in [file, text] {
            // Lengths first: no two lists of texts give the same bytes.
            all.extend((part.len() as u64).to_le_bytes());
            all.extend(part.as_bytes());
        }
    }
    format!("{:032x}", digest(&all))
}

/// What [`write`] wrote, or `None`.
pub(super) fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = fs::read(path).ok()?;
    let check = bytes.split_off(bytes.len().checked_sub(CHECK)?);
    (check == digest(&bytes).to_le_bytes()).then_some(bytes)
}

/// Writes beside it first: another process never sees a part.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    let result = fs::File::create(&beside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.write_all(&digest(bytes).to_le_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    });
    if result.is_err() {
        // The first error is the one that tells.
        let _ = fs::remove_file(&beside);
    }
    result
}

/// FNV-1a with 128 bits (Fowler, Noll and Vo).
fn digest(bytes: &[u8]) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(BASIS, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: CudaVersion = CudaVersion { major: 12, minor: 4 };

    #[test]
    fn the_digest_is_the_published_one() {
        assert_eq!(digest(b""), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(digest(b"a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }

    #[test]
    fn a_key_changes_with_all_it_depends_on() {
        let sources = [("a.cu", "x"), ("b.cuh", "y")];
        let first = key("sm_90a", VERSION, &sources);
        assert_eq!(first, key("sm_90a", VERSION, &sources));
        let newer = CudaVersion { minor: 6, ..VERSION };
        let others = [
            key("sm_80", VERSION, &sources),
            key("sm_90a", newer, &sources),
            key("sm_90a", VERSION, &[("a.cu", "x"), ("b.cuh", "z")]),
            key("sm_90a", VERSION, &[("a.cu", "xb"), (".cuh", "y")]),
        ];
        assert!(others.iter().all(|other| *other != first), "{others:?}");
    }

    #[test]
    fn a_file_comes_back_and_a_part_of_it_does_not() {
        let folder = std::env::temp_dir().join(format!("ossbench-kernels-{}", std::process::id()));
        let path = folder.join("a/panel.sm_90a.cubin");
        write(&path, b"machine code").unwrap();
        assert_eq!(read(&path).as_deref(), Some(&b"machine code"[..]));
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(read(&path), None);
        fs::write(&path, b"short").unwrap();
        assert_eq!(read(&path), None);
        assert_eq!(fs::read_dir(folder.join("a")).unwrap().count(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }
}
