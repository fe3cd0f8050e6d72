//! Kernels of a GPU at the shapes of a model, beside what its memory and its tensor cores were measured to allow.
//!
//! Time is the device's, taken by a [`Clock`]; weights are random and many, so that no cache holds them. Whole steps of a
//! model are not measured here.

mod cases;
mod data;

use super::vectors::{
    CopyArgs, PEAK_FLOPS_OF_ROUND, PeakArgs, ReadArgs, copy_bandwidth, matrix_peak, peak_blocks,
    read_bandwidth, read_blocks,
};
use super::{CheckRow, Gpu, GpuError, Memory, attention, panel, route, tiles, vectors};
use crate::bandwidth::median;
use crate::suite::Shapes;
use cases::Case;

/// Repeats of a kernel are at least so many.
const LEAST_REPEATS: usize = 3;
const MOST_REPEATS: usize = 10_000;
/// Odd, so that a median is a repeat.
const ROOF_REPEATS: usize = 11;

/// Takes the time of work on a device.
pub trait Clock {
    /// Runs `work`, which only launches, once to warm up and then again and again; `go_on` gets the seconds of each run
    /// on the device and says whether there is another.
    ///
    /// # Errors
    /// Those of the launches; a device that fails.
    fn time(
        &self,
        work: &mut dyn FnMut() -> Result<(), GpuError>,
        go_on: &mut dyn FnMut(f64) -> bool,
    ) -> Result<(), GpuError>;
}

/// The device's own events around a graph of the work: launching by the host is no part of the time.
#[cfg(feature = "cuda")]
impl Clock for super::device::Device {
    fn time(
        &self,
        work: &mut dyn FnMut() -> Result<(), GpuError>,
        go_on: &mut dyn FnMut(f64) -> bool,
    ) -> Result<(), GpuError> {
        let mut launched = Ok(());
        let graph = self.capture(|| launched = work())?;
        launched?;
        graph.launch()?;
        loop {
            let begin = self.record()?;
            graph.launch()?;
            let end = self.record()?;
            end.synchronize()?;
            if !go_on(begin.elapsed_ms(&end)? / 1e3) {
                return Ok(());
            }
        }
    }
}

/// The checks of all kernels.
pub const CHECKS: [(&str, Check); 5] = [
    ("panel", panel::check),
    ("tiles", tiles::check),
    ("route", route::check),
    ("attention", attention::check),
    ("vectors", vectors::check),
];

/// Runs random cases of a group of kernels, chosen by a seed.
pub type Check = fn(&dyn Gpu, u64, usize) -> Result<Vec<CheckRow>, GpuError>;

#[derive(Debug, Clone)]
pub struct Options {
    /// Repeats of a kernel end after this much time on the device, though not before the third.
    pub seconds_per_kernel: f64,
    /// Of weights or caches that launches take in turn; several times what the device's cache holds.
    pub set_bytes: usize,
    /// Rounds of products in one launch that measures the peak.
    pub peak_rounds: u32,
    /// Tokens of a long prompt.
    pub prompt_tokens: usize,
    /// Keys that the next token of a sequence attends to.
    pub keys: [usize; 3],
    /// Products of prompts are measured twice, by `mma` and by `wgmma`.
    pub wgmma: bool,
    /// Kernels whose name contains this; `None`: all.
    pub filter: Option<String>,
}

impl Default for Options {
    /// For data-centre devices, whose caches have up to 126 MB; the peak takes some milliseconds.
    fn default() -> Self {
        Self {
            seconds_per_kernel: 0.5,
            set_bytes: 1 << 30,
            peak_rounds: 40_000,
            prompt_tokens: 2048,
            keys: [128, 2048, 32_768],
            wgmma: false,
            filter: None,
        }
    }
}

/// How fast a device reads and copies its own memory; of each repeat, slowest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Bandwidth {
    pub read_bytes_s: Vec<f64>,
    /// Bytes read and written.
    pub copy_bytes_s: Vec<f64>,
}

impl Bandwidth {
    /// On arrays of `bytes`, which are to be several times what the device's cache holds.
    ///
    /// # Errors
    /// No memory for two of them; a device that fails, or that did not read all.
    pub fn measure(gpu: &dyn Gpu, clock: &dyn Clock, bytes: usize) -> Result<Self, GpuError> {
        let bytes = bytes.next_multiple_of(256);
        let (from, to) = (Memory::zeroed(gpu, bytes)?, Memory::zeroed(gpu, bytes)?);
        let (count, sums) = (bytes as u64 / 16, Memory::zeroed(gpu, 4 * read_blocks(gpu))?);
        let args = ReadArgs { from: from.address(), out: sums.address(), count };
        let read = repeat(clock, 1, ROOF_REPEATS, 0.0, &mut || read_bandwidth(gpu, &args))?;
        let args = CopyArgs { from: from.address(), to: to.address(), count };
        let copy = repeat(clock, 1, ROOF_REPEATS, 0.0, &mut || copy_bandwidth(gpu, &args))?;
        Ok(Self { read_bytes_s: rates(bytes as f64, &read), copy_bytes_s: rates(2.0 * bytes as f64, &copy) })
    }

    pub fn read_median_bytes_s(&self) -> f64 {
        median(&self.read_bytes_s)
    }

    pub fn copy_median_bytes_s(&self) -> f64 {
        median(&self.copy_bytes_s)
    }
}

/// From times, shortest first, to rates, slowest first.
fn rates(amount: f64, seconds: &[f64]) -> Vec<f64> {
    seconds.iter().rev().map(|s| amount / s).collect()
}

/// What the device can do at most, measured just before; of each repeat, slowest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Roofs {
    pub memory: Bandwidth,
    /// bf16 products and sums by `mma`; Hopper's `wgmma` reaches more.
    pub matrix_ops_s: Vec<f64>,
}

impl Roofs {
    /// # Errors
    /// No memory for two arrays of `set_bytes`; a device that fails.
    pub fn measure(gpu: &dyn Gpu, clock: &dyn Clock, options: &Options) -> Result<Self, GpuError> {
        let memory = Bandwidth::measure(gpu, clock, options.set_bytes)?;
        let blocks = peak_blocks(gpu);
        let out = Memory::zeroed(gpu, blocks as usize * 8 * 4)?;
        let args = PeakArgs { out: out.address(), rounds: options.peak_rounds, reserved: 0 };
        let peak = repeat(clock, 1, ROOF_REPEATS, 0.0, &mut || matrix_peak(gpu, &args))?;
        let ops = (PEAK_FLOPS_OF_ROUND * u64::from(blocks) * u64::from(options.peak_rounds)) as f64;
        Ok(Self { memory, matrix_ops_s: rates(ops, &peak) })
    }

    pub fn matrix_median_ops_s(&self) -> f64 {
        median(&self.matrix_ops_s)
    }
}

/// Which roof is nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    Read,
    Matrix,
}

impl Bound {
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Matrix => "matrix",
        }
    }
}

/// One kernel at one size.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelTime {
    pub name: String,
    /// Rows, columns, tokens.
    pub shape: String,
    /// Of one launch, in each repeat, shortest first.
    pub seconds: Vec<f64>,
    /// Launches that one repeat is the mean of.
    pub launches: usize,
    /// Weights, keys and values that one launch must read.
    pub bytes: u64,
    /// Products and sums of the model's arithmetic.
    pub operations: u64,
}

impl KernelTime {
    pub fn median_s(&self) -> f64 {
        median(&self.seconds)
    }

    pub fn bytes_s(&self) -> f64 {
        self.bytes as f64 / self.median_s()
    }

    pub fn ops_s(&self) -> f64 {
        self.operations as f64 / self.median_s()
    }

    /// The shortest time that the measured roofs allow over the median, and the roof that sets it.
    pub fn of_limit(&self, roofs: &Roofs) -> (f64, Bound) {
        let read = self.bytes as f64 / roofs.memory.read_median_bytes_s();
        let matrix = self.operations as f64 / roofs.matrix_median_ops_s();
        let (limit, bound) = if matrix > read { (matrix, Bound::Matrix) } else { (read, Bound::Read) };
        (limit / self.median_s(), bound)
    }
}

/// A kernel by its name, and how it went.
pub type Line = (String, Result<KernelTime, String>);

/// The sizes of a model that kernels of a GPU see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuShapes {
    pub layers: Shapes,
    pub vocab: usize,
}

/// Names of all kernels, in the order in which they run.
pub fn names(shapes: &GpuShapes, options: &Options) -> Vec<String> {
    cases::all(shapes, options).iter().map(Case::name).collect()
}

/// Measures the kernels whose names contain the filter; `done` gets each when it is measured. One that fails does not
/// keep the next from being measured.
///
/// # Errors
/// A filter that no name contains.
pub fn run(
    gpu: &dyn Gpu,
    clock: &dyn Clock,
    shapes: &GpuShapes,
    options: &Options,
    mut done: impl FnMut(&Line),
) -> Result<Vec<Line>, crate::suite::SuiteError> {
    let chosen = |name: &str| options.filter.as_deref().is_none_or(|filter| name.contains(filter));
    let cases: Vec<Case> = cases::all(shapes, options).into_iter().filter(|c| chosen(&c.name())).collect();
    if let (true, Some(filter)) = (cases.is_empty(), options.filter.clone()) {
        return Err(crate::suite::SuiteError::Filter { filter, names: names(shapes, options) });
    }
    let measure = |case: Case| {
        let line = (case.name(), case.measure(gpu, clock, options).map_err(|e| e.to_string()));
        done(&line);
        line
    };
    Ok(cases.into_iter().map(measure).collect())
}

/// Seconds of one of `launches` in each repeat, shortest first: `least` repeats, and more for `seconds`.
fn repeat(
    clock: &dyn Clock,
    launches: usize,
    least: usize,
    seconds: f64,
    work: &mut dyn FnMut() -> Result<(), GpuError>,
) -> Result<Vec<f64>, GpuError> {
    let (mut all, mut sum) = (Vec::new(), 0.0);
    clock.time(work, &mut |took| {
        sum += took;
        all.push(took / launches as f64);
        all.len() < least || (sum < seconds && all.len() < MOST_REPEATS)
    })?;
    all.sort_by(f64::total_cmp);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearer_roof_is_the_limit() {
        let memory = Bandwidth { read_bytes_s: vec![90.0, 100.0, 110.0], copy_bytes_s: vec![1.0] };
        let roofs = Roofs { memory, matrix_ops_s: vec![10.0] };
        let kernel = |bytes, operations| KernelTime {
            name: String::new(),
            shape: String::new(),
            seconds: vec![3.0, 4.0, 9.0],
            launches: 1,
            bytes,
            operations,
        };
        assert_eq!(kernel(200, 10).of_limit(&roofs), (0.5, Bound::Read));
        assert_eq!(kernel(200, 40).of_limit(&roofs), (1.0, Bound::Matrix));
        assert_eq!((kernel(200, 40).bytes_s(), kernel(200, 40).ops_s()), (50.0, 10.0));
    }

    #[test]
    fn repeats_end_by_time_but_not_before_the_least() {
        struct Script;
        impl Clock for Script {
            fn time(
                &self,
                work: &mut dyn FnMut() -> Result<(), GpuError>,
                go_on: &mut dyn FnMut(f64) -> bool,
            ) -> Result<(), GpuError> {
                let mut seconds = 8.0;
                while go_on(seconds) {
                    work()?;
                    seconds /= 2.0;
                }
                Ok(())
            }
        }
        let run = |least, seconds| repeat(&Script, 2, least, seconds, &mut || Ok(())).unwrap();
        assert_eq!(run(3, 0.0), [1.0, 2.0, 4.0]);
        assert_eq!(run(1, 15.0), [0.5, 1.0, 2.0, 4.0]);
    }
}
