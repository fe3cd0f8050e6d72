//! Device memory and pinned host memory: host memory between guards that no kernel may write.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;

use crate::script::code;

/// Bytes before and after each allocation; also its alignment, which is that of the driver.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xa5;
/// As much of fresh memory is set to ones, which are no number in any float; the rest stays untouched, so
/// that large allocations cost nothing until they are used.
const FILLED: usize = 1 << 20;

/// Where memory belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Device(usize),
    Host,
}

struct Allocation {
    /// Of the guard before it.
    base: usize,
    layout: Layout,
    bytes: usize,
    place: Place,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and given back once.
        unsafe { dealloc(self.base as *mut u8, self.layout) };
    }
}

/// All allocations, by address.
#[derive(Default)]
pub(crate) struct Memory {
    all: BTreeMap<u64, Allocation>,
    live: BTreeMap<usize, u64>,
    peak: u64,
}

impl Memory {
    /// Bytes handed out of device `device`.
    pub(crate) fn live(&self, device: usize) -> u64 {
        self.live.get(&device).copied().unwrap_or(0)
    }

    pub(crate) fn live_and_peak(&self) -> (u64, u64) {
        (self.live.values().sum(), self.peak)
    }

    /// `bytes` of `place`, of which `limit` may be handed out in all.
    pub(crate) fn alloc(&mut self, bytes: usize, place: Place, limit: u64) -> Result<u64, u32> {
        if bytes == 0 {
            return Err(code::INVALID_VALUE);
        }
        if let Place::Device(device) = place
            && self.live(device).saturating_add(bytes as u64) > limit
        {
            return Err(code::OUT_OF_MEMORY);
        }
        let whole = bytes.checked_add(2 * GUARD).ok_or(code::OUT_OF_MEMORY)?;
        let layout = Layout::from_size_align(whole, GUARD).map_err(|_| code::OUT_OF_MEMORY)?;
        // SAFETY: the layout has a size.
        let base = unsafe { alloc_zeroed(layout) };
        if base.is_null() {
            return Err(code::OUT_OF_MEMORY);
        }
        // SAFETY: all of this lies in the `whole` bytes from `base`.
        unsafe {
            base.write_bytes(GUARD_BYTE, GUARD);
            base.add(GUARD).write_bytes(0xff, bytes.min(FILLED));
            base.add(GUARD + bytes).write_bytes(GUARD_BYTE, GUARD);
        }
        let address = (base as usize + GUARD) as u64;
        self.all.insert(address, Allocation { base: base as usize, layout, bytes, place });
        if let Place::Device(device) = place {
            *self.live.entry(device).or_default() += bytes as u64;
            self.peak = self.peak.max(self.live.values().sum());
        }
        Ok(address)
    }

    /// Gives back what `alloc` gave.
    pub(crate) fn free(&mut self, address: u64, host: bool) -> Result<(), u32> {
        if self.all.get(&address).is_none_or(|a| (a.place == Place::Host) != host) {
            return Err(code::INVALID_VALUE);
        }
        let Some(gone) = self.all.remove(&address) else { return Err(code::INVALID_VALUE) };
        if let Place::Device(device) = gone.place
            && let Some(live) = self.live.get_mut(&device)
        {
            *live -= gone.bytes as u64;
        }
        Ok(())
    }

    /// Whether `bytes` at `address` lie in one allocation.
    pub(crate) fn check(&self, address: u64, bytes: usize) -> Result<(), u32> {
        let (start, allocation) = self.all.range(..=address).next_back().ok_or(code::INVALID_VALUE)?;
        let end = start + allocation.bytes as u64;
        let wanted = address.checked_add(bytes as u64).ok_or(code::INVALID_VALUE)?;
        if wanted <= end { Ok(()) } else { Err(code::INVALID_VALUE) }
    }

    /// What was written outside of an allocation, if anything was.
    pub(crate) fn broken_guard(&self) -> Option<String> {
        let broken = self.all.iter().find_map(|(address, allocation)| {
            [("before", 0), ("behind", GUARD + allocation.bytes)].into_iter().find_map(|(where_, offset)| {
                // SAFETY: the guards lie in the allocation; kernels have ended, nobody writes now.
                let guard =
                    unsafe { std::slice::from_raw_parts((allocation.base + offset) as *const u8, GUARD) };
                let bad = guard.iter().any(|byte| *byte != GUARD_BYTE);
                bad.then_some((where_, *address, allocation.bytes))
            })
        });
        broken.map(|(where_, address, bytes)| {
            format!("wrote {where_} an allocation of {bytes} bytes at {address:#x}")
        })
    }

    /// Gives back all that belongs to a device.
    pub(crate) fn clear(&mut self, device: usize) {
        self.all.retain(|_, allocation| allocation.place != Place::Device(device));
        self.live.remove(&device);
    }
}
