//! Generated references: tables that the code owns, written out as Markdown where a reader looks for them.
//!
//! What a key or a column means is decided in `bench-core`; here is only the file it goes to.

use std::fs;
use std::path::Path;

use crate::error::Error;

/// Path from the repository root, and its whole content.
type Reference = (&'static str, String);

fn references() -> [Reference; 2] {
    [
        ("bench-configs/README.md", bench_core::spec::reference()),
        ("results/README.md", bench_core::reference::columns()),
    ]
}

/// Writes every reference whose file differs.
pub(crate) fn write(root: &Path) -> Result<(), Error> {
    for (path, content) in references() {
        let full = root.join(path);
        if is_current(&full, &content) {
            println!("{path}: up to date");
            continue;
        }
        let io = |source| Error::Io { action: "write", path: full.clone(), source };
        if let Some(folder) = full.parent() {
            fs::create_dir_all(folder).map_err(io)?;
        }
        fs::write(&full, content).map_err(io)?;
        println!("{path}: written");
    }
    Ok(())
}

/// Fails with the names of the files that are not what the code would write.
pub(crate) fn check(root: &Path) -> Result<(), Error> {
    let stale = stale(root, &references());
    if stale.is_empty() { Ok(()) } else { Err(Error::Stale(stale)) }
}

fn stale(root: &Path, references: &[Reference]) -> Vec<String> {
    let differs = |(path, content): &&Reference| !is_current(&root.join(path), content);
    references.iter().filter(differs).map(|(path, _)| (*path).to_owned()).collect()
}

fn is_current(path: &Path, content: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|found| found == content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_and_a_changed_file_are_stale() {
        let dir = std::env::temp_dir().join(format!("xtask-docs-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("same.md"), "a\n").unwrap();
        fs::write(dir.join("changed.md"), "b\n").unwrap();
        let references: Vec<Reference> =
            ["same.md", "changed.md", "missing.md"].map(|path| (path, "a\n".to_owned())).into();
        assert_eq!(stale(&dir, &references), ["changed.md", "missing.md"]);
        fs::remove_dir_all(&dir).unwrap();
    }
}
