//! Ctrl-C: the first stops at the next token and keeps what there is, the second ends at once.

use bench_core::target::StopFlag;

static STOP: StopFlag = StopFlag::new();

/// The flag that every long command looks at.
pub(crate) fn stop() -> &'static StopFlag {
    &STOP
}

/// Called once, by the binary.
pub fn install() {
    // Without a handler Ctrl-C still ends the program; finished trials are on disk by then.
    let _ = ctrlc::set_handler(|| {
        if STOP.is_set() {
            std::process::exit(130);
        }
        STOP.stop();
    });
}
