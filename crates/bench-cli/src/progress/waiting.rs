//! One thing that takes long: loading, writing, downloading. A bar on a terminal, a line now and then
//! elsewhere.
//!
//! Runs have a view of their own, with figures; this shows a fraction and nothing else.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Lines are no closer than this where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// A bar appears once something has taken this long.
const BAR_AFTER: Duration = Duration::from_secs(2);

/// A fraction of one thing that takes long: loading, writing, downloading.
pub(crate) struct Waiting<'a> {
    err: &'a mut dyn Write,
    bar: Option<ProgressBar>,
    what: String,
    began: Instant,
    last_line: Instant,
    lines: u32,
}

impl<'a> Waiting<'a> {
    pub(crate) fn new(what: &str, err: &'a mut dyn Write) -> Self {
        let now = Instant::now();
        Self { err, bar: None, what: what.to_owned(), began: now, last_line: now, lines: 0 }
    }

    /// `done` of `total`, in `unit` (`B` is written as bytes).
    pub(crate) fn set(&mut self, done: u64, total: u64, unit: &str) {
        if self.began.elapsed() < BAR_AFTER {
            return;
        }
        if std::io::stderr().is_terminal() {
            let bar = self.bar.get_or_insert_with(|| bar(&self.what, unit));
            bar.set_length(total);
            bar.set_position(done);
        } else if self.lines == 0 || self.last_line.elapsed() >= LINE_INTERVAL {
            let percent = 100.0 * done as f64 / total.max(1) as f64;
            // A progress line that cannot be written is not worth a failure.
            let _ = writeln!(self.err, "{}: {percent:.0} % after {:.0?}", self.what, self.began.elapsed());
            self.last_line = Instant::now();
            self.lines += 1;
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(what: &str, unit: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
    let template = match unit {
        "B" => "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
        _ => "{prefix} {wide_bar} {pos}/{len} {per_sec} {eta} left",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_prefix(what.to_owned());
    bar
}
