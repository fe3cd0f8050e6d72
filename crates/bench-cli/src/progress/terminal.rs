//! Takes the terminal for a full screen, and gives it back however the program ends: when the view does, by
//! an error, by a panic of any thread, or by a second Ctrl-C.
//!
//! It draws nothing and reads no key.

use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use std::io::{self, stderr};
use std::panic;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the terminal of this process is taken.
static TAKEN: AtomicBool = AtomicBool::new(false);
static HOOK: Once = Once::new();

/// Holds the terminal until it is dropped.
pub(super) struct Taken(());

/// Raw mode and the alternate screen, on standard error.
pub(super) fn take() -> io::Result<Taken> {
    HOOK.call_once(|| {
        let before = panic::take_hook();
        // The message of a panic must not be written to a screen that goes away.
        panic::set_hook(Box::new(move |info| {
            give_back();
            before(info);
        }));
    });
    take_with(&TAKEN, enter, leave)?;
    Ok(Taken(()))
}

impl Drop for Taken {
    fn drop(&mut self) {
        give_back();
    }
}

/// Gives the terminal back if it is taken; any thread may do so, at any time.
pub(crate) fn give_back() {
    give_back_with(&TAKEN, leave);
}

fn enter() -> io::Result<()> {
    enable_raw_mode()?;
    execute!(stderr(), EnterAlternateScreen, Hide)
}

fn leave() {
    // Each step is tried, whatever became of the others; nobody is left to tell.
    let _ = execute!(stderr(), LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}

/// Marks the terminal as taken before it is touched, so that a panic in between gives it back as well.
fn take_with(
    taken: &AtomicBool,
    enter: impl FnOnce() -> io::Result<()>,
    leave: impl FnOnce(),
) -> io::Result<()> {
    if taken.swap(true, Ordering::SeqCst) {
        return Err(io::Error::other("another view has it"));
    }
    enter().inspect_err(|_| give_back_with(taken, leave))
}

fn give_back_with(taken: &AtomicBool, leave: impl FnOnce()) {
    if taken.swap(false, Ordering::SeqCst) {
        leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn the_terminal_is_given_back_once() {
        let (taken, left) = (AtomicBool::new(false), Cell::new(0));
        let leave = || left.set(left.get() + 1);
        give_back_with(&taken, leave);
        assert_eq!(left.get(), 0, "it was never taken");
        take_with(&taken, || Ok(()), leave).unwrap();
        assert!(taken.load(Ordering::SeqCst));
        assert!(take_with(&taken, || panic!("entered twice"), leave).is_err());
        give_back_with(&taken, leave);
        give_back_with(&taken, leave);
        assert_eq!(left.get(), 1);
        take_with(&taken, || Ok(()), leave).unwrap();
        give_back_with(&taken, leave);
        assert_eq!(left.get(), 2, "it can be taken again");
    }

    #[test]
    fn what_fails_half_way_is_undone() {
        let (taken, left) = (AtomicBool::new(false), Cell::new(0));
        let leave = || left.set(left.get() + 1);
        let refused = take_with(&taken, || Err(io::Error::other("no terminal")), leave);
        assert_eq!(refused.unwrap_err().to_string(), "no terminal");
        assert_eq!((left.get(), taken.load(Ordering::SeqCst)), (1, false));
        // A panic while entering: the hook gives it back.
        let entered = catch_unwind(AssertUnwindSafe(|| take_with(&taken, || panic!("as wanted"), leave)));
        assert!(entered.is_err());
        give_back_with(&taken, leave);
        assert_eq!((left.get(), taken.load(Ordering::SeqCst)), (2, false));
    }
}
