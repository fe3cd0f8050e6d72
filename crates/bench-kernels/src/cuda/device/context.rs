//! A device's context: what it is, whether it is still there, and how much of its memory is held.
//!
//! Every call of the driver goes through [`Context::call`], which makes the context current on the calling
//! thread and turns codes into errors. After an error that no call survives, each later one reports the
//! first.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};

use super::driver::{Code, Driver, code, lost};
use super::info::Info;
use super::memory::Ledger;
use super::pool::Shelf;
use crate::cuda::device_error::{DeviceError, OLDEST_CAPABILITY};

/// A pointer that the driver gave out. Its functions may be called from any thread with any of them.
#[derive(Debug)]
pub(super) struct Handle<T>(pub(super) *mut T);

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Handle<T> {}
// SAFETY: the driver's objects belong to a context, not to a thread, and its functions lock what they share.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Handle<T> {}

thread_local! {
    /// Number of the context that is current on this thread.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}
/// Contexts of this process; never used again, as addresses may be.
static OPENED: AtomicU64 = AtomicU64::new(0);

#[derive(Debug)]
pub(super) struct Context {
    pub(super) driver: Arc<Driver>,
    pub(super) info: Info,
    pub(super) ledger: Ledger,
    /// Of every pool: what to give back when memory is short.
    shelves: Mutex<Vec<Weak<Shelf>>>,
    device: sys::CUdevice,
    handle: Handle<sys::CUctx_st>,
    number: u64,
    lost: OnceLock<DeviceError>,
}

impl Context {
    /// Opens a device of the driver.
    pub(super) fn open(driver: Arc<Driver>, ordinal: usize) -> Result<Arc<Self>, DeviceError> {
        let (device, info) = usable(&driver, ordinal)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: a device that the driver named, and a place for the context.
        let answer = unsafe { (driver.context_retain)(&raw mut handle, device) };
        match answer {
            0 => {}
            code::DEVICE_UNAVAILABLE => return Err(DeviceError::InUse { device: info.label() }),
            other => {
                let (call, problem) = ("cuDevicePrimaryCtxRetain", driver.describe(other));
                return Err(match other {
                    code::OUT_OF_MEMORY => DeviceError::OutOfMemory {
                        device: info.label(),
                        what: "the context",
                        // Not asked of the driver, which tells nothing without a context; about what it
                        // takes.
                        bytes: 500_000_000,
                        free: 0,
                        total: info.total_bytes,
                        ours: 0,
                    },
                    _ => match lost(other) {
                        Some(help) => DeviceError::Lost { device: info.label(), call, problem, help },
                        None => DeviceError::Failed { device: info.label(), call, problem },
                    },
                });
            }
        }
        let number = OPENED.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Arc::new(Self {
            driver,
            info,
            ledger: Ledger::default(),
            shelves: Mutex::default(),
            device,
            handle: Handle(handle),
            number,
            lost: OnceLock::new(),
        }))
    }

    /// Calls a function of the driver with this context current.
    ///
    /// # Errors
    /// A code that is not 0; the error that lost the device, without a call, once there was one.
    pub(super) fn call(
        &self,
        name: &'static str,
        function: impl FnOnce(&Driver) -> Code,
    ) -> Result<(), DeviceError> {
        match self.code(name, function)? {
            0 => Ok(()),
            other => Err(self.error(name, other)),
        }
    }

    /// As [`Context::call`], for callers who tell codes apart.
    pub(super) fn code(
        &self,
        name: &'static str,
        function: impl FnOnce(&Driver) -> Code,
    ) -> Result<Code, DeviceError> {
        if let Some(lost) = self.lost.get() {
            return Err(lost.clone());
        }
        self.make_current()?;
        let answer = function(&self.driver);
        if lost(answer).is_some() { Err(self.error(name, answer)) } else { Ok(answer) }
    }

    /// Calls without a result, for `drop`: what fails there was told by a call before, or will be by the
    /// next.
    pub(super) fn call_in_drop(&self, function: impl FnOnce(&Driver) -> Code) {
        if self.make_current().is_ok() {
            function(&self.driver);
        }
    }

    fn make_current(&self) -> Result<(), DeviceError> {
        // A thread that ends has no cell any more; it may still drop buffers.
        if CURRENT.try_with(Cell::get).is_ok_and(|current| current == self.number) {
            return Ok(());
        }
        // SAFETY: the context is held until this is dropped.
        match unsafe { (self.driver.context_set)(self.handle.0) } {
            0 => {
                // Without a cell the context is set again at the next call.
                let _ = CURRENT.try_with(|current| current.set(self.number));
                Ok(())
            }
            other => Err(self.error("cuCtxSetCurrent", other)),
        }
    }

    /// The error of a code that is not 0.
    pub(super) fn error(&self, call: &'static str, answer: Code) -> DeviceError {
        let (device, problem) = (self.info.label(), self.driver.describe(answer));
        match lost(answer) {
            Some(help) => self.lost.get_or_init(|| DeviceError::Lost { device, call, problem, help }).clone(),
            None => DeviceError::Failed { device, call, problem },
        }
    }

    /// The error that lost the device, if there was one.
    pub(super) fn lost(&self) -> Option<DeviceError> {
        self.lost.get().cloned()
    }

    /// Told apart by it: no two contexts of a process have the same.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn add_shelf(&self, shelf: &Arc<Shelf>) {
        let mut shelves = self.shelves.lock().unwrap_or_else(PoisonError::into_inner);
        shelves.retain(|shelf| shelf.strong_count() > 0);
        shelves.push(Arc::downgrade(shelf));
    }

    /// Gives back to the driver what pools keep; whether that was anything.
    pub(super) fn release_kept(&self) -> bool {
        let shelves: Vec<_> = {
            let shelves = self.shelves.lock().unwrap_or_else(PoisonError::into_inner);
            shelves.iter().filter_map(Weak::upgrade).collect()
        };
        let mut any = false;
        for shelf in shelves {
            any |= shelf.release();
        }
        any
    }

    /// Free and total bytes; free is less what every process on the device holds.
    pub(super) fn memory(&self) -> Result<(u64, u64), DeviceError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: two places for results.
        self.call("cuMemGetInfo", |d| unsafe { (d.memory_info)(&raw mut free, &raw mut total) })?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: everything of the context holds it by an Arc and is gone; a context that is still current
        // on a thread is set again before its next use, since numbers are not used twice.
        unsafe { (self.driver.context_release)(self.device) };
    }
}

/// Titles of all devices: `cuda:0 (NVIDIA H200)`.
pub(super) fn titles(driver: &Driver) -> Result<Vec<String>, DeviceError> {
    let mut titles = Vec::new();
    for ordinal in 0..count(driver)? {
        titles.push(read_info(driver, ordinal, device(driver, ordinal)?)?.label());
    }
    Ok(titles)
}

fn count(driver: &Driver) -> Result<usize, DeviceError> {
    let mut count = 0;
    // SAFETY: a place for the result.
    match unsafe { (driver.device_count)(&raw mut count) } {
        0 if count > 0 => Ok(count.unsigned_abs() as usize),
        0 => Err(DeviceError::NoDevice { reason: "their number is 0".to_owned() }),
        code @ code::NO_DEVICE => Err(DeviceError::NoDevice { reason: driver.describe(code) }),
        other => Err(failed(driver, "the devices", "cuDeviceGetCount", other)),
    }
}

/// The device and what it is, if kernels can run on it.
pub(super) fn usable(driver: &Driver, ordinal: usize) -> Result<(sys::CUdevice, Info), DeviceError> {
    let device = device(driver, ordinal)?;
    let info = read_info(driver, ordinal, device)?;
    if info.capability < OLDEST_CAPABILITY {
        return Err(DeviceError::Capability { device: info.label(), capability: info.capability });
    }
    Ok((device, info))
}

fn failed(driver: &Driver, device: &str, call: &'static str, code: Code) -> DeviceError {
    DeviceError::Failed { device: device.to_owned(), call, problem: driver.describe(code) }
}

fn device(driver: &Driver, ordinal: usize) -> Result<sys::CUdevice, DeviceError> {
    if ordinal >= count(driver)? {
        return Err(DeviceError::Ordinal { ordinal, devices: titles(driver)? });
    }
    let mut device = 0;
    // SAFETY: a place for the result and a number below the count.
    match unsafe { (driver.device)(&raw mut device, ordinal as c_int) } {
        0 => Ok(device),
        other => Err(failed(driver, &format!("cuda:{ordinal}"), "cuDeviceGet", other)),
    }
}

/// What the driver tells about a device without a context.
pub(super) fn info(driver: &Driver, ordinal: usize) -> Result<Info, DeviceError> {
    read_info(driver, ordinal, device(driver, ordinal)?)
}

fn read_info(driver: &Driver, ordinal: usize, device: sys::CUdevice) -> Result<Info, DeviceError> {
    let title = format!("cuda:{ordinal}");
    let check = |call, answer| match answer {
        0 => Ok(()),
        other => Err(failed(driver, &title, call, other)),
    };
    // Absent where a driver does not know it, or tells nothing.
    let optional = |attribute: Attribute| {
        let mut value = 0;
        // SAFETY: a place for the result and a device that the driver named.
        let answer = unsafe { (driver.device_attribute)(&raw mut value, attribute, device) };
        u32::try_from(value).ok().filter(|value| answer == 0 && *value > 0)
    };
    let (mut major, mut minor) = (0, 0);
    for (place, attribute) in [
        (&mut major, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
        (&mut minor, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
    ] {
        // SAFETY: as above.
        let answer = unsafe { (driver.device_attribute)(&raw mut *place, attribute, device) };
        check("cuDeviceGetAttribute", answer)?;
    }
    let mut name: [c_char; 128] = [0; 128];
    // SAFETY: a place for text and its size, with room for the end.
    check("cuDeviceGetName", unsafe { (driver.device_name)(name.as_mut_ptr(), 127, device) })?;
    let mut pci: [c_char; 32] = [0; 32];
    // SAFETY: as above.
    check("cuDeviceGetPCIBusId", unsafe { (driver.device_pci)(pci.as_mut_ptr(), 31, device) })?;
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
    // SAFETY: a place for the result.
    check("cuDeviceGetUuid", unsafe { (driver.device_uuid)(&raw mut uuid, device) })?;
    let mut total_bytes = 0;
    // SAFETY: a place for the result.
    check("cuDeviceTotalMem", unsafe { (driver.device_bytes)(&raw mut total_bytes, device) })?;
    let shared = optional(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
    Ok(Info {
        ordinal,
        name: text(&name),
        uuid: super::info::uuid_text(uuid.bytes.map(|byte| byte as u8)),
        pci_bus_id: text(&pci),
        capability: (major.max(0).unsigned_abs(), minor.max(0).unsigned_abs()),
        driver: driver.version(),
        multiprocessors: optional(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).unwrap_or(1),
        total_bytes: total_bytes as u64,
        l2_bytes: optional(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE).map(u64::from),
        // What every device has without opting in.
        max_shared_bytes: shared.unwrap_or(48 * 1024) as usize,
        clock_mhz: optional(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE).map(|khz| f64::from(khz) / 1e3),
        memory_clock_mhz: optional(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)
            .map(|khz| f64::from(khz) / 1e3),
        memory_bus_bits: optional(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH),
        ecc: optional(Attribute::CU_DEVICE_ATTRIBUTE_ECC_ENABLED).is_some(),
    })
}

/// The arrays are longer than what the driver may write, so that they end.
fn text(bytes: &[c_char]) -> String {
    let bytes: Vec<u8> = bytes.iter().map(|byte| *byte as u8).collect();
    CStr::from_bytes_until_nul(&bytes).map_or_else(|_| String::new(), |t| t.to_string_lossy().into_owned())
}
