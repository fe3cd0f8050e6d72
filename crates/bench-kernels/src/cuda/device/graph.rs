//! Launches recorded once and replayed as one.
//!
//! A capture has a queue of its own, to which all launches of its thread go, so that other threads may use
//! the device meanwhile. What allocates or waits cannot stand in a graph; the device refuses it before the
//! driver spoils the capture over it.

use std::cell::Cell;

use cudarc::driver::sys;

use super::context::Handle;
use super::{Device, Stream};
use crate::cuda::device_error::DeviceError;

/// A recorded sequence of launches. Device memory that it names must live as long as it is launched.
#[derive(Debug)]
pub struct Graph {
    device: Device,
    exec: Handle<sys::CUgraphExec_st>,
    nodes: usize,
}

impl Graph {
    /// Puts all of it into the device's queue.
    pub fn launch(&self) -> Result<(), DeviceError> {
        let stream = self.device.queue();
        // SAFETY: both are alive. Addresses in the launches are the matter of who recorded them.
        self.device.context().call("cuGraphLaunch", |d| unsafe { (d.graph_launch)(self.exec.0, stream.0) })
    }

    /// Launches, copies and settings of memory in it.
    pub fn nodes(&self) -> usize {
        self.nodes
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let exec = self.exec;
        // SAFETY: destroyed once; the driver keeps what it still runs.
        self.device.context().call_in_drop(|d| unsafe { (d.graph_exec_destroy)(exec.0) });
    }
}

/// A graph without the form in which it can be launched; destroyed when dropped.
struct Recorded<'d> {
    device: &'d Device,
    graph: Handle<sys::CUgraph_st>,
}

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        let graph = self.graph;
        // SAFETY: destroyed once.
        self.device.context().call_in_drop(|d| unsafe { (d.graph_destroy)(graph.0) });
    }
}

thread_local! {
    /// The context and the stream that launches of this thread are recorded in.
    static RECORDING: Cell<Option<(u64, Handle<sys::CUstream_st>)>> = const { Cell::new(None) };
}

/// The stream of the capture that this thread has begun on the context of this number.
pub(super) fn recording(context: u64) -> Option<Handle<sys::CUstream_st>> {
    let (number, stream) = RECORDING.try_with(Cell::get).ok().flatten()?;
    (number == context).then_some(stream)
}

/// Ends what this thread records, also when it unwinds.
struct Recording;

impl Recording {
    fn begin(context: u64, stream: Handle<sys::CUstream_st>) -> Self {
        RECORDING.set(Some((context, stream)));
        Self
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        RECORDING.set(None);
    }
}

/// Records what `work` launches on this thread.
pub(super) fn capture(device: &Device, work: impl FnOnce()) -> Result<Graph, DeviceError> {
    let number = device.context().number();
    if recording(number).is_some() {
        return Err(DeviceError::InCapture { what: "another capture" });
    }
    // Destroyed after the capture has ended, or with it where `work` panics.
    let stream = Stream::new(device.context())?;
    begin(device, &stream)?;
    let recording = Recording::begin(number, stream.handle);
    work();
    drop(recording);
    instantiate(&end(device, &stream)?)
}

fn begin(device: &Device, stream: &Stream) -> Result<(), DeviceError> {
    // Nothing is forbidden meanwhile: kernels may be looked up for the first time, buffers may be dropped.
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: the stream is alive and captures nothing yet.
    let begin = |d: &super::driver::Driver| unsafe { (d.capture_begin)(stream.handle.0, mode) };
    device.context().call("cuStreamBeginCapture", begin)
}

fn end<'d>(device: &'d Device, stream: &Stream) -> Result<Recorded<'d>, DeviceError> {
    let mut graph = std::ptr::null_mut();
    // SAFETY: the stream is alive and captures; a place for the result.
    let end = |d: &super::driver::Driver| unsafe { (d.capture_end)(stream.handle.0, &raw mut graph) };
    device.context().call("cuStreamEndCapture", end)?;
    Ok(Recorded { device, graph: Handle(graph) })
}

fn instantiate(recorded: &Recorded<'_>) -> Result<Graph, DeviceError> {
    let (device, graph) = (recorded.device, recorded.graph);
    let mut nodes = 0;
    device.context().call("cuGraphGetNodes", |d| {
        // SAFETY: the graph is alive; without a place for nodes only their number is told.
        unsafe { (d.graph_nodes)(graph.0, std::ptr::null_mut(), &raw mut nodes) }
    })?;
    let mut exec = std::ptr::null_mut();
    device.context().call("cuGraphInstantiateWithFlags", |d| {
        // SAFETY: the graph is alive; a place for the result; no flags.
        unsafe { (d.graph_instantiate)(&raw mut exec, graph.0, 0) }
    })?;
    let made = Graph { device: device.clone(), exec: Handle(exec), nodes };
    let stream = device.queue();
    // The first launch is then as quick as the others.
    // SAFETY: both are alive.
    device.context().call("cuGraphUpload", |d| unsafe { (d.graph_upload)(made.exec.0, stream.0) })?;
    Ok(made)
}
