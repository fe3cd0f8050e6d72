//! The state of one loaded instance: contexts, memory, what streams capture, and which error all calls
//! return.
//!
//! Work runs when it is submitted. An error of a kernel shows as on a device: the launch succeeds, every
//! later call fails.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Instant;

use crate::emulate::{self, Kernel};
use crate::install::SCRIPT_VARIABLE;
use crate::memory::Memory;
use crate::script::{Device, Report, Script, code};

/// Handles of streams that always exist: the default one and its two special names.
const DEFAULT_STREAMS: usize = 2;
const RELAXED: u32 = 2;
const THREAD_LOCAL: u32 = 1;

/// A function of a module.
#[derive(Debug, Clone)]
pub(crate) struct Function {
    pub(crate) name: Arc<str>,
    pub(crate) kernel: Kernel,
    /// Dynamic shared memory that it may be launched with.
    pub(crate) max_shared: u32,
}

/// Something that a stream does.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Launch {
        name: Arc<str>,
        kernel: Kernel,
        grid: [u32; 3],
        block: [u32; 3],
        shared: usize,
        args: Vec<u8>,
    },
    /// `device`: whether `to` and `from` must be memory of this library.
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
        device: [bool; 2],
    },
    Fill {
        at: u64,
        pattern: Vec<u8>,
        count: usize,
    },
    Record {
        event: usize,
    },
}

struct Capture {
    ops: Vec<Op>,
    mode: u32,
    thread: ThreadId,
    invalid: bool,
}

pub(crate) enum Event {
    New,
    At(Instant),
    /// Recorded in a stream that captures: of this stream's capture.
    Captured(usize),
}

pub(crate) struct Driver {
    pub(crate) script: Script,
    pub(crate) initialized: bool,
    calls: BTreeMap<String, u64>,
    kernels: BTreeMap<String, u64>,
    sticky: u32,
    pub(crate) message: String,
    pub(crate) memory: Memory,
    /// How often the primary context of a device is held.
    pub(crate) contexts: BTreeMap<usize, u32>,
    pub(crate) functions: BTreeMap<usize, Function>,
    pub(crate) modules: BTreeSet<usize>,
    /// The stream whose capture each takes part in.
    pub(crate) streams: BTreeMap<usize, Option<usize>>,
    captures: BTreeMap<usize, Capture>,
    pub(crate) events: BTreeMap<usize, Event>,
    pub(crate) graphs: BTreeMap<usize, Arc<[Op]>>,
    last_handle: usize,
}

static DRIVER: LazyLock<Mutex<Driver>> = LazyLock::new(|| Mutex::new(Driver::new(read_script())));

thread_local! {
    /// Devices whose contexts this thread has pushed; `None` is no context.
    static CURRENT: RefCell<Vec<Option<usize>>> = const { RefCell::new(Vec::new()) };
}

/// What a call needs before it can do anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    Init,
    /// A context, and no error before.
    Context,
    /// The same, while nothing is captured that the call would break.
    NoCapture,
}

pub(crate) fn lock() -> MutexGuard<'static, Driver> {
    DRIVER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does `work` as the driver's function `symbol`, with the number of the current device (0 where none is
/// needed), unless the script lets it fail. Nothing unwinds out of it.
pub(crate) fn call(
    symbol: &str,
    needs: Needs,
    work: impl FnOnce(&mut Driver, usize) -> Result<(), u32>,
) -> u32 {
    let done = catch_unwind(AssertUnwindSafe(|| {
        let mut driver = lock();
        let device = driver.begin(symbol, needs)?;
        work(&mut driver, device)
    }));
    match done {
        Ok(Ok(())) => code::SUCCESS,
        Ok(Err(code)) => code,
        Err(_) => code::UNKNOWN,
    }
}

/// The device of this thread's context.
pub(crate) fn current() -> Option<usize> {
    CURRENT.with_borrow(|stack| stack.last().copied().flatten())
}

pub(crate) fn push_current(device: Option<usize>) {
    CURRENT.with_borrow_mut(|stack| stack.push(device));
}

pub(crate) fn pop_current() -> Option<usize> {
    CURRENT.with_borrow_mut(Vec::pop).flatten()
}

impl Driver {
    pub(crate) fn new(script: Script) -> Self {
        Self {
            script,
            initialized: false,
            calls: BTreeMap::new(),
            kernels: BTreeMap::new(),
            sticky: code::SUCCESS,
            message: String::new(),
            memory: Memory::default(),
            contexts: BTreeMap::new(),
            functions: BTreeMap::new(),
            modules: BTreeSet::new(),
            streams: (0..=DEFAULT_STREAMS).map(|stream| (stream, None)).collect(),
            captures: BTreeMap::new(),
            events: BTreeMap::new(),
            graphs: BTreeMap::new(),
            last_handle: 0x1000,
        }
    }

    pub(crate) fn report(&self) -> Report {
        let (live_bytes, peak_bytes) = self.memory.live_and_peak();
        let (calls, kernels) = (self.calls.clone(), self.kernels.clone());
        Report { calls, kernels, live_bytes, peak_bytes, message: self.message.clone() }
    }

    fn begin(&mut self, symbol: &str, needs: Needs) -> Result<usize, u32> {
        let count = count(&mut self.calls, symbol);
        if needs != Needs::Nothing && !self.initialized {
            return Err(code::NOT_INITIALIZED);
        }
        let with_context = matches!(needs, Needs::Context | Needs::NoCapture);
        if with_context && self.sticky != code::SUCCESS {
            return Err(self.sticky);
        }
        if let Some(failure) = self.script.failures.iter().find(|f| f.symbol == symbol && f.hits(count)) {
            let code = failure.code;
            if failure.sticky {
                self.sticky = code;
            }
            return Err(code);
        }
        let device = current().filter(|device| self.contexts.get(device).is_some_and(|held| *held > 0));
        if needs == Needs::NoCapture {
            self.refuse_in_capture()?;
        }
        if with_context { device.ok_or(code::INVALID_CONTEXT) } else { Ok(device.unwrap_or(0)) }
    }

    /// Breaks captures that do not allow the present call.
    fn refuse_in_capture(&mut self) -> Result<(), u32> {
        let here = std::thread::current().id();
        let mut refused = false;
        for capture in self.captures.values_mut() {
            let counts = capture.mode != THREAD_LOCAL || capture.thread == here;
            if capture.mode != RELAXED && counts {
                capture.invalid = true;
                refused = true;
            }
        }
        if refused { Err(code::STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    pub(crate) fn handle(&mut self) -> usize {
        self.last_handle += 16;
        self.last_handle
    }

    pub(crate) fn device(&self, device: usize) -> Result<&Device, u32> {
        self.script.devices.get(device).ok_or(code::INVALID_DEVICE)
    }

    /// Gives up one hold of a device's context; with the last one its memory and its error are gone.
    pub(crate) fn release_context(&mut self, device: usize) -> Result<(), u32> {
        let held = self.contexts.get_mut(&device).filter(|held| **held > 0).ok_or(code::INVALID_CONTEXT)?;
        *held -= 1;
        if *held == 0 {
            self.memory.clear(device);
            self.sticky = code::SUCCESS;
        }
        Ok(())
    }

    /// The stream whose capture `stream` takes part in.
    pub(crate) fn capturing(&self, stream: usize) -> Result<Option<usize>, u32> {
        self.streams.get(&stream).copied().ok_or(code::INVALID_HANDLE)
    }

    pub(crate) fn begin_capture(&mut self, stream: usize, mode: u32) -> Result<(), u32> {
        if stream <= DEFAULT_STREAMS {
            return Err(code::STREAM_CAPTURE_UNSUPPORTED);
        }
        if self.capturing(stream)?.is_some() || mode > RELAXED {
            return Err(code::INVALID_VALUE);
        }
        self.streams.insert(stream, Some(stream));
        let thread = std::thread::current().id();
        self.captures.insert(stream, Capture { ops: Vec::new(), mode, thread, invalid: false });
        Ok(())
    }

    /// The graph's handle.
    pub(crate) fn end_capture(&mut self, stream: usize) -> Result<usize, u32> {
        self.capturing(stream)?.ok_or(code::INVALID_VALUE)?;
        let capture = self.captures.remove(&stream).ok_or(code::STREAM_CAPTURE_UNMATCHED)?;
        for part in self.streams.values_mut() {
            *part = part.filter(|origin| *origin != stream);
        }
        if capture.invalid {
            return Err(code::STREAM_CAPTURE_INVALIDATED);
        }
        let graph = self.handle();
        self.graphs.insert(graph, capture.ops.into());
        Ok(graph)
    }

    /// 0 for none, 1 while it captures, 2 for a capture that broke.
    pub(crate) fn capture_status(&self, stream: usize) -> Result<u32, u32> {
        let capture = self.capturing(stream)?.and_then(|origin| self.captures.get(&origin));
        Ok(capture.map_or(0, |capture| 1 + u32::from(capture.invalid)))
    }

    /// Does `op` now, or adds it to what the stream captures.
    pub(crate) fn submit(&mut self, stream: usize, op: Op) -> Result<(), u32> {
        if let Some(origin) = self.capturing(stream)? {
            let capture = self.captures.get_mut(&origin).ok_or(code::INVALID_HANDLE)?;
            if capture.invalid {
                return Err(code::STREAM_CAPTURE_INVALIDATED);
            }
            capture.ops.push(op);
            return Ok(());
        }
        if stream <= DEFAULT_STREAMS && self.refuse_in_capture().is_err() {
            return Err(code::STREAM_CAPTURE_IMPLICIT);
        }
        self.run(&op)
    }

    /// The ops of a graph, until one fails.
    pub(crate) fn run_graph(&mut self, graph: usize) -> Result<(), u32> {
        let ops = Arc::clone(self.graphs.get(&graph).ok_or(code::INVALID_HANDLE)?);
        for op in ops.iter() {
            self.run(op)?;
            if self.sticky != code::SUCCESS {
                break;
            }
        }
        Ok(())
    }

    fn run(&mut self, op: &Op) -> Result<(), u32> {
        match op {
            Op::Launch { name, kernel, grid, block, shared, args } => {
                self.run_kernel(name, *kernel, *grid, *block, *shared, args);
            }
            Op::Copy { to, from, bytes, device } => {
                for (side, _) in [to, from].into_iter().zip(device).filter(|(_, of_device)| **of_device) {
                    self.memory.check(*side, *bytes)?;
                }
                // SAFETY: sides on the device were just checked; those on the host are the caller's matter,
                // as with the real driver.
                unsafe { std::ptr::copy(*from as *const u8, *to as *mut u8, *bytes) };
            }
            Op::Fill { at, pattern, count } => {
                self.memory.check(*at, pattern.len() * count)?;
                for i in 0..*count {
                    let to = *at as usize + i * pattern.len();
                    // SAFETY: within one allocation, as was just checked.
                    unsafe { (to as *mut u8).copy_from_nonoverlapping(pattern.as_ptr(), pattern.len()) };
                }
            }
            Op::Record { event } => {
                self.events.insert(*event, Event::At(Instant::now()));
            }
        }
        Ok(())
    }

    fn run_kernel(
        &mut self,
        name: &str,
        kernel: Kernel,
        grid: [u32; 3],
        block: [u32; 3],
        shared: usize,
        args: &[u8],
    ) {
        let runs = count(&mut self.kernels, name);
        let all = self.kernels.values().sum();
        let scripted = self.script.failures.iter().find(|failure| match failure.symbol.split_once(':') {
            Some(("kernel", kernel)) => kernel == name && failure.hits(runs),
            _ => failure.symbol == "kernel" && failure.hits(all),
        });
        if let Some(failure) = scripted {
            self.sticky = failure.code;
            self.message = format!("kernel {name}: the script lets it fail");
            return;
        }
        let seed = self.script.seed;
        emulate::wrong_products(self.script.wrong_products);
        let (code, message) = match kernel.launch(grid, block, shared, args, seed) {
            Err(message) if message.contains("aligned") => (code::MISALIGNED_ADDRESS, message),
            Err(message) => (code::LAUNCH_FAILED, message),
            Ok(()) => match self.memory.broken_guard() {
                Some(message) => (code::ILLEGAL_ADDRESS, format!("kernel {name}: {message}")),
                None => return,
            },
        };
        self.sticky = code;
        self.message = message;
    }

    /// The code that all calls return after an error of a kernel.
    pub(crate) fn sticky(&self) -> u32 {
        self.sticky
    }
}

fn count(counts: &mut BTreeMap<String, u64>, name: &str) -> u64 {
    let count = match counts.get_mut(name) {
        Some(count) => count,
        None => counts.entry(name.to_owned()).or_default(),
    };
    *count += 1;
    *count
}

/// The script of the variable, else that beside the library, else the default.
fn read_script() -> Script {
    let beside = || {
        let mut path = own_path()?.into_os_string();
        path.push(".json");
        Some(PathBuf::from(path))
    };
    let path = std::env::var_os(SCRIPT_VARIABLE).map(PathBuf::from).or_else(beside);
    let read = path.and_then(|path| serde_json::from_slice(&std::fs::read(path).ok()?).ok());
    read.unwrap_or_default()
}

/// The file that the code of this very function was mapped from.
fn own_path() -> Option<PathBuf> {
    let here = own_path as fn() -> Option<PathBuf> as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (low, high) = range.split_once('-')?;
        let (low, high) = (usize::from_str_radix(low, 16).ok()?, usize::from_str_radix(high, 16).ok()?);
        let path = rest.find('/').map(|at| PathBuf::from(&rest[at..]))?;
        (low..high).contains(&here).then_some(path)
    })
}
