//! Writes down what is measured with: commit, dirty flag, compiler, target, features.
//!
//! Runs again when the checkout's HEAD or anything that is compiled changes, so that the flag is not stale.

use std::path::Path;
use std::process::Command;

/// What the binary is built from, relative to the workspace root.
const SOURCES: [&str; 5] = ["crates", "Cargo.toml", "Cargo.lock", ".cargo", "rust-toolchain.toml"];

fn main() {
    let manifest = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let root = Path::new(&manifest).join("../..");
    let commit = output("git", &["rev-parse", "HEAD"], &root);
    let mut status = vec!["status", "--porcelain", "--"];
    status.extend(SOURCES);
    let dirty = commit.as_ref().and_then(|_| output("git", &status, &root)).map(|s| !s.is_empty());
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let features: Vec<_> = std::env::vars()
        .filter_map(|(key, _)| key.strip_prefix("CARGO_FEATURE_").map(str::to_lowercase))
        .filter(|f| f != "default")
        .collect();

    set("OSSBENCH_COMMIT", &commit.unwrap_or_default());
    set("OSSBENCH_DIRTY", &dirty.map(|d| d.to_string()).unwrap_or_default());
    set("OSSBENCH_RUSTC", &output(&rustc, &["--version"], &root).unwrap_or_default());
    set("OSSBENCH_TARGET", &std::env::var("TARGET").unwrap_or_default());
    set("OSSBENCH_OPT_LEVEL", &std::env::var("OPT_LEVEL").unwrap_or_default());
    set("OSSBENCH_FEATURES", &features.join(","));
    watch(&root);
}

/// Names the files whose change makes the above stale; a file that is missing would rerun every build.
fn watch(root: &Path) {
    let mut paths: Vec<_> = SOURCES.iter().map(|s| root.join(s)).collect();
    let branch = output("git", &["rev-parse", "--symbolic-full-name", "HEAD"], root);
    for name in ["HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        if let Some(path) = output("git", &["rev-parse", "--git-path", name], root) {
            paths.push(root.join(path));
        }
    }
    for path in paths.iter().filter(|p| p.exists()) {
        set_line("rerun-if-changed", &path.display().to_string());
    }
}

fn set(key: &str, value: &str) {
    set_line("rustc-env", &format!("{key}={value}"));
}

/// Build scripts speak to cargo on standard output.
fn set_line(key: &str, value: &str) {
    println!("cargo::{key}={value}");
}

fn output(program: &str, args: &[&str], dir: &Path) -> Option<String> {
    let output = Command::new(program).args(args).current_dir(dir).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
