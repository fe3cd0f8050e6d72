//! Kernels of a GPU at the shapes of a model that is known by name, and their checks.
//!
//! The measuring and checking itself is in the kernels' crate. No model is built, and no weights are read.

use bench_kernels::cuda::suite;
pub use bench_kernels::cuda::suite::{Bandwidth, Bound, CHECKS, KernelTime, Line, Roofs};
use bench_kernels::cuda::tiles::can_have;
pub use bench_kernels::cuda::{CheckRow, Gpu};
use bench_kernels::suite::SuiteError;

use super::kernels::{KernelsError, shapes};
use crate::Error;
use crate::config::ModelConfig;
use crate::place::{Place, VALID};
use crate::preset;

/// What is measured.
#[derive(Debug, Clone)]
pub struct GpuOptions {
    /// A preset's name.
    pub model: String,
    pub seconds_per_kernel: f64,
    /// Part of the names of the kernels to measure; `None`: all.
    pub filter: Option<String>,
}

/// Measures the roofs of the GPU at `place` and then each kernel, by the products that were decided there; those of
/// prompts by all that it has. `done` is told the roofs and each kernel as soon as they are there.
///
/// # Errors
/// The host as place, an unknown preset or filter, a device that fails.
pub fn measure(
    place: &Place,
    options: &GpuOptions,
    mut done: impl FnMut(&Roofs, Option<&Line>),
) -> Result<(Roofs, Vec<Line>), KernelsError> {
    let shapes = gpu_shapes(&preset::config(&options.model)?);
    on_gpu(place, |gpu, clock| {
        let suite = suite::Options {
            seconds_per_kernel: options.seconds_per_kernel,
            wgmma: can_have(gpu),
            filter: options.filter.clone(),
            ..suite::Options::default()
        };
        let roofs = Roofs::measure(gpu, clock, &suite)?;
        done(&roofs, None);
        let lines = suite::run(gpu, clock, &shapes, &suite, |line| done(&roofs, Some(line)))?;
        Ok((roofs, lines))
    })
}

/// Bandwidth is measured on arrays of so many times a device's cache, of which nearly nothing can then be left from the
/// pass before.
const TIMES_CACHE: u64 = 8;
/// The cache of a device that does not tell.
const UNTOLD_CACHE: u64 = 128 << 20;

/// Measures how fast the GPU at `place` reads and copies its own memory; also the bytes of the arrays.
///
/// # Errors
/// The host as place, a device that fails or has no memory for two arrays.
pub fn bandwidth(place: &Place) -> Result<(Bandwidth, usize), Error> {
    match place {
        Place::Host => Err(Error::UnknownDevice { name: "cpu".to_owned(), valid: VALID }),
        #[cfg(feature = "cuda")]
        Place::Cuda(device) => {
            let bytes = (TIMES_CACHE * device.info().l2_bytes.unwrap_or(UNTOLD_CACHE)) as usize;
            let measured = Bandwidth::measure(device, device, bytes).map_err(Error::Device)?;
            Ok((measured, bytes))
        }
    }
}

/// Runs the checks of the groups whose names contain `filter`, with `cases` random shapes each; `done` gets the rows of
/// each group, or why it could not be run to its end, which does not keep the next from being run.
///
/// # Errors
/// The host as place, a filter that no group's name contains.
pub fn check(
    place: &Place,
    (seed, cases): (u64, usize),
    filter: Option<&str>,
    mut done: impl FnMut(&'static str, Result<Vec<CheckRow>, String>),
) -> Result<(), KernelsError> {
    let chosen = groups(filter)?;
    on_gpu(place, |gpu, _| {
        for (name, check) in &chosen {
            done(name, check(gpu, seed, cases).map_err(|e| e.to_string()));
        }
        Ok(())
    })
}

type Group = (&'static str, suite::Check);

fn groups(filter: Option<&str>) -> Result<Vec<Group>, KernelsError> {
    let chosen: Vec<Group> =
        CHECKS.into_iter().filter(|(name, _)| filter.is_none_or(|f| name.contains(f))).collect();
    if chosen.is_empty() {
        let names = CHECKS.iter().map(|(name, _)| (*name).to_owned()).collect();
        return Err(SuiteError::Filter { filter: filter.unwrap_or_default().to_owned(), names }.into());
    }
    Ok(chosen)
}

fn on_gpu<T>(
    place: &Place,
    work: impl FnOnce(&dyn Gpu, &dyn suite::Clock) -> Result<T, KernelsError>,
) -> Result<T, KernelsError> {
    match place {
        Place::Host => {
            drop(work);
            Err(Error::UnknownDevice { name: "cpu".to_owned(), valid: VALID }.into())
        }
        #[cfg(feature = "cuda")]
        Place::Cuda(gpu) => work(gpu, gpu),
    }
}

fn gpu_shapes(config: &ModelConfig) -> suite::GpuShapes {
    suite::GpuShapes { layers: shapes(config), vocab: config.vocab_size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_chosen_by_name() {
        assert_eq!(groups(None).unwrap().len(), CHECKS.len());
        assert_eq!(groups(Some("tile")).unwrap()[0].0, "tiles");
        let error = groups(Some("no such")).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains("attention"), "{error}");
    }

    #[test]
    fn the_host_is_no_gpu() {
        let options = GpuOptions { model: "gpt-oss-20b".to_owned(), seconds_per_kernel: 0.0, filter: None };
        let error = measure(&Place::Host, &options, |_, _| {}).unwrap_err().to_string();
        assert!(error.contains("\"cpu\"") && error.contains("cuda"), "{error}");
        assert_eq!(gpu_shapes(&preset::config("gpt-oss-20b").unwrap()).vocab, 201_088);
    }
}
