//! Device memory that is kept when it is given back, for whoever wants as many bytes next: what comes and goes with
//! every batch then costs no call of the driver, which may wait for the device.
//!
//! Only blocks of exactly the bytes that are wanted are handed out again. A time in which nothing is lent ends an
//! epoch; blocks that were not wanted in a whole epoch go back to the driver. All of them do when memory is short.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::context::Context;
use super::memory::{Buffer, Category};
use crate::cuda::device_error::DeviceError;

/// Hands out buffers that come back to it when they are dropped. When the pool itself is dropped, what it keeps goes
/// back to the driver; what is lent then does so in its turn.
#[derive(Debug, Clone)]
pub struct Pool {
    shelf: Arc<Shelf>,
}

impl Pool {
    pub(super) fn new(context: &Arc<Context>) -> Self {
        let shelf = Arc::new(Shelf { context: Arc::clone(context), state: Mutex::default() });
        context.add_shelf(&shelf);
        Self { shelf }
    }

    /// A buffer whose contents are whatever was there. Work that was queued before it was given back comes before
    /// work that is queued from now on.
    pub(super) fn take(&self, bytes: usize, category: Category) -> Result<Buffer, DeviceError> {
        let (context, home) = (&self.shelf.context, Arc::downgrade(&self.shelf));
        if let Some(address) = self.shelf.lend(bytes) {
            return Ok(Buffer::kept(context, home, address, category, bytes));
        }
        let buffer = Buffer::new(context, category, bytes)?.at_home(home);
        self.shelf.lent(bytes);
        Ok(buffer)
    }
}

/// Addresses by the bytes of their blocks.
type Blocks = HashMap<usize, Vec<u64>>;

fn take_from(blocks: &mut Blocks, bytes: usize) -> Option<u64> {
    blocks.get_mut(&bytes).and_then(Vec::pop)
}

#[derive(Debug, Default)]
struct State {
    /// Given back in this epoch.
    fresh: Blocks,
    fresh_bytes: usize,
    /// Given back before, and not wanted since.
    stale: Blocks,
    lent: usize,
    lent_bytes: usize,
    /// Most bytes lent at once in this epoch.
    peak_bytes: usize,
}

impl State {
    fn lend(&mut self, bytes: usize) {
        self.lent += 1;
        self.lent_bytes += bytes;
        self.peak_bytes = self.peak_bytes.max(self.lent_bytes);
    }

    /// Keeps what came back, if that is not more than was ever lent at once; what is to go instead.
    fn put(&mut self, address: u64, bytes: usize) -> Blocks {
        self.lent = self.lent.saturating_sub(1);
        self.lent_bytes = self.lent_bytes.saturating_sub(bytes);
        let mut leaving = Blocks::new();
        if self.fresh_bytes + bytes > self.peak_bytes {
            leaving.entry(bytes).or_default().push(address);
        } else {
            self.fresh.entry(bytes).or_default().push(address);
            self.fresh_bytes += bytes;
        }
        if self.lent == 0 {
            for (bytes, addresses) in std::mem::replace(&mut self.stale, std::mem::take(&mut self.fresh)) {
                leaving.entry(bytes).or_default().extend(addresses);
            }
            (self.fresh_bytes, self.peak_bytes) = (0, 0);
        }
        leaving
    }
}

/// What is kept of a pool.
#[derive(Debug)]
pub(super) struct Shelf {
    context: Arc<Context>,
    state: Mutex<State>,
}

impl Shelf {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address of a kept block, now lent.
    fn lend(&self, bytes: usize) -> Option<u64> {
        let mut state = self.state();
        let found = match take_from(&mut state.fresh, bytes) {
            Some(address) => {
                state.fresh_bytes -= bytes;
                address
            }
            None => take_from(&mut state.stale, bytes)?,
        };
        state.lend(bytes);
        self.context.ledger.take_kept(bytes as u64);
        Some(found)
    }

    /// Notes a block of the driver's.
    fn lent(&self, bytes: usize) {
        self.state().lend(bytes);
    }

    /// Takes back what was lent.
    pub(super) fn put(&self, address: u64, bytes: usize) {
        let leaving = {
            let mut state = self.state();
            self.context.ledger.keep(bytes as u64);
            state.put(address, bytes)
        };
        self.free(leaving);
    }

    /// Gives what is kept back to the driver; whether that was anything.
    pub(super) fn release(&self) -> bool {
        let (fresh, stale) = {
            let mut state = self.state();
            state.fresh_bytes = 0;
            (std::mem::take(&mut state.fresh), std::mem::take(&mut state.stale))
        };
        let fresh = self.free(fresh);
        self.free(stale) || fresh
    }

    fn free(&self, blocks: Blocks) -> bool {
        let mut any = false;
        for (bytes, addresses) in blocks {
            for address in addresses {
                // SAFETY: the address is the driver's and nobody else has it; the driver waits for work that may
                // use it.
                self.context.call_in_drop(|d| unsafe { (d.memory_free)(address) });
                self.context.ledger.take_kept(bytes as u64);
                any = true;
            }
        }
        any
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(blocks: &Blocks) -> usize {
        blocks.values().map(Vec::len).sum()
    }

    #[test]
    fn what_an_epoch_did_not_want_leaves_at_its_end() {
        let mut state = State::default();
        // A first epoch with two blocks of 10 bytes and one of 4.
        for bytes in [10, 10, 4] {
            state.lend(bytes);
        }
        for (address, bytes) in [(1, 10), (2, 10), (3, 4)] {
            assert_eq!(count(&state.put(address, bytes)), 0);
        }
        assert_eq!((count(&state.stale), count(&state.fresh), state.peak_bytes), (3, 0, 0));
        // A second with one of 10: the other two leave.
        assert!(take_from(&mut state.stale, 10).is_some());
        state.lend(10);
        let mut leaving = state.put(2, 10);
        assert_eq!((leaving.remove(&10), leaving.remove(&4)), (Some(vec![1]), Some(vec![3])));
        assert_eq!(count(&state.stale), 1);
    }

    #[test]
    fn no_more_is_kept_than_was_lent_at_once() {
        let mut state = State::default();
        // One stays lent, so that the epoch does not end; others of ever new sizes come and go.
        state.lend(1);
        for bytes in 10..20 {
            state.lend(bytes);
            state.put(bytes as u64, bytes);
            assert!(state.fresh_bytes <= state.peak_bytes);
        }
        assert_eq!((state.peak_bytes, state.fresh_bytes), (20, 10));
    }
}
