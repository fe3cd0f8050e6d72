//! The files of the repository as the rules see them: path, size, and the text where there is one.
//!
//! The list comes from `git ls-files` in a checkout and from a walk elsewhere (an unpacked archive). Nothing
//! is judged here.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::error::Error;

/// Larger files are listed but not read: no rule looks into them.
const READ_LIMIT: u64 = 4 << 20;

/// One tracked file.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Path from the repository root, with forward slashes.
    pub path: String,
    pub bytes: u64,
    /// The content, if the file is UTF-8, not too large, and not reference data.
    pub text: Option<String>,
}

/// All tracked files, sorted by path.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree {
    pub entries: Vec<Entry>,
}

impl Tree {
    /// Reads the repository below `root`.
    pub(crate) fn read(root: &Path) -> Result<Self, Error> {
        let mut paths = match tracked(root) {
            Some(paths) => paths,
            None => walk(root)?,
        };
        paths.sort();
        paths.dedup();
        let entries = paths.into_iter().filter_map(|path| entry(root, path)).collect();
        Ok(Self { entries })
    }

    /// Files that have text, as (path, text).
    pub(crate) fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().filter_map(|e| Some((e.path.as_str(), e.text.as_deref()?)))
    }

    /// Files with the given ending, as (path, text).
    pub(crate) fn texts_ending<'a>(&'a self, ending: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.texts().filter(move |(path, _)| path.ends_with(ending))
    }

    #[cfg(test)]
    pub(crate) fn fixture(files: &[(&str, &str)]) -> Self {
        let entries = files
            .iter()
            .map(|(path, text)| Entry {
                path: (*path).to_owned(),
                bytes: text.len() as u64,
                text: Some((*text).to_owned()),
            })
            .collect();
        Self { entries }
    }
}

/// Paths in git's index, or `None` where git or the checkout is missing.
fn tracked(root: &Path) -> Option<Vec<String>> {
    let output = Command::new("git").arg("-C").arg(root).args(["ls-files", "-z"]).output().ok()?;
    let listed = String::from_utf8(output.stdout).ok()?;
    let paths: Vec<String> = listed.split('\0').filter(|p| !p.is_empty()).map(str::to_owned).collect();
    (output.status.success() && !paths.is_empty()).then_some(paths)
}

/// All files below `root` but build output, git's own folder and raw results.
fn walk(root: &Path) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let path = root.join(&folder);
        let io = |source| Error::Io { action: "list", path: path.clone(), source };
        for item in fs::read_dir(&path).map_err(io)? {
            let item = item.map_err(io)?;
            let name = item.file_name().to_string_lossy().into_owned();
            let child = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if matches!(child.as_str(), ".git" | "target" | "results/raw") {
                continue;
            }
            let kind = item.file_type().map_err(io)?;
            if kind.is_dir() {
                folders.push(child);
            } else if kind.is_file() {
                found.push(child);
            }
        }
    }
    Ok(found)
}

/// Reads one file; `None` if it is in the index but no longer on disk.
fn entry(root: &Path, path: String) -> Option<Entry> {
    let full = root.join(&path);
    let bytes = fs::metadata(&full).ok()?.len();
    let read = bytes <= READ_LIMIT && !path.starts_with("tests/golden/");
    let text = if read { fs::read_to_string(&full).ok() } else { None };
    Some(Entry { path, bytes, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_walk_skips_build_output_and_reads_text() {
        let dir = std::env::temp_dir().join(format!("xtask-tree-{}", std::process::id()));
        fs::create_dir_all(dir.join("crates/a")).unwrap();
        fs::create_dir_all(dir.join("target")).unwrap();
        fs::write(dir.join("crates/a/lib.rs"), "//! a").unwrap();
        fs::write(dir.join("target/x"), "no").unwrap();
        fs::write(dir.join("blob"), [0xff, 0xfe]).unwrap();
        let mut paths = walk(&dir).unwrap();
        paths.sort();
        assert_eq!(paths, ["blob", "crates/a/lib.rs"]);
        assert_eq!(entry(&dir, "crates/a/lib.rs".into()).unwrap().text.as_deref(), Some("//! a"));
        assert_eq!(entry(&dir, "blob".into()).unwrap().text, None);
        assert!(entry(&dir, "gone".into()).is_none());
        fs::remove_dir_all(&dir).unwrap();
    }
}
