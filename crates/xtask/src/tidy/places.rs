//! What a repository that others clone must not hold: paths of one machine, package mirrors, large files.

use super::Finding;
use crate::tree::Tree;

const LARGE_BYTES: u64 = 3_000_000;
/// Folders in which no other machine has the same things. Split, so that this file does not find itself.
const MACHINE_FOLDERS: &[&str] =
    &[concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/Us", "ers/")];
/// Hosts of package registries; where packages come from is the machine's setting, not the project's.
const REGISTRY_HOSTS: &[&str] = &[
    concat!("index.crates", ".io"),
    concat!("static.crates", ".io"),
    concat!("pypi", ".org"),
    concat!("files.python", "hosted.org"),
    concat!("registry.npm", "js.org"),
    concat!("proxy.gol", "ang.org"),
];
/// Data beside a checkout that only its author has.
const OUTSIDE: &str = concat!("shar", "ed/");

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for entry in &tree.entries {
        if entry.bytes > LARGE_BYTES && !entry.path.starts_with("tests/golden/") {
            let message =
                format!("{} bytes; files above {LARGE_BYTES} stay out of the repository", entry.bytes);
            findings.push(Finding::error(&entry.path, 0, message));
        }
    }
    for (path, text) in tree.texts().filter(|(path, _)| *path != "Cargo.lock") {
        for (i, line) in text.lines().enumerate() {
            findings.extend(in_line(line).into_iter().map(|message| Finding::error(path, i + 1, message)));
        }
        if path.ends_with(".cargo/config.toml") && text.lines().any(|l| l.trim_start().starts_with("[source"))
        {
            findings.push(Finding::error(
                path,
                0,
                "replaces a package source; that is the machine's setting",
            ));
        }
    }
    findings
}

fn in_line(line: &str) -> Vec<String> {
    let mut messages = Vec::new();
    for folder in MACHINE_FOLDERS {
        if line.match_indices(folder).any(|(at, _)| begins_path(line, at)) {
            messages
                .push(format!("absolute path {folder:?} of one machine; use a relative path or a variable"));
        }
    }
    for host in REGISTRY_HOSTS.iter().filter(|host| line.contains(*host)) {
        messages.push(format!("host {host:?} of a package registry; leave it to the machine's settings"));
    }
    if line
        .match_indices(OUTSIDE)
        .any(|(at, _)| at > 0 && matches!(line.as_bytes()[at - 1], b'/' | b'"' | b'`'))
    {
        messages.push(format!("{OUTSIDE:?} lies outside the repository; a clone does not have it"));
    }
    messages
}

/// Whether a path may begin at byte `at`: `a/home/` and `~/home/` are other paths.
fn begins_path(line: &str, at: usize) -> bool {
    line[..at].chars().next_back().is_none_or(|c| !(c.is_alphanumeric() || "._-~}$)*".contains(c)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Entry;

    fn count(path: &str, text: &str) -> usize {
        check(&Tree::fixture(&[(path, text)])).len()
    }

    #[test]
    fn machine_paths_are_found_and_look_alikes_are_not() {
        for folder in MACHINE_FOLDERS {
            assert_eq!(count("a.md", &format!("see {folder}me/x")), 1, "{folder}");
            assert_eq!(count("a.rs", &format!("\"{folder}me\"")), 1, "{folder}");
            assert_eq!(count("a.md", &format!("results{folder}x")), 0, "{folder}");
            assert_eq!(count("Cargo.lock", &format!("see {folder}me/x")), 0, "{folder}");
        }
    }

    #[test]
    fn registries_replaced_sources_and_outside_data_are_found() {
        for host in REGISTRY_HOSTS {
            assert_eq!(count("a.toml", &format!("url = \"https://{host}/\"")), 1, "{host}");
        }
        assert_eq!(count(".cargo/config.toml", "[source.mirror]\n"), 1);
        assert_eq!(count(".cargo/config.toml", "[alias]\n"), 0);
        assert_eq!(count("a.rs", &format!("open(\"../{OUTSIDE}x\")")), 1);
        assert_eq!(count("a.rs", &format!("// {OUTSIDE}owned, as English has it")), 0);
    }

    #[test]
    fn large_files_are_found_outside_the_reference_data() {
        let large =
            |path: &str, bytes| Tree { entries: vec![Entry { path: path.into(), bytes, text: None }] };
        assert_eq!(check(&large("figs/a.png", LARGE_BYTES + 1)).len(), 1);
        assert_eq!(check(&large("figs/a.png", LARGE_BYTES)), []);
        assert_eq!(check(&large("tests/golden/a.safetensors", LARGE_BYTES + 1)), []);
    }
}
