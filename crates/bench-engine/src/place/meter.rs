//! What a GPU tells of a model that runs on it: memory by the counters of the engine's own allocator, times by marks in
//! the device's queue.
//!
//! Counters are those of the whole process on that device; what a figure means is not decided here.

#[cfg(feature = "cuda")]
use bench_kernels::cuda::device::{Category, Device, Event, Usage};

use super::Place;
use crate::error::Result;

/// Bytes held now, and the most held at once since the peaks were reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counter {
    pub live_bytes: u64,
    pub peak_bytes: u64,
}

/// A GPU's memory by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceUsage {
    pub weights: Counter,
    pub kv_cache: Counter,
    /// What forward passes work in, kept by the model from batch to batch.
    pub activations: Counter,
    /// Tables and other small things.
    pub workspace: Counter,
    /// Its peak is that of one moment: not the sum of the others' unless they fall together.
    pub total: Counter,
}

/// Reads the counters of a GPU and marks its queue.
#[cfg(feature = "cuda")]
#[derive(Debug)]
pub struct DeviceMeter {
    device: Device,
    marks: Vec<Event>,
}

#[cfg(feature = "cuda")]
impl From<Usage> for Counter {
    fn from(usage: Usage) -> Self {
        Self { live_bytes: usage.live_bytes, peak_bytes: usage.peak_bytes }
    }
}

#[cfg(feature = "cuda")]
impl DeviceMeter {
    /// All memory that the device has.
    pub fn device_bytes(&self) -> u64 {
        self.device.info().total_bytes
    }

    /// What this process holds on the device.
    pub fn usage(&self) -> DeviceUsage {
        let of = |category| self.device.usage(category).into();
        DeviceUsage {
            weights: of(Category::Weights),
            kv_cache: of(Category::KvCache),
            activations: of(Category::Activations),
            workspace: of(Category::Workspace),
            total: self.device.total_usage().into(),
        }
    }

    /// Peaks are from now on those of what comes.
    pub fn reset_peaks(&self) {
        self.device.reset_peaks();
    }

    /// Puts a mark behind the work that was queued so far; waits for nothing.
    ///
    /// # Errors
    /// A device that fails.
    pub fn mark(&mut self) -> Result<()> {
        self.marks.push(self.device.record().map_err(crate::cuda::gpu_error)?);
        Ok(())
    }

    /// Milliseconds on the device's clock from each mark to the next, of which there are none left then. Waits for the
    /// last.
    ///
    /// # Errors
    /// A device that fails.
    pub fn times_ms(&mut self) -> Result<Vec<f64>> {
        let marks = std::mem::take(&mut self.marks);
        let Some(last) = marks.last() else { return Ok(Vec::new()) };
        last.synchronize().map_err(crate::cuda::gpu_error)?;
        let between = |pair: &[Event]| pair[0].elapsed_ms(&pair[1]).map_err(crate::cuda::gpu_error);
        marks.windows(2).map(between).collect()
    }
}

/// There are no GPUs in this build, and so no meter of one.
#[cfg(not(feature = "cuda"))]
#[derive(Debug)]
pub struct DeviceMeter {
    none: std::convert::Infallible,
}

#[cfg(not(feature = "cuda"))]
#[allow(missing_docs, clippy::missing_errors_doc)]
impl DeviceMeter {
    pub fn device_bytes(&self) -> u64 {
        match self.none {}
    }

    pub fn usage(&self) -> DeviceUsage {
        match self.none {}
    }

    pub fn reset_peaks(&self) {
        match self.none {}
    }

    pub fn mark(&mut self) -> Result<()> {
        match self.none {}
    }

    pub fn times_ms(&mut self) -> Result<Vec<f64>> {
        match self.none {}
    }
}

impl Place {
    /// A meter of the GPU; `None` for the host.
    pub fn meter(&self) -> Option<DeviceMeter> {
        match self {
            Self::Host => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => Some(DeviceMeter { device: device.clone(), marks: Vec::new() }),
        }
    }
}
