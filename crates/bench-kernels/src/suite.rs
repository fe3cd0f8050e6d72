//! Each kernel at the shapes of a model, beside what the machine's memory and arithmetic allow: data, no prints.
//!
//! Weights are random and as large together as the array that bandwidth is measured on, so that a product with one row
//! streams them. Whole steps of a model, and their targets, are not measured here.

mod cases;
mod data;
mod time;

use crate::bandwidth::{self, BandwidthError, HostBandwidth};
use crate::exec::Exec;
use crate::peaks::{self, Peak, PeakKind};
use crate::rows::IntPrecision;
use cases::Case;

/// Odd, so that a median is a repeat.
const ROOF_REPEATS: usize = 11;
/// Of one repeat of a peak.
const PEAK_SECONDS: f64 = 0.005;

/// What can go wrong beside a kernel's own errors, which belong to its line.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    #[error("no kernel has \"{filter}\" in its name: expected part of one of\n  {}", names.join("\n  "))]
    Filter { filter: String, names: Vec<String> },
    #[error(transparent)]
    Bandwidth(#[from] BandwidthError),
}

/// The sizes of a model that kernels see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shapes {
    pub hidden: usize,
    /// Of one expert, or of the MLP.
    pub intermediate: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Of sliding layers.
    pub window: Option<usize>,
    pub experts: Option<Experts>,
}

/// A mixture of experts, as MXFP4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    pub count: usize,
    pub per_token: usize,
}

#[derive(Debug, Clone)]
pub struct SuiteOptions {
    /// Repeats of a kernel end after this, though not before the third.
    pub seconds_per_kernel: f64,
    /// Of weights or caches that calls take in turn, so that none is found in a processor's cache.
    pub set_bytes: usize,
    /// Kernels whose name contains this; `None`: all.
    pub filter: Option<String>,
}

/// What this machine can do at most, measured just before.
#[derive(Debug, Clone, PartialEq)]
pub struct Roofs {
    pub read: HostBandwidth,
    /// Of the instructions that the variant has.
    pub peaks: Vec<Peak>,
}

impl Roofs {
    /// # Errors
    /// An array that is too small, or no memory for it.
    pub fn measure(exec: &Exec, set_bytes: usize) -> Result<Self, SuiteError> {
        let read = bandwidth::measure_on(exec.pool(), set_bytes, ROOF_REPEATS)?;
        let peak = |kind| peaks::measure(exec, kind, ROOF_REPEATS, PEAK_SECONDS);
        Ok(Self { read, peaks: PeakKind::ALL.into_iter().filter_map(peak).collect() })
    }

    fn ops_s(&self, kind: PeakKind) -> Option<f64> {
        self.peaks.iter().find(|p| p.kind == kind).map(Peak::median_ops_s)
    }
}

/// What a kernel multiplies with, and how often for one product of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arithmetic {
    pub kind: PeakKind,
    pub passes: u64,
}

impl Arithmetic {
    const F32: Self = Self { kind: PeakKind::F32, passes: 1 };

    fn of(precision: IntPrecision) -> Self {
        // Two bytes of an activation are two products.
        Self { kind: PeakKind::Int8, passes: if precision == IntPrecision::Int16 { 2 } else { 1 } }
    }
}

/// Which roof is nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    Read,
    Peak(PeakKind),
}

impl Bound {
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Peak(kind) => kind.name(),
        }
    }
}

/// One kernel at one size.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelTime {
    pub name: String,
    /// Of each repeat, shortest first.
    pub seconds: Vec<f64>,
    /// Weights or keys and values that a call reads and no cache can have; 0 where the data are small.
    pub streamed_bytes: u64,
    /// Products and sums of the model's arithmetic.
    pub operations: u64,
    pub arithmetic: Arithmetic,
}

impl KernelTime {
    pub fn median_s(&self) -> f64 {
        bandwidth::median(&self.seconds)
    }

    /// `None` where nothing is streamed.
    pub fn bytes_s(&self) -> Option<f64> {
        (self.streamed_bytes > 0).then(|| self.streamed_bytes as f64 / self.median_s())
    }

    pub fn ops_s(&self) -> f64 {
        self.operations as f64 / self.median_s()
    }

    /// The shortest possible time by the machine's medians over the time that was measured, and the roof that sets it.
    /// `None` if the kernel streams nothing and the variant has no instructions of this kind.
    pub fn of_limit(&self, roofs: &Roofs) -> Option<(f64, Bound)> {
        let read = self.streamed_bytes as f64 / roofs.read.read_median_bytes_s();
        let Arithmetic { kind, passes } = self.arithmetic;
        let compute = roofs.ops_s(kind).map(|ops_s| (self.operations * passes) as f64 / ops_s);
        match compute {
            Some(compute) if compute > read => Some((compute / self.median_s(), Bound::Peak(kind))),
            _ => (read > 0.0).then(|| (read / self.median_s(), Bound::Read)),
        }
    }
}

/// A kernel and how it went; an error where this variant has no kernel of that kind.
pub type Line = (String, Result<KernelTime, String>);

/// Names of all kernels, in the order in which they run.
pub fn names(shapes: &Shapes) -> Vec<String> {
    cases::all(shapes).into_iter().map(|case| case.name).collect()
}

/// Memory that measuring takes at most.
///
/// # Errors
/// A filter that no kernel's name contains.
pub fn needed_bytes(shapes: &Shapes, options: &SuiteOptions) -> Result<u64, SuiteError> {
    let cases = chosen(shapes, options)?;
    let largest = cases.iter().map(|case| case.bytes(shapes, options.set_bytes)).max();
    // Bandwidth is measured on two arrays.
    Ok(largest.unwrap_or(0).max(2 * options.set_bytes) as u64)
}

/// Measures the chosen kernels one after the other; `done` gets each when it is measured.
///
/// # Errors
/// A filter that no kernel's name contains.
pub fn run(
    exec: &Exec,
    shapes: &Shapes,
    options: &SuiteOptions,
    mut done: impl FnMut(&Line),
) -> Result<Vec<Line>, SuiteError> {
    let measure = |case: Case| {
        let line = (case.name.clone(), time::case(exec, shapes, &case, options).map_err(|e| e.to_string()));
        done(&line);
        line
    };
    Ok(chosen(shapes, options)?.into_iter().map(measure).collect())
}

fn chosen(shapes: &Shapes, options: &SuiteOptions) -> Result<Vec<Case>, SuiteError> {
    let Some(filter) = &options.filter else { return Ok(cases::all(shapes)) };
    let chosen: Vec<Case> =
        cases::all(shapes).into_iter().filter(|case| case.name.contains(filter.as_str())).collect();
    if chosen.is_empty() {
        return Err(SuiteError::Filter { filter: filter.clone(), names: names(shapes) });
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Variant;

    const TINY: Shapes = Shapes {
        hidden: 64,
        intermediate: 96,
        heads: 8,
        kv_heads: 2,
        head_dim: 32,
        window: Some(16),
        experts: Some(Experts { count: 4, per_token: 2 }),
    };

    fn options(filter: Option<&str>) -> SuiteOptions {
        SuiteOptions { seconds_per_kernel: 0.0, set_bytes: 1 << 16, filter: filter.map(str::to_owned) }
    }

    #[test]
    fn the_nearer_roof_is_the_limit() {
        let read = HostBandwidth { threads: 1, bytes: 1, read_bytes_s: vec![100.0], copy_bytes_s: vec![1.0] };
        let peaks = vec![Peak { kind: PeakKind::F32, ops_s: vec![10.0, 20.0, 30.0] }];
        let roofs = Roofs { read, peaks };
        let kernel = |streamed_bytes, operations, kind, passes| KernelTime {
            name: String::new(),
            seconds: vec![3.0, 4.0, 9.0],
            streamed_bytes,
            operations,
            arithmetic: Arithmetic { kind, passes },
        };
        let of = |k: KernelTime| k.of_limit(&roofs);
        assert_eq!(of(kernel(100, 10, PeakKind::F32, 1)), Some((0.25, Bound::Read)));
        assert_eq!(of(kernel(100, 40, PeakKind::F32, 1)), Some((0.5, Bound::Peak(PeakKind::F32))));
        assert_eq!(of(kernel(100, 20, PeakKind::F32, 2)), Some((0.5, Bound::Peak(PeakKind::F32))));
        assert_eq!(of(kernel(100, 1000, PeakKind::Int8, 1)), Some((0.25, Bound::Read)));
        assert_eq!(of(kernel(0, 1000, PeakKind::Int8, 1)), None);
        let kernel = kernel(0, 8, PeakKind::F32, 1);
        assert_eq!((kernel.bytes_s(), kernel.ops_s()), (None, 2.0));
    }

    #[test]
    fn a_filter_chooses_by_name_and_a_wrong_one_lists_the_names() {
        let all = names(&TINY);
        assert!(all.len() > 20 && all.iter().all(|n| n.is_ascii()));
        let mut unique = all.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), all.len());
        assert_eq!(chosen(&TINY, &options(Some("norm/"))).unwrap().len(), 2);
        let error = needed_bytes(&TINY, &options(Some("no such"))).unwrap_err().to_string();
        assert!(error.contains("\"no such\"") && all.iter().all(|name| error.contains(name)), "{error}");
        let dense = Shapes { experts: None, ..TINY };
        assert!(names(&dense).iter().all(|n| !n.contains("mxfp4") && !n.contains("router")));
    }

    #[test]
    fn every_kernel_is_measured_or_says_why_not() {
        let exec = Exec::serial(Variant::active());
        let mut seen = Vec::new();
        let lines = run(&exec, &TINY, &options(None), |line| seen.push(line.0.clone())).unwrap();
        assert_eq!(seen, names(&TINY));
        for (name, line) in &lines {
            match line {
                Ok(k) => assert!(k.seconds.len() >= 3 && k.median_s() > 0.0 && k.operations > 0, "{name}"),
                Err(why) => assert!(why.contains("expected"), "{name}: {why}"),
            }
        }
        for kind in
            ["product/mxfp4/f32", "product/bf16/f32", "attention", "norm", "quantize", "swiglu", "router"]
        {
            let of_kind = |line: &&Line| line.0.starts_with(kind);
            assert!(lines.iter().any(|l| of_kind(&l)), "{kind}");
            assert!(lines.iter().filter(of_kind).all(|(_, line)| line.is_ok()), "{kind}");
        }
        assert!(needed_bytes(&TINY, &options(None)).unwrap() >= 2 << 16);
    }
}
