//! Two lines on a terminal: a bar with the trial and the time left, and every figure below it.

use super::state::Snapshot;
use super::text;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Steps of a full bar.
const STEPS: u64 = 1_000;

pub(super) struct Bar(ProgressBar);

impl Bar {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(STEPS), ProgressDrawTarget::stderr_with_hz(10));
        if let Ok(style) = ProgressStyle::with_template("{prefix} {wide_bar} {percent} %\n{wide_msg}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    pub(super) fn draw(&self, snapshot: &Snapshot) {
        self.0.set_prefix(text::phase(snapshot));
        self.0.set_message(text::figures(snapshot));
        self.0.set_position((snapshot.fraction * STEPS as f64) as u64);
    }

    /// Prints `write` above the bar.
    pub(super) fn above(&self, write: impl FnOnce()) {
        self.0.suspend(write);
    }

    pub(super) fn finish(&self) {
        self.0.finish_and_clear();
    }
}
