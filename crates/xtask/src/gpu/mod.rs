//! `cargo xtask gpu`: a folder that checks and measures a GPU on a machine that has nothing but a driver.
//!
//! It holds the binary of `cargo xtask cuda`, references, studies and one script. Nothing of it needs a GPU here; what the
//! script does there is written in `run.sh`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Error;

const SCRIPT: &str = include_str!("run.sh");
/// Checkpoints of tests/golden, without their tokenizers.
const MODELS: [&str; 4] = ["gpt-oss-tiny", "gpt-oss-tiny-bf16", "llama-tiny", "qwen3-tiny"];
/// Studies of bench-configs; the first is of step c, the others of step d.
const STUDIES: [&str; 5] =
    ["gpu-batch", "gpu-gpt-oss-20b", "gpu-gpt-oss-120b", "gpu-qwen3-32b", "gpu-yi-34b"];
/// Shapes for the peer, from bench-engine's presets.
const SHAPES: [&str; 3] = ["gpt-oss-20b", "qwen3-32b", "yi-34b"];
const PEER: &str = "transformers_gpu.py";

/// Prepares the folder, or with `check` only validates one that is there.
pub(crate) fn run(root: &Path, args: &[&str]) -> Result<(), Error> {
    let wanted = Wanted::parse(args)?;
    let target = target_folder(root);
    let folder = wanted.out.unwrap_or_else(|| target.join("gpu"));
    if !wanted.check {
        // A process of its own: it is a command that stands alone, and what it prints belongs into the log.
        let this = std::env::current_exe().map_err(|source| start("cargo xtask cuda", source))?;
        step(Command::new(this).current_dir(root).arg("cuda"), "cuda")?;
        prepare(root, &target.join("cuda/ossbench"), &folder)?;
    }
    check(&folder)?;
    tell(&folder)
}

#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    out: Option<PathBuf>,
    check: bool,
}

impl Wanted {
    fn parse(mut args: &[&str]) -> Result<Self, Error> {
        let mut wanted = Self { out: None, check: false };
        while let [first, rest @ ..] = args {
            args = match (*first, rest) {
                ("--check", rest) => {
                    wanted.check = true;
                    rest
                }
                ("--out", [folder, rest @ ..]) => {
                    wanted.out = Some(PathBuf::from(folder));
                    rest
                }
                ("--out", []) => return Err(Error::Usage("--out: expected a folder".into())),
                (other, _) => {
                    let problem =
                        format!("gpu: unknown argument {other:?}: expected --check or --out FOLDER");
                    return Err(Error::Usage(problem));
                }
            };
        }
        Ok(wanted)
    }
}

/// Where cargo builds.
fn target_folder(root: &Path) -> PathBuf {
    let set = std::env::var_os("CARGO_TARGET_DIR").filter(|folder| !folder.is_empty());
    root.join(set.unwrap_or_else(|| "target".into()))
}

/// A file of the repository, and where it goes in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    from: PathBuf,
    to: PathBuf,
}

/// All files but binary and script.
fn pieces(root: &Path) -> Result<Vec<Piece>, Error> {
    let golden = root.join("tests/golden");
    let mut pieces = Vec::new();
    let mut add = |from: PathBuf, to: PathBuf| pieces.push(Piece { from, to });
    for model in MODELS {
        for name in names(&golden.join(model))? {
            if is_weights_or_config(&name) {
                add(golden.join(model).join(&name), Path::new("golden").join(model).join(&name));
            }
        }
    }
    for model in names(&golden.join("goldens"))? {
        let from = golden.join("goldens").join(&model);
        for name in names(&from)?.iter().filter(|name| name.ends_with(".safetensors")) {
            add(from.join(name), Path::new("golden/goldens").join(&model).join(name));
        }
    }
    for name in STUDIES {
        let file = format!("{name}.toml");
        add(root.join("bench-configs").join(&file), Path::new("configs").join(&file));
    }
    for name in SHAPES {
        let file = format!("{name}.json");
        let presets = root.join("crates/bench-engine/src/presets");
        add(presets.join(&file), Path::new("models").join(&file));
    }
    add(root.join("tests/peers").join(PEER), PathBuf::from(PEER));
    Ok(pieces)
}

/// What a checkpoint needs to be run with token ids.
fn is_weights_or_config(name: &str) -> bool {
    name.ends_with(".safetensors") || name == "model.safetensors.index.json" || name == "config.json"
}

/// Names of what lies in a folder, in order.
fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let io = |source| Error::Io { action: "read", path: folder.to_owned(), source };
    let entries = fs::read_dir(folder).map_err(io)?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<std::io::Result<Vec<String>>>().map_err(io)?;
    names.sort();
    Ok(names)
}

/// Writes the folder anew, its results apart.
fn prepare(root: &Path, binary: &Path, folder: &Path) -> Result<(), Error> {
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    };
    fs::create_dir_all(folder).map_err(io("make", folder))?;
    for part in ["golden", "configs", "models"] {
        let old = folder.join(part);
        if old.exists() {
            fs::remove_dir_all(&old).map_err(io("clean", &old))?;
        }
    }
    for Piece { from, to } in pieces(root)? {
        let to = folder.join(to);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(io("make", parent))?;
        }
        fs::copy(&from, &to).map_err(io("copy", &from))?;
    }
    let to = folder.join("ossbench");
    fs::copy(binary, &to).map_err(io("copy", binary))?;
    let script = folder.join("run.sh");
    fs::write(&script, SCRIPT).map_err(io("write", &script))?;
    for path in [to, script] {
        make_executable(&path).map_err(io("change", &path))?;
    }
    Ok(())
}

fn make_executable(path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// What can be known without a GPU: nothing is missing, the script parses, studies can be planned, and the references are
/// whole and met on the processor of this machine.
fn check(folder: &Path) -> Result<(), Error> {
    let missing: Vec<String> = expected().into_iter().filter(|path| !folder.join(path).is_file()).collect();
    if !missing.is_empty() {
        let problem =
            format!("{} lacks {}; `cargo xtask gpu` prepares it", folder.display(), missing.join(", "));
        return Err(Error::Gpu(problem));
    }
    let folder = &folder.canonicalize().map_err(|source| Error::Io {
        action: "find",
        path: folder.to_owned(),
        source,
    })?;
    step(Command::new("bash").arg("-n").arg(folder.join("run.sh")), "bash -n run.sh")?;
    let bench = folder.join("ossbench");
    for study in STUDIES {
        let mut plan = Command::new(&bench);
        plan.arg("plan").arg(folder.join("configs").join(format!("{study}.toml")));
        step(&mut plan, "ossbench plan")?;
    }
    let mut parity = Command::new(&bench);
    parity.arg("parity").arg("--golden").arg(folder.join("golden"));
    step(&mut parity, "ossbench parity on this machine's processor")
}

/// What the script names.
fn expected() -> Vec<String> {
    let mut paths = vec!["ossbench".to_owned(), "run.sh".to_owned(), PEER.to_owned()];
    paths.extend(MODELS.map(|model| format!("golden/{model}/config.json")));
    for model in MODELS.into_iter().filter(|model| !model.ends_with("-bf16")) {
        let files = ["p1", "p9", "p70", "batch2", "bf16"];
        paths.extend(files.map(|file| format!("golden/goldens/{model}/{file}.safetensors")));
    }
    paths.extend(STUDIES.map(|name| format!("configs/{name}.toml")));
    paths.extend(SHAPES.map(|name| format!("models/{name}.json")));
    paths
}

fn tell(folder: &Path) -> Result<(), Error> {
    let (files, bytes) = size(folder)?;
    println!(
        "\ngpu: {} is ready: {files} files, {:.1} MB\n\
         carry it to a machine with an NVIDIA GPU, its driver and bash, and run there\n\
         \n    ./run.sh all\n\
         \nor one step after the other, each of at most 10 minutes: ./run.sh a ... ./run.sh f\n\
         bring back results/ (or what $OUT named); step f packs it into one archive",
        folder.display(),
        bytes as f64 / 1e6
    );
    Ok(())
}

/// Number and bytes of all files but results.
fn size(folder: &Path) -> Result<(usize, u64), Error> {
    let (mut files, mut bytes) = (0, 0);
    for name in names(folder)?.into_iter().filter(|name| name != "results") {
        let path = folder.join(name);
        let metadata =
            fs::metadata(&path).map_err(|source| Error::Io { action: "read", path: path.clone(), source })?;
        let (inner_files, inner_bytes) = if metadata.is_dir() { size(&path)? } else { (1, metadata.len()) };
        files += inner_files;
        bytes += inner_bytes;
    }
    Ok((files, bytes))
}

fn step(command: &mut Command, name: &'static str) -> Result<(), Error> {
    let text = format!("{command:?}");
    println!("== gpu: {name}");
    let status = command.status().map_err(|source| start(&text, source))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Step { step: name, status: status.to_string(), command: text })
}

fn start(command: &str, source: std::io::Error) -> Error {
    Error::Start { command: command.to_owned(), source }
}

#[cfg(test)]
mod tests;
