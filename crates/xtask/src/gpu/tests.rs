//! The folder and its script without a GPU: a program in the binary's place writes down how it was called.

use super::*;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

/// A folder of this test alone, gone at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("xtask-gpu-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A prepared folder whose binary is `program`, a shell script.
fn prepared(name: &str, program: &str) -> Scratch {
    let scratch = Scratch::new(name);
    let binary = scratch.0.join("program");
    fs::write(&binary, format!("#!/bin/sh\n{program}\n")).unwrap();
    prepare(&root(), &binary, &scratch.0.join("gpu")).unwrap();
    scratch
}

#[test]
fn arguments_are_checked() {
    let of = |args: &[&str]| Wanted::parse(args).map_err(|e| e.to_string());
    assert_eq!(of(&[]), Ok(Wanted { out: None, check: false }));
    let both = Wanted { out: Some("a".into()), check: true };
    assert_eq!(of(&["--out", "a", "--check"]), Ok(both));
    assert!(of(&["--out"]).unwrap_err().contains("expected a folder"));
    assert!(of(&["--fast"]).unwrap_err().contains("\"--fast\""));
}

#[test]
fn a_prepared_folder_is_whole_and_small() {
    let scratch = prepared("whole", "exit 0");
    let folder = scratch.0.join("gpu");
    check(&folder).unwrap();
    let (files, bytes) = size(&folder).unwrap();
    assert!(files > 30 && bytes < 30_000_000, "{files} files, {bytes} bytes");
    assert!(!folder.join("golden/gpt-oss-tiny/tokenizer.json").exists());
    // Written again, nothing of an older one stays but results.
    fs::write(folder.join("configs/old.toml"), "").unwrap();
    prepare(&root(), &scratch.0.join("program"), &folder).unwrap();
    assert!(!folder.join("configs/old.toml").exists());
    fs::remove_file(folder.join("golden/goldens/llama-tiny/p70.safetensors")).unwrap();
    let error = check(&folder).unwrap_err().to_string();
    assert!(error.contains("lacks golden/goldens/llama-tiny/p70.safetensors"), "{error}");
}

#[test]
fn a_study_that_cannot_be_planned_is_an_error() {
    let scratch = prepared("plan", "[ \"$1\" = plan ] && exit 2; exit 0");
    let error = check(&scratch.0.join("gpu")).unwrap_err().to_string();
    assert!(error.contains("ossbench plan") && error.contains("gpu-batch.toml"), "{error}");
}

/// Runs steps of the script; its exit code, and the lines of summary.tsv without their seconds.
fn run_steps(folder: &Path, steps: &[&str], device: &str) -> (i32, Vec<String>) {
    let out = folder.join("results");
    let _ = fs::remove_dir_all(&out);
    let mut command = Command::new("bash");
    command.arg(folder.join("run.sh")).args(steps).env("OUT", &out).env("DEVICE", device);
    // No interpreter of this machine runs the peer, and no tool of it the kernels.
    command.env("PYTHON", "no-such-python").env("CUDA_HOME", "no-such-folder");
    let output = command.output().unwrap();
    let summary = fs::read_to_string(out.join("summary.tsv")).unwrap_or_default();
    let lines = summary.lines().map(|line| line.rsplit_once('\t').unwrap().0.replace('\t', " ")).collect();
    (output.status.code().unwrap(), lines)
}

#[test]
fn a_step_goes_on_after_a_command_that_failed() {
    // Checks fail, everything else is well.
    let scratch =
        prepared("steps", "echo \"$*\" >>\"${0%/*}/calls\"; case \"$*\" in *--check*) exit 3 ;; esac");
    let folder = scratch.0.join("gpu");
    let (code, lines) = run_steps(&folder, &["a", "b", "c", "d", "e"], "cuda:0");
    assert_eq!(
        lines,
        [
            "a parity-f32 0",
            "a parity-bf16 0",
            "b checks-42 3",
            "b checks-7 3",
            "c kernels-gpt-oss-20b 0",
            "c kernels-qwen3-32b 0",
            "c kernels-gpt-oss-120b 0",
            "c gpu-batch 0",
            "d gpu-gpt-oss-20b 0",
            "d gpu-gpt-oss-120b 0",
            "d gpu-qwen3-32b 0",
            "d gpu-yi-34b 0",
            "e transformers 4",
        ]
    );
    assert_eq!(code, 1);
    let calls = fs::read_to_string(folder.join("calls")).unwrap();
    let results = folder.join("results");
    for expected in [
        format!("--device cuda:0 --activation-dtype bf16 --json {}/a/parity-bf16.json", results.display()),
        "--model qwen3-32b".to_owned(),
        format!("run {}/configs/gpu-yi-34b.toml --ui plain", folder.display()),
    ] {
        assert!(calls.contains(&expected), "{expected}: {calls}");
    }
    assert!(results.join("b/checks-42.txt").is_file() && results.join("a/machine/host.txt").is_file());
}

#[test]
fn another_gpu_gets_studies_of_its_own_and_the_archive_has_everything() {
    let scratch = prepared("archive", "exit 0");
    let folder = scratch.0.join("gpu");
    let out = folder.join("results");
    let (code, lines) = run_steps(&folder, &["c", "f"], "cuda:3");
    assert_eq!(code, 0, "{lines:?}");
    let study = fs::read_to_string(out.join("c/gpu-batch.toml")).unwrap();
    assert!(study.contains("\ndevice = \"cuda:3\"\n") && study.contains("\ngpus = [3]\n"), "{study}");
    assert_eq!(lines[4..], ["f memcheck 4", "f racecheck 4", "f archive 0"]);
    let sums = fs::read_to_string(out.join("SHA256SUMS")).unwrap();
    assert!(sums.contains("./c/gpu-batch.toml") && !sums.contains("ossbench-gpu.tar.gz"));
    let list = Command::new("tar").arg("-tzf").arg(out.join("ossbench-gpu.tar.gz")).output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    assert!(list.contains("./SHA256SUMS") && list.contains("./summary.tsv"), "{list}");
}

#[test]
fn a_step_that_does_not_exist_is_a_usage_error() {
    let scratch = prepared("usage", "exit 0");
    let folder = scratch.0.join("gpu");
    for steps in [&[][..], &["g"], &["a", "ab"]] {
        assert_eq!(run_steps(&folder, steps, "cuda:0"), (2, Vec::new()), "{steps:?}");
    }
}

#[test]
fn the_studies_of_a_step_fit_into_its_time() {
    let limit = |line: &str| line.split_whitespace().nth(1).and_then(|s| s.parse::<u32>().ok());
    let studies =
        SCRIPT.lines().map(str::trim).filter(|line| line.starts_with("study ") && line.contains("gpu-"));
    let (all, batch): (Vec<_>, Vec<_>) = studies.partition(|line| !line.contains("gpu-batch"));
    assert_eq!((all.len(), batch.len()), (4, 1));
    assert!(all.iter().map(|line| limit(line).unwrap()).sum::<u32>() <= 590);
    for name in STUDIES {
        let path = root().join("bench-configs").join(format!("{name}.toml"));
        let text = fs::read_to_string(path).unwrap();
        let plan = bench_core::spec::RunSpec::from_toml(name, &text).unwrap().resolve().unwrap();
        assert_eq!(plan.cells.len(), 12, "{name}");
    }
}
