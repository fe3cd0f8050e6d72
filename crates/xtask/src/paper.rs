//! `cargo xtask paper`: the paper as PDF, by the TeX that the system has.
//!
//! It compiles into `target/paper` and leaves `paper/` as it is. What LaTeX says of undefined references, missing
//! numbers and text that runs over its margin is an error here: a PDF that exists may still be wrong.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::Error;

const COMPILER: &str = "pdflatex";
/// References settle in the second pass.
const PASSES: usize = 2;
/// Boxes that stick out by less are seen by nobody.
const OVERFULL_POINTS: f64 = 3.0;

/// Packages of the paper that a small TeX does not have.
const PACKAGES: [&str; 4] = ["booktabs.sty", "enumitem.sty", "lmodern.sty", "microtype.sty"];

/// Whether the system has what compiles the paper, its packages among it.
pub(crate) fn is_possible() -> bool {
    let runs = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        let status = command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    runs(COMPILER, &["--version"]) && PACKAGES.iter().all(|package| runs("kpsewhich", &[package]))
}

/// Compiles `paper/main.tex` to `target/paper/main.pdf`.
pub(crate) fn run(root: &Path) -> Result<(), Error> {
    if !is_possible() {
        return Err(Error::Paper(format!(
            "`{COMPILER}` is not there, or has not all of {}; on Debian: apt-get install \
             --no-install-recommends texlive-latex-recommended texlive-latex-extra texlive-fonts-recommended lmodern",
            PACKAGES.join(", ")
        )));
    }
    let out = root.join("target/paper");
    fs::create_dir_all(&out).map_err(|source| Error::Io { action: "make", path: out.clone(), source })?;
    for _ in 0..PASSES {
        compile(root, &out)?;
    }
    let path = out.join("main.log");
    let log = fs::read(&path).map_err(|source| Error::Io { action: "read", path, source })?;
    let problems = problems(&String::from_utf8_lossy(&log));
    if !problems.is_empty() {
        return Err(Error::Paper(format!("paper/main.tex: {}", problems.join("; "))));
    }
    println!("paper: {}", Path::new("target/paper/main.pdf").display());
    Ok(())
}

fn compile(root: &Path, out: &Path) -> Result<(), Error> {
    let mut command = Command::new(COMPILER);
    command.current_dir(root.join("paper"));
    // The same sources make the same bytes.
    command.env("SOURCE_DATE_EPOCH", "0").env("FORCE_SOURCE_DATE", "1").env("max_print_line", "1000");
    command.args(["-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape"]);
    command.arg(format!("-output-directory={}", out.display())).arg("main.tex").stdin(Stdio::null());
    let output = command.output().map_err(|source| Error::Start { command: COMPILER.to_owned(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let wrong: Vec<&str> = text.lines().skip_while(|l| !l.starts_with('!')).take(8).collect();
    Err(Error::Paper(format!("{COMPILER} failed:\n{}", wrong.join("\n"))))
}

/// What a reader of the PDF would stumble over.
fn problems(log: &str) -> Vec<String> {
    let undefined = log.lines().filter(|l| l.contains("LaTeX Warning") && l.contains("undefined"));
    let wide = log.lines().filter(|l| overfull(l).is_some_and(|points| points > OVERFULL_POINTS));
    let missing = log.lines().filter(|l| l.contains("Missing character"));
    undefined.chain(wide).chain(missing).map(|l| l.trim().to_owned()).collect()
}

/// Points of `Overfull \hbox (12.3pt too wide) in paragraph at lines 1--2`.
fn overfull(line: &str) -> Option<f64> {
    line.strip_prefix("Overfull \\hbox (")?.split_once("pt too wide")?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_reader_would_stumble_over_is_found() {
        let log = "Overfull \\hbox (1.2pt too wide) in paragraph at lines 1--2\n\
                   Overfull \\hbox (31.5pt too wide) in paragraph at lines 3--4\n\
                   LaTeX Warning: Reference `tab:x' on page 1 undefined on input line 3.\n\
                   LaTeX Font Warning: Some font shapes were not available\n\
                   Missing character: There is no \u{3bc} in font ec-lmr10!\n";
        let found = problems(log);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.iter().any(|p| p.contains("31.5pt")) && found.iter().any(|p| p.contains("tab:x")));
    }
}
