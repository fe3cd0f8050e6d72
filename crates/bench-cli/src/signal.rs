//! Ctrl-C: the first stops at the next token and keeps what there is, the second ends at once.

use crate::progress::terminal;
use bench_core::target::StopFlag;

static STOP: StopFlag = StopFlag::new();

/// The flag that every long command looks at.
pub(crate) fn stop() -> &'static StopFlag {
    &STOP
}

/// Called once, by the binary.
pub fn install() {
    // Without a handler Ctrl-C still ends the program; finished trials are on disk by then.
    let _ = ctrlc::set_handler(|| interrupt(&STOP));
}

/// What Ctrl-C does, and the key that stands for it where the terminal does not make a signal of it.
pub(crate) fn interrupt(stop: &StopFlag) {
    if stop.is_set() {
        terminal::give_back();
        std::process::exit(130);
    }
    stop.stop();
}
