//! `cargo xtask cuda`: the CUDA kernels compiled ahead, and the binary that holds them. No GPU and no toolkit
//! are needed.
//!
//! The compiler is NVRTC from the Python registry, in a virtual environment below the target directory. What
//! it makes is put into the binary by bench-kernels' build script; nothing is linked.

mod compiler;
mod cubin;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bench_kernels::cuda::device::nvrtc::Nvrtc;
use bench_kernels::cuda::device::{Architecture, kernel_files};
use bench_kernels::cuda::tiles::HOPPER_KERNELS;

use crate::ci;
use crate::error::Error;

/// What products of warpgroups are compiled for.
const HOPPER: &str = "sm_90a";
const IMAGES: &str = "OSSBENCH_CUDA_IMAGES";
const BUILD: &[&str] = &["build", "--release", "--workspace", "--bin", "ossbench"];
/// So that one file can be copied to any machine.
const MOST_BYTES: u64 = 60_000_000;

/// Compiles every kernel; with `check` does no more than that.
pub(crate) fn run(root: &Path, check: bool) -> Result<(), Error> {
    let target = target_folder(root);
    let folder = target.join("cuda");
    let library = match compiler::install(root, &folder) {
        Ok(library) => library,
        // A checkout without a network still passes its gate; on the machine that judges it does not.
        Err(reason) if check && std::env::var_os("CI").is_none_or(|ci| ci != "true") => {
            println!("skipped: CUDA kernels are not compiled: {reason}; with CI=true this is an error");
            return Ok(());
        }
        Err(reason) => return Err(Error::Cuda(format!("no compiler for CUDA: {reason}"))),
    };
    let nvrtc = Nvrtc::load(&library).map_err(|e| Error::Cuda(e.to_string()))?;
    let images = folder.join("images");
    compile(&nvrtc, &images)?;
    if check { Ok(()) } else { build(root, &target, &images) }
}

/// Where cargo builds.
fn target_folder(root: &Path) -> PathBuf {
    let set = std::env::var_os("CARGO_TARGET_DIR").filter(|folder| !folder.is_empty());
    root.join(set.unwrap_or_else(|| "target".into()))
}

/// Every kernel file for every architecture, into `folder`; prints what each kernel takes of a GPU.
fn compile(nvrtc: &Nvrtc, folder: &Path) -> Result<(), Error> {
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    };
    fs::create_dir_all(folder).map_err(io("make", folder))?;
    let jobs: Vec<(&str, &str)> = kernel_files()
        .flat_map(|file| Architecture::BUILT.map(|architecture| (file, architecture)))
        .collect();
    if jobs.is_empty() {
        return Err(Error::Cuda("there are no kernels in crates/bench-kernels/cuda".into()));
    }
    println!("{}: CUDA {}, {} files to compile", nvrtc.name(), nvrtc.version(), jobs.len());
    let start = Instant::now();
    let mut names = Vec::new();
    let (mut bytes, mut failed) = (0, Vec::new());
    for ((file, architecture), outcome) in jobs.iter().zip(compile_all(nvrtc, &jobs)) {
        let (image, log) = match outcome {
            Ok(compiled) => compiled,
            Err(problem) => {
                println!("error: {problem}");
                failed.push(format!("{file}.cu for {architecture}"));
                continue;
            }
        };
        let ending = if architecture.starts_with("sm_") { "cubin" } else { "ptx" };
        let name = format!("{file}.{architecture}.{ending}");
        println!("{name}: {} bytes", image.len());
        let kernels = cubin::kernels(&image);
        for kernel in &kernels {
            println!("  {}", kernel.line());
        }
        for problem in problems(file, architecture, &kernels, &log) {
            println!("error: {name}: {problem}");
            failed.push(format!("{file}.cu for {architecture}"));
        }
        bytes += image.len();
        write_changed(&folder.join(&name), &image)?;
        names.push(name);
    }
    if !failed.is_empty() {
        return Err(Error::Cuda(format!("kernels do not compile: {}", failed.join(", "))));
    }
    remove_others(folder, &names)?;
    println!("cuda: {} images, {bytes} bytes, in {:.1} s", names.len(), start.elapsed().as_secs_f64());
    Ok(())
}

/// What is wrong with an image that the compiler made all the same: products of warpgroups that wait for each other
/// (ptxas says so and goes on), or that are not where they belong.
fn problems(file: &str, architecture: &str, kernels: &[cubin::Kernel], log: &str) -> Vec<String> {
    let said = log.lines().filter(|line| line.contains("wgmma.mma_async"));
    let mut found: Vec<String> = said.map(|line| format!("the compiler says: {}", line.trim())).collect();
    if file != "tiles" || !architecture.starts_with("sm_") {
        return found;
    }
    for name in HOPPER_KERNELS {
        match kernels.iter().find(|kernel| kernel.name == name) {
            None if architecture == HOPPER => found.push(format!("{name} is missing")),
            Some(_) if architecture != HOPPER => found.push(format!("{name} is for {HOPPER} alone")),
            Some(kernel) if kernel.local_bytes > 0 => {
                found.push(format!("{name}: {} bytes of its registers are in memory", kernel.local_bytes));
            }
            _ => {}
        }
    }
    found
}

/// In the order of `jobs`, on all processors.
fn compile_all(nvrtc: &Nvrtc, jobs: &[(&str, &str)]) -> Vec<Result<(Vec<u8>, String), String>> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((file, architecture)) = jobs.get(at) else { break };
            let outcome = nvrtc.compile_with_log(file, architecture).map_err(|e| e.to_string());
            done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((at, outcome));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(jobs.len().max(1));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

/// Leaves a file alone that is the same already: what is built of it is then not built again.
fn write_changed(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    if fs::read(path).is_ok_and(|found| found == bytes) {
        return Ok(());
    }
    fs::write(path, bytes).map_err(|source| Error::Io { action: "write", path: path.to_owned(), source })
}

/// Images of kernels that are no more must not get into the binary.
fn remove_others(folder: &Path, names: &[String]) -> Result<(), Error> {
    let io = |source| Error::Io { action: "clean", path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        if !names.iter().any(|name| entry.file_name() == name.as_str()) {
            fs::remove_file(entry.path()).map_err(io)?;
        }
    }
    Ok(())
}

/// The binary with the images in it, stripped, in `target/cuda`.
fn build(root: &Path, target: &Path, images: &Path) -> Result<(), Error> {
    let images = images.canonicalize().map_err(|source| Error::Io {
        action: "find",
        path: images.to_owned(),
        source,
    })?;
    let mut cargo = ci::command(root, BUILD);
    cargo.env(IMAGES, images);
    run_step(&mut cargo, "cargo")?;
    let binary = target.join("cuda/ossbench");
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&binary).arg(target.join("release/ossbench"));
    run_step(&mut strip, "strip")?;
    let bytes = fs::metadata(&binary)
        .map_err(|source| Error::Io { action: "read", path: binary.clone(), source })?
        .len();
    let mut version = Command::new(&binary);
    version.arg("--version");
    run_step(&mut version, "ossbench --version")?;
    println!("cuda: {} has {:.1} MB and starts here", binary.display(), bytes as f64 / 1e6);
    if bytes > MOST_BYTES {
        return Err(Error::Cuda(format!("the binary has {bytes} bytes, expected at most {MOST_BYTES}")));
    }
    Ok(())
}

fn run_step(command: &mut Command, name: &'static str) -> Result<(), Error> {
    let text = format!("{command:?}");
    let status = command.status().map_err(|source| Error::Start { command: text.clone(), source })?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Step { step: name, status: status.to_string(), command: text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_warpgroups_are_for_hopper_alone_and_do_not_wait_for_each_other() {
        let kernel = |name: &str, local_bytes| cubin::Kernel {
            name: name.to_owned(),
            registers: 200,
            local_bytes,
            shared_bytes: 0,
        };
        let all = HOPPER_KERNELS.map(|name| kernel(name, 0));
        assert_eq!(problems("tiles", "sm_90a", &all, "some other word"), [""; 0]);
        assert_eq!(problems("panel", "sm_90a", &[], ""), [""; 0]);
        assert_eq!(problems("tiles", "sm_80", &[kernel("tiles_x", 8)], ""), [""; 0]);
        assert_eq!(problems("tiles", "compute_90", &[], ""), [""; 0]);
        let missing = problems("tiles", "sm_90a", &all[1..], "");
        assert_eq!(missing, [format!("{} is missing", HOPPER_KERNELS[0])]);
        assert_eq!(problems("tiles", "sm_80", &all, "").len(), 3);
        let spilled = problems("tiles", "sm_90a", &all.clone().map(|k| kernel(&k.name, 16)), "");
        assert!(spilled.len() == 3 && spilled[0].contains("16 bytes"), "{spilled:?}");
        let log =
            "ptxas info : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized";
        assert!(problems("panel", "sm_90a", &[], log)[0].contains("C7510"));
    }

    #[test]
    fn only_what_changed_is_written_and_what_is_no_more_goes() {
        let folder = std::env::temp_dir().join(format!("xtask-cuda-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.sm_80.cubin");
        write_changed(&path, b"code").unwrap();
        let first = fs::metadata(&path).unwrap().modified().unwrap();
        write_changed(&path, b"code").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), first);
        fs::write(folder.join("b.sm_80.cubin"), "old").unwrap();
        remove_others(&folder, &["a.sm_80.cubin".to_owned()]).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        assert_eq!(fs::read(&path).unwrap(), b"code");
        fs::remove_dir_all(&folder).unwrap();
    }
}
