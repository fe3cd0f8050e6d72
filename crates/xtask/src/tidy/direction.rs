//! Which crate may import which: the arrows of the architecture, as a table.
//!
//! Reads the manifests only. A crate that stands in no row is an error, so that adding one is a decision.

use toml::Table;

use super::Finding;
use crate::tree::Tree;

/// Crate → the workspace crates that it may import. `None`: anything.
///
/// Metric crates know only the vocabulary. Engine, kernels and http know nothing of benchmarks and could be
/// lifted out of the workspace. The report reads `results/` and never sees a target.
const ALLOWED: &[(&str, Option<&[&str]>)] = &[
    ("bench-core", Some(&[])),
    // Its tests run kernels on the stub.
    ("bench-kernels", Some(&["cuda-stub"])),
    ("cuda-stub", Some(&[])),
    ("bench-http", Some(&[])),
    ("bench-engine", Some(&["bench-kernels"])),
    ("bench-server", Some(&["bench-core", "bench-engine"])),
    ("bench-interp", Some(&["bench-core", "bench-engine"])),
    ("bench-runner", Some(&["bench-core", "bench-engine", "bench-http"])),
    ("bench-latency", Some(&["bench-core"])),
    ("bench-memory", Some(&["bench-core"])),
    ("bench-energy", Some(&["bench-core", "nvml-stub"])),
    ("bench-ape", Some(&["bench-core"])),
    // Counts refusals in answers; it asks no model itself.
    ("bench-safety", Some(&["bench-core"])),
    // Loaded by path as a shared library; the probe's tests depend on it so that it is built.
    ("nvml-stub", Some(&[])),
    ("bench-report", Some(&["bench-core"])),
    (
        "bench-cli",
        Some(&[
            "bench-core",
            "bench-report",
            "bench-runner",
            "bench-server",
            "bench-interp",
            "bench-latency",
            "bench-memory",
            "bench-energy",
            "bench-ape",
            "bench-safety",
            // generate, chat, logits, synth and doctor drive the engine without a measurement in between.
            "bench-engine",
        ]),
    ),
    // Compiles the CUDA kernels ahead of a build.
    ("xtask", Some(&["bench-core", "bench-kernels"])),
    ("tests", None),
];

/// Slow to build (10 minutes cold): one crate pays for it.
const POLARS_HOME: &str = "bench-report";

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    tree.texts_ending("Cargo.toml").filter(|(path, _)| *path != "Cargo.toml").flat_map(manifest).collect()
}

fn manifest((path, text): (&str, &str)) -> Vec<Finding> {
    let table: Table = match text.parse() {
        Ok(table) => table,
        Err(e) => return vec![Finding::error(path, 0, format!("does not parse: {e}"))],
    };
    let name = table.get("package").and_then(|p| p.get("name")).and_then(toml::Value::as_str);
    let Some(name) = name else {
        return vec![Finding::error(path, 0, "has no package name")];
    };
    let mut findings = inherits_lints(path, &table);
    let folder = path.trim_end_matches("/Cargo.toml").rsplit('/').next().unwrap_or_default();
    if folder != name {
        findings.push(Finding::error(path, 0, format!("package {name:?} lies in a folder named {folder:?}")));
    }
    let Some((_, allowed)) = ALLOWED.iter().find(|(crate_name, _)| *crate_name == name) else {
        let message = format!("crate {name:?} is in no row of the direction table; add one and say why");
        findings.push(Finding::error(path, 0, message));
        return findings;
    };
    for dependency in dependencies(&table) {
        findings.extend(judge(path, name, &dependency, *allowed));
    }
    findings
}

fn judge(path: &str, name: &str, dependency: &str, allowed: Option<&[&str]>) -> Option<Finding> {
    if dependency.starts_with("polars") && name != POLARS_HOME {
        let message =
            format!("{name} depends on {dependency}; only {POLARS_HOME} may, since it builds slowly");
        return Some(Finding::error(path, 0, message));
    }
    let internal = ALLOWED.iter().any(|(crate_name, _)| *crate_name == dependency);
    let allowed = allowed?;
    if !internal || allowed.contains(&dependency) {
        return None;
    }
    let may = if allowed.is_empty() { "no workspace crate".to_owned() } else { allowed.join(", ") };
    Some(Finding::error(path, 0, format!("{name} must not depend on {dependency}; it may import {may}")))
}

/// Without `[lints] workspace = true` a crate escapes every lint of the workspace.
fn inherits_lints(path: &str, table: &Table) -> Vec<Finding> {
    let inherits = table.get("lints").and_then(|l| l.get("workspace")).and_then(toml::Value::as_bool);
    if inherits == Some(true) {
        return Vec::new();
    }
    vec![Finding::error(path, 0, "does not inherit the workspace lints; add [lints] workspace = true")]
}

/// Package names of all dependencies: normal, build, development, and those of one platform.
fn dependencies(table: &Table) -> Vec<String> {
    let platforms = table.get("target").and_then(toml::Value::as_table);
    let per_platform = platforms.into_iter().flat_map(|t| t.values().filter_map(toml::Value::as_table));
    let mut names = Vec::new();
    for holder in std::iter::once(table).chain(per_platform) {
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(section) = holder.get(section).and_then(toml::Value::as_table) else { continue };
            for (key, value) in section {
                let package = value.get("package").and_then(toml::Value::as_str);
                names.push(package.unwrap_or(key).to_owned());
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(name: &str, rest: &str) -> Vec<String> {
        let text = format!("[package]\nname = {name:?}\n[lints]\nworkspace = true\n{rest}");
        let tree = Tree::fixture(&[(&format!("crates/{name}/Cargo.toml"), &text)]);
        check(&tree).into_iter().map(|f| f.message).collect()
    }

    #[test]
    fn allowed_arrows_pass() {
        let deps = "[dependencies]\nbench-core.workspace = true\nserde.workspace = true\n";
        assert_eq!(messages("bench-latency", deps), [""; 0]);
        assert_eq!(messages("bench-report", "[dependencies]\npolars-io = \"1\"\n"), [""; 0]);
        assert_eq!(messages("tests", "[dev-dependencies]\nbench-cli.workspace = true\n"), [""; 0]);
    }

    #[test]
    fn a_forbidden_arrow_names_both_crates() {
        let found = messages("bench-engine", "[dependencies]\nbench-core.workspace = true\n");
        assert_eq!(found, ["bench-engine must not depend on bench-core; it may import bench-kernels"]);
    }

    #[test]
    fn every_section_and_a_renamed_package_are_seen() {
        for section in ["dev-dependencies", "build-dependencies", "target.'cfg(unix)'.dependencies"] {
            let rest = format!("[{section}]\nwords = {{ package = \"bench-core\", path = \"x\" }}\n");
            assert_eq!(messages("bench-kernels", &rest).len(), 1, "{section}");
        }
    }

    #[test]
    fn polars_has_one_home() {
        let found = messages("bench-cli", "[dependencies]\npolars.workspace = true\n");
        assert!(found[0].contains("only bench-report"), "{found:?}");
        assert_eq!(messages("tests", "[dev-dependencies]\npolars = \"1\"\n").len(), 1);
    }

    #[test]
    fn unknown_crates_wrong_folders_and_missing_lints_are_errors() {
        assert!(messages("bench-new", "")[0].contains("direction table"));
        let tree = Tree::fixture(&[("crates/core/Cargo.toml", "[package]\nname = \"bench-core\"\n")]);
        let found: Vec<String> = check(&tree).into_iter().map(|f| f.message).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("lints") && found[1].contains("folder"), "{found:?}");
    }
}
