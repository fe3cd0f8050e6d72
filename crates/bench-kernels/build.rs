//! Puts the CUDA sources, and what `cargo xtask cuda` compiled of them, into the binary.
//!
//! Nothing is compiled here: without `OSSBENCH_CUDA_IMAGES` there are no images, and kernels are compiled
//! where they run. Images are compressed, to a fifth of their size.

use std::fmt::Write;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use flate2::Compression;
use flate2::write::ZlibEncoder;

const SOURCES: &str = "cuda";
const IMAGES: &str = "OSSBENCH_CUDA_IMAGES";

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SOURCES}");
    println!("cargo:rerun-if-env-changed={IMAGES}");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    let mut text = String::new();
    list(&mut text, "SOURCES", "&[(&str, &str)]", "include_str", &files(Path::new(SOURCES), &["cu", "cuh"])?);
    let out = env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    let images = match env::var_os(IMAGES).filter(|folder| !folder.is_empty()) {
        Some(folder) => {
            let folder = PathBuf::from(folder);
            println!("cargo:rerun-if-changed={}", folder.display());
            compressed(&files(&folder, &["cubin", "ptx"])?, &out.join("images"))?
        }
        None => Vec::new(),
    };
    list(&mut text, "IMAGES", "&[(&str, &[u8])]", "include_bytes", &images);
    fs::write(out.join("cuda_files.rs"), text)
}

/// Files with one of the endings, absolute, sorted.
fn files(folder: &Path, endings: &[&str]) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in folder.read_dir()? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| endings.iter().any(|e| ending == *e)) {
            found.push(path.canonicalize()?);
        }
    }
    found.sort();
    Ok(found)
}

/// The files under their names in `folder`, each as one zlib stream.
fn compressed(paths: &[PathBuf], folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::create_dir_all(folder)?;
    let compress = |path: &PathBuf| {
        let to = folder.join(path.file_name().unwrap_or_default());
        let mut encoder = ZlibEncoder::new(fs::File::create(&to)?, Compression::best());
        encoder.write_all(&fs::read(path)?)?;
        encoder.finish()?;
        Ok(to)
    };
    paths.iter().map(compress).collect()
}

/// `static NAME: TYPE = &[("file", include_x!("path")), ..];`
fn list(text: &mut String, name: &str, kind: &str, include: &str, paths: &[PathBuf]) {
    let _ = writeln!(text, "static {name}: {kind} = &[");
    for path in paths {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let _ = writeln!(text, "    ({file:?}, {include}!({:?})),", path.to_string_lossy());
    }
    text.push_str("];\n");
}
