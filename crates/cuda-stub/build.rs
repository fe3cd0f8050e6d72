//! Compiles the CUDA kernels for the host, with what `device.cuh` takes from the GPU emulated.

use std::path::Path;

const KERNELS: &str = "../bench-kernels/cuda";

fn main() {
    println!("cargo:rerun-if-changed={KERNELS}");
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        // A float operation is one rounding, as on the GPU where the source does not say otherwise.
        .flag("-ffp-contract=off")
        // Kernels look at the same bytes as words, halves and floats, as they may on the GPU.
        .flag("-fno-strict-aliasing")
        .flag("-Wno-unknown-pragmas")
        .flag("-xc++")
        .define("OSSBENCH_EMULATE", None)
        .include("src")
        .include(KERNELS)
        .file("src/emulate.cpp")
        .file("src/emulate_warpgroup.cpp")
        .file("src/faults.cu");
    let files = Path::new(KERNELS).read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    let mut kernels: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "cu")).collect();
    kernels.sort();
    build.files(kernels).link_lib_modifier("+whole-archive").compile("emulated_kernels");
}
