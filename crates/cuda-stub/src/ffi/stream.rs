//! Streams, events and graphs.

use std::ffi::{c_int, c_uint, c_ulonglong, c_void};
use std::time::Instant;

use super::{Handle, give, give_if_wanted};
use crate::driver::{Event, Needs, Op, call};
use crate::script::code;

fn create_stream(symbol: &str, out: *mut Handle) -> u32 {
    call(symbol, Needs::Context, |driver, _| {
        let stream = driver.handle();
        driver.streams.insert(stream, None);
        give(out, stream as Handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreate(out: *mut Handle, _flags: c_uint) -> u32 {
    create_stream("cuStreamCreate", out)
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreateWithPriority(out: *mut Handle, _flags: c_uint, _priority: c_int) -> u32 {
    create_stream("cuStreamCreateWithPriority", out)
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> u32 {
    call("cuCtxGetStreamPriorityRange", Needs::Context, |_, _| {
        give_if_wanted(least, 0);
        give_if_wanted(greatest, -5);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: Handle) -> u32 {
    call("cuStreamDestroy_v2", Needs::Context, |driver, _| {
        driver.streams.remove(&(stream as usize)).map(|_| ()).ok_or(code::INVALID_HANDLE)
    })
}

/// A question about a stream that must not be asked while it captures.
fn wait(symbol: &str, stream: Handle) -> u32 {
    call(symbol, Needs::NoCapture, |driver, _| match driver.capturing(stream as usize)? {
        Some(_) => Err(code::STREAM_CAPTURE_UNSUPPORTED),
        None => Ok(()),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: Handle) -> u32 {
    wait("cuStreamSynchronize", stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(stream: Handle) -> u32 {
    wait("cuStreamQuery", stream)
}

/// Joins `stream` to the capture that the event was recorded in; all else has happened when it is submitted.
#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: c_uint) -> u32 {
    call("cuStreamWaitEvent", Needs::Context, |driver, _| {
        driver.capturing(stream as usize)?;
        if let Event::Captured(origin) = driver.events.get(&(event as usize)).ok_or(code::INVALID_HANDLE)? {
            let origin = *origin;
            driver.streams.insert(stream as usize, Some(origin));
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamBeginCapture_v2(stream: Handle, mode: c_uint) -> u32 {
    call("cuStreamBeginCapture_v2", Needs::Context, |driver, _| driver.begin_capture(stream as usize, mode))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamEndCapture(stream: Handle, out: *mut Handle) -> u32 {
    call("cuStreamEndCapture", Needs::Context, |driver, _| {
        give_if_wanted(out, std::ptr::null_mut());
        give(out, driver.end_capture(stream as usize)? as Handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamIsCapturing(stream: Handle, out: *mut c_uint) -> u32 {
    call("cuStreamIsCapturing", Needs::Context, |driver, _| {
        give(out, driver.capture_status(stream as usize)?)
    })
}

/// Status and number of the capture; its nodes are not shown.
#[unsafe(no_mangle)]
extern "C" fn cuStreamGetCaptureInfo_v2(
    stream: Handle,
    status: *mut c_uint,
    id: *mut u64,
    graph: *mut Handle,
    dependencies: *mut *const Handle,
    count: *mut usize,
) -> u32 {
    call("cuStreamGetCaptureInfo_v2", Needs::Context, |driver, _| {
        give(status, driver.capture_status(stream as usize)?)?;
        give_if_wanted(id, driver.capturing(stream as usize)?.unwrap_or(0) as u64);
        give_if_wanted(graph, std::ptr::null_mut());
        give_if_wanted(dependencies, std::ptr::null());
        give_if_wanted(count, 0);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuThreadExchangeStreamCaptureMode(mode: *mut c_uint) -> u32 {
    // What a thread may do is decided by the mode of the capture alone: global for each thread before.
    call("cuThreadExchangeStreamCaptureMode", Needs::Init, |_, _| give(mode, 0))
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphInstantiateWithFlags(out: *mut Handle, graph: Handle, _flags: c_ulonglong) -> u32 {
    call("cuGraphInstantiateWithFlags", Needs::Context, |driver, _| {
        let ops = driver.graphs.get(&(graph as usize)).ok_or(code::INVALID_HANDLE)?.clone();
        let exec = driver.handle();
        driver.graphs.insert(exec, ops);
        give(out, exec as Handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphUpload(exec: Handle, _stream: Handle) -> u32 {
    call("cuGraphUpload", Needs::Context, |driver, _| {
        driver.graphs.get(&(exec as usize)).map(|_| ()).ok_or(code::INVALID_HANDLE)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphLaunch(exec: Handle, stream: Handle) -> u32 {
    call("cuGraphLaunch", Needs::Context, |driver, _| match driver.capturing(stream as usize)? {
        Some(_) => Err(code::STREAM_CAPTURE_UNSUPPORTED),
        None => driver.run_graph(exec as usize),
    })
}

/// The number of nodes; the nodes themselves have no handles.
#[unsafe(no_mangle)]
extern "C" fn cuGraphGetNodes(graph: Handle, nodes: *mut Handle, count: *mut usize) -> u32 {
    call("cuGraphGetNodes", Needs::Context, |driver, _| {
        let ops = driver.graphs.get(&(graph as usize)).ok_or(code::INVALID_HANDLE)?;
        if nodes.is_null() { give(count, ops.len()) } else { Err(code::NOT_SUPPORTED) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphDestroy(graph: Handle) -> u32 {
    call("cuGraphDestroy", Needs::Context, |driver, _| {
        driver.graphs.remove(&(graph as usize)).map(|_| ()).ok_or(code::INVALID_HANDLE)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphExecDestroy(exec: Handle) -> u32 {
    call("cuGraphExecDestroy", Needs::Context, |driver, _| {
        driver.graphs.remove(&(exec as usize)).map(|_| ()).ok_or(code::INVALID_HANDLE)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventCreate(out: *mut Handle, _flags: c_uint) -> u32 {
    call("cuEventCreate", Needs::Context, |driver, _| {
        let event = driver.handle();
        driver.events.insert(event, Event::New);
        give(out, event as Handle)
    })
}

/// Records now; in a stream that captures, as a part of the graph if `external`, else as a place in it.
fn record(symbol: &str, event: Handle, stream: Handle, external: bool) -> u32 {
    call(symbol, Needs::Context, |driver, _| {
        let (event, stream) = (event as usize, stream as usize);
        if !driver.events.contains_key(&event) {
            return Err(code::INVALID_HANDLE);
        }
        match driver.capturing(stream)? {
            Some(origin) if !external => {
                driver.events.insert(event, Event::Captured(origin));
                Ok(())
            }
            _ => driver.submit(stream, Op::Record { event }),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> u32 {
    record("cuEventRecord", event, stream, false)
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecordWithFlags(event: Handle, stream: Handle, flags: c_uint) -> u32 {
    record("cuEventRecordWithFlags", event, stream, flags & 1 == 1)
}

/// Whether what an event waits for has happened: always, unless it is a place in a graph.
fn happened(symbol: &str, needs: Needs, event: Handle) -> u32 {
    call(symbol, needs, |driver, _| match driver.events.get(&(event as usize)) {
        None => Err(code::INVALID_HANDLE),
        Some(Event::Captured(_)) => Err(code::CAPTURED_EVENT),
        Some(_) => Ok(()),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: Handle) -> u32 {
    happened("cuEventSynchronize", Needs::Context, event)
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: Handle) -> u32 {
    happened("cuEventQuery", Needs::NoCapture, event)
}

/// Milliseconds of the emulation, which say nothing about a device.
#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime(out: *mut f32, start: Handle, end: Handle) -> u32 {
    call("cuEventElapsedTime", Needs::Context, |driver, _| {
        let at = |event: Handle| -> Result<Instant, u32> {
            match driver.events.get(&(event as usize)) {
                Some(Event::At(at)) => Ok(*at),
                _ => Err(code::INVALID_HANDLE),
            }
        };
        let (start, end) = (at(start)?, at(end)?);
        let forward = end.saturating_duration_since(start).as_secs_f32();
        give(out, (forward - start.saturating_duration_since(end).as_secs_f32()) * 1e3)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: Handle) -> u32 {
    call("cuEventDestroy_v2", Needs::Context, |driver, _| {
        driver.events.remove(&(event as usize)).map(|_| ()).ok_or(code::INVALID_HANDLE)
    })
}

/// Calls `function` at once, without the state being locked.
#[unsafe(no_mangle)]
extern "C" fn cuLaunchHostFunc(
    stream: Handle,
    function: Option<extern "C" fn(*mut c_void)>,
    data: *mut c_void,
) -> u32 {
    let code =
        call("cuLaunchHostFunc", Needs::Context, |driver, _| match driver.capturing(stream as usize)? {
            Some(_) => Err(code::NOT_SUPPORTED),
            None if function.is_none() => Err(code::INVALID_VALUE),
            None => Ok(()),
        });
    if let (code::SUCCESS, Some(function)) = (code, function) {
        function(data);
    }
    code
}
