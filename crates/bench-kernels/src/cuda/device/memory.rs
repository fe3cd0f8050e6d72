//! Memory of a device, told apart by what it is for, and page-locked memory of the host.
//!
//! Blocks come straight from the driver and are meant to be few and large. What a pool keeps is counted apart: it is
//! held, but it is nobody's.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use super::context::{Context, Handle};
use super::driver::code;
use super::pool::Shelf;
use crate::cuda::device_error::DeviceError;

/// What memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Category {
    Weights,
    KvCache,
    Activations,
    Workspace,
}

impl Category {
    pub const ALL: [Self; 4] = [Self::Weights, Self::KvCache, Self::Activations, Self::Workspace];

    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::KvCache => "the KV cache",
            Self::Activations => "activations",
            Self::Workspace => "workspace",
        }
    }
}

/// Bytes held now, and the most that were held at once since the peaks were reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub live_bytes: u64,
    pub peak_bytes: u64,
}

#[derive(Debug, Default)]
struct Counter {
    live: AtomicU64,
    peak: AtomicU64,
}

impl Counter {
    fn add(&self, bytes: u64) {
        let live = self.live.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(live, Ordering::Relaxed);
    }

    fn usage(&self) -> Usage {
        Usage { live_bytes: self.live.load(Ordering::Relaxed), peak_bytes: self.peak.load(Ordering::Relaxed) }
    }

    fn reset_peak(&self) {
        self.peak.store(self.live.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Counts what is in use. The total has a peak of its own: those of the categories need not fall together. What pools
/// keep is in none of them.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    categories: [Counter; Category::ALL.len()],
    total: Counter,
    kept: AtomicU64,
}

impl Ledger {
    fn add(&self, category: Category, bytes: u64) {
        self.categories[category as usize].add(bytes);
        self.total.add(bytes);
    }

    fn subtract(&self, category: Category, bytes: u64) {
        self.categories[category as usize].live.fetch_sub(bytes, Ordering::Relaxed);
        self.total.live.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Counts what a pool keeps from now on.
    pub(super) fn keep(&self, bytes: u64) {
        self.kept.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Of what pools keep, `bytes` are lent or given back to the driver.
    pub(super) fn take_kept(&self, bytes: u64) {
        self.kept.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }

    pub(super) fn usage(&self, category: Category) -> Usage {
        self.categories[category as usize].usage()
    }

    pub(super) fn total(&self) -> Usage {
        self.total.usage()
    }

    pub(super) fn reset_peaks(&self) {
        self.categories.iter().for_each(Counter::reset_peak);
        self.total.reset_peak();
    }
}

/// A block of device memory, given back when dropped: to the pool that it came from, or to the driver, which waits for
/// all work on the device.
#[derive(Debug)]
pub struct Buffer {
    context: Arc<Context>,
    /// Empty for what comes from the driver.
    home: Weak<Shelf>,
    address: u64,
    bytes: usize,
    category: Category,
}

impl Buffer {
    /// Contents are whatever was there.
    pub(super) fn new(context: &Arc<Context>, category: Category, bytes: usize) -> Result<Self, DeviceError> {
        let mut address = 0;
        // The driver refuses 0; an empty buffer still has an address of its own.
        let asked = bytes.max(1);
        // SAFETY: a place for the address.
        let mut alloc =
            || context.code("cuMemAlloc", |d| unsafe { (d.memory_alloc)(&raw mut address, asked) });
        let mut answer = alloc()?;
        if answer == code::OUT_OF_MEMORY && context.release_kept() {
            answer = alloc()?;
        }
        match answer {
            0 => {}
            code::OUT_OF_MEMORY => return Err(out_of_memory(context, category, bytes)),
            other => return Err(context.error("cuMemAlloc", other)),
        }
        Ok(Self::kept(context, Weak::new(), address, category, bytes))
    }

    /// A block that the driver gave out before.
    pub(super) fn kept(
        context: &Arc<Context>,
        home: Weak<Shelf>,
        address: u64,
        category: Category,
        bytes: usize,
    ) -> Self {
        context.ledger.add(category, bytes as u64);
        Self { context: Arc::clone(context), home, address, bytes, category }
    }

    /// The same, to be given back to a pool.
    pub(super) fn at_home(mut self, home: Weak<Shelf>) -> Self {
        self.home = home;
        self
    }

    /// Device address, aligned to 256 bytes.
    pub fn address(&self) -> u64 {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn category(&self) -> Category {
        self.category
    }

    /// The address of `len` bytes at `offset`.
    ///
    /// # Errors
    /// They do not lie in the buffer.
    pub fn at(&self, offset: usize, len: usize) -> Result<u64, DeviceError> {
        let end = offset.saturating_add(len);
        if end > self.bytes {
            let what = self.category.name();
            return Err(DeviceError::Outside { what, start: offset, end, bytes: self.bytes });
        }
        Ok(self.address + offset as u64)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let address = self.address;
        self.context.ledger.subtract(self.category, self.bytes as u64);
        match self.home.upgrade() {
            Some(shelf) => shelf.put(address, self.bytes),
            None => {
                // SAFETY: the address is the driver's, given back once; the driver waits for work that may use it.
                self.context.call_in_drop(|d| unsafe { (d.memory_free)(address) });
            }
        }
    }
}

fn out_of_memory(context: &Context, category: Category, bytes: usize) -> DeviceError {
    match context.memory() {
        Ok((free, total)) => DeviceError::OutOfMemory {
            device: context.info.label(),
            what: category.name(),
            bytes: bytes as u64,
            free,
            total,
            ours: context.ledger.total().live_bytes,
        },
        Err(error) => error,
    }
}

/// Page-locked host memory. The device copies from and to it while the host does other things, and kernels
/// may write to its address.
#[derive(Debug)]
pub struct Pinned {
    context: Arc<Context>,
    at: Handle<c_void>,
    bytes: usize,
}

impl Pinned {
    /// Zeros.
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, DeviceError> {
        let mut at = std::ptr::null_mut();
        let asked = bytes.max(1);
        // SAFETY: a place for the address; flags 0.
        context.call("cuMemHostAlloc", |d| unsafe { (d.host_alloc)(&raw mut at, asked, 0) })?;
        // SAFETY: the driver gave `asked` bytes that nobody else has.
        unsafe { at.cast::<u8>().write_bytes(0, asked) };
        Ok(Self { context: Arc::clone(context), at: Handle(at), bytes })
    }

    /// The same for host and device.
    pub fn address(&self) -> u64 {
        self.at.0 as u64
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies `into.len()` bytes at `offset` out of it. What the device writes at the same time may come
    /// half; an event recorded behind the write and waited for excludes that.
    ///
    /// # Errors
    /// They do not lie in it.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), DeviceError> {
        self.inside(offset, into.len())?;
        // SAFETY: in range; volatile copies are not needed, as the driver's wait before orders them.
        unsafe {
            self.at.0.cast::<u8>().add(offset).copy_to_nonoverlapping(into.as_mut_ptr(), into.len());
        }
        Ok(())
    }

    /// Copies `bytes` into it at `offset`. The device must not be reading them.
    ///
    /// # Errors
    /// They do not lie in it.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.inside(offset, bytes.len())?;
        // SAFETY: in range, and borrowed alone on the host.
        unsafe { self.at.0.cast::<u8>().add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    pub(super) fn inside(&self, offset: usize, len: usize) -> Result<(), DeviceError> {
        let end = offset.saturating_add(len);
        if end > self.bytes {
            let what = "page-locked memory";
            return Err(DeviceError::Outside { what, start: offset, end, bytes: self.bytes });
        }
        Ok(())
    }

    /// Its first `len` bytes, for a copy whose end an event tells.
    pub(super) fn slice_mut(&mut self, start: usize, len: usize) -> Result<&mut [u8], DeviceError> {
        self.inside(start, len)?;
        // SAFETY: in range, initialised, and borrowed alone on the host.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.at.0.cast::<u8>().add(start), len) })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let at = self.at.0;
        // SAFETY: the address is the driver's, given back once; the driver waits for copies under way.
        self.context.call_in_drop(|d| unsafe { (d.host_free)(at) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_of_one_moment_and_can_be_reset() {
        let ledger = Ledger::default();
        ledger.add(Category::Weights, 100);
        ledger.subtract(Category::Weights, 100);
        ledger.add(Category::KvCache, 70);
        assert_eq!(ledger.usage(Category::Weights), Usage { live_bytes: 0, peak_bytes: 100 });
        assert_eq!(ledger.usage(Category::KvCache), Usage { live_bytes: 70, peak_bytes: 70 });
        // Not 170: the two were never held together.
        assert_eq!(ledger.total(), Usage { live_bytes: 70, peak_bytes: 100 });
        ledger.reset_peaks();
        assert_eq!(ledger.usage(Category::Weights), Usage::default());
        assert_eq!(ledger.total(), Usage { live_bytes: 70, peak_bytes: 70 });
        // What is kept is nobody's.
        ledger.subtract(Category::KvCache, 70);
        ledger.keep(70);
        assert_eq!((ledger.total().live_bytes, ledger.kept()), (0, 70));
        ledger.take_kept(30);
        assert_eq!((ledger.total().peak_bytes, ledger.kept()), (70, 40));
    }

    #[test]
    fn every_category_has_a_counter_of_its_own() {
        let ledger = Ledger::default();
        for (i, category) in Category::ALL.into_iter().enumerate() {
            ledger.add(category, 1 << i);
        }
        for (i, category) in Category::ALL.into_iter().enumerate() {
            assert_eq!(ledger.usage(category).live_bytes, 1 << i, "{category:?}");
        }
        assert_eq!(ledger.total().live_bytes, 15);
    }
}
