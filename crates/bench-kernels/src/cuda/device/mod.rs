//! A CUDA device, opened through the driver that the machine has: memory, copies, launches, graphs, events.
//!
//! One queue of work per device. Launches and copies return before they are done; an error of theirs comes
//! back from a later call. Nothing here knows what the kernels compute; addresses that they are given are the
//! caller's matter.

mod cache;
mod context;
mod driver;
mod event;
mod graph;
mod images;
mod info;
mod kernels;
mod library;
mod memory;
pub mod nvrtc;
mod pool;
mod staging;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::sys;

use self::context::{Context, Handle};
use self::driver::Driver;
pub use self::event::Event;
pub use self::graph::Graph;
pub use self::images::{Architecture, kernel_files, sources};
pub use self::info::Info;
pub use self::kernels::Resources;
use self::kernels::{Kernels, Shape};
pub use self::memory::{Buffer, Category, Pinned, Usage};
pub use self::pool::Pool;
use self::staging::Staging;
use super::device_error::DeviceError;
use super::tiles::{self, Choice, Products};
use super::{Gpu, GpuError};

/// Kernels of this compute capability and later may start before the one before them ends.
const DEPENDENT_LAUNCHES: (u32, u32) = (9, 0);
/// The queue does not wait for the driver's default one.
const NON_BLOCKING: u32 = 1;

/// What a device is opened with; `None` is what is found on the machine and in the binary.
#[derive(Debug, Clone, Copy, Default)]
pub struct Files<'a> {
    /// The driver's library; else `OSSBENCH_LIBCUDA`, else `libcuda.so.1`.
    pub driver: Option<&'a Path>,
    /// A folder of compiled kernels, as `cargo xtask cuda` leaves it; else `OSSBENCH_CUDA_IMAGES`, else the
    /// binary's, else they are compiled.
    pub images: Option<&'a Path>,
}

/// An open device. Clones are the same device; it is closed when the last of them, of its buffers, events and
/// graphs is gone.
#[derive(Debug, Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    // Dropped in this order: what uses the queue and the modules, before them.
    staging: Mutex<Staging>,
    /// What [`Gpu::alloc`] gave out.
    given: Mutex<HashMap<u64, Buffer>>,
    kernels: Kernels,
    stream: Stream,
    dependent: AtomicBool,
    products: OnceLock<Choice>,
    context: Arc<Context>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let stream = self.stream.handle;
        // Modules must not go while one of their kernels runs.
        // SAFETY: the stream is alive.
        self.context.call_in_drop(|d| unsafe { (d.stream_synchronize)(stream.0) });
    }
}

/// A queue of work.
#[derive(Debug)]
struct Stream {
    context: Arc<Context>,
    handle: Handle<sys::CUstream_st>,
}

impl Stream {
    fn new(context: &Arc<Context>) -> Result<Self, DeviceError> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: a place for the handle.
        let create = |d: &Driver| unsafe { (d.stream_create)(&raw mut handle, NON_BLOCKING) };
        context.call("cuStreamCreate", create)?;
        Ok(Self { context: Arc::clone(context), handle: Handle(handle) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let handle = self.handle;
        // SAFETY: destroyed once; the driver finishes what is in it.
        self.context.call_in_drop(|d| unsafe { (d.stream_destroy)(handle.0) });
    }
}

/// What the driver tells of every device, without opening one.
pub fn devices() -> Result<Vec<Info>, DeviceError> {
    let driver = Driver::start(None)?;
    let count = context::titles(&driver)?.len();
    (0..count).map(|ordinal| context::info(&driver, ordinal)).collect()
}

/// Whether device `ordinal` can be opened, as far as its driver tells without opening it.
///
/// # Errors
/// No driver, an old one, no such device, or one that is too old.
pub fn check(ordinal: usize) -> Result<Info, DeviceError> {
    let driver = Driver::start(None)?;
    Ok(context::usable(&driver, ordinal)?.1)
}

impl Device {
    /// Opens device `ordinal` of the machine's driver and loads the kernels: from the binary, or compiled
    /// once for this machine and kept.
    ///
    /// # Errors
    /// No driver, an old one, no such device, one that is too old or in use, or no kernels for it; each says
    /// what to do.
    pub fn open(ordinal: usize) -> Result<Self, DeviceError> {
        Self::open_with(ordinal, Files::default())
    }

    /// As [`Device::open`], with files in the place of those that would be found.
    pub fn open_with(ordinal: usize, files: Files<'_>) -> Result<Self, DeviceError> {
        let context = Context::open(Driver::start(files.driver)?, ordinal)?;
        let (label, capability) = (context.info.label(), context.info.capability);
        let images = images::find(&label, capability, files.images)?;
        let kernels = Kernels::load(&context, &images)?;
        let stream = Stream::new(&context)?;
        let inner = Inner {
            staging: Mutex::new(Staging::new(&context)),
            given: Mutex::default(),
            kernels,
            stream,
            dependent: AtomicBool::new(context.info.capability >= DEPENDENT_LAUNCHES),
            products: OnceLock::new(),
            context,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub fn info(&self) -> &Info {
        &self.inner.context.info
    }

    /// The error after which nothing more can be done on the device, if there was one.
    pub fn lost(&self) -> Option<DeviceError> {
        self.inner.context.lost()
    }

    /// Free and total bytes of the device's memory; what is not free may be other processes'. What pools keep counts as
    /// free, since an allocation may have it.
    pub fn memory(&self) -> Result<(u64, u64), DeviceError> {
        let (free, total) = self.inner.context.memory()?;
        Ok(((free + self.kept_bytes()).min(total), total))
    }

    /// What this process uses of one kind; what pools keep is no part of it.
    pub fn usage(&self, category: Category) -> Usage {
        self.inner.context.ledger.usage(category)
    }

    /// What this process uses.
    pub fn total_usage(&self) -> Usage {
        self.inner.context.ledger.total()
    }

    /// What pools keep for the next who wants it: in use by nobody, but not free for other processes either.
    pub fn kept_bytes(&self) -> u64 {
        self.inner.context.ledger.kept()
    }

    /// Peaks are from now on those of what comes.
    pub fn reset_peaks(&self) {
        self.inner.context.ledger.reset_peaks();
    }

    /// `bytes` of zeros.
    ///
    /// # Errors
    /// Not so much memory, which tells who holds it; a capture that this thread has begun.
    pub fn buffer(&self, bytes: usize, category: Category) -> Result<Buffer, DeviceError> {
        self.not_in_capture("an allocation")?;
        let buffer = Buffer::new(&self.inner.context, category, bytes)?;
        self.set_zero(buffer.address(), bytes)?;
        Ok(buffer)
    }

    /// Memory that is used again and again, without a call of the driver each time.
    pub fn pool(&self) -> Pool {
        Pool::new(&self.inner.context)
    }

    /// `bytes` of a pool of this device, whose contents are whatever was there.
    ///
    /// # Errors
    /// As [`Device::buffer`].
    pub fn buffer_of(&self, pool: &Pool, bytes: usize, category: Category) -> Result<Buffer, DeviceError> {
        self.not_in_capture("an allocation")?;
        pool.take(bytes, category)
    }

    /// Page-locked host memory, zeros.
    pub fn pinned(&self, bytes: usize) -> Result<Pinned, DeviceError> {
        Pinned::new(&self.inner.context, bytes)
    }

    /// Queues a copy of `bytes` to device memory. They may be changed when this returns.
    pub fn upload(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.not_in_capture("a copy from the host")?;
        let mut staging = self.inner.staging.lock().unwrap_or_else(PoisonError::into_inner);
        staging.upload(self.queue(), address, bytes)
    }

    /// Copies from device memory behind all work queued before, and waits for it.
    pub fn download(&self, address: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        self.not_in_capture("a copy to the host")?;
        let mut staging = self.inner.staging.lock().unwrap_or_else(PoisonError::into_inner);
        staging.download(self.queue(), address, into)
    }

    /// Queues a copy of `bytes` on the device.
    pub fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        if bytes == 0 {
            return Ok(());
        }
        let stream = self.queue();
        self.inner.context.call("cuMemcpyDtoDAsync", |d| {
            // SAFETY: the stream is alive; the addresses are the caller's matter.
            unsafe { (d.copy_on_device)(to, from, bytes, stream.0) }
        })
    }

    /// Queues zeros for `bytes` at `address`.
    pub fn set_zero(&self, address: u64, bytes: usize) -> Result<(), DeviceError> {
        if bytes == 0 {
            return Ok(());
        }
        let stream = self.queue();
        // SAFETY: the stream is alive; the address is the caller's matter.
        let set = |d: &Driver| unsafe { (d.set_bytes)(address, 0, bytes, stream.0) };
        self.inner.context.call("cuMemsetD8Async", set)
    }

    /// Queues a copy of device memory into page-locked memory; an event recorded behind it tells when it is
    /// there.
    pub fn download_to(
        &self,
        pinned: &Pinned,
        offset: usize,
        address: u64,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        pinned.inside(offset, bytes)?;
        let (to, stream) = (pinned.address() + offset as u64, self.queue());
        self.inner.context.call("cuMemcpyDtoHAsync", |d| {
            // SAFETY: in range of memory that is freed only behind the copy; reads of it wait for an event.
            unsafe { (d.copy_to_host)(to as *mut std::ffi::c_void, address, bytes, stream.0) }
        })
    }

    /// Waits for all work that was queued.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.not_in_capture("a wait")?;
        let stream = self.queue();
        // SAFETY: the stream is alive.
        self.inner.context.call("cuStreamSynchronize", |d| unsafe { (d.stream_synchronize)(stream.0) })
    }

    /// Marks the end of what was queued so far.
    pub fn record(&self) -> Result<Event, DeviceError> {
        self.not_in_capture("an event")?;
        let event = Event::new(&self.inner.context)?;
        event.record(self.queue())?;
        Ok(event)
    }

    /// Records what `work` launches on this thread, to launch it again and again as one. Nothing of it is run
    /// now, and what would allocate or wait fails. Other threads may use the device meanwhile.
    ///
    /// # Errors
    /// Launches that cannot stand in a graph. What fails inside `work` is its own matter: the graph is then
    /// to be thrown away.
    pub fn capture(&self, work: impl FnOnce()) -> Result<Graph, DeviceError> {
        graph::capture(self, work)
    }

    /// Whether kernels may start before the ones before them end (only from compute capability 9.0 on); on at
    /// first.
    pub fn set_dependent(&self, on: bool) {
        let able = self.info().capability >= DEPENDENT_LAUNCHES;
        self.inner.dependent.store(on && able, Ordering::Relaxed);
    }

    pub fn dependent(&self) -> bool {
        self.inner.dependent.load(Ordering::Relaxed)
    }

    /// Decides once by which instructions products of many rows are made, by trying them; until then it is `mma`.
    /// `OSSBENCH_CUDA_PRODUCTS` forces one.
    ///
    /// # Errors
    /// Instructions that were asked for and are not there, or fail.
    pub fn decide_products(&self) -> Result<&Choice, GpuError> {
        if let Some(choice) = self.inner.products.get() {
            return Ok(choice);
        }
        let value = std::env::var_os(tiles::VARIABLE).map(|value| value.to_string_lossy().into_owned());
        let choice = tiles::decide(self, tiles::forced(value.as_deref())?)?;
        // What was tried on is no model's memory.
        self.reset_peaks();
        Ok(self.inner.products.get_or_init(|| choice))
    }

    /// What was to be said when it was decided.
    pub fn products_note(&self) -> Option<&str> {
        self.inner.products.get()?.note.as_deref()
    }

    /// What a kernel takes of a multiprocessor.
    pub fn resources(&self, kernel: &'static str) -> Result<Resources, DeviceError> {
        Ok(self.inner.kernels.get(kernel)?.resources)
    }

    fn context(&self) -> &Arc<Context> {
        &self.inner.context
    }

    /// Where launches go: the capture of this thread, or the device's queue.
    fn queue(&self) -> Handle<sys::CUstream_st> {
        graph::recording(self.inner.context.number()).unwrap_or(self.inner.stream.handle)
    }

    fn not_in_capture(&self, what: &'static str) -> Result<(), DeviceError> {
        match graph::recording(self.inner.context.number()) {
            None => Ok(()),
            Some(_) => Err(DeviceError::InCapture { what }),
        }
    }
}

impl Gpu for Device {
    fn alloc(&self, bytes: usize) -> Result<u64, GpuError> {
        let buffer = self.buffer(bytes, Category::Workspace)?;
        let address = buffer.address();
        self.inner.given.lock().unwrap_or_else(PoisonError::into_inner).insert(address, buffer);
        Ok(address)
    }

    fn free(&self, address: u64) {
        let buffer = self.inner.given.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
        drop(buffer);
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), GpuError> {
        Ok(self.upload(address, bytes)?)
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), GpuError> {
        Ok(self.download(address, bytes)?)
    }

    fn launch(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        block: u32,
        shared: usize,
        args: &[u8],
    ) -> Result<(), GpuError> {
        let shape = Shape { grid, block, shared, dependent: self.dependent() };
        Ok(self.inner.kernels.launch(self.queue(), kernel, shape, args)?)
    }

    fn multiprocessors(&self) -> u32 {
        self.info().multiprocessors
    }

    fn max_shared_bytes(&self) -> usize {
        self.info().max_shared_bytes
    }

    fn capability(&self) -> (u32, u32) {
        self.info().capability
    }

    fn products(&self) -> Products {
        self.inner.products.get().map_or(Products::Mma, |choice| choice.products)
    }
}
