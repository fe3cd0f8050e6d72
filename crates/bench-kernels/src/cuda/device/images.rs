//! Which compiled kernels a device gets: those in the binary, those of a folder, or those that NVRTC makes of
//! the sources in the binary.
//!
//! An image is named `KERNELS.ARCHITECTURE.cubin` or `.ptx`, as `panel.sm_90a.cubin`. Nothing here calls the
//! driver.

use std::borrow::Cow;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::ZlibDecoder;
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::cache;
use super::nvrtc::{Nvrtc, NvrtcError};
use crate::cuda::device_error::DeviceError;

mod embedded {
    include!(concat!(env!("OUT_DIR"), "/cuda_files.rs"));

    pub(super) fn sources() -> &'static [(&'static str, &'static str)] {
        SOURCES
    }

    /// Each as one zlib stream.
    pub(super) fn images() -> &'static [(&'static str, &'static [u8])] {
        IMAGES
    }
}

/// A folder of images that is used instead of those in the binary.
const FOLDER: &str = "OSSBENCH_CUDA_IMAGES";

/// Compute capability: major, minor.
type Capability = (u32, u32);

/// What code was compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Architecture {
    /// PTX, which the driver compiles, for this capability and all later ones; else machine code, for the
    /// same major version from this minor one on.
    pub ptx: bool,
    pub capability: (u32, u32),
    /// With what only this very capability has (`sm_90a`).
    pub specific: bool,
}

impl Architecture {
    /// Those that are compiled in advance. A GPU newer than all of them gets the PTX.
    pub const BUILT: [&str; 3] = ["sm_80", "sm_90a", "compute_90"];

    /// Reads `sm_90a` or `compute_90`.
    pub fn parse(name: &str) -> Option<Self> {
        let (ptx, number) = match name.strip_prefix("compute_") {
            Some(rest) => (true, rest),
            None => (false, name.strip_prefix("sm_")?),
        };
        let specific = number.ends_with('a');
        let number: u32 = number.strip_suffix('a').unwrap_or(number).parse().ok()?;
        Some(Self { ptx, capability: (number / 10, number % 10), specific })
    }

    /// Whether a device of this capability can run it.
    pub fn runs_on(self, capability: (u32, u32)) -> bool {
        if self.specific {
            return self.capability == capability;
        }
        let reaches = self.capability <= capability;
        reaches && (self.ptx || self.capability.0 == capability.0)
    }
}

/// Compiled kernels of one source file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    /// The source's name without its ending.
    pub(super) kernels: String,
    pub(super) architecture: Architecture,
    pub(super) bytes: Cow<'static, [u8]>,
    /// For errors.
    pub(super) file: String,
}

impl Image {
    fn new(file: &str, bytes: Cow<'static, [u8]>) -> Option<Self> {
        let (rest, ending) = file.rsplit_once('.')?;
        let (kernels, architecture) = rest.rsplit_once('.')?;
        let architecture = Architecture::parse(architecture)?;
        let right = ending == if architecture.ptx { "ptx" } else { "cubin" };
        right.then(|| Self { kernels: kernels.to_owned(), architecture, bytes, file: file.to_owned() })
    }
}

/// The files that kernels are compiled from, in the binary.
pub fn sources() -> &'static [(&'static str, &'static str)] {
    embedded::sources()
}

/// Names of the sources that hold kernels, without their ending.
pub fn kernel_files() -> impl Iterator<Item = &'static str> {
    sources().iter().filter_map(|(file, _)| file.strip_suffix(".cu"))
}

/// Images for a device: one for each source.
pub(super) fn find(
    device: &str,
    capability: Capability,
    folder: Option<&Path>,
) -> Result<Vec<Image>, DeviceError> {
    let set = || std::env::var_os(FOLDER).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    if let Some(folder) = folder.map(Path::to_owned).or_else(set) {
        return of_folder(device, capability, &folder);
    }
    let embedded: Vec<Image> = embedded::images()
        .iter()
        .filter_map(|(file, bytes)| Image::new(file, Cow::Borrowed(bytes)))
        .collect();
    let held = held(&embedded);
    let names: Vec<&str> = kernel_files().collect();
    if let Some(chosen) = choose(capability, embedded, &names) {
        return chosen.into_iter().map(|image| inflated(device, image)).collect();
    }
    compile(capability).map_err(|problem| DeviceError::NoKernels {
        device: device.to_owned(),
        capability,
        embedded: held,
        nvrtc: problem.to_string(),
    })
}

/// An image of the binary as it was compiled.
fn inflated(device: &str, image: Image) -> Result<Image, DeviceError> {
    let mut bytes = Vec::new();
    match ZlibDecoder::new(&*image.bytes).read_to_end(&mut bytes) {
        Ok(_) => Ok(Image { bytes: bytes.into(), ..image }),
        Err(error) => Err(DeviceError::Image {
            device: device.to_owned(),
            image: image.file,
            problem: error.to_string(),
            help: "the binary is damaged: copy or build it again",
        }),
    }
}

/// Everything of the folder that runs on the device; all kernels are looked up in all of it.
fn of_folder(device: &str, capability: Capability, folder: &Path) -> Result<Vec<Image>, DeviceError> {
    let none = |problem: String| DeviceError::Image {
        device: device.to_owned(),
        image: format!("of {}", folder.display()),
        problem,
        help: "`cargo xtask cuda --check` makes such a folder; without OSSBENCH_CUDA_IMAGES kernels come \
               from the binary",
    };
    let mut images = Vec::new();
    for entry in folder.read_dir().map_err(|e| none(e.to_string()))? {
        let path = entry.map_err(|e| none(e.to_string()))?.path();
        let Some(file) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if let Some(mut image) = Image::new(file, Cow::Borrowed(&[])) {
            image.bytes = std::fs::read(&path).map_err(|e| none(e.to_string()))?.into();
            images.push(image);
        }
    }
    let held = held(&images);
    let mut names: Vec<String> = images.iter().map(|image| image.kernels.clone()).collect();
    names.sort();
    names.dedup();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let chosen = choose(capability, images, &names).filter(|chosen| !chosen.is_empty());
    chosen.ok_or_else(|| none(format!("it holds {held}, none of it for every kernel")))
}

/// The best image of each name: machine code before PTX, then the newest. `None` if a name has none.
fn choose(capability: Capability, images: Vec<Image>, names: &[&str]) -> Option<Vec<Image>> {
    let mut best: Vec<Option<Image>> = vec![None; names.len()];
    for image in images.into_iter().filter(|image| image.architecture.runs_on(capability)) {
        let Some(at) = names.iter().position(|name| *name == image.kernels) else { continue };
        let rank = |image: &Image| {
            let Architecture { ptx, capability, specific } = image.architecture;
            (!ptx, capability, specific)
        };
        if best[at].as_ref().is_none_or(|held| rank(held) < rank(&image)) {
            best[at] = Some(image);
        }
    }
    best.into_iter().collect()
}

/// What there is, for errors: `no compiled kernels` or `sm_80, compute_90`.
fn held(images: &[Image]) -> String {
    let mut names: Vec<String> =
        images.iter().map(|image| image.file.rsplit('.').nth(1).unwrap_or_default().to_owned()).collect();
    names.sort();
    names.dedup();
    if names.is_empty() { "no compiled kernels".to_owned() } else { names.join(", ") }
}

/// The sources compiled by the machine's NVRTC, from the cache where they were compiled before.
fn compile(capability: Capability) -> Result<Vec<Image>, NvrtcError> {
    let nvrtc = Nvrtc::find()?;
    let target = target(capability, &nvrtc.capabilities()?).ok_or_else(|| NvrtcError::TooOld {
        library: nvrtc.name().to_owned(),
        version: nvrtc.version(),
        capability,
    })?;
    let folder = cache::folder().map(|folder| folder.join(cache::key(&target, nvrtc.version(), sources())));
    let kind = if target.starts_with("sm_") { "cubin" } else { "ptx" };
    let names: Vec<&str> = kernel_files().collect();
    let make = |kernels: &&str| {
        let file = format!("{kernels}.{target}.{kind}");
        let path = folder.as_ref().map(|folder| folder.join(&file));
        let bytes = if let Some(known) = path.as_ref().and_then(|path| cache::read(path)) {
            known
        } else {
            let bytes = nvrtc.compile(kernels, &target)?;
            // Without a place to keep it, it is compiled again the next time.
            let _ = path.map(|path| cache::write(&path, &bytes));
            bytes
        };
        Ok(Image::new(&file, bytes.into()))
    };
    // Minutes of one processor's time.
    let images: Result<Vec<Option<Image>>, NvrtcError> = names.par_iter().map(make).collect();
    Ok(images?.into_iter().flatten().collect())
}

/// What NVRTC is to compile for: the device itself where it knows it, else PTX of the newest before it.
fn target(capability: Capability, known: &[Capability]) -> Option<String> {
    let (major, minor) = capability;
    if known.contains(&capability) {
        let specific = if capability == (9, 0) { "a" } else { "" };
        return Some(format!("sm_{major}{minor}{specific}"));
    }
    let oldest = crate::cuda::device_error::OLDEST_CAPABILITY;
    let before = known.iter().filter(|known| **known < capability && **known >= oldest).max()?;
    Some(format!("compute_{}{}", before.0, before.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [&str; 4] = ["a.sm_80.cubin", "a.sm_90a.cubin", "a.compute_80.ptx", "a.compute_90.ptx"];

    fn chosen(capability: Capability, files: &[&str]) -> Option<String> {
        let images = files.iter().filter_map(|file| Image::new(file, Cow::Borrowed(b""))).collect();
        choose(capability, images, &["a"]).map(|images| images[0].file.clone())
    }

    #[test]
    fn each_device_gets_machine_code_of_its_own_or_the_newest_ptx() {
        for (capability, expected) in [
            ((8, 0), "a.sm_80.cubin"),
            ((8, 6), "a.sm_80.cubin"),
            ((8, 9), "a.sm_80.cubin"),
            ((9, 0), "a.sm_90a.cubin"),
            ((10, 0), "a.compute_90.ptx"),
            ((12, 0), "a.compute_90.ptx"),
        ] {
            assert_eq!(chosen(capability, &ALL).as_deref(), Some(expected), "{capability:?}");
        }
        assert_eq!(chosen((7, 5), &ALL), None);
        assert_eq!(chosen((9, 0), &ALL[2..]).as_deref(), Some("a.compute_90.ptx"));
        assert_eq!(chosen((9, 0), &ALL[2..3]).as_deref(), Some("a.compute_80.ptx"));
        // Machine code of Hopper alone does not run elsewhere.
        assert_eq!(chosen((10, 0), &ALL[..2]), None);
    }

    #[test]
    fn a_kernel_without_an_image_is_not_passed_over() {
        let images = || ALL.iter().filter_map(|file| Image::new(file, Cow::Borrowed(b""))).collect();
        assert!(choose((9, 0), images(), &["a", "b"]).is_none());
        assert_eq!(choose((9, 0), images(), &[]).map(|images| images.len()), Some(0));
    }

    #[test]
    fn names_of_images_are_read() {
        assert!(Image::new("a.sm_90a.cubin", Cow::Borrowed(b"")).is_some());
        for wrong in ["a.sm_90a.ptx", "a.compute_90.cubin", "a.cubin", "a.sm_x.cubin", "a.sm_90a.cubin.old"] {
            assert!(Image::new(wrong, Cow::Borrowed(b"")).is_none(), "{wrong}");
        }
        let newest = Architecture::parse("sm_120").unwrap();
        assert_eq!((newest.capability, newest.specific, newest.ptx), ((12, 0), false, false));
        assert!(Architecture::BUILT.iter().all(|name| Architecture::parse(name).is_some()));
    }

    #[test]
    fn images_of_the_binary_are_inflated_and_damage_is_told() {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut encoder, &[7; 10_000]).unwrap();
        let mut packed = encoder.finish().unwrap();
        assert!(packed.len() < 1000);
        let image = |bytes: &[u8]| Image::new("a.sm_80.cubin", bytes.to_vec().into()).unwrap();
        assert_eq!(*inflated("cuda:0", image(&packed)).unwrap().bytes, [7; 10_000]);
        packed.truncate(packed.len() / 2);
        let error = inflated("cuda:0", image(&packed)).unwrap_err().to_string();
        assert!(error.contains("a.sm_80.cubin") && error.contains("damaged"), "{error}");
    }

    #[test]
    fn nvrtc_compiles_for_the_device_or_for_the_newest_before_it() {
        let known = [(7, 5), (8, 0), (8, 6), (9, 0)];
        assert_eq!(target((9, 0), &known).as_deref(), Some("sm_90a"));
        assert_eq!(target((8, 6), &known).as_deref(), Some("sm_86"));
        assert_eq!(target((8, 9), &known).as_deref(), Some("compute_86"));
        assert_eq!(target((12, 0), &known).as_deref(), Some("compute_90"));
        assert_eq!(target((8, 0), &[(7, 5)]), None);
    }

    #[test]
    fn the_sources_are_in_the_binary() {
        assert!(sources().iter().any(|(file, text)| *file == "device.cuh" && text.contains("mma_bf16")));
    }
}
