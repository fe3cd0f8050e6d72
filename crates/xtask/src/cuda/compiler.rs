//! NVRTC from the Python registry, in a folder of the target directory. Where packages come from is the
//! machine's setting.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const REQUIREMENTS: &str = "crates/xtask/requirements-cuda.txt";
/// In an environment's `site-packages`.
const LIBRARY: &str = "nvidia/cuda_nvrtc/lib/libnvrtc.so.12";
const PIP: &[&str] = &[
    "-m",
    "pip",
    "install",
    "--quiet",
    "--disable-pip-version-check",
    "--retries",
    "1",
    "--timeout",
    "60",
    "--only-binary",
    ":all:",
    "-r",
];

/// Path of the compiler's library, installed if it is not there in the version that is asked for.
///
/// # Errors
/// Why it cannot be had, for a person.
pub(super) fn install(root: &Path, folder: &Path) -> Result<PathBuf, String> {
    let requirements = root.join(REQUIREMENTS);
    let wanted = fs::read(&requirements).map_err(|e| format!("{REQUIREMENTS}: {e}"))?;
    let (environment, stamp) = (folder.join("python"), folder.join("installed"));
    if fs::read(&stamp).is_ok_and(|installed| installed == wanted)
        && let Some(library) = find(&environment)
    {
        return Ok(library);
    }
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    if environment.exists() {
        fs::remove_dir_all(&environment).map_err(|e| format!("{}: {e}", environment.display()))?;
    }
    println!("installing what {REQUIREMENTS} names");
    run(Command::new("python3").args(["-m", "venv"]).arg(&environment), "python3 -m venv")?;
    run(Command::new(environment.join("bin/python")).args(PIP).arg(&requirements), "pip install")?;
    let library = find(&environment).ok_or_else(|| format!("{LIBRARY} was not installed"))?;
    fs::write(&stamp, wanted).map_err(|e| format!("{}: {e}", stamp.display()))?;
    Ok(library)
}

/// The library in an environment, whatever its Python is called.
fn find(environment: &Path) -> Option<PathBuf> {
    let versions = fs::read_dir(environment.join("lib")).ok()?;
    versions
        .flatten()
        .map(|version| version.path().join("site-packages").join(LIBRARY))
        .find(|path| path.is_file())
}

/// The last lines of what a command that failed wrote.
fn run(command: &mut Command, name: &str) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("cannot start `{name}`: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(3)..].join("; ");
    Err(format!("`{name}` failed with {}: {last}", output.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_found_under_any_python() {
        let folder = std::env::temp_dir().join(format!("xtask-nvrtc-{}", std::process::id()));
        let library = folder.join("lib/python3.99/site-packages").join(LIBRARY);
        fs::create_dir_all(library.parent().unwrap()).unwrap();
        assert_eq!(find(&folder), None);
        fs::write(&library, "").unwrap();
        assert_eq!(find(&folder), Some(library));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_fails_is_told_with_its_last_words() {
        let error = run(Command::new("sh").args(["-c", "echo one; echo two >&2; exit 3"]), "sh").unwrap_err();
        assert!(error.contains("`sh` failed") && error.contains("one; two"), "{error}");
        assert!(run(&mut Command::new("no-such-program-here"), "x").unwrap_err().contains("cannot start"));
    }
}
