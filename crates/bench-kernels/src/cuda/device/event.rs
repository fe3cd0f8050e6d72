//! Marks in the queue of a device: when it reached them, and how long it took between two.

use std::sync::Arc;

use cudarc::driver::sys;

use super::context::{Context, Handle};
use super::driver::code;
use crate::cuda::device_error::DeviceError;

/// A place in the queue.
#[derive(Debug)]
pub struct Event {
    context: Arc<Context>,
    handle: Handle<sys::CUevent_st>,
}

impl Event {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, DeviceError> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: a place for the handle; flags 0: with times.
        context.call("cuEventCreate", |d| unsafe { (d.event_create)(&raw mut handle, 0) })?;
        Ok(Self { context: Arc::clone(context), handle: Handle(handle) })
    }

    pub(super) fn record(&self, stream: Handle<sys::CUstream_st>) -> Result<(), DeviceError> {
        // SAFETY: both are alive.
        self.context.call("cuEventRecord", |d| unsafe { (d.event_record)(self.handle.0, stream.0) })
    }

    /// Waits until the device has reached it.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        // SAFETY: the event is alive.
        self.context.call("cuEventSynchronize", |d| unsafe { (d.event_synchronize)(self.handle.0) })
    }

    /// Whether the device has reached it.
    pub fn is_reached(&self) -> Result<bool, DeviceError> {
        // SAFETY: the event is alive.
        match self.context.code("cuEventQuery", |d| unsafe { (d.event_query)(self.handle.0) })? {
            0 => Ok(true),
            code::NOT_READY => Ok(false),
            other => Err(self.context.error("cuEventQuery", other)),
        }
    }

    /// Milliseconds on the device's clock from this event to `later`; both must have been reached. The clock
    /// counts in steps of about half a microsecond.
    pub fn elapsed_ms(&self, later: &Self) -> Result<f64, DeviceError> {
        let mut ms = 0.0_f32;
        self.context.call("cuEventElapsedTime", |d| {
            // SAFETY: both are alive, and a place for the result.
            unsafe { (d.event_elapsed)(&raw mut ms, self.handle.0, later.handle.0) }
        })?;
        Ok(f64::from(ms))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let handle = self.handle;
        // SAFETY: destroyed once; the driver keeps it as long as the queue needs it.
        self.context.call_in_drop(|d| unsafe { (d.event_destroy)(handle.0) });
    }
}
