//! Copies between ordinary host memory and a device, through page-locked memory that is kept.
//!
//! Two large halves overlap the host's copy with the device's; small copies have a ring of their own, so that
//! a step's few bytes never wait for anything but the device.

use std::sync::Arc;

use cudarc::driver::sys;
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use super::context::{Context, Handle};
use super::event::Event;
use super::memory::Pinned;
use crate::cuda::device_error::DeviceError;

/// Large enough that a copy's start does not count, small enough that the first is soon under way.
const LARGE: Slots = Slots { count: 2, bytes: 32 << 20 };
const SMALL: Slots = Slots { count: 64, bytes: 16 << 10 };
/// From here on several threads copy: one has about 10 GB/s, a device takes 25 to 60.
const PARALLEL_BYTES: usize = 4 << 20;
/// What a thread copies at a time.
const PIECE_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Copy)]
struct Slots {
    count: usize,
    bytes: usize,
}

/// Page-locked slots used in turn; each with an event behind its last use.
#[derive(Debug)]
struct Ring {
    slots: Slots,
    memory: Pinned,
    used: Vec<Option<Event>>,
    next: usize,
}

impl Ring {
    fn new(context: &Arc<Context>, slots: Slots) -> Result<Self, DeviceError> {
        let memory = Pinned::new(context, slots.count * slots.bytes)?;
        Ok(Self { slots, memory, used: (0..slots.count).map(|_| None).collect(), next: 0 })
    }

    /// The next slot, once the device is done with it.
    fn take(&mut self) -> Result<usize, DeviceError> {
        let slot = self.next;
        self.next = (slot + 1) % self.slots.count;
        if let Some(event) = &self.used[slot] {
            event.synchronize()?;
        }
        Ok(slot)
    }

    /// Its first `len` bytes.
    fn slot(&mut self, slot: usize, len: usize) -> Result<&mut [u8], DeviceError> {
        self.memory.slice_mut(slot * self.slots.bytes, len.min(self.slots.bytes))
    }

    /// Marks the end of what was queued for the slot.
    fn mark(&mut self, context: &Arc<Context>, stream: Stream, slot: usize) -> Result<(), DeviceError> {
        let event = match self.used[slot].take() {
            Some(event) => event,
            None => Event::new(context)?,
        };
        event.record(stream)?;
        self.used[slot] = Some(event);
        Ok(())
    }
}

type Stream = Handle<sys::CUstream_st>;

/// The rings, made when first used.
#[derive(Debug)]
pub(super) struct Staging {
    context: Arc<Context>,
    large: Option<Ring>,
    small: Option<Ring>,
}

impl Staging {
    pub(super) fn new(context: &Arc<Context>) -> Self {
        Self { context: Arc::clone(context), large: None, small: None }
    }

    fn ring(&mut self, bytes: usize) -> Result<&mut Ring, DeviceError> {
        let (place, slots) =
            if bytes <= SMALL.bytes { (&mut self.small, SMALL) } else { (&mut self.large, LARGE) };
        let ring = match place.take() {
            Some(ring) => ring,
            None => Ring::new(&self.context, slots)?,
        };
        Ok(place.insert(ring))
    }

    /// Queues copies of `bytes` to `address`. They have been read when this returns, not yet arrived.
    pub(super) fn upload(&mut self, stream: Stream, address: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let context = Arc::clone(&self.context);
        let ring = self.ring(bytes.len())?;
        let mut to = address;
        for piece in bytes.chunks(ring.slots.bytes) {
            let slot = ring.take()?;
            let staged = ring.slot(slot, piece.len())?;
            copy(piece, staged);
            let from = staged.as_ptr();
            context.call("cuMemcpyHtoDAsync", |d| {
                // SAFETY: page-locked memory that is not written again before the event behind this copy; the
                // address on the device is the caller's matter.
                unsafe { (d.copy_to_device)(to, from.cast(), piece.len(), stream.0) }
            })?;
            ring.mark(&context, stream, slot)?;
            to += piece.len() as u64;
        }
        Ok(())
    }

    /// Copies from `address` behind all work in `stream`, and waits.
    pub(super) fn download(
        &mut self,
        stream: Stream,
        address: u64,
        into: &mut [u8],
    ) -> Result<(), DeviceError> {
        let context = Arc::clone(&self.context);
        let ring = self.ring(into.len())?;
        let mut from = address;
        // Pieces under way: the slot and where its bytes belong.
        let mut pending: std::collections::VecDeque<(usize, &mut [u8])> = std::collections::VecDeque::new();
        for piece in into.chunks_mut(ring.slots.bytes) {
            if pending.len() == ring.slots.count {
                finish(ring, &mut pending)?;
            }
            let slot = ring.take()?;
            let len = piece.len();
            let to = ring.slot(slot, len)?.as_mut_ptr();
            context.call("cuMemcpyDtoHAsync", |d| {
                // SAFETY: page-locked memory of that size, left alone until the event behind this copy.
                unsafe { (d.copy_to_host)(to.cast(), from, len, stream.0) }
            })?;
            ring.mark(&context, stream, slot)?;
            from += len as u64;
            pending.push_back((slot, piece));
        }
        while !pending.is_empty() {
            finish(ring, &mut pending)?;
        }
        Ok(())
    }
}

/// Waits for the oldest piece and copies it to its place.
fn finish(
    ring: &mut Ring,
    pending: &mut std::collections::VecDeque<(usize, &mut [u8])>,
) -> Result<(), DeviceError> {
    let Some((slot, piece)) = pending.pop_front() else { return Ok(()) };
    if let Some(event) = &ring.used[slot] {
        event.synchronize()?;
    }
    copy(ring.slot(slot, piece.len())?, piece);
    Ok(())
}

/// `from` to `to`, of one length.
fn copy(from: &[u8], to: &mut [u8]) {
    if from.len() < PARALLEL_BYTES {
        to.copy_from_slice(from);
    } else {
        let pieces = to.par_chunks_mut(PIECE_BYTES).zip(from.par_chunks(PIECE_BYTES));
        pieces.for_each(|(to, from)| to.copy_from_slice(from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_copies_are_whole() {
        let from: Vec<u8> = (0..PARALLEL_BYTES + 12_345).map(|i| (i % 251) as u8).collect();
        let mut to = vec![0; from.len()];
        copy(&from, &mut to);
        assert!(from == to);
    }
}
